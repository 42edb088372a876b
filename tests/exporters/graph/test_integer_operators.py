"""Heads in integers are written out, take classes, and compute what the original does in ONNX Runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import icis_deploy
from exporters.backbone.inputs import SEED
from exporters.loading.models import load_model
from icis_deploy.images.neutral import neutral_images

IMAGES = 2 * neutral_images(64, 8, 8, seed=SEED) - 1
HEADS = ("gemm", "matmul", "conv")
FORMS = {
    "QLinear operators": {"quant_format": QuantFormat.QOperator},
    "QLinear operators, a scale per channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "QDQ of the contrib domain": {"extra_options": {"UseQDQContribOps": True}},
    "QDQ of 16 bits of the contrib domain": {
        "activation_type": QuantType.QUInt16,
        "extra_options": {"UseQDQContribOps": True},
    },
}


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._rest = iter([{"x": IMAGES}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


@cache
def float_model(head: str, end: str = "") -> bytes:
    rng = np.random.default_rng(0)
    constants = {
        "cw": 0.3 * rng.normal(size=(16, 3, 3, 3)),
        "cb": 0.1 * rng.normal(size=16),
        "w": rng.normal(size=(10, 16)),
        "b": rng.normal(size=10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    ]
    if head == "conv":
        constants["w"] = constants["w"][:, :, None, None]
        nodes += [helper.make_node("Conv", ["p", "w", "b"], ["z"]), helper.make_node("Flatten", ["z"], ["logits"])]
    else:
        nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
        if head == "gemm":
            nodes.append(helper.make_node("Gemm", ["f", "w", "b"], ["logits"], transB=1))
        else:
            constants["w"] = constants["w"].T
            nodes += [helper.make_node("MatMul", ["f", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["logits"])]
    if end:
        nodes[-1].output[0] = "before"
        nodes.append(helper.make_node(end, ["before"], ["logits"], **({"axis": 1} if end == "Softmax" else {})))
    for index, node in enumerate(nodes):
        node.name = f"n{index}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(a, dtype=np.float32), name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def quantized(folder: Path, head: str, form: str, end: str = "") -> Path:
    (folder / "float.onnx").write_bytes(float_model(head, end))
    settings = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, **FORMS[form]}
    quantize_static(str(folder / "float.onnx"), str(folder / "model.onnx"), Reader(), **settings)
    return folder / "model.onnx"


def logits(path: Path, count: int = len(IMAGES)) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run([session.get_outputs()[0].name], {"x": IMAGES[:count]})[0]


def exported_with_copy(folder: Path, path: Path, kind: str) -> Path:
    """Export a model with a new class, the last, whose row is that of class 1."""
    opened = icis_deploy.inspect(path, classes=[f"class {index}" for index in range(10)])
    assert opened.head is not None
    assert opened.obstacle is None
    assert opened.location.certainty == "certain"
    row = np.append(opened.head.weight[1], opened.head.bias[1])[None]
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=row, added=("new",))
    options = icis_deploy.ExportOptions(
        head=kind, capacity=1 if kind == "updatable" else None, max_changed_answers=None
    )
    icis_deploy.export(opened, updates=[update], out=folder / "bundle", options=options)
    return folder / "bundle" / "model.onnx"


@pytest.mark.parametrize("kind", ["fused", "updatable"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_in_integers_takes_classes(tmp_path: Path, head: str, form: str, kind: str):
    path = quantized(tmp_path, head, form)

    before, after = logits(path), logits(exported_with_copy(tmp_path, path, kind))

    # A step or two of the original's own rounding, where its 8 bits of the features show more than 16 of the logits do.
    steps = np.diff(np.unique(before))
    limit = max(2 * steps[steps > 1e-4].min(), 0.02 * before.std())
    assert np.abs(after[:, :10] - before).max() <= limit
    assert np.abs(after[:, 10] - after[:, 1]).max() <= limit


@pytest.mark.parametrize("form", FORMS)
def test_every_quantized_operator_of_a_model_is_written_out(tmp_path: Path, form: str):
    model = load_model(str(quantized(tmp_path, "conv", form))).model

    assert {node.domain for node in model.graph} == {""}
    assert not [node for node in model.graph if node.op_type.startswith("QLinear")]
    assert all(node.outputs[0].shape is not None for node in model.graph)


def test_the_opset_rises_only_where_16_bits_need_it(tmp_path: Path):
    opsets = {form: load_model(str(quantized(tmp_path, "gemm", form))).model.opset_imports[""] for form in FORMS}

    assert opsets == dict.fromkeys(FORMS, 17) | {"QDQ of 16 bits of the contrib domain": 21}


def dynamic(folder: Path, head: str, form: str) -> Path:
    """A model as quantize_dynamic writes it, or as ONNX Runtime writes that after fusing operators."""
    (folder / "float.onnx").write_bytes(float_model(head))
    path = folder / "model.onnx"
    weights = QuantType.QUInt8 if form == "unsigned" else QuantType.QInt8
    quantize_dynamic(
        str(folder / "float.onnx"), str(path), weight_type=weights, per_channel=form == "a scale per channel"
    )
    if form == "fused by a runtime":
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(folder / "fused.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        path = folder / "fused.onnx"
    return path


@pytest.mark.parametrize(
    ("head", "form", "kind"),
    [
        ("gemm", "signed", "updatable"),
        ("conv", "signed", "fused"),
        ("conv", "signed", "updatable"),
        ("matmul", "a scale per channel", "fused"),
        ("matmul", "unsigned", "updatable"),
        ("matmul", "fused by a runtime", "fused"),
    ],
)
def test_a_head_whose_features_are_quantized_for_each_batch_takes_classes(
    tmp_path: Path, head: str, form: str, kind: str
):
    path = dynamic(tmp_path, head, form)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators & {"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}

    after = exported_with_copy(tmp_path, path, kind)

    for count in (1, 64):  # the scale of the features follows from the batch, in both alike
        expected, found = (logits(each, count) for each in (path, after))
        limit = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found[:, :10], expected, atol=limit)
        np.testing.assert_allclose(found[:, 10], found[:, 1], atol=limit)


def test_only_the_head_of_a_dynamically_quantized_model_is_written_out(tmp_path: Path):
    model = load_model(str(dynamic(tmp_path, "gemm", "signed"))).model

    assert [node.op_type for node in model.graph].count("ConvInteger") == 1
    assert "MatMulInteger" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("kind", ["fused", "updatable"])
@pytest.mark.parametrize(("head", "end"), [("gemm", "Softmax"), ("conv", "Softmax"), ("matmul", "Sigmoid")])
def test_scores_that_an_operator_makes_of_integers_take_classes(tmp_path: Path, head: str, end: str, kind: str):
    path = quantized(tmp_path, head, "QLinear operators", end)
    assert f"QLinear{end}" in {node.op_type for node in onnx.load(path).graph.node}

    before, after = logits(path), logits(exported_with_copy(tmp_path, path, kind))

    seen = after[:, :10] / after[:, :10].sum(axis=1, keepdims=True) if end == "Softmax" else after[:, :10]
    assert np.abs(seen - before).max() <= 0.03  # the original rounds them to 256 steps, and its logits before
    assert np.abs(after[:, 10] - after[:, 1]).max() <= 0.01
    assert not np.isin(after[:, :10], before).all()


def binary(op_type: str) -> onnx.ModelProto:
    """A quantized operator of ONNX Runtime alone, between a float input and a float output."""
    inits = {"s": np.float32(0.02), "z": np.uint8(128), "s2": np.float32(0.05), "z2": np.uint8(100)}
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    if op_type in {"QLinearAdd", "QLinearMul"}:
        inputs = ["q", "s", "z", "q", "s", "z", "s2", "z2"]
    elif op_type == "QLinearConcat":
        inputs = ["s2", "z2", "q", "s", "z", "q", "s", "z"]
    else:
        inputs = ["q", "s", "z", "s2", "z2"]
    attributes: dict[str, object] = {
        "QLinearConcat": {"axis": 1},
        "QLinearLeakyRelu": {"alpha": 0.1},
        "QLinearSoftmax": {"axis": 1, "opset": 17},
        "QLinearAveragePool": {"kernel_shape": [2, 2]},
    }.get(op_type, {})
    node = helper.make_node(op_type, inputs, ["y_q"], domain="com.microsoft", **attributes)
    real = helper.make_node("DequantizeLinear", ["y_q", "s2", "z2"], ["y"])
    graph = helper.make_graph(
        [quantize, node, real],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in inits.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize(
    "op_type",
    [
        *("QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu"),
        *("QLinearMul", "QLinearSigmoid", "QLinearSoftmax"),
    ],
)
def test_an_operator_written_out_gives_the_same_integers(tmp_path: Path, op_type: str):
    import onnx_ir as ir

    from exporters.graph.edits import apply_passes
    from exporters.graph.integer_operators import WriteOutIntegersPass
    from exporters.onnx_io.files import normalized, serialize_model

    proto = binary(op_type)
    written = apply_passes(normalized(ir.from_proto(proto), where="the test's graph"), WriteOutIntegersPass())
    assert op_type not in {node.op_type for node in written.graph}

    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for data in (proto.SerializeToString(), serialize_model(written))
    )

    assert np.abs(before - after).max() <= 0.05 + 1e-6  # a tie may round to the next integer
    assert (before == after).mean() > 0.9
