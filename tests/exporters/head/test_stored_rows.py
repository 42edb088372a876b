"""Rows stored in fewer bits: what is rounded, what stays, and what devices and other runtimes make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import icis_deploy
from exporters.graph.edits import apply_passes
from exporters.head import stored_rows
from exporters.head.finding import find_head, pattern_at
from exporters.head.patterns import pattern_rows
from exporters.head.stored_rows import ROW_STEPS, STORED_ROWS, StoreRowsPass, UnpackRowsPass
from exporters.onnx_io.files import serialize_model
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import BundleError, ExportError, GateFailedError, IncompatibleError, UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from testing.tiny_project import FEATURE_DIM, TinyProject
from tests.exporters.head_graphs import GRAPHS, HeadGraph, rows, run_model


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


def update_of(opened: OpenedModel, version: int = 1, *, names: tuple[str, ...] = ("okapi", "quagga")) -> ClassUpdate:
    rows = np.random.default_rng(version).normal(size=(len(names), FEATURE_DIM + 1))
    return ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=names, version=version)


def export(opened: OpenedModel, project: TinyProject, out: Path, *, head: str, form: ModelForm, **options: object):
    return icis_deploy.export(
        opened,
        updates=[update_of(opened)],
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=8 if head == "updatable" else None,
            preprocess=project.preprocess,
            images=project.images,
            form=form,
            **options,
        ),
        out=out,
    )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", [pytest.param(graph, id=name) for name, graph in GRAPHS.items()])
def test_every_kind_of_head_keeps_its_rows_but_for_rounding(graph: HeadGraph, precision: str) -> None:
    model = graph.model(*rows(0))
    location = find_head(model)
    before = pattern_rows(pattern_at(model, location)).astype(np.float64)
    stored = apply_passes(model, StoreRowsPass(location.node_name, precision))
    after = pattern_rows(pattern_at(stored, location)).astype(np.float64)
    np.testing.assert_array_equal(after[:, -1], before[:, -1], err_msg="biases are not rounded")
    weights = np.abs(before[:, :-1])
    bound = weights * 2.0**-11 if precision == "fp16" else weights.max(axis=1, keepdims=True) / 254
    assert (np.abs(after - before)[:, :-1] <= bound * 1.001 + 1e-7).all()
    images = graph.images(1)
    for name, expected in run_model(model, x=images).items():
        np.testing.assert_allclose(run_model(stored, x=images)[name], expected, atol=0.1)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_runtimes_compute_the_rows_once_and_multiply_floats(precision: str, tmp_path: Path) -> None:
    model = GRAPHS["gemm"].model(*rows(0))
    stored = apply_passes(model, StoreRowsPass(find_head(model).node_name, precision))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(serialize_model(stored), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(kinds)


def test_unpacked_rows_are_what_the_stored_ones_stand_for() -> None:
    model = GRAPHS["gemm"].model(*rows(0))
    stored = apply_passes(model, StoreRowsPass(find_head(model).node_name, "int8"))
    unpacked = apply_passes(stored, UnpackRowsPass())
    assert not any(name.startswith((STORED_ROWS, ROW_STEPS)) for name in unpacked.graph.initializers)
    assert [node.op_type for node in unpacked.graph] == [node.op_type for node in model.graph]
    images = GRAPHS["gemm"].images(1)
    (before,), (after,) = run_model(stored, x=images).values(), run_model(unpacked, x=images).values()
    np.testing.assert_array_equal(after, before)
    assert apply_passes(model, UnpackRowsPass()) is model


def test_a_row_of_zeros_stays_one_and_the_largest_weight_keeps_its_value() -> None:
    weight, bias = (np.array(array) for array in rows(0))
    weight[2] = 0
    model = GRAPHS["gemm"].model(weight, bias)
    location = find_head(model)
    stored = apply_passes(model, StoreRowsPass(location.node_name, "int8"))
    after = pattern_rows(pattern_at(stored, location))[:, :-1]
    assert not after[2].any()
    largest = np.abs(weight).argmax(axis=1)
    np.testing.assert_allclose(after[np.arange(5), largest], weight[np.arange(5), largest], rtol=1e-6)


def test_rows_in_as_few_bits_already_are_left_alone() -> None:
    model = GRAPHS["gemm"].model(*rows(0))
    name = find_head(model).node_name
    stored = apply_passes(model, StoreRowsPass(name, "int8"))
    assert apply_passes(stored, StoreRowsPass(name, "int8")) is stored
    assert apply_passes(stored, StoreRowsPass(name, "fp16")) is stored


def test_weights_that_float16_does_not_hold_and_nodes_that_are_not_there_are_refused() -> None:
    weight, bias = rows(0)
    model = GRAPHS["gemm"].model(weight * np.float32(1e6), bias)
    name = find_head(model).node_name
    with pytest.raises(IncompatibleError, match="float16 holds at most 65504"):
        apply_passes(model, StoreRowsPass(name, "fp16"))
    with pytest.raises(ExportError, match="no node 'nowhere'"):
        apply_passes(model, StoreRowsPass("nowhere", "int8"))


@pytest.mark.parametrize("head", ["fused", "updatable"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("head_precision", ["fp16", "int8"])
def test_a_bundle_with_stored_rows_passes_a_gate_of_its_own_and_is_smaller(
    head_precision: str, precision: str, head: str, opened: OpenedModel, tiny_project: TinyProject, tmp_path: Path
) -> None:
    calibration = tiny_project.images if precision == "int8" else None
    form = ModelForm(precision=precision, calibration_images=calibration, head_precision=head_precision)
    bundle = export(opened, tiny_project, tmp_path / "bundle", head=head, form=form)
    assert (bundle.precision, bundle.head_precision) == (precision, head_precision)
    assert load_manifest(tmp_path / "bundle").head_precision == head_precision
    assert all(report["passed"] for report in bundle.parity)
    profiles = [report["profile"]["name"] for report in bundle.parity]
    if precision == "fp32":
        assert profiles[:2] == [f"{head_precision} rows"] * 2
    elif head_precision == "int8":
        assert profiles[-1] == "int8 rows"
    assert all(
        report.passed
        for report in icis_deploy.verify(tmp_path / "bundle", against=tiny_project.model, images=tiny_project.images)
    )
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    types = {each.name: each.data_type for each in graph.initializer}
    wanted = {"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}[head_precision]
    if not (precision == "fp16" and head_precision == "fp16"):  # whose rows are float16 already
        assert types[STORED_ROWS] == wanted
    if head == "updatable":
        assert types["slot_weight"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(("target", "library"), [("openvino", "openvino"), ("tensorrt-rtx", "tensorrt_rtx")])
@pytest.mark.parametrize("head_precision", ["fp16", "int8"])
def test_other_runtimes_take_models_with_stored_rows(
    target: str, library: str, head_precision: str, opened: OpenedModel, tiny_project: TinyProject, tmp_path: Path
) -> None:
    pytest.importorskip(library, reason=f"{target} is not installed")
    form = ModelForm(head_precision=head_precision)
    bundle = export(opened, tiny_project, tmp_path / "bundle", head="updatable", form=form, targets=[target])
    assert all(report["passed"] for report in bundle.parity)


def test_a_wrong_row_is_found_behind_the_rounding(
    opened: OpenedModel, tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stored_rows._add_stored

    def with_a_fault(graph: ir.Graph, node: ir.Node, weight: ir.Value, precision: str) -> ir.Value:
        made = whole(graph, node, weight, precision)
        stored = graph.initializers[STORED_ROWS]
        array = np.array(stored.const_value.numpy())
        array[[0, 1]] = array[[1, 0]]
        stored.const_value = ir.Tensor(array, name=STORED_ROWS)
        return made

    monkeypatch.setattr(stored_rows, "_add_stored", with_a_fault)
    with pytest.raises(GateFailedError):
        export(opened, tiny_project, tmp_path / "bundle", head="fused", form=ModelForm(head_precision="int8"))


def test_updates_rollback_guard_teaching_and_compacting_work_on_stored_rows(
    opened: OpenedModel, tiny_project: TinyProject, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    export(opened, tiny_project, folder, head="updatable", form=ModelForm(head_precision="int8"))
    device = Device.open(folder)
    image = np.random.default_rng(3).normal(size=(1, 3, 16, 16)).astype(np.float32)
    before = device.logits(image)
    icis_deploy.save_update(update_of(opened, 2, names=("numbat",)), tmp_path / "update.icis")
    device.apply(tmp_path / "update.icis", allow_unsigned=True, allow_changed_answers=True)
    changed = device.logits(image)
    assert changed.class_names == (*before.class_names, "numbat")
    compacted = icis_deploy.compact(folder, out=tmp_path / "compacted", capacity=4)
    assert compacted.head_precision == "int8"
    served = Device.open(tmp_path / "compacted").logits(image)
    np.testing.assert_allclose(served.values, changed.values, atol=1e-5)
    device.rollback()
    np.testing.assert_array_equal(device.logits(image).values, before.values)


def test_a_manifest_says_what_rows_are_stored_in_only_where_earlier_releases_cannot_know(
    opened: OpenedModel, tiny_project: TinyProject, tmp_path: Path
) -> None:
    export(opened, tiny_project, tmp_path / "plain", head="fused", form=ModelForm())
    assert "head_precision" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert load_manifest(tmp_path / "plain").head_precision == "fp32"
    export(opened, tiny_project, tmp_path / "int8", head="fused", form=ModelForm(head_precision="int8"))
    text = (tmp_path / "int8" / "manifest.json").read_text()
    text = text.replace('"head_precision": "int8"', '"head_precision": "int3"')
    (tmp_path / "int8" / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="head precision is 'int3'"):
        load_manifest(tmp_path / "int8")


def test_a_head_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no head precision 'int4'"):
        ModelForm(head_precision="int4")
