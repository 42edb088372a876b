"""Class updates with an arbiter in real exports: of each form and target, verified, compacted, refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import icis_deploy
from exporters.bundles import writing as bundle_writing
from exporters.onnx_io.files import load_initializers, save_model
from icis_deploy.api.compact import compact
from icis_deploy.bundle.arbiter_constants import load_row_lengths, serialize_row_lengths
from icis_deploy.bundle.manifest import (
    ARBITER_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    SLOT_ARBITER,
    file_entry,
    serialize_manifest,
)
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.cli.main import run
from icis_deploy.errors import GateFailedError, IncompatibleError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.images.loading import load_image_list
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.updates.envelope import envelope_of, save_update, serialize_envelope
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, TinyProject
from tests.exporters.head_graphs import HEADER, parsed_model, rows

NAMES = ("okapi", "quagga", "zebra")
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
    "pixels and choice": {"model_input": "uint8", "top": 3},
    "int8, pixels and choice": {"precision": "int8", "model_input": "uint8", "top": 3},
}
TARGETS = ["triton", *(["openvino"] if find_spec("openvino") else [])]
COEFFICIENTS = np.array([0.4, -0.5, 0.6, 3.0, -0.7], np.float32)


def head_of(project: TinyProject) -> Head:
    head = icis_deploy.inspect(project.model, classes=project.classes).head
    assert head is not None
    return head


def update_of(head: Head, names: tuple[str, ...] = NAMES, *, version: int = 1, has_arbiter: bool = True) -> ClassUpdate:
    """Rows that compete with the seen ones; each has other coefficients, so that an exchange shows."""
    rng = np.random.default_rng(version)
    rows = (rng.normal(size=(len(names), FEATURE_DIM + 1)) * head.rows.std()).astype(np.float32)
    arbiter = COEFFICIENTS * (1 + 0.5 * np.arange(len(names), dtype=np.float32)[:, None]) if has_arbiter else None
    return ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=names, version=version, arbiter=arbiter)


def exported(
    project: TinyProject, out: Path, head_kind: str, *, targets: list[str] | None = None, **form: Any
) -> icis_deploy.Bundle:
    is_int8 = form.get("precision") == "int8"
    return icis_deploy.export(
        project.model,
        classes=project.classes,
        updates=[update_of(head_of(project))],
        options=icis_deploy.ExportOptions(
            head=head_kind,
            capacity=6 if head_kind == "updatable" else None,
            preprocess=project.preprocess,
            form=ModelForm(calibration_images=project.images if is_int8 else None, **form),
            targets=targets or ["onnx"],
        ),
        out=out,
    )


def images_of(project: TinyProject) -> list[Path]:
    return list(load_image_list(project.images).paths[:16])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head_kind", ["fused", "updatable"])
def test_a_device_answers_as_numpy_says_whatever_the_form(
    form: str, head_kind: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    bundle = exported(tiny_project, tmp_path / "bundle", head_kind, **FORMS[form])
    head, update = head_of(tiny_project), update_of(head_of(tiny_project))

    assert bundle.arbiter
    assert all(report["passed"] for report in bundle.parity)
    np.testing.assert_allclose(load_row_lengths(tmp_path / "bundle", bundle), deviation_lengths(head.rows), rtol=1e-6)
    device = Device.open(tmp_path / "bundle", num_threads=1)
    batch = device.prepare(images_of(tiny_project))
    found = device.logits(batch)
    assert found.class_names == (*head.class_names, *NAMES)
    plain = Device.open(plain_bundle(tiny_project, tmp_path, form), num_threads=1)
    output = session_of(plain).run(batch, state_of(plain).buffers, with_features=True)
    seen, features = output.logits[:, :NUM_SEEN], output.features
    statistics = seen_statistics(features, seen, deviation_lengths(head.rows))
    new = features @ update.rows[:, :-1].T + update.rows[:, -1] + statistics @ update.arbiter.T
    tolerance = 2e-2 if form == "fp16" else 1e-4
    np.testing.assert_allclose(found.values, np.concatenate([seen, new], axis=1), rtol=tolerance, atol=tolerance * 10)
    if head_kind == "updatable":
        np.testing.assert_array_equal(found.values[:, :NUM_SEEN], seen)
    (best, *_) = device.predict(images_of(tiny_project)[:1], top=3)
    order = np.argsort(-found.values[0])[:3]
    assert best.class_names == tuple(found.class_names[index] for index in order)


def plain_bundle(project: TinyProject, folder: Path, form: str) -> Path:
    """A bundle with the same backbone and no new class, whose features and seen logits are those that count."""
    settings = FORMS[form]
    icis_deploy.export(
        project.model,
        classes=project.classes,
        options=icis_deploy.ExportOptions(
            head="updatable",
            capacity=1,
            arbiter="off",
            preprocess=project.preprocess,
            form=ModelForm(
                calibration_images=project.images if settings.get("precision") == "int8" else None, **settings
            ),
        ),
        out=folder / "plain",
    )
    return folder / "plain"


@pytest.mark.parametrize("head_kind", ["fused", "updatable"])
def test_targets_and_verification_include_it(head_kind: str, tiny_project: TinyProject, tmp_path: Path) -> None:
    bundle = exported(tiny_project, tmp_path / "bundle", head_kind, targets=TARGETS)
    assert len(bundle.parity) == 3 + 2 * (len(TARGETS) - 1)
    reports = icis_deploy.verify(tmp_path / "bundle", against=tiny_project.model)
    assert max(report.max_scaled_error for report in reports) < 1e-5
    reference = Device.open(tmp_path / "bundle", num_threads=1)
    batch = reference.prepare(images_of(tiny_project))
    for runtime in TARGETS[1:]:
        found = Device.open(tmp_path / "bundle", runtime=runtime, num_threads=1).logits(batch)
        np.testing.assert_allclose(found.values, reference.logits(batch).values, atol=1e-3)


def test_rows_that_are_compacted_keep_their_arbiters(tiny_project: TinyProject, tmp_path: Path) -> None:
    exported(tiny_project, tmp_path / "bundle", "updatable", targets=TARGETS)
    device = Device.open(tmp_path / "bundle", num_threads=1)
    second = update_of(head_of(tiny_project), ("bongo", "gnu"), version=2)
    device.apply(serialize_envelope(envelope_of(second)), allow_unsigned=True, allow_changed_answers=True)
    batch = device.prepare(images_of(tiny_project))
    before = device.logits(batch)

    for step in range(2):
        source = tmp_path / "bundle" if step == 0 else tmp_path / "0"
        made = compact(source, out=tmp_path / str(step), capacity=4)

        assert made.arbiter
        assert all(report["passed"] for report in made.parity)
        assert (tmp_path / str(step) / ARBITER_NAME).read_bytes() == (tmp_path / "bundle" / ARBITER_NAME).read_bytes()
        opened = Device.open(tmp_path / str(step), num_threads=1)
        after = opened.logits(batch)
        assert after.class_names == before.class_names
        np.testing.assert_allclose(after.values, before.values, rtol=1e-5, atol=1e-3)
        name = ("kudu", "eland")[step]
        plain = update_of(head_of(tiny_project), (name,), version=3 + step, has_arbiter=False)
        opened.apply(serialize_envelope(envelope_of(plain)), allow_unsigned=True, allow_changed_answers=True)
        before = opened.logits(batch)
        assert before.class_names[-1] == name
    icis_deploy.verify(tmp_path / "1", against=tiny_project.model)


def test_updatable_heads_are_prepared_for_it_and_fused_ones_get_what_they_need(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    for head_kind, capacity, arbiter, expected in (
        ("updatable", 4, "auto", True),
        ("updatable", 4, "off", False),
        ("fused", None, "auto", False),
    ):
        out = tmp_path / f"{head_kind} {arbiter}"
        options = icis_deploy.ExportOptions(head=head_kind, capacity=capacity, arbiter=arbiter)
        plain = update_of(head_of(tiny_project), has_arbiter=False)
        bundle = icis_deploy.export(
            tiny_project.model, classes=tiny_project.classes, updates=[plain], options=options, out=out
        )
        inputs = {value.name for value in onnx.load(out / MODEL_NAME).graph.input}
        assert (bundle.arbiter, ARBITER_NAME in bundle.files) == (expected, expected)
        assert (SLOT_ARBITER in inputs) == (expected and head_kind == "updatable")


def test_an_update_with_an_arbiter_is_refused_where_the_model_gets_none(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    update = update_of(head_of(tiny_project))
    save_update(update, tmp_path / "new.icis")
    sigmoid = onnx.load(tiny_project.model)
    sigmoid.graph.node.append(onnx.helper.make_node("Sigmoid", ["logits"], ["scores"]))
    sigmoid.graph.output[0].name = "scores"
    onnx.save(sigmoid, tmp_path / "sigmoid.onnx")
    before = sorted(path.name for path in tmp_path.iterdir())
    for head_kind, capacity in (("fused", None), ("updatable", 4)):
        options = icis_deploy.ExportOptions(head=head_kind, capacity=capacity, arbiter="off")
        with pytest.raises(
            IncompatibleError, match=r"update of 'okapi', 'quagga', 'zebra' \(version 1\) has an arb.*`"
        ):
            icis_deploy.export(
                tiny_project.model, classes=tiny_project.classes, updates=[update], options=options, out=tmp_path / "b"
            )
        options = replace(options, arbiter="auto")
        with pytest.raises(IncompatibleError, match="a probability for each class by itself"):
            icis_deploy.export(
                tmp_path / "sigmoid.onnx",
                classes=tiny_project.classes,
                updates=[update],
                options=options,
                out=tmp_path / "b",
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    options = icis_deploy.ExportOptions(head="updatable", capacity=4)
    plain = icis_deploy.export(
        tmp_path / "sigmoid.onnx", classes=tiny_project.classes, options=options, out=tmp_path / "sigmoid"
    )
    assert not plain.arbiter
    with pytest.raises(UsageError, match="There is no arbiter 'on'"):
        icis_deploy.ExportOptions(arbiter="on")


def test_the_command_line_leaves_it_out_by_name(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_update(update_of(head_of(tiny_project)), tmp_path / "new.icis")
    command = ["export", str(tiny_project.model), "--classes", str(tiny_project.classes), "--arbiter", "off"]
    command += ["--update", str(tmp_path / "new.icis"), "--out", str(tmp_path / "bundle")]
    assert run(command) == IncompatibleError.exit_code
    error = capsys.readouterr().err
    assert "--arbiter auto" in error
    assert not (tmp_path / "bundle").exists()


# --- faults -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaultPass(ir.passes.InPlacePass):
    """What a bug in head surgery would leave in the graph."""

    fault: Callable[[ir.Model], None]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.fault(model)
        return ir.passes.PassResult(model, modified=True)


def arbiter_gemm(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.inputs and str(node.inputs[0].name) == "arbiter_statistics")


def missing(model: ir.Model) -> None:
    arbiter_gemm(model).attributes["alpha"] = ir.AttrFloat32("alpha", 0.0)


def of_wrong_sign(model: ir.Model) -> None:
    arbiter_gemm(model).attributes["alpha"] = ir.AttrFloat32("alpha", -1.0)


def of_another_class(model: ir.Model) -> None:
    value = model.graph.initializers["head_arbiter"]
    value.const_value = ir.Tensor(value.const_value.numpy()[[1, 1, 2]], name=value.name)


def of_no_class(model: ir.Model) -> None:
    arbiter_gemm(model).attributes["alpha"] = ir.AttrFloat32("alpha", 1.25)


def wrong_lengths(model: ir.Model) -> None:
    value = model.graph.initializers["seen_row_lengths"]
    value.const_value = ir.Tensor(np.roll(value.const_value.numpy(), 1), name=value.name)


FAULTS = {
    ("fused", missing): "the arbiter of 3 classes is missing, such as that of 'okapi'",
    ("updatable", missing): "the arbiter of 3 classes is missing, such as that of 'okapi'",
    ("fused", of_wrong_sign): "the arbiter of 3 classes has the wrong sign",
    ("updatable", of_wrong_sign): "the arbiter of 3 classes has the wrong sign",
    ("fused", of_another_class): "the arbiter of 1 classes is wrong: 'okapi' has that of 'quagga'",
    ("updatable", of_no_class): "the arbiter of 3 classes is wrong: 'okapi'$",
    ("fused", wrong_lengths): "the row lengths in model.onnx are not those of the seen rows",
    ("updatable", wrong_lengths): "the row lengths in model.onnx are not those of the seen rows",
}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("head_kind", "fault"), FAULTS)
def test_a_wrong_arbiter_is_caught_and_named(
    head_kind: str,
    fault: Callable[[ir.Model], None],
    precision: str,
    tiny_project: TinyProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "AddSlotsPass" if head_kind == "updatable" else "FuseHeadPass"
    real = getattr(bundle_writing, name)
    monkeypatch.setattr(bundle_writing, name, lambda *given: ir.passes.Sequential(real(*given), FaultPass(fault)))
    with pytest.raises(GateFailedError) as caught:
        exported(tiny_project, tmp_path / "bundle", head_kind, precision=precision)
    failures = [failure for report in caught.value.reports for failure in report.failures]
    assert any(re.search(FAULTS[head_kind, fault], failure) for failure in failures), failures
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("fault", [missing, of_wrong_sign, of_another_class])
def test_a_wrong_arbiter_is_named_behind_probabilities_too(
    fault: Callable[[ir.Model], None], op_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say nothing of what all classes of an image share, which statistics of seen logits depend on."""
    weight, bias = rows(0)
    text = (
        f"{HEADER} g (float[batch, 4] x) => (float[batch, 5] y) {{ l = Gemm <transB = 1> (x, w, b) y = {op_type} (l) }}"
    )
    save_model(parsed_model(text, w=weight, b=bias), tmp_path / "model.onnx")
    classes = [f"class {index}" for index in range(5)]
    head = icis_deploy.inspect(tmp_path / "model.onnx", classes=classes).head
    assert head is not None
    rng = np.random.default_rng(1)
    arbiter = COEFFICIENTS * (1 + 0.5 * np.arange(3, dtype=np.float32)[:, None]) / 10
    update = ClassUpdate(
        base_fingerprint=head.fingerprint, rows=rng.normal(size=(3, 5)), added=NAMES, version=1, arbiter=arbiter
    )
    real = bundle_writing.FuseHeadPass
    monkeypatch.setattr(
        bundle_writing, "FuseHeadPass", lambda *given: ir.passes.Sequential(real(*given), FaultPass(fault))
    )
    with pytest.raises(GateFailedError) as caught:
        icis_deploy.export(tmp_path / "model.onnx", classes=classes, updates=[update], out=tmp_path / "bundle")
    failures = caught.value.reports[0].failures
    assert any(re.search(FAULTS["fused", fault], failure) for failure in failures), failures


