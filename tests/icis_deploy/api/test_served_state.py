"""`verify` compares the classes that a device would serve now, and says which those are; so do the other answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.errors import CorruptFileError, GateFailedError, ImageError, ModelLoadError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state.store import Store
from testing.tiny_project import NUM_SEEN, TinyProject

LENGTH = icis_deploy.InjectionOptions(method="ridge", calibration="length")


@pytest.fixture(scope="module")
def update(tiny_project: TinyProject) -> icis_deploy.ClassUpdate:
    return icis_deploy.inject(
        tiny_project.model, classes=tiny_project.classes, descriptors=tiny_project.descriptors, options=LENGTH
    )


@pytest.fixture
def bundle(tiny_project: TinyProject, tmp_path: Path) -> Path:
    options = icis_deploy.ExportOptions(head="updatable", preprocess=tiny_project.preprocess, max_changed_answers=None)
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=tmp_path / "bundle", options=options)
    return tmp_path / "bundle"


def apply_to(bundle: Path, update: icis_deploy.ClassUpdate) -> None:
    Device.open(bundle).apply(update, allow_unsigned=True)


def test_classes_of_an_update_are_compared_after_it_was_applied(bundle, tiny_project, update):
    before = icis_deploy.verify(bundle, against=tiny_project.model, images=tiny_project.images)
    apply_to(bundle, update)
    after = icis_deploy.verify(bundle, against=tiny_project.model, images=tiny_project.images)

    assert [report.num_classes for report in before] == [NUM_SEEN, NUM_SEEN]
    assert [report.num_classes for report in after] == [NUM_SEEN + len(update.added), NUM_SEEN]
    assert "as a device serves them" not in before[0].compared_with
    assert "slots of version 1, as a device serves them" in after[0].compared_with
    assert after[0].seen_loss is not None


def test_after_a_rollback_it_compares_what_was_exported(bundle, tiny_project, update):
    apply_to(bundle, update)
    Device.open(bundle).rollback()
    reports = icis_deploy.verify(bundle, against=tiny_project.model)

    assert [report.num_classes for report in reports] == [NUM_SEEN, NUM_SEEN]


def test_slots_that_a_device_would_refuse_are_no_pass(bundle, tiny_project, update):
    apply_to(bundle, update)
    (slots,) = (bundle / "state").glob("slots-*.safetensors")
    data = bytearray(slots.read_bytes())
    data[-1] ^= 1
    slots.write_bytes(data)

    with pytest.raises(CorruptFileError):
        icis_deploy.verify(bundle, against=tiny_project.model)


def test_a_wrong_row_that_a_device_serves_fails(bundle, tiny_project, update, monkeypatch):
    """Not the file but what the model makes of it: the gate sees it, as at an export."""
    apply_to(bundle, update)
    described, store = icis_deploy.load_bundle(bundle), Store(bundle)
    table = store.load_table(described, store.load_journal(described).current)
    wrong = table.weight.copy()
    wrong[0] *= 1.1
    from exporters.gate import gate

    served = gate.ServedState
    monkeypatch.setattr(
        gate,
        "ServedState",
        lambda table, version, disabled: served(
            table=type(table)(weight=wrong, bias=table.bias, class_names=table.class_names, arbiter=table.arbiter),
            version=version,
            disabled=disabled,
        ),
    )
    with pytest.raises(GateFailedError, match="disagrees with"):
        icis_deploy.verify(bundle, against=tiny_project.model)


def test_the_command_says_which_state_it_compared(bundle, tiny_project, update, capsys):
    apply_to(bundle, update)
    Device.open(bundle).disable("class03")
    capsys.readouterr()
    assert run(["verify", str(bundle), "--against", str(tiny_project.model)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert run(["verify", str(bundle), "--against", str(tiny_project.model), "--format", "json"]) == 0

    assert first == (
        "State 1, as a device serves it: 46 classes, 6 of them in slots; disabled, in no answer and not compared: "
        "class03."
    )
    assert json.loads(capsys.readouterr().out)["state"] == {
        "version": 1,
        "num_classes": 46,
        "num_in_slots": 6,
        "disabled": ["class03"],
    }


@pytest.mark.parametrize(
    "disabled",
    [
        ("class03", "class45"),
        tuple(f"class{index:02}" for index in range(1, NUM_SEEN)),
        tuple(f"class{index:02}" for index in range(NUM_SEEN)),
    ],
    ids=["one of each", "all seen ones but one", "all seen ones"],
)
def test_disabled_classes_are_compared_nowhere(bundle, tiny_project, update, disabled):
    """What is compared are the answers of the device: without them, also in what an arbiter makes of the others."""
    has_arbiter = replace(update, arbiter=np.linspace(-1, 1, 5 * len(update.added), dtype=np.float32).reshape(-1, 5))
    apply_to(bundle, has_arbiter)
    with Device.open(bundle) as device:
        for name in disabled:
            device.disable(name)
        served = device.classes()
    reports = icis_deploy.verify(bundle, against=tiny_project.model, images=tiny_project.images)

    num_seen = len([name for name in served if name in tiny_project.seen_names])
    # Without a seen class there is nothing that the original model says something of.
    assert [report.num_classes for report in reports] == [len(served), *([num_seen] if num_seen else [])]
    assert "disabled" in reports[0].compared_with
    assert disabled[0] in reports[0].compared_with


def test_a_disabled_class_that_took_every_answer_costs_nothing(bundle, tiny_project, update):
    """The owner has it no more: what the device serves keeps the budget, and what it would serve again does not."""
    greedy = replace(update, rows=update.rows + np.eye(update.rows.shape[1], dtype=np.float32)[-1] * 1e3)
    apply_to(bundle, greedy)

    def verified() -> tuple[icis_deploy.ParityReport, ...]:
        return icis_deploy.verify(bundle, against=tiny_project.model, images=tiny_project.images, max_seen_loss=0.02)

    lost = verified()[0].seen_loss
    assert lost is not None
    assert (lost.after, lost.num_lost) == (0.0, round(lost.before * lost.num_images))
    assert lost.num_lost > 0
    with Device.open(bundle) as device:
        for name in update.added:
            device.disable(name)
    assert verified()[0].seen_loss is None


def test_disabled_classes_of_a_fused_head_are_left_out_too(tiny_project, update, tmp_path):
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess, max_changed_answers=None)
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        updates=[update],
        out=tmp_path / "bundle",
        options=options,
    )
    Device.open(tmp_path / "bundle").disable("class00")
    reports = icis_deploy.verify(tmp_path / "bundle", against=tiny_project.model)

    assert [report.num_classes for report in reports] == [NUM_SEEN + len(update.added) - 1, NUM_SEEN - 1]
    assert reports[0].compared_with.endswith("; without 'class00', disabled")


def test_disabled_classes_are_named_where_no_answer_has_them(bundle, tiny_project, update, capsys):
    apply_to(bundle, update)
    Device.open(bundle).disable("class03")
    image = str(tiny_project.images.parent / "class03.png")
    assert run(["predict", str(bundle), image, "--top", "50"]) == 0
    out, err = capsys.readouterr()
    assert "class03\n" not in out.replace(image, "")
    assert err == "Disabled, and in no answer: 'class03'.\n"
    assert run(["predict", str(bundle), image, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["disabled"] == ["class03"]

    with pytest.raises(ImageError, match="shows 'class03', disabled on this device") as raised:
        icis_deploy.evaluate(bundle, images=tiny_project.images)
    assert "Device.enable()" in raised.value.hint


def test_a_disabled_seen_class_makes_no_new_one_a_seen_one(bundle, tiny_project, update):
    """Which classes are unseen does not follow from where they stand among the enabled ones."""
    apply_to(bundle, update)
    names = (*tiny_project.seen_names[1:], *tiny_project.unseen_names)
    files = {name: tiny_project.images.parent / f"{name}.png" for name in names}
    with Device.open(bundle) as device:
        device.disable(tiny_project.seen_names[0])
        report = icis_deploy.evaluate(device, images=files)

    assert (report.num_seen_images, report.num_unseen_images) == (NUM_SEEN - 1, len(update.added))


@pytest.mark.parametrize(("count", "expected"), [(6, 256), (200, 400)])
def test_an_updatable_head_has_slots_without_being_asked(tiny_project, tmp_path, count, expected):
    opened = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    rows = np.random.default_rng(0).normal(size=(count, opened.head.feature_dim + 1)).astype(np.float32)
    update = icis_deploy.ClassUpdate(
        base_fingerprint=opened.head.fingerprint, rows=rows, added=[f"new {index}" for index in range(count)]
    )
    options = icis_deploy.ExportOptions(head="updatable", max_changed_answers=None)
    bundle = icis_deploy.export(opened, updates=[update], out=tmp_path / "bundle", options=options)

    assert bundle.capacity == expected


def test_sign_says_what_it_keeps(tmp_path, update, capsys):
    path, key = tmp_path / "new.icis", str(tmp_path / "KEY")
    icis_deploy.save_update(update, path)
    assert run(["keygen", "--out", key]) == 0
    assert run(["sign", str(path), "--key", key, "--version", "2", "--expires", "2099-01-01"]) == 0
    capsys.readouterr()
    assert run(["sign", str(path), "--key", key, "--version", "3"]) == 0
    printed = capsys.readouterr().out
    assert run(["sign", str(path), "--key", key, "--format", "json"]) == 0

    assert "2099-01-01T00:00:00+00:00, as the file had it; --expires sets another" in printed
    assert "version    3\n" in printed.replace("version      3", "version    3")
    assert json.loads(capsys.readouterr().out)["kept"] == ["version", "expires"]


def one_logit_model(path: Path, *, num_rows: int) -> Path:
    import onnx
    import onnx.parser

    model = onnx.parser.parse_model(
        f"""
