"""An int8 model as TensorRT takes it: zero points of 0, float biases, and additions that fuse with a product.

A bundle's `model.onnx` is quantized for CPUs: activations are uint8 with a zero point, so that the values after a ReLU
get all 256 steps, and the range of integers stands for activation functions. TensorRT's parser takes int8 with a
zero point of 0 alone, and no integer biases. The ranges and the weights stay, so nothing is calibrated again.

Rules:

1. An activation's step becomes the greatest magnitude of its range over 127.
2. Where the range began at 0, a Relu is added, which the range of uint8 stood for. The upper bound of a Clip is still
   the end of the range.
3. A constant that is not symmetric int8 (biases, addends) becomes the floats that it represents.
4. One term of a sum stays unrounded, where it is a product that nothing else takes: TensorRT adds the other one, in 8
   bits, where it computes the product.

Source: TensorRT developer guide, "Working with Quantized Types", "Q/DQ Layer-Placement Recommendations".
"""

# Why: docs/decisions/0049.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.conversion.int8 import SHAPING
from exporters.graph.constants import constant_array, is_constant
from exporters.graph.edits import add_initializer, add_node, remove_unused, unused_name
from exporters.graph.reading import input_of, only_user, shape_of
from exporters.onnx_io.files import check_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.errors import ExportError, IncompatibleError

_MAX_STEPS = 127
_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class SymmetricQuantizationPass(ir.passes.InPlacePass):
    """Give an int8 model Q/DQ nodes that TensorRT takes; its activations are uint8, as `quantize_model` gives them.

    Raises:
        IncompatibleError: If the model holds no quantized layer.
        ExportError: If the edited graph is not valid.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise if nothing is quantized."""
        if not any(node.op_type == "QuantizeLinear" for node in model.graph):
            raise IncompatibleError(
                "The model holds no quantized activation.",
                hint="Export it with `precision='int8'`.",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the Q/DQ nodes in place."""
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
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or a zero point is left."""
        check_model(model)
        for node in model.graph:
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and constant_array(input_of(node, 2)).any():
                raise ExportError(
                    f"The node {node.name} still has a zero point, which TensorRT does not take.", where=node.name
                )


def _keep_or_dequantize(graph: ir.Graph, node: ir.Node) -> None:
    """Keep an int8 weight with zero points of 0; replace any other constant by floats."""
    is_int8 = input_of(node, 0).dtype == ir.DataType.INT8
    if is_int8 and len(node.inputs) > 2 and not constant_array(input_of(node, 2)).any():
        return
    output = node.outputs[0]
    array = np.asarray(constant_array(output), dtype=np.float32)
    ir.convenience.replace_all_uses_with(output, add_initializer(graph, f"{output.name}_float", array))
    remove_unused(graph, [node])


def _make_symmetric(
    graph: ir.Graph, node: ir.Node, steps: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]
) -> None:
    """Give an activation's Q or DQ node the step of rule 1; of a pair, both get the same constants."""
    old = scale, zero_point = input_of(node, 1), input_of(node, 2)
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
            _add_relu(graph, node)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    for index, constant in enumerate(steps[old], start=1):
        node.replace_input_with(index, constant)


def _add_relu(graph: ir.Graph, quantize: ir.Node) -> None:
    """Put a Relu before a Q node, unless its input cannot be negative."""
    given = input_of(quantize, 0)
    producer = given.producer()
    if producer is None or producer.op_type in _NEVER_NEGATIVE | SHAPING:
        return
    name = unused_name(graph, f"{given.name}_positive")
    positive = add_node(graph, "Relu", [given], name=name, dtype=given.dtype, shape=shape_of(given), before=quantize)
    quantize.replace_input_with(0, positive)


def _add_before_rounding(graph: ir.Graph, add: ir.Node) -> None:
    """Remove the rounding of one term, the one that is computed last."""
    order = {node: index for index, node in enumerate(graph)}
    candidates = []
    for index, term in enumerate(add.inputs):
        dequantize = None if term is None else term.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or only_user(dequantize.outputs[0]) is None:
            continue
        quantize = input_of(dequantize, 0).producer()
        if quantize is None or only_user(quantize.outputs[0]) is None:
            continue
        product = input_of(quantize, 0).producer()
        if product is not None and product.op_type in _PRODUCTS and only_user(product.outputs[0]) is not None:
            candidates.append((order[product], index, product, dequantize))
    if candidates:
        _, index, product, dequantize = max(candidates, key=lambda candidate: candidate[0])
        add.replace_input_with(index, product.outputs[0])
        remove_unused(graph, [dequantize])
