"""Models that take pixels, choose classes, or keep what followed their head: the bundle answers as it would without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import icis_deploy
from exporters.conversion import convert as model_conversion
from exporters.gate import gate
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import GateFailedError, IncompatibleError, UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.loading import load_image_list
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.updates.envelope import save_update
from testing.tiny_project import FEATURE_DIM, GRAPH, NUM_SEEN, SIDE, TinyProject

TAILS = {
    "logits": ("float[batch, 40] scores", "scores = Identity (logits)", "logits"),
    "sigmoid": ("float[batch, 40] scores", "scores = Sigmoid (logits)", "sigmoid"),
    "softmax": ("float[batch, 40] scores", "scores = Softmax <axis = 1> (logits)", "probabilities"),
    "log-softmax": ("float[batch, 40] scores", "scores = LogSoftmax <axis = 1> (logits)", "log-probabilities"),
    "temperature": ("float[batch, 40] scores", "scores = Div (logits, warmth)", "logits"),
    "top": (
        "float[batch, 3] values, int64[batch, 3] choices",
        "values, choices = TopK <axis = 1> (logits, three)",
        "logits",
    ),
    "argmax": ("int64[batch] choice", "choice = ArgMax <axis = 1, keepdims = 0> (logits)", "logits"),
}


def with_tail(project: TinyProject, name: str, folder: Path) -> Path:
    outputs, tail, _ = TAILS[name]
    text = GRAPH.replace("float[batch, 40] logits", outputs).replace("bias)\n", f"bias)\n    {tail}\n")
    model = onnx.parser.parse_model(text)
    for weight in onnx.load(project.model).graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        # Smaller logits, which no probability hides.
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(array if weight.name == "filters" else array / np.float32(100), weight.name)
        )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2.5).reshape(()), "warmth"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3], np.int64), "three"))
    onnx.save(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def update_for(model: Path, project: TinyProject) -> ClassUpdate:
    head = icis_deploy.inspect(model, classes=project.classes).head
    assert head is not None
    rows = np.random.default_rng(5).normal(size=(2, FEATURE_DIM + 1)) * head.rows.std()
    return ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=("okapi", "quagga"), version=1)


def exported(
    model: Path, project: TinyProject, out: Path, *, head: str = "fused", updates: int = 1, **form: object
) -> Device:
    icis_deploy.export(
        model,
        classes=project.classes,
        updates=[update_for(model, project)] * updates,
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=8 if head == "updatable" else None,
            preprocess=project.preprocess,
            form=ModelForm(**form),
        ),
        out=out,
        overwrite=True,
    )
    return Device.open(out)


@pytest.mark.parametrize("head", ["fused", "updatable"])
@pytest.mark.parametrize("name", TAILS)
def test_a_model_keeps_what_follows_its_head_with_more_classes(
    name: str, head: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    device = exported(with_tail(tiny_project, name, tmp_path), tiny_project, tmp_path / "bundle", head=head)
    assert device.bundle.score_kind == TAILS[name][2]
    files = load_image_list(tiny_project.images).paths[:4]
    plain = exported(with_tail(tiny_project, "logits", tmp_path), tiny_project, tmp_path / "plain", head=head)
    logits = plain.logits(plain.prepare(files)).values
    answers = device.predict(files, top=2)
    assert [device.classes().index(answer.class_names[0]) for answer in answers] == logits.argmax(axis=1).tolist()
    if name == "sigmoid":
        best = logits.max(axis=1)
        np.testing.assert_allclose([a.probabilities[0] for a in answers], 1 / (1 + np.exp(-best)), atol=1e-5)
    outputs = [output.name for output in onnx.load(tmp_path / "bundle" / "model.onnx").graph.output]
    kept = {"top": ["values", "choices"], "argmax": ["choice"]}.get(name, ["scores"])
    assert set(kept) <= set(outputs)


@pytest.mark.parametrize("name", ["top", "argmax"])
def test_a_model_that_only_chooses_can_be_float16(name: str, tiny_project: TinyProject, tmp_path: Path) -> None:
    model = with_tail(tiny_project, name, tmp_path)
    device = exported(model, tiny_project, tmp_path / "bundle", head="updatable", precision="fp16")
    assert device.logits(np.zeros((1, 3, SIDE, SIDE), np.float32)).values.shape == (1, NUM_SEEN + 2)


def test_a_sigmoid_model_takes_a_class_update_and_tests_its_slots(tiny_project: TinyProject, tmp_path: Path) -> None:
    model = with_tail(tiny_project, "sigmoid", tmp_path)
    device = exported(model, tiny_project, tmp_path / "bundle", head="updatable", updates=0)
    save_update(update_for(model, tiny_project), tmp_path / "new.icis")
    device.apply(tmp_path / "new.icis", allow_unsigned=True, allow_changed_answers=True)
    assert device.classes()[-2:] == ("okapi", "quagga")


@pytest.mark.parametrize(("color", "layout"), [("RGB", "NCHW"), ("BGR", "NCHW"), ("RGB", "NHWC")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_model_that_takes_pixels_answers_as_one_that_takes_prepared_images(
    color: str, layout: str, precision: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    model = tiny_project.model
    if layout == "NHWC":
        text = GRAPH.replace("[batch, 3, 16, 16] image", "[batch, 16, 16, 3] image")
        text = text.replace("maps = Conv", "turned = Transpose <perm = [0, 3, 1, 2]> (image)\n    maps = Conv")
        text = text.replace("(image, filters)", "(turned, filters)")
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.extend(onnx.load(tiny_project.model).graph.initializer)
        model = tmp_path / "last.onnx"
        onnx.save(proto, model)
    settings = Preprocessing(
        resize=SIDE, crop=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), color=color, layout=layout
    )
    files = load_image_list(tiny_project.images).paths[:4]
    found = {}
    for taken in ("float32", "uint8"):
        icis_deploy.export(
            model,
            classes=tiny_project.classes,
            options=icis_deploy.ExportOptions(
                preprocess=settings, form=ModelForm(model_input=taken, precision=precision)
            ),
            out=tmp_path / taken,
        )
        device = Device.open(tmp_path / taken)
        images = device.prepare(files)
        assert images.dtype == taken
        found[taken] = device.logits(images).values
    assert images.shape == (4, SIDE, SIDE, 3)
    np.testing.assert_allclose(found["uint8"], found["float32"], atol=1e-5 * np.abs(found["float32"]).max())


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_a_model_that_chooses_gives_the_same_answers_as_the_device(
    head: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    plain = exported(tiny_project.model, tiny_project, tmp_path / "plain", head=head, top=0)
    device = exported(tiny_project.model, tiny_project, tmp_path / "bundle", head=head, model_input="uint8")
    assert (plain.bundle.top, device.bundle.top) == (0, 5)
    assert session_of(plain).top(np.zeros((1, 3, SIDE, SIDE), np.float32)) is None
    files = load_image_list(tiny_project.images).paths
    for top in (1, 5, 9):
        for answer, expected in zip(device.predict(files, top=top), plain.predict(files, top=top), strict=True):
            assert answer.class_names == expected.class_names
            np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)


def test_the_choice_is_two_small_arrays_for_one_array_of_bytes(tiny_project: TinyProject, tmp_path: Path) -> None:
    device = exported(tiny_project.model, tiny_project, tmp_path / "bundle", top=3, model_input="uint8")
    chosen = session_of(device).top(np.zeros((2, SIDE, SIDE, 3), np.uint8))
    assert chosen is not None
    assert [array.shape for array in chosen] == [(2, 3), (2, 3)]
    assert [array.dtype for array in chosen] == [np.float32, np.int64]


@pytest.mark.parametrize("top", [0, 5])
def test_what_reads_the_first_output_sees_no_choice(top: int, tiny_project: TinyProject, tmp_path: Path) -> None:
    for head in ("fused", "updatable"):
        exported(tiny_project.model, tiny_project, tmp_path / "bundle", head=head, top=top)
        outputs = [output.name for output in onnx.load(tmp_path / "bundle" / "model.onnx").graph.output]
        chosen = ["top_probabilities", "top_class_ids"] if top else []
        assert outputs == ["logits", *chosen, *(["features"] if head == "updatable" else [])]


def test_a_model_with_fewer_classes_than_are_asked_for_chooses_all(tiny_project: TinyProject, tmp_path: Path) -> None:
    device = exported(tiny_project.model, tiny_project, tmp_path / "bundle", top=99)
    assert device.bundle.top == len(device.classes()) == NUM_SEEN + 2
    plain = exported(tiny_project.model, tiny_project, tmp_path / "plain", top=0)
    images = plain.prepare(load_image_list(tiny_project.images).paths[:3])
    for top in (2, 42, 60):
        answers, expected = device.predict(images, top=top), plain.predict(images, top=top)
        assert [answer.class_names for answer in answers] == [answer.class_names for answer in expected]


def test_a_model_that_was_exported_can_be_exported_again(tiny_project: TinyProject, tmp_path: Path) -> None:
    device = exported(tiny_project.model, tiny_project, tmp_path / "bundle")
    (tmp_path / "classes.txt").write_text("\n".join(device.classes()) + "\n", encoding="utf-8")
    icis_deploy.export(
        tmp_path / "bundle" / "model.onnx",
        classes=tmp_path / "classes.txt",
        options=icis_deploy.ExportOptions(preprocess=tiny_project.preprocess, form=ModelForm(top=3)),
        out=tmp_path / "again",
    )
    again, images = Device.open(tmp_path / "again"), load_image_list(tiny_project.images).paths[:3]
    assert again.bundle.top == 3
    answers, expected = again.predict(images, top=3), device.predict(images, top=3)
    assert [answer.class_names for answer in answers] == [answer.class_names for answer in expected]


@pytest.mark.parametrize("index", [0, -1])
def test_a_class_that_is_disabled_wherever_it_stands_leaves_room_for_the_next(
    index: int, tiny_project: TinyProject, tmp_path: Path
) -> None:
    files = load_image_list(tiny_project.images).paths[:3]
    devices = [exported(tiny_project.model, tiny_project, tmp_path / str(top), top=top) for top in (0, NUM_SEEN + 2)]
    for device in devices:
        device.disable(device.classes()[index])
    plain, device = devices
    assert device.predict(files, top=NUM_SEEN + 1) == plain.predict(files, top=NUM_SEEN + 1)
    device.enable(plain.bundle.class_names[index])
    assert len(device.predict(files, top=NUM_SEEN + 2)[0].class_names) == NUM_SEEN + 2


def test_an_empty_slot_between_others_is_left_out_of_the_models_choice(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = load_image_list(tiny_project.images).paths[:3]
    found = []
    for top in (0, NUM_SEEN + 8):
        device = exported(tiny_project.model, tiny_project, tmp_path / str(top), head="updatable", top=top)
        fingerprint, rows = device.bundle.base_fingerprint, np.zeros((0, device.bundle.feature_dim + 1), np.float32)
        update = ClassUpdate(base_fingerprint=fingerprint, rows=rows, removed=("okapi",), version=2)
        save_update(update, tmp_path / "removal.icis")
        device.apply(tmp_path / "removal.icis", allow_unsigned=True, allow_changed_answers=True)
        if top:
            monkeypatch.setattr(type(session_of(device)), "run", None)  # nothing but the choice is asked for
        found.append(device.predict(files, top=NUM_SEEN + 1))
    for answer, expected in zip(found[1], found[0], strict=True):
        assert answer.class_names == expected.class_names
        assert answer.class_names.count("quagga") == 1
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)


def test_a_disabled_class_is_never_chosen_and_the_probabilities_are_over_the_others(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    device = exported(tiny_project.model, tiny_project, tmp_path / "bundle", top=2)
    plain = exported(tiny_project.model, tiny_project, tmp_path / "plain", top=0)
    files = load_image_list(tiny_project.images).paths[:1]
    (before,) = device.predict(files, top=1)
    for each in (device, plain):
        each.disable(before.class_names[0])
    assert device.predict(files, top=2) == plain.predict(files, top=2)
    assert before.class_names[0] not in device.predict(files, top=2)[0].class_names


def test_a_new_class_is_chosen_by_its_own_name_after_an_update(tiny_project: TinyProject, tmp_path: Path) -> None:
    device = exported(tiny_project.model, tiny_project, tmp_path / "bundle", head="updatable", updates=0, top=3)
    update = update_for(tiny_project.model, tiny_project)
    rows = update.rows.copy()
    rows[1, -1] = 1e3
    save_update(
        ClassUpdate(base_fingerprint=update.base_fingerprint, rows=rows, added=update.added, version=1),
        tmp_path / "new.icis",
    )
    device.apply(tmp_path / "new.icis", allow_unsigned=True, allow_changed_answers=True)
    (answer,) = device.predict(load_image_list(tiny_project.images).paths[:1], top=1)
    assert (answer.class_names, answer.version) == (("quagga",), 1)
    assert answer.probabilities == pytest.approx((1.0,))


def test_a_choice_that_is_not_of_the_greatest_scores_is_rejected_and_named(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SmallestPass(model_conversion.AddTopKPass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = super().call(model)
            next(node for node in model.graph if node.op_type == "TopK").attributes.add(ir.AttrInt64("largest", 0))
            return result

    monkeypatch.setattr(model_conversion, "AddTopKPass", SmallestPass)
    with pytest.raises(
        GateFailedError, match="the classes that the model chooses are not those with the greatest scores"
    ):
        exported(tiny_project.model, tiny_project, tmp_path / "bundle", top=3)
    assert (tmp_path / "bundle.rejected" / "parity.json").exists()


@pytest.mark.parametrize(("error", "is_caught"), [(3e-6, False), (3e-5, True)])
def test_probabilities_of_a_choice_are_those_of_its_scores(
    error: float, is_caught: bool, tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off:
        """A session whose model gives probabilities that are a little off."""

        def __init__(self, session: object) -> None:
            self.session = session

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

        def top(self, *arguments: object) -> tuple[np.ndarray, np.ndarray]:
            probabilities, columns = self.session.top(*arguments)
            return probabilities + np.float32(error), columns

    real = gate.session_of
    monkeypatch.setattr(gate, "session_of", lambda device: Off(real(device)))
    if not is_caught:
        exported(tiny_project.model, tiny_project, tmp_path / "bundle", top=3)
        assert (tmp_path / "bundle" / "manifest.json").is_file()
        return
    with pytest.raises(GateFailedError, match="probabilities that the model gives are not those of its scores"):
        exported(tiny_project.model, tiny_project, tmp_path / "bundle", top=3)


def test_what_cannot_be_done_is_refused(tiny_project: TinyProject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot choose -1 classes; expected at least 0\. Give another `top`"):
        ModelForm(top=-1)
    with pytest.raises(UsageError, match=r"takes pixels needs to know how they are prepared\. Give `preprocess`"):
        icis_deploy.export(
            tiny_project.model,
            classes=tiny_project.classes,
            options=icis_deploy.ExportOptions(form=ModelForm(model_input="uint8")),
            out=tmp_path / "bundle",
        )
    with pytest.raises(UsageError, match=r"^There is no model input 'int4'"):
        ModelForm(model_input="int4")
    assert not (tmp_path / "bundle").exists()
    assert NUM_SEEN == 40


def test_an_output_named_as_the_choice_is_refused_unless_none_is_asked_for(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    model = onnx.load(tiny_project.model)
    model.graph.node.add(op_type="Sigmoid", input=["logits"], output=["top_probabilities"], name="own")
    model.graph.output.add().CopyFrom(
        onnx.helper.make_tensor_value_info("top_probabilities", onnx.TensorProto.FLOAT, ["batch", NUM_SEEN])
    )
    onnx.save(model, tmp_path / "own.onnx")
    with pytest.raises(IncompatibleError, match="has an output 'top_probabilities'; a bundle's model uses that name"):
        exported(tmp_path / "own.onnx", tiny_project, tmp_path / "bundle", updates=0)
    assert not (tmp_path / "bundle").exists()
    device = exported(tmp_path / "own.onnx", tiny_project, tmp_path / "bundle", updates=0, top=0)
    assert len(device.classes()) == NUM_SEEN