<ir_version: 8, opset_import: ["": 18]>
binary (float[batch, 4] columns) => (float[batch, {num_rows}] scores) {{
    hidden = MatMul (columns, backbone)
    positive = Relu (hidden)
    logits = Gemm <transB = 1> (positive, weight, bias)
    scores = {"Sigmoid" if num_rows == 1 else "Softmax <axis = 1>"} (logits)
}}
"""
    )
    random = np.random.default_rng(0)
    for name, shape in (("backbone", (4, 5)), ("weight", (num_rows, 5)), ("bias", (num_rows,))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    onnx.save(model, path)
    return path


def test_a_head_of_one_logit_is_told_how_it_becomes_one_of_two(tmp_path):
    with pytest.raises(ModelLoadError, match="gives one number, which is no choice between classes") as raised:
        icis_deploy.inspect(one_logit_model(tmp_path / "model.onnx", num_rows=1))
    assert raised.value.exit_code == 3
    assert "two rows, one of zeros and the one that it has" in raised.value.hint
    assert "the softmax of (0, z) is the sigmoid of z" in raised.value.hint


def test_a_head_of_two_classes_takes_new_ones_with_a_plain_word_of_doubt(tmp_path):
    model = one_logit_model(tmp_path / "model.onnx", num_rows=2)
    described = {name: np.random.default_rng(index).normal(size=3) for index, name in enumerate(("no", "yes", "maybe"))}
    with pytest.warns(icis_deploy.ICISDeployWarning, match=r"2 seen classes|few"):
        update = icis_deploy.inject(model, classes=["no", "yes"], descriptors=described)
    icis_deploy.export(model, classes=["no", "yes"], updates=[update], out=tmp_path / "bundle")

    (answer,) = Device.open(tmp_path / "bundle").predict(np.zeros((1, 4), np.float32))
    assert set(answer.class_names) == {"no", "yes", "maybe"}
