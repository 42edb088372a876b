"""Bundles are written only if they pass the gate, and each kind of wrong export fails it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import icis_deploy
from exporters.bundles import writing as bundle_writing
from exporters.bundles.writing import BundleSettings, HeadPlan, plan_head, write_bundle
from exporters.head.expanded_head import ExpandedHead
from exporters.onnx_io.files import save_model
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import (
    CapacityError,
    ClassConflictError,
    GateFailedError,
    IncompatibleError,
    RuntimeFailureError,
    UsageError,
    WrongBaseError,
)
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.runtime.device import Device
from testing.tiny_project import FEATURE_DIM, TinyProject
from tests.exporters.head_graphs import GRAPHS, HEADER, parsed_model, rows


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


@pytest.fixture(scope="module")
def preprocessing(tiny_project: TinyProject) -> Preprocessing:
    return load_preprocessing(tiny_project.preprocess)


def update_for(head: Head, names: tuple[str, ...], *, seed: int = 5, **fields: Any) -> ClassUpdate:
    rows = np.random.default_rng(seed).normal(size=(len(names), FEATURE_DIM + 1))
    return ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=names, **fields)


def plan_of(opened: OpenedModel, head_kind: str) -> HeadPlan:
    capacity = 8 if head_kind == "updatable" else None
    return plan_head(
        opened.head, [update_for(opened.head, ("okapi", "quagga"))], head_kind=head_kind, capacity=capacity
    )


def write(
    target: Path, opened: OpenedModel, preprocessing: Preprocessing | None, plan: HeadPlan, *, overwrite: bool = False
) -> None:
    write_bundle(
        target,
        plan,
        loaded=opened.loaded,
        location=opened.location,
        settings=BundleSettings(preprocessing=preprocessing),
        overwrite=overwrite,
    )


def with_changed_head(change: Callable[[Head], Head]) -> Callable[..., Any]:
    """Return a head surgery that does its work right, with the wrong head."""
    real = bundle_writing.FuseHeadPass
    return lambda location, head: real(location, change(in_memory(head)))


class LeaveAsIsPass(ir.passes.InPlacePass):
    """Head surgery that forgets to do its work."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)


def in_memory(expanded: ExpandedHead) -> Head:
    rows = np.concatenate(list(expanded.blocks()))
    return Head(rows=rows, class_names=[f"class {index}" for index in range(len(rows))])


def swapped(head: Head) -> Head:
    rows = head.rows.copy()
    rows[[3, 4]] = rows[[4, 3]]
    return Head(rows=rows, class_names=head.class_names)


def without_bias(head: Head) -> Head:
    rows = head.rows.copy()
    rows[:, -1] = 0
    return Head(rows=rows, class_names=head.class_names)


def mirrored(head: Head) -> Head:
    return Head(rows=np.concatenate([head.weight[:, ::-1], head.bias[:, None]], 1), class_names=head.class_names)


def stale_injected_row(head: Head) -> Head:
    rows = head.rows.copy()
    rows[-1] *= 1.01
    return Head(rows=rows, class_names=head.class_names)


