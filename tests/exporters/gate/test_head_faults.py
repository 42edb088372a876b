"""Faults that head surgery could make are made in its graphs, and the gate of a real export catches and names each."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import icis_deploy
from exporters.bundles import writing as bundle_writing
from exporters.gate import head_faults
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import GateFailedError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from testing.tiny_project import FEATURE_DIM, TinyProject

FEW = FEATURE_DIM - 2  # with two new classes, the fused head's weight is square


def head_nodes(model: ir.Model) -> list[ir.Node]:
    """The Gemms of an export: of the seen or all classes, and of slots, whose weight is an input."""
    return [node for node in model.graph if node.op_type == "Gemm"]


def seen_gemm(model: ir.Model) -> ir.Node:
    return next(node for node in head_nodes(model) if not node.inputs[1].is_graph_input())


def rewritten(value: ir.Value, change: Callable[[np.ndarray], np.ndarray]) -> None:
    array = np.ascontiguousarray(change(value.const_value.numpy()))
    value.const_value = ir.Tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def transposed(model: ir.Model) -> None:
    """Flip transB and leave the numbers where they are, in the shape that this takes."""
    gemm = seen_gemm(model)
    gemm.attributes["transB"] = ir.AttrInt64("transB", 0)
    rewritten(gemm.inputs[1], lambda weight: weight.reshape(weight.shape[::-1]))


def without_bias(model: ir.Model) -> None:
    seen_gemm(model).replace_input_with(2, None)


def swapped(model: ir.Model) -> None:
    order = [0, 1, 2, 4, 3]
    for value in seen_gemm(model).inputs[1:]:
        rewritten(value, lambda array: np.concatenate([array[order], array[5:]]))


def one_row_wrong(model: ir.Model) -> None:
    rewritten(seen_gemm(model).inputs[1], lambda weight: np.concatenate([weight[:3], 1.01 * weight[3:4], weight[4:]]))


@dataclass(frozen=True)
class FaultPass(ir.passes.InPlacePass):
    """What a bug in head surgery would leave in the graph."""

    fault: Callable[[ir.Model], None]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.fault(model)
        return ir.passes.PassResult(model, modified=True)


def make_surgery_faulty(name: str, fault: Callable[[ir.Model], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(bundle_writing, name)
    monkeypatch.setattr(
        bundle_writing, name, lambda *arguments: ir.passes.Sequential(real(*arguments), FaultPass(fault))
    )


FAULTS = {
    transposed: r"the weight of \d+ classes is transposed",
    without_bias: r"the bias of \d+ classes is missing, such as that of 'class00'",
    swapped: r"the order of 2 classes is wrong: 'class03' has the scores of 'class04'",
    one_row_wrong: r"the rows of 1 classes are wrong: 'class03'",
}


@pytest.fixture(scope="module")
def square(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a class list of as many classes as make a square head with the new ones."""
    folder = tmp_path_factory.mktemp("square")
    model = onnx.load(tiny_project.model)
    for tensor in model.graph.initializer:
        if tensor.name in {"weight", "bias"}:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:FEW].copy(), tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = FEW
    onnx.save(model, folder / "model.onnx")
    (folder / "classes.txt").write_text("\n".join(tiny_project.seen_names[:FEW]))
    return folder / "model.onnx", folder / "classes.txt"


def rejected_reasons(model: Path, classes: Path, out: Path, **settings: object) -> str:
    """Export with two new classes; return the message of the refusal, and assert what it leaves."""
    head = icis_deploy.inspect(model, classes=classes).head
    assert head is not None
    rows = np.random.default_rng(5).normal(size=(2, FEATURE_DIM + 1)) * head.rows.std()
    update = ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=("okapi", "quagga"))
    options = icis_deploy.ExportOptions(**settings)
    with pytest.raises(GateFailedError) as caught:
        icis_deploy.export(model, classes=classes, updates=[update], out=out, options=options)
    rejected = out.with_name(f"{out.name}.rejected")
    assert str(rejected) in str(caught.value)
    onnx.checker.check_model(onnx.load(rejected / "model.onnx"))
    assert not all(report["passed"] for report in json.loads((rejected / "parity.json").read_text()))
    assert not (rejected / "manifest.json").exists()
    assert {path.name for path in out.parent.iterdir()} == {rejected.name}
    return str(caught.value)


