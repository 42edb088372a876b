"""The gate compares every output: what a damaged export gives wrong is named, for seen and for new classes.

Bundles are real ones; each damage is done to the ONNX file that they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import icis_deploy
from exporters.backbone.inputs import input_batches
from exporters.gate.other_outputs import other_output_failures
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.metrics.parity import GATE_PROFILES
from tests.exporters.head_graphs import rows

NAMES = tuple(f"seen {index}" for index in range(5))
NEW = ("zebra", "quagga")
WEIGHT, BIAS = rows(0)
ROWS = np.random.default_rng(3).normal(size=(2, 5)).astype(np.float32)
OUTPUTS = {
    "probabilities": (TensorProto.FLOAT, ["n", 5]),
    "logits": (TensorProto.FLOAT, ["n", 5]),
    "best": (TensorProto.INT64, ["n"]),
    "two_best": (TensorProto.INT64, ["n", 2]),
    "label": (TensorProto.STRING, ["n"]),
    "number": (TensorProto.INT64, ["n"]),
    "written": (TensorProto.STRING, ["n"]),
    "greatest": (TensorProto.FLOAT, ["n", 1]),
    "embedding": (TensorProto.FLOAT, ["n", 4]),
}


class Exported(NamedTuple):
    opened: icis_deploy.OpenedModel
    described: Bundle
    folder: Path


def write_model(
    path: Path, names: tuple[str, ...] = tuple(OUTPUTS), batch: str | int = "n", factor: float = 2.0
) -> Path:
    """A classifier that gives everything that classifiers give."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["features_"]),
        helper.make_node("Mul", ["features_", "two"], ["embedding"]),
        helper.make_node("Gemm", ["features_", "w", "b"], ["logits"], name="head", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
        helper.make_node("ArgMax", ["logits"], ["best"], name="argmax", axis=1, keepdims=0),
        helper.make_node("TopK", ["probabilities", "k"], ["top", "two_best"], axis=1),
        helper.make_node("Gather", ["table", "best"], ["label"], name="labels"),
        helper.make_node("Gather", ["numbers", "best"], ["number"]),
        helper.make_node("Cast", ["best"], ["written"], to=TensorProto.STRING),
        helper.make_node("ReduceMax", ["probabilities"], ["greatest"], axes=[1], keepdims=1),
    ]
    constants = {"two": np.float32(factor), "w": WEIGHT, "b": BIAS, "k": np.array([2]), "numbers": np.arange(10, 15)}
    table = helper.make_tensor("table", TensorProto.STRING, [5], [name.encode() for name in NAMES])
    outputs = [
        helper.make_tensor_value_info(name, dtype, [batch, *shape[1:]])
        for name, (dtype, shape) in OUTPUTS.items()
        if name in names
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        outputs,
        [table, *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def exported(
    folder: Path,
    batch: str | int = "n",
    outputs: tuple[str, ...] = tuple(OUTPUTS),
    factor: float = 2.0,
    **options: object,
) -> Exported:
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    model = write_model(folder / "model.onnx", outputs, batch, factor)
    opened = icis_deploy.inspect(icis_deploy.ModelSource(spec=model, head_node="head"), classes=folder / "classes.txt")
    assert opened.head is not None
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=ROWS, added=NEW)
    settings = icis_deploy.ExportOptions(**options)
    described = icis_deploy.export(opened, updates=[update], out=folder / "bundle", options=settings)
    return Exported(opened, described, folder / "bundle")


def failures_of(exported: Exported) -> list[str]:
    described, loaded = exported.described, exported.opened.loaded
    return other_output_failures(
        exported.folder,
        described,
        (*NAMES, *NEW),
        loaded=loaded,
        location=exported.opened.location,
        inputs=input_batches(described.model_input, None, None, fixed_batch=loaded.fixed_batch),
        profile=GATE_PROFILES[described.precision],
    )


def edit(bundle: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    proto = onnx.load(bundle / "model.onnx")
    change(proto.graph)
    onnx.checker.check_model(proto)
    (bundle / "model.onnx").write_bytes(proto.SerializeToString())


def feed_first_five(graph: onnx.GraphProto, output: str) -> None:
    """Let the operator that gives an output see the seen classes alone."""
    for name, value in (("from", 0), ("to", 5), ("along", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    index = next(i for i, node in enumerate(graph.node) if output in node.output)
    cut = helper.make_node("Slice", [graph.node[index].input[0], "from", "to", "along"], ["first_five"])
    graph.node[index].input[0] = "first_five"
    graph.node.insert(index, cut)


def set_labels(graph: onnx.GraphProto, labels: list[str]) -> None:
    tensor = next(each for each in graph.initializer if each.data_type == TensorProto.STRING and each.dims[0] == 7)
    assert [each.decode() for each in tensor.string_data] == [*NAMES, *NEW]
    tensor.string_data[:] = [each.encode() for each in labels]


def answer_with_two_columns(graph: onnx.GraphProto, output: str) -> None:
    """Give every entry of an output twice, side by side."""
    index, node = next((i, node) for i, node in enumerate(graph.node) if output in node.output)
    node.output[list(node.output).index(output)] = "once"
    graph.node.insert(index + 1, helper.make_node("Concat", ["once", "once"], [output], axis=1))
    sizes = next(each for each in graph.output if each.name == output).type.tensor_type.shape.dim
    sizes[1].dim_value *= 2


def divide_by_nothing(graph: onnx.GraphProto) -> None:
    """As a normalisation whose guard against a length of zero was lost."""
    set_factor(graph, np.inf)


def set_factor(graph: onnx.GraphProto, factor: float) -> None:
    next(each for each in graph.initializer if each.name == "two").CopyFrom(
        numpy_helper.from_array(np.float32(factor), "two")
    )


def use_other_numbers(graph: onnx.GraphProto) -> None:
    old = next(each for each in graph.initializer if numpy_helper.to_array(each).tolist() == [*range(10, 17)])
    old.CopyFrom(numpy_helper.from_array(np.array([10, 11, 12, 13, 14, 14, 14]), old.name))


def sharpen(graph: onnx.GraphProto) -> None:
    """Let the softmax take logits that are a little greater."""
    node = next(node for node in graph.node if node.op_type == "Softmax")
    index = list(graph.node).index(node)
    graph.initializer.append(numpy_helper.from_array(np.float32(1.01), "sharper"))
    scaled = helper.make_node("Mul", [node.input[0], "sharper"], ["sharp"])
    node.input[0] = "sharp"
    graph.node.insert(index, scaled)


DAMAGES: dict[str, tuple[Callable[[onnx.GraphProto], None], str]] = {
    "seen labels in another order": (
        lambda graph: set_labels(graph, [*NAMES[1::-1], *NAMES[2:], *NEW]),
        "the output 'label' is not the original's where a class is chosen that it knows",
    ),
    "a new class with another's label": (
        lambda graph: set_labels(graph, [*NAMES, NEW[0], NEW[0]]),
        "the output 'label' does not follow the scores where a new class is chosen",
    ),
    "numbers that repeat the last one": (
        use_other_numbers,
        "the output 'number' does not follow the scores where a new class is chosen",
    ),
    "an ArgMax that new classes do not reach": (
        lambda graph: feed_first_five(graph, "best"),
        "the output 'best' does not follow the scores where a new class is chosen",
    ),
    "a TopK that new classes do not reach": (
        lambda graph: feed_first_five(graph, "two_best"),
        "the output 'two_best' does not follow the scores where a new class is chosen",
    ),
    "a sharper softmax": (
        sharpen,
        "the output 'greatest' is not the original's where a class is chosen that it knows",
    ),
    "a backbone's output": (lambda graph: set_factor(graph, 2.01), "the output 'embedding' is not the original's"),
    "a backbone's output that overflows": (divide_by_nothing, "the output 'embedding' is not the original's"),
    "a backbone's output of another width": (
        lambda graph: answer_with_two_columns(graph, "embedding"),
        "the output 'embedding' is not the original's",
    ),
}


@pytest.mark.parametrize("batch", ["n", 3], ids=["any batch", "batches of 3"])
def test_a_sound_export_passes_with_every_output(tmp_path: Path, batch: str | int):
    bundle = exported(tmp_path, batch)

    assert failures_of(bundle) == []


def test_an_embedding_is_compared_where_nothing_else_follows_the_scores(tmp_path: Path):
    bundle = exported(tmp_path, outputs=("logits", "embedding"))
    assert failures_of(bundle) == []

    edit(bundle.folder, lambda graph: set_factor(graph, 2.01))
    assert failures_of(bundle) == ["the output 'embedding' is not the original's"]


@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_what_is_no_number_in_the_original_must_be_none_in_an_export_and_the_same(tmp_path: Path, factor: float):
    """An embedding of which every value is one is still compared, and equal to itself."""
    bundle = exported(tmp_path, factor=factor)
    assert failures_of(bundle) == []

    for other in {2.0, -np.inf, np.nan, np.inf} - {factor}:
        edit(bundle.folder, lambda graph, other=other: set_factor(graph, other))
        assert failures_of(bundle) == ["the output 'embedding' is not the original's"], other


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_output_is_named(tmp_path: Path, damage: str):
    change, failure = DAMAGES[damage]
    bundle = exported(tmp_path)

    edit(bundle.folder, change)

    assert failure in failures_of(bundle)


def test_an_output_that_an_export_lost_is_named(tmp_path: Path):
    bundle = exported(tmp_path)

    def remove(graph: onnx.GraphProto) -> None:
        graph.output.remove(next(each for each in graph.output if each.name == "embedding"))

    edit(bundle.folder, remove)

    assert failures_of(bundle) == ["the output 'embedding' is missing"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_slots_are_numbered_by_ids_and_have_no_labels(tmp_path: Path, precision: str):
    bundle = exported(tmp_path, head="updatable", capacity=4, form=ModelForm(precision=precision))

    assert failures_of(bundle) == []
    names = [output.name for output in onnx.load(bundle.folder / "model.onnx").graph.output]
    assert {"best", "two_best", "embedding"} <= set(names)
    assert not {"label", "number"} & set(names)


def test_an_ids_output_that_slots_do_not_reach_is_named(tmp_path: Path):
    bundle = exported(tmp_path, head="updatable", capacity=4)

    edit(bundle.folder, lambda graph: feed_first_five(graph, "best"))

    says = "does not follow the scores where a new class is chosen"
    assert failures_of(bundle) == [f"the output 'best' {says}", f"the output 'written' {says}"]


def test_the_gate_rejects_what_an_output_gives_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from exporters.head import tail

    # What an exporter that forgot the tables would do: they keep their length, and answer with an error or an entry.
    monkeypatch.setattr(tail, "extend_table", lambda *_: None)

    with pytest.raises(icis_deploy.errors.ICISDeployError):
        exported(tmp_path)
    assert not (tmp_path / "bundle").exists()