@pytest.mark.parametrize("head_kind", ["fused", "updatable"])
def test_a_bundle_that_passes_answers_with_all_classes(
    head_kind: str, opened: OpenedModel, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    write(tmp_path / "bundle", opened, preprocessing, plan_of(opened, head_kind))
    device = Device.open(tmp_path / "bundle")
    assert device.classes() == (*opened.head.class_names, "okapi", "quagga")
    assert load_bundle(tmp_path / "bundle").parity[0]["passed"]


@pytest.mark.parametrize("change", [swapped, without_bias, mirrored, stale_injected_row])
def test_a_wrong_fused_head_is_rejected_with_its_report_and_the_old_bundle_stays(
    change: Callable[[Head], Head],
    opened: OpenedModel,
    preprocessing: Preprocessing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "bundle"
    plan = plan_of(opened, "fused")
    write(target, opened, preprocessing, plan)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr(bundle_writing, "FuseHeadPass", with_changed_head(change))
    with pytest.raises(GateFailedError, match=r"max_scaled_error .* is above 0.0001") as caught:
        write(target, opened, preprocessing, plan, overwrite=True)
    assert caught.value.exit_code == 1
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    reports = json.loads((tmp_path / "bundle.rejected" / "parity.json").read_text())
    assert not reports[0]["passed"]
    assert not (tmp_path / "bundle.rejected" / "manifest.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.rejected"}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (swapped, r"the order of 2 classes is wrong: 'class03' has the scores of 'class04'"),
        (without_bias, r"the bias of 42 classes is missing"),
        (stale_injected_row, r"the rows of 1 classes are wrong: 'quagga'"),
    ],
)
def test_the_fault_of_a_head_is_named_on_the_images_that_are_off_most(
    change: Callable[[Head], Head],
    fault: str,
    opened: OpenedModel,
    preprocessing: Preprocessing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exporters.gate.gate.MAX_DIAGNOSED", 8)  # of 64
    monkeypatch.setattr("exporters.gate.row_files.LEAST_ROWS_OF_A_BLOCK", 5)
    monkeypatch.setattr("exporters.gate.row_files.VALUES_OF_A_BLOCK", 1)
    monkeypatch.setattr(bundle_writing, "FuseHeadPass", with_changed_head(change))
    with pytest.raises(GateFailedError, match=fault):
        write(tmp_path / "bundle", opened, preprocessing, plan_of(opened, "fused"))


def test_stale_slot_defaults_are_named(
    opened: OpenedModel, preprocessing: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writing, "SetSlotDefaultsPass", lambda *_: LeaveAsIsPass())
    with pytest.raises(GateFailedError, match=r"the slots baked into model.onnx are not those of slots.safetensors"):
        write(tmp_path / "bundle", opened, preprocessing, plan_of(opened, "updatable"))
    assert not (tmp_path / "bundle").exists()


def test_an_empty_slot_that_could_win_is_named(tmp_path: Path) -> None:
    """As before a class that a model masks by its bias, further than an empty slot is."""
    weight, bias = rows(0)
    bias[2] = -1e9
    text = f"{HEADER} g (float[batch, 4] x) => (float[batch, 5] y) {{ y = Gemm <transB = 1> (x, w, b) }}"
    save_model(parsed_model(text, w=weight, b=bias), tmp_path / "masking.onnx")
    model, classes = tmp_path / "masking.onnx", [f"class {index}" for index in range(5)]
    icis_deploy.export(model, classes=classes, out=tmp_path / "fused")  # which has no slots
    with pytest.raises(GateFailedError, match="an empty slot has a greater logit than a class"):
        icis_deploy.export(
            model,
            classes=classes,
            out=tmp_path / "bundle",
            options=icis_deploy.ExportOptions(head="updatable", capacity=2),
        )
    assert not (tmp_path / "bundle").exists()


def test_updates_are_applied_in_order(opened: OpenedModel) -> None:
    first = update_for(opened.head, ("a", "b"), version=1)
    second = ClassUpdate(
        base_fingerprint=opened.head.fingerprint,
        rows=np.ones((2, FEATURE_DIM + 1)),
        added=("c",),
        replaced=("a",),
        removed=("b",),
        version=2,
    )
    plan = plan_head(opened.head, [first, second], head_kind="fused", capacity=None)
    assert plan.baked_names[opened.head.num_classes :] == ("a", "c")
    np.testing.assert_array_equal(plan.table.rows(), np.ones((2, FEATURE_DIM + 1)))


def test_a_model_is_exported_without_updates_too(
    opened: OpenedModel, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    write(tmp_path / "bundle", opened, preprocessing, plan_head(opened.head, [], head_kind="fused", capacity=None))
    assert Device.open(tmp_path / "bundle").classes() == opened.head.class_names


def test_a_bundle_without_preprocessing_takes_prepared_arrays_only(opened: OpenedModel, tmp_path: Path) -> None:
    write(tmp_path / "bundle", opened, None, plan_of(opened, "fused"))
    device = Device.open(tmp_path / "bundle")
    assert device.logits(np.zeros((2, 3, 16, 16), np.float32)).values.shape == (2, 42)
    with pytest.raises(IncompatibleError, match="Export it with `preprocess`"):
        device.predict(["image.png"])


@pytest.mark.parametrize(
    ("names", "head_kind", "capacity", "error", "message"),
    [
        (("class00",), "fused", None, ClassConflictError, "class00"),
        (("a", "b"), "updatable", 1, CapacityError, "adds 2 classes; 1 slots, 0 used"),
        (("a",), "updatable", 0, UsageError, "Give `capacity`"),
        (("a",), "fused", 4, UsageError, "with `head='updatable'` only"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(
    names: tuple[str, ...],
    head_kind: str,
    capacity: int | None,
    error: type[Exception],
    message: str,
    opened: OpenedModel,
) -> None:
    with pytest.raises(error, match=message):
        plan_head(opened.head, [update_for(opened.head, names)], head_kind=head_kind, capacity=capacity)


def test_an_update_for_another_head_is_refused(opened: OpenedModel) -> None:
    other = Head(rows=opened.head.rows, class_names=tuple(reversed(opened.head.class_names)))
    with pytest.raises(WrongBaseError, match="Inject again"):
        plan_head(opened.head, [update_for(other, ("a",))], head_kind="fused", capacity=None)


def test_the_table_of_a_fused_plan_has_no_gaps(opened: OpenedModel) -> None:
    first = update_for(opened.head, ("a", "b"))
    gone = ClassUpdate(
        base_fingerprint=opened.head.fingerprint, rows=np.empty((0, FEATURE_DIM + 1)), removed=("a",), version=2
    )
    table: SlotTable = plan_head(opened.head, [first, gone], head_kind="fused", capacity=None).table
    assert table.class_names == ("b",)


def test_a_model_that_takes_fewer_images_than_it_states_is_refused_with_what_to_do(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """As a trace with a fixed size in it has it, whatever its inputs are said to be."""
    model = onnx.load(tiny_project.model)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    flatten.input.append("target")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, FEATURE_DIM]), "target"))
    onnx.save(model, tmp_path / "traced.onnx")

    with pytest.raises(IncompatibleError, match=r"fails on 16; on one it runs.* or with a fixed batch of 1"):
        icis_deploy.export(tmp_path / "traced.onnx", classes=tiny_project.classes, out=tmp_path / "bundle")

    assert [path.name for path in tmp_path.iterdir()] == ["traced.onnx"]


def test_a_model_that_fails_on_one_image_too_is_not_told_to_fix_its_batch(tmp_path: Path) -> None:
    """The runtime's own words say what is wrong with it; a batch of 1 would not help."""
    text = f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] y) <int64 width = {{4}}> {{
        magnitude = Abs (x)
        greatest = ReduceMax <keepdims = 0> (magnitude)
        whole = Cast <to = 7> (greatest)
        column = Add (whole, width)
        [beyond_the_last] chosen = Gather <axis = 1> (x, column)
        more = Unsqueeze (chosen, one)
        features = Add (x, more)
        y = Gemm <transB = 1> (features, w, b)
    }}"""
    weight, bias = rows(0)
    save_model(parsed_model(text, w=weight, b=bias, one=np.array([1])), tmp_path / "broken.onnx")

    with pytest.raises(RuntimeFailureError, match="beyond_the_last"):
        icis_deploy.export(tmp_path / "broken.onnx", classes=[f"class {i}" for i in range(5)], out=tmp_path / "bundle")

    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_logits_below_those_of_empty_slots_are_refused_with_the_head_that_has_none(tmp_path: Path) -> None:
    weight, bias = rows(0)
    save_model(GRAPHS["gemm"].model(weight * 1e6, bias), tmp_path / "model.onnx")
    names = [f"class {index}" for index in range(len(weight))]
    options = icis_deploy.ExportOptions(head="updatable", capacity=2)

    with pytest.raises(GateFailedError, match=r"an empty slot has a greater logit .* with `head='fused'`"):
        icis_deploy.export(tmp_path / "model.onnx", classes=names, out=tmp_path / "bundle", options=options)
