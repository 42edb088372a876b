"""Write heads on dynamically quantized activations in ONNX's own operators: what their integers stand for.

    DynamicQuantizeLinear -> MatMulInteger | ConvInteger -> Cast -> Mul(scales)
    becomes
    DynamicQuantizeLinear -> DequantizeLinear -> MatMul | Conv on a dequantized weight

Both are the same real numbers, `(x - x_zero) * x_scale @ (w - w_zero) * w_scale`: the features are those that the model
itself rounds, by the scale that it chooses for the batch that it is given. So new rows multiply what the model's own
rows do, and nothing else in the model changes: only the last such operators before an output are written out.

Sources: ONNX DynamicQuantizeLinear-11, MatMulInteger-10, ConvInteger-10, DequantizeLinear-10 and -13; ONNX Runtime's
MatMulIntegerToFloat and DynamicQuantizeMatMul.
"""

# Why: docs/decisions/0136.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.class_axis import may_follow_logits
from exporters.graph.constants import STANDARD_DOMAINS, constant_array, constant_shape, is_constant
from exporters.graph.edits import add_initializer, remove_unused, replace_uses
from exporters.graph.integer_operators import CONTRIB_DOMAIN, Steps
from exporters.graph.reading import input_of, only_user, walk_backward

_INTEGER_PRODUCTS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_WITH_SCALES = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A product of integers, and what the integers stand for."""

    op_type: str
    """`MatMul` or `Conv`."""

    node: ir.Node
    """The operator in integers."""

    features: ir.Value
    """uint8 or int8; float32, not yet quantized, of a DynamicQuantizeMatMul."""

    features_scale: ir.Value | None
    """A number that the model computes or holds; `None` where the features are not yet quantized."""

    features_zero: ir.Value | None

    weight: ir.Value
    """uint8 or int8, a constant."""

    weight_scale: NDArray[np.float32]
    """`()`, or one number for each row."""

    weight_zero: ir.Value | None

    bias: ir.Value | None

    result: ir.Value
    """float32: what the product stands for, with its scales."""


@dataclass(frozen=True, slots=True)
class WriteOutDynamicHeadsPass(ir.passes.InPlacePass):
    """Write out the last products of integers before the outputs; a model without them is not modified."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them in place."""
        graph, modified = model.graph, False
        for node in _last_products(graph):
            product = _read(node)
            if product is None or not _is_readable(product):
                continue
            _write(graph, product)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _last_products(graph: ir.Graph) -> list[ir.Node]:
    """Return the products of integers that a walk backward from the outputs comes to first."""

    def sources(node: ir.Node) -> Sequence[ir.Value | None]:
        return node.inputs if not _is_product(node) and may_follow_logits(node) else ()

    return list(dict.fromkeys(node for node in walk_backward(graph, sources) if _is_product(node)))


def _is_product(node: ir.Node) -> bool:
    """Say whether a node multiplies integers."""
    if node.domain in STANDARD_DOMAINS:
        return node.op_type in _INTEGER_PRODUCTS
    return node.op_type in _WITH_SCALES and node.domain == CONTRIB_DOMAIN


def _read(node: ir.Node) -> _Product | None:
    """Read a product of integers; `None` where its scales are not found."""
    if node.op_type == "DynamicQuantizeMatMul":
        return _with_scales(node, input_of(node, 0), None, None, input_of(node, 1), (2, 3, 4))
    if node.op_type == "MatMulIntegerToFloat":
        scale, zero = input_of(node, 2), _optional(node, 4)
        return _with_scales(node, input_of(node, 0), scale, zero, input_of(node, 1), (3, 5, 6))
    features, zero = input_of(node, 0), _optional(node, 2)
    quantize = features.producer()
    if quantize is None or quantize.op_type != "DynamicQuantizeLinear" or features is not quantize.outputs[0]:
        return None
    if zero is not quantize.outputs[2]:
        return None
    scaled = _scaled(node.outputs[0], quantize.outputs[1])
    if scaled is None:
        return None
    result, weight_scale = scaled
    return _Product(
        op_type=_INTEGER_PRODUCTS[node.op_type],
        node=node,
        features=features,
        features_scale=quantize.outputs[1],
        features_zero=zero,
        weight=input_of(node, 1),
        weight_scale=weight_scale,
        weight_zero=_optional(node, 3),
        bias=None,
        result=result,
    )