@pytest.mark.parametrize("op_type", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("fault", [missing, of_wrong_sign, of_no_class])
def test_a_fault_is_caught_before_any_row_has_an_arbiter(
    fault: Callable[[ir.Model], None],
    op_type: str,
    tiny_project: TinyProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = onnx.load(tiny_project.model)
    (logits, bias) = (each for each in model.graph.initializer if each.name in {"weight", "bias"})
    for tensor in (logits, bias):  # logits whose probabilities do not vanish
        values = onnx.numpy_helper.to_array(tensor) / 20
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    if op_type:
        model.graph.node.append(onnx.helper.make_node(op_type, ["logits"], ["scores"]))
        model.graph.output[0].name = "scores"
    onnx.save(model, tmp_path / "model.onnx")
    options = icis_deploy.ExportOptions(head="updatable", capacity=6)
    settings = {"classes": tiny_project.classes, "options": options}
    right = icis_deploy.export(tmp_path / "model.onnx", out=tmp_path / "right", **settings)
    assert right.arbiter
    real = bundle_writing.AddSlotsPass
    monkeypatch.setattr(
        bundle_writing, "AddSlotsPass", lambda *given: ir.passes.Sequential(real(*given), FaultPass(fault))
    )
    with pytest.raises(GateFailedError, match="slots do not follow the arbiters that they are given: 6 of 6 slots do"):
        icis_deploy.export(tmp_path / "model.onnx", out=tmp_path / "bundle", **settings)


def test_stale_arbiters_of_slots_are_named(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bundle_writing.SetSlotDefaultsPass
    monkeypatch.setattr(
        bundle_writing, "SetSlotDefaultsPass", lambda weight, bias, arbiter: real(weight, bias, np.zeros_like(arbiter))
    )
    with pytest.raises(GateFailedError, match=r"slots baked into model\.onnx are not those of slots\.safetensors"):
        exported(tiny_project, tmp_path / "bundle", "updatable")


def test_lengths_that_are_not_the_models_fail_its_verification(tiny_project: TinyProject, tmp_path: Path) -> None:
    bundle = exported(tiny_project, folder := tmp_path / "bundle", "updatable")
    (lengths,) = load_initializers(folder / MODEL_NAME, ("seen_row_lengths",))
    (folder / ARBITER_NAME).write_bytes(serialize_row_lengths(lengths[::-1]))
    files = {**bundle.files, ARBITER_NAME: file_entry(folder / ARBITER_NAME)}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))
    with pytest.raises(GateFailedError, match=r"row lengths in arbiter\.safetensors are not those of the seen rows"):
        icis_deploy.verify(folder, against=tiny_project.model)
