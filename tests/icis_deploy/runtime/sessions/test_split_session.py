"""The backbone in one runtime and the head in numpy: a device as any other, whatever follows the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import icis_deploy
from exporters.onnx_io.files import save_model
from icis_deploy.api.models import inspect
from icis_deploy.bundle.baked_rows import load_baked_rows
from icis_deploy.bundle.manifest import BACKBONE_NAME, BAKED_ROWS_NAME, Bundle, load_bundle, load_manifest
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.bundle.target_options import BackboneSettings, TargetOptions
from icis_deploy.errors import (
    BundleError,
    CorruptFileError,
    ExportError,
    GuardError,
    IncompatibleError,
    RuntimeFailureError,
    SelfTestError,
    SignatureError,
    UsageError,
)
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.choice import Runtime, loaded_files
from icis_deploy.runtime.sessions.split_session import SplitSession
from testing.asking import asking
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, TinyProject
from tests.exporters.head_graphs import GRAPHS, rows

CAPACITY = 8


def update_of(
    project: TinyProject, version: int = 1, *, names: tuple[str, ...] = ("okapi", "quagga"), arbiter: bool = True
) -> ClassUpdate:
    rng = np.random.default_rng(version)
    fingerprint = inspect(project.model, classes=project.classes).head.fingerprint
    return ClassUpdate(
        base_fingerprint=fingerprint,
        rows=rng.normal(size=(len(names), FEATURE_DIM + 1)),
        arbiter=rng.normal(size=(len(names), 5)) / 10 if arbiter else None,
        added=names,
        version=version,
    )


def exported(
    project: TinyProject,
    out: Path,
    *,
    head: str = "updatable",
    form: ModelForm | None = None,
    settings: BackboneSettings | None = None,
    **options: object,
) -> Bundle:
    return icis_deploy.export(
        project.model,
        classes=project.classes,
        updates=[update_of(project)],
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=CAPACITY if head == "updatable" else None,
            preprocess=project.preprocess,
            form=form or ModelForm(),
            targets=["backbone"],
            target_options=TargetOptions(backbone=settings or BackboneSettings()),
            max_changed_answers=options.pop("max_changed_answers", None),
            **options,
        ),
        out=out,
    )


def images(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


def both(folder: Path) -> tuple[Device, Device]:
    return Device.open(folder), Device.open(folder, runtime="split")


@pytest.mark.parametrize("head", ["fused", "updatable"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_split_device_answers_as_the_whole_model_in_every_precision(
    precision: str, head: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    form = ModelForm(precision=precision, calibration_images=tiny_project.images if precision == "int8" else None)
    bundle = exported(tiny_project, tmp_path / "bundle", head=head, form=form)
    assert {BACKBONE_NAME, BAKED_ROWS_NAME} <= set(bundle.files)
    assert any(report["compared_with"].endswith("the bundle in split") for report in bundle.parity)
    assert all(report["passed"] for report in bundle.parity)
    whole, split = both(tmp_path / "bundle")
    tolerance = 0.05 if precision == "fp16" else 1e-4
    np.testing.assert_allclose(split.logits(images()).values, whole.logits(images()).values, atol=tolerance)
    for ours, theirs in zip(split.predict(images()), whole.predict(images()), strict=True):
        assert ours.class_names[0] == theirs.class_names[0]
    backbone = onnx.load(tmp_path / "bundle" / BACKBONE_NAME)
    (output,) = backbone.graph.output
    assert output.name == "features"
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("head_precision", ["fp16", "int8"])
def test_baked_rows_are_those_that_the_model_multiplies_with(
    head_precision: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    exported(tiny_project, tmp_path / "bundle", head="fused", form=ModelForm(head_precision=head_precision))
    whole, split = both(tmp_path / "bundle")
    np.testing.assert_allclose(split.logits(images()).values, whole.logits(images()).values, atol=1e-5)
    assert load_file(tmp_path / "bundle" / BAKED_ROWS_NAME)["rows"].shape == (NUM_SEEN + 2, FEATURE_DIM + 1)
    with pytest.raises(RuntimeFailureError, match="its head is fused"):
        session_of(split).load_slots(np.zeros((1, FEATURE_DIM), np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("name", ["softmax", "log softmax", "sigmoid", "gemm"])
@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_what_follows_the_head_is_computed_as_the_model_does(name: str, head: str, tmp_path: Path) -> None:
    graph = next(graph for key, graph in GRAPHS.items() if key.replace("_", " ").replace("-", " ") == name)
    save_model(graph.model(*rows(0)), tmp_path / "model.onnx")
    icis_deploy.export(
        tmp_path / "model.onnx",
        classes=[f"class{index}" for index in range(5)],
        options=icis_deploy.ExportOptions(
            head=head, capacity=4 if head == "updatable" else None, targets=["backbone"], max_changed_answers=None
        ),
        out=tmp_path / "bundle",
    )
    whole, split = (session_of(device) for device in both(tmp_path / "bundle"))
    given = graph.images(1)
    np.testing.assert_allclose(split.run(given).logits, whole.run(given).logits, atol=1e-6)
    (ours, our_columns), (theirs, their_columns) = split.top(given), whole.top(given)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_array_equal(our_columns, their_columns)


def test_updates_rollback_and_disabled_classes_change_a_split_device_as_any_other(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    exported(tiny_project, tmp_path / "whole")
    exported(tiny_project, tmp_path / "split")
    devices = [Device.open(tmp_path / "whole"), Device.open(tmp_path / "split", runtime="split")]
    before = [device.logits(images()).values for device in devices]
    icis_deploy.save_update(update_of(tiny_project, 2, names=("numbat",)), tmp_path / "update.icis")
    for device in devices:
        device.apply(tmp_path / "update.icis", allow_unsigned=True)
    whole, split = (device.logits(images()) for device in devices)
    assert whole.class_names == split.class_names
    np.testing.assert_allclose(split.values, whole.values, atol=1e-4)
    for device in devices:
        device.disable(device.classes()[0])
    whole, split = (device.logits(images()) for device in devices)
    np.testing.assert_allclose(split.values, whole.values, atol=1e-4)
    for device in devices:
        device.enable(device.bundle.class_names[0])
        device.rollback()
    np.testing.assert_array_equal(devices[1].logits(images()).values, before[1])
    again = Device.open(tmp_path / "split", runtime="split")
    np.testing.assert_array_equal(again.logits(images()).values, before[1])


def test_signatures_and_the_guard_hold_on_a_split_device(tiny_project: TinyProject, tmp_path: Path) -> None:
    exported(tiny_project, tmp_path / "bundle", max_changed_answers=0.05)
    device = Device.open(tmp_path / "bundle", runtime="split")
    update = update_of(tiny_project, 2, names=("numbat",), arbiter=False)
    greedy = replace(update, rows=np.full((1, FEATURE_DIM + 1), 50))
    icis_deploy.save_update(greedy, tmp_path / "greedy.icis")
    with pytest.raises(SignatureError):
        device.apply(tmp_path / "greedy.icis")
    with pytest.raises(GuardError):
        device.apply(tmp_path / "greedy.icis", allow_unsigned=True)
    assert "numbat" not in device.classes()


def test_a_session_that_multiplies_with_other_slots_fails_its_self_test(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tiny_project, tmp_path / "bundle")
    whole = SplitSession._logits

    def ignores_slots(self, features, slots):
        return whole(self, features, None) * np.float32(1.5)

    monkeypatch.setattr(SplitSession, "_logits", ignores_slots)
    with pytest.raises(SelfTestError):
        Device.open(tmp_path / "bundle", runtime="split")


def test_answers_are_of_one_version_while_classes_change(tiny_project: TinyProject, tmp_path: Path) -> None:
    exported(tiny_project, tmp_path / "bundle")
    device = Device.open(tmp_path / "bundle", runtime="split", num_threads=1)
    given = images(2)
    known, files = {}, []
    for version in range(2, 10):
        path = tmp_path / f"{version}.icis"
        icis_deploy.save_update(update_of(tiny_project, version, names=(f"class of {version}",)), path)
        files.append(path)
    with asking(lambda: device.logits(given), num_threads=3) as asked:
        for path in files[:6]:
            device.apply(path, allow_unsigned=True)
            answer = device.logits(given)
            known[answer.version] = (answer.class_names, answer.values.tobytes())
            asked.wait_for_answers()
    seen = [(answer.version, (answer.class_names, answer.values.tobytes())) for answer in asked.answers]
    assert len(known) == 6
    assert {version for version, _ in seen} >= known.keys()
    assert not [version for version, found in seen if version in known and found != known[version]]


def test_a_backbone_of_one_batch_size_and_an_older_opset_serves_any_number_of_images(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    exported(tiny_project, tmp_path / "bundle", settings=BackboneSettings(batch=2, opset=17))
    backbone = onnx.load(tmp_path / "bundle" / BACKBONE_NAME)
    assert backbone.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert backbone.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert [each.version for each in backbone.opset_import if not each.domain] == [17]
    whole, split = both(tmp_path / "bundle")
    np.testing.assert_allclose(split.logits(images(5)).values, whole.logits(images(5)).values, atol=1e-4)


def test_compacting_keeps_the_backbone_as_it_was_asked_for(tiny_project: TinyProject, tmp_path: Path) -> None:
    exported(tiny_project, tmp_path / "bundle", settings=BackboneSettings(batch=1, opset=17))
    whole = Device.open(tmp_path / "bundle")
    before = whole.logits(images())
    icis_deploy.compact(tmp_path / "bundle", out=tmp_path / "compacted", capacity=4)
    backbone = onnx.load(tmp_path / "compacted" / BACKBONE_NAME)
    assert backbone.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert [each.version for each in backbone.opset_import if not each.domain] == [17]
    after = Device.open(tmp_path / "compacted", runtime="split").logits(images())
    assert after.class_names == before.class_names
    np.testing.assert_allclose(after.values, before.values, atol=1e-4)


def test_what_cannot_be_written_is_refused_by_name(tiny_project: TinyProject, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be brought from opset \d+ to 99"):
        exported(tiny_project, tmp_path / "bundle", settings=BackboneSettings(opset=99))
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(UsageError, match=r"backbone's batch is 0"):
        BackboneSettings(batch=0)
    with pytest.raises(UsageError, match="Options of the backbone were given, but none is written"):
        icis_deploy.export(
            tiny_project.model,
            classes=tiny_project.classes,
            options=icis_deploy.ExportOptions(target_options=TargetOptions(backbone=BackboneSettings(batch=1))),
            out=tmp_path / "bundle",
        )


def test_a_bundle_without_a_backbone_and_slots_of_other_sizes_are_refused(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=tmp_path / "plain")
    with pytest.raises(IncompatibleError, match=r"holds no backbone\.onnx .* Export it with `targets=\['backbone'\]`"):
        Device.open(tmp_path / "plain", runtime="split")
    exported(tiny_project, tmp_path / "bundle")
    session = session_of(Device.open(tmp_path / "bundle", runtime="split"))
    with pytest.raises(RuntimeFailureError, match="The slots have the shapes"):
        session.load_slots(np.zeros((3, FEATURE_DIM), np.float32), np.zeros(3, np.float32))


def test_damaged_rows_are_refused_before_anything_is_loaded(tiny_project: TinyProject, tmp_path: Path) -> None:
    bundle = exported(tiny_project, tmp_path / "bundle")
    path = tmp_path / "bundle" / BAKED_ROWS_NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"baked_rows\.safetensors has"):
        Device.open(tmp_path / "bundle", runtime="split")
    save_file({"rows": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(CorruptFileError, match="does not hold float32 rows of shape"):
        load_baked_rows(tmp_path / "bundle", bundle)
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(BundleError):
        load_baked_rows(tmp_path / "bundle", bundle)


def test_a_split_runtime_loads_its_own_files(tiny_project: TinyProject, tmp_path: Path) -> None:
    exported(tiny_project, tmp_path / "bundle")
    bundle = load_manifest(tmp_path / "bundle")
    assert set(loaded_files(bundle, Runtime(name="split"))) == {BACKBONE_NAME, BAKED_ROWS_NAME, "slots.safetensors"}
    assert load_bundle(tmp_path / "bundle") == bundle
