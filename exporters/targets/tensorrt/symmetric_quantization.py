"""An int8 model as TensorRT takes it: zero points of 0, float biases, and additions that fuse with what they add.

A bundle's `model.onnx` is quantized for CPUs: activations are uint8 with a zero point, so that the values after a ReLU
get all 256 steps, and activation functions are left to where the range is cut off. TensorRT's parser takes int8 with a
zero point of 0 alone, and no integer biases. The ranges and the weights stay, so nothing is calibrated again.

Rules:

1. An activation's step becomes the greatest magnitude of its range over 127.
2. Where the range began at 0, a Relu says so: the cut-off of a uint8 at its zero point was all that stood for it. The
   upper end of a Clip is still where the range ends.
3. A constant that is not symmetric int8 (biases, addends) becomes the float that it stood for.
4. One term of a sum stays unrounded, where it is a product that nothing else takes: TensorRT adds the other one, in 8
   bits, where it computes the product.

Source: TensorRT developer guide, "Working with Quantized Types", "Q/DQ Layer-Placement Recommendations".
"""

# Why: docs/decisions/0049.

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.conversion.int8 import SHAPING
from exporters.graph.constants import constant_array, is_constant
from exporters.graph.edits import GraphPass, add_initializer, add_node, remove_unused, run_pass, unused_name
from exporters.onnx_io.files import check_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.errors import IncompatibleError

_MAX_STEPS = 127
_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def with_symmetric_quantization(model: ir.Model) -> ir.Model:
    """Return a copy of an int8 model whose Q/DQ nodes TensorRT takes.

    Args:
        model: With activations in uint8 and weights in int8, as `quantize_model` gives it.

    Raises:
        IncompatibleError: If it holds no quantized layer.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(GraphPass(requires=_require_quantized, call=_call, ensures=_ensure), model).model


def _require_quantized(model: ir.Model) -> None:
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        raise IncompatibleError(
            "The model holds no quantized activation.",
            hint="Export it with `precision='int8'`.",
        )


def _call(model: ir.Model) -> bool:
    graph = model.graph
    infer_shapes(model)
    steps: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]] = {}
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and is_constant(node.inputs[0]):
            _keep_or_dequantize(graph, node)
        elif node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            _make_symmetric(graph, node, steps)
    for node in list(graph):
        if node.op_type == "Add":
            _add_before_rounding(graph, node)
    common.RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return True


def _ensure(model: ir.Model) -> None:
    check_model(model)
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert not constant_array(_given(node, 2)).any(), f"{node.name} has a zero point"


def _keep_or_dequantize(graph: ir.Graph, node: ir.Node) -> None:
    """Leave an int8 weight with zero points of 0 as it is; make floats of any other constant."""
    is_int8 = _given(node, 0).dtype == ir.DataType.INT8
    if is_int8 and len(node.inputs) > 2 and not constant_array(_given(node, 2)).any():
        return
    output = node.outputs[0]
    array = np.asarray(constant_array(output), dtype=np.float32)
    ir.convenience.replace_all_uses_with(output, add_initializer(graph, f"{output.name}_float", array))
    remove_unused(graph, [node])


def _make_symmetric(
    graph: ir.Graph, node: ir.Node, steps: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]
) -> None:
    """Give an activation's Q or DQ node the step of rule 1; of a pair, both get the same constants."""
    old = scale, zero_point = _given(node, 1), _given(node, 2)
    zero, types = int(constant_array(zero_point)), np.iinfo(constant_array(zero_point).dtype)
    if old not in steps:
        reach = float(constant_array(scale)) * max(zero - types.min, types.max - zero)
        step = np.asarray(reach / _MAX_STEPS, dtype=np.float32)
        steps[old] = (
            add_initializer(graph, f"{scale.name}_symmetric", step),
            add_initializer(graph, f"{zero_point.name}_symmetric", np.asarray(0, dtype=np.int8)),
        )
    if node.op_type == "QuantizeLinear":
        if zero == types.min and types.min == 0:
            _say_relu(graph, node)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    for index, constant in enumerate(steps[old], start=1):
        node.replace_input_with(index, constant)


def _say_relu(graph: ir.Graph, quantize: ir.Node) -> None:
    """Put a Relu before a Q node, unless what it takes cannot be negative anyhow."""
    given = _given(quantize, 0)
    producer = given.producer()
    if producer is None or producer.op_type in _NEVER_NEGATIVE | SHAPING:
        return
    assert given.shape is not None, "shapes were inferred"
    name = unused_name(graph, f"{given.name}_positive")
    positive = add_node(graph, "Relu", [given], name=name, dtype=given.dtype, shape=given.shape, before=quantize)
    quantize.replace_input_with(0, positive)


def _add_before_rounding(graph: ir.Graph, add: ir.Node) -> None:
    """Take the rounding off one term, the one that is computed last."""
    order = {node: index for index, node in enumerate(graph)}
    candidates = []
    for index, term in enumerate(add.inputs):
        dequantize = None if term is None else term.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or not _feeds_one(dequantize):
            continue
        quantize = _given(dequantize, 0).producer()
        if quantize is None or not _feeds_one(quantize):
            continue
        product = _given(quantize, 0).producer()
        if product is not None and product.op_type in _PRODUCTS and _feeds_one(product):
            candidates.append((order[product], index, product, dequantize))
    if candidates:
        _, index, product, dequantize = max(candidates, key=lambda candidate: candidate[0])
        add.replace_input_with(index, product.outputs[0])
        remove_unused(graph, [dequantize])


def _feeds_one(node: ir.Node) -> bool:
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, f"{node.name} has no input {index}"
    return value