@pytest.mark.parametrize("head_kind", ["square", "fused", "updatable"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_head_surgery_is_caught_and_named_and_what_was_built_is_kept_apart(
    fault: Callable[[ir.Model], None],
    head_kind: str,
    tiny_project: TinyProject,
    square: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_surgery_faulty("AddSlotsPass" if head_kind == "updatable" else "FuseHeadPass", fault, monkeypatch)
    model, classes = square if head_kind == "square" else (tiny_project.model, tiny_project.classes)
    settings = {"head": "updatable", "capacity": 4} if head_kind == "updatable" else {}
    assert re.search(FAULTS[fault], rejected_reasons(model, classes, tmp_path / "bundle", **settings))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_float16_too_where_limits_are_wider(
    fault: Callable[[ir.Model], None], tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_surgery_faulty("FuseHeadPass", fault, monkeypatch)
    form = ModelForm(precision="fp16")
    reasons = rejected_reasons(tiny_project.model, tiny_project.classes, tmp_path / "bundle", form=form)
    assert re.search(FAULTS[fault], reasons)


@pytest.fixture(scope="module")
def endings(square: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The square model with a Softmax and with a Sigmoid after its head."""
    folder = tmp_path_factory.mktemp("endings")
    for op_type in ("Softmax", "Sigmoid"):
        model = onnx.load(square[0])
        model.graph.node.append(onnx.helper.make_node(op_type, ["logits"], ["scores"]))
        model.graph.output[0].name = "scores"
        onnx.save(model, folder / f"{op_type}.onnx")
    return {op_type: folder / f"{op_type}.onnx" for op_type in ("Softmax", "Sigmoid")}


@pytest.mark.parametrize("op_type", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("head_kind", ["fused", "updatable"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_behind_probabilities_that_vanish_too(
    fault: Callable[[ir.Model], None],
    head_kind: str,
    op_type: str,
    endings: dict[str, Path],
    square: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_surgery_faulty("AddSlotsPass" if head_kind == "updatable" else "FuseHeadPass", fault, monkeypatch)
    settings = {"head": "updatable", "capacity": 4} if head_kind == "updatable" else {}
    assert re.search(FAULTS[fault], rejected_reasons(endings[op_type], square[1], tmp_path / "bundle", **settings))


@pytest.mark.parametrize("op_type", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("head_kind", ["fused", "updatable"])
def test_a_right_head_passes_though_its_probabilities_vanish(
    head_kind: str, op_type: str, endings: dict[str, Path], square: tuple[Path, Path], tmp_path: Path
) -> None:
    """The logits of one image lie up to 150 apart, where float32 ends at a probability of exp(-87)."""
    capacity = 4 if head_kind == "updatable" else None
    bundle = icis_deploy.export(
        endings[op_type],
        classes=square[1],
        options=icis_deploy.ExportOptions(head=head_kind, capacity=capacity),
        out=tmp_path / "bundle",
    )
    assert all(report["max_scaled_error"] < 1e-5 for report in bundle.parity)


@pytest.mark.parametrize("op_type", ["", "Sigmoid"])
def test_a_stale_slot_is_named(
    op_type: str,
    tiny_project: TinyProject,
    endings: dict[str, Path],
    square: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = bundle_writing.SetSlotDefaultsPass
    # As if the model had been written before the last change of a row.
    stale = lambda weight, bias, _: real(np.roll(weight, 1, axis=1), bias)  # noqa: E731
    monkeypatch.setattr(bundle_writing, "SetSlotDefaultsPass", stale)
    model, classes = (endings[op_type], square[1]) if op_type else (tiny_project.model, tiny_project.classes)
    reasons = rejected_reasons(model, classes, tmp_path / "bundle", head="updatable", capacity=4)
    assert "the slots baked into model.onnx are not those of slots.safetensors" in reasons


def run_of(found: np.ndarray, **changes: object) -> head_faults.HeadRun:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 6)).astype(np.float32)
    head = Head(rows=rng.normal(size=(5, 7)).astype(np.float32), class_names=tuple("abcde"))
    expected = head.logits(features)
    return head_faults.HeadRun(
        features=features,
        expected=expected,
        found=expected + found,
        head=head,
        class_names=head.class_names,
        num_seen=5,
        tolerance=1e-4,
        **changes,
    )


def test_a_right_head_has_no_fault_and_one_that_leaves_no_trace_is_not_named() -> None:
    assert head_faults.name_fault(run_of(np.zeros((30, 5)))) is None
    assert head_faults.name_fault(run_of(np.full((30, 5), np.nan))) is None
    assert head_faults.name_fault(run_of(np.random.default_rng(1).normal(size=(30, 5)))) is None
    # What all classes share changes no probability, and is no fault of a row.
    assert head_faults.name_fault(run_of(np.random.default_rng(1).normal(size=(30, 1)) + np.zeros(5))) is None
    # After a sigmoid it does: then every class is wrong, and nothing says why.
    shared = np.zeros(5) + np.random.default_rng(1).normal(size=(30, 1))
    assert head_faults.name_fault(run_of(shared, score_kind="sigmoid")) is None
    assert head_faults.name_fault(run_of(np.where(np.arange(5) == 2, shared, 0), score_kind="sigmoid")) == (
        "the rows of 1 classes are wrong: 'c'"
    )


def test_a_weight_that_is_too_large_is_not_read_to_name_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(np.zeros((30, 5)))
    turned = run.features.astype(np.float64) @ run.head.weight.reshape(6, 5) + run.head.bias
    faulty = dataclasses.replace(run, found=turned)
    assert head_faults.name_fault(faulty) == "the weight of 5 classes is transposed"

    monkeypatch.setattr(head_faults, "MAX_WEIGHT_SIZE", 29)
    assert head_faults.name_fault(faulty) is None