def _with_scales(
    node: ir.Node,
    features: ir.Value,
    features_scale: ir.Value | None,
    features_zero: ir.Value | None,
    weight: ir.Value,
    indices: tuple[int, int, int],
) -> _Product | None:
    """Read an operator that takes the weight's scale, its zero point and a bias at these indices."""
    scale, zero, bias = (_optional(node, index) for index in indices)
    if scale is None or not is_constant(scale):
        return None
    return _Product(
        op_type="MatMul",
        node=node,
        features=features,
        features_scale=features_scale,
        features_zero=features_zero,
        weight=weight,
        weight_scale=_scalar_or_flat(constant_array(scale)).astype(np.float32),
        weight_zero=zero,
        bias=bias,
        result=node.outputs[0],
    )


def _scaled(product: ir.Value, features_scale: ir.Value) -> tuple[ir.Value, NDArray[np.float32]] | None:
    """Follow a product through its Cast and its scales; return the result and the weight's scale.

    The scales are multiplied with it one after the other, or with each other first. What is multiplied after both is
    left: it may be a scale of the model's own.
    """
    cast = only_user(product)
    if cast is None or cast.op_type != "Cast" or cast.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    value, scale, has_own = cast.outputs[0], None, False
    while not has_own or scale is None:
        node = only_user(value)
        if node is None or node.op_type != "Mul":
            return None
        for factor in _factors(input_of(node, 1 if node.inputs[0] is value else 0)):
            if factor is features_scale and not has_own:
                has_own = True
            elif is_constant(factor):
                part = _scalar_or_flat(constant_array(factor)).astype(np.float32)
                scale = part if scale is None else np.asarray(scale * part, np.float32)
            else:
                return None
        value = node.outputs[0]
    return value, scale


def _factors(value: ir.Value) -> list[ir.Value]:
    """Return a scale, or the two that are multiplied to it."""
    node = value.producer()
    if node is None or node.op_type != "Mul" or is_constant(value):
        return [value]
    return [input_of(node, 0), input_of(node, 1)]


def _is_readable(product: _Product) -> bool:
    """Say whether the weight is a constant with one scale, or one for each row, and one zero point or as many."""
    zero = product.weight_zero
    if not is_constant(product.weight) or not (zero is None or is_constant(zero)):
        return False
    shape = constant_shape(product.weight)
    if len(shape) < 2 or (product.op_type == "MatMul" and len(shape) != 2):
        return False
    sizes = {product.weight_scale.size, 1 if zero is None else constant_array(zero).size}
    return sizes <= {1, shape[_row_axis(product)]}


def _write(graph: ir.Graph, product: _Product) -> None:
    node, steps = product.node, Steps(graph, str(product.result.name))
    features, scale, zero = product.features, product.features_scale, product.features_zero
    if scale is None:
        features, scale, zero = steps.append_all("DynamicQuantizeLinear", [features], num_outputs=3)
    inputs = [steps.real(features, scale, zero), _real_weight(steps, product)]
    result = steps.append(product.op_type, inputs, list(node.attributes.values()) if product.op_type == "Conv" else [])
    if product.bias is not None:
        result = steps.append("Add", [result, product.bias])
    graph.insert_before(node, steps.nodes)
    result.shape, result.type = product.result.shape, product.result.type
    last = product.result.producer()
    replace_uses(graph, product.result, result)
    remove_unused(graph, [node if last is None else last])


def _real_weight(steps: Steps, product: _Product) -> ir.Value:
    """Return what a weight's integers stand for: scale and zero point have one shape for a DequantizeLinear."""
    scale, zero, axis = product.weight_scale, product.weight_zero, _row_axis(product)
    zeros = None if zero is None else _scalar_or_flat(constant_array(zero))
    if scale.size > 1 or (zeros is not None and zeros.size > 1):
        rows = (constant_shape(product.weight)[axis],)
        scale = np.ascontiguousarray(np.broadcast_to(scale, rows))
        zeros = None if zeros is None else np.ascontiguousarray(np.broadcast_to(zeros, rows))
    stored_scale = add_initializer(steps.graph, f"{steps.base}_weight_scale", scale)
    stored_zero = None if zeros is None else add_initializer(steps.graph, f"{steps.base}_weight_zero_point", zeros)
    return steps.real(product.weight, stored_scale, stored_zero, axis=axis)


def _row_axis(product: _Product) -> int:
    return 0 if product.op_type == "Conv" else 1


def _scalar_or_flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return one number as `()`, and others in one dimension."""
    return array.reshape(() if array.size == 1 else -1)


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
