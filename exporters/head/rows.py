"""Put rows into a graph as the weight and bias of a Gemm, in the form that the head's own rows have.

A quantized head stays quantized: its own rows keep their integers and their scales, bit for bit, and each new row gets
a scale of its own. Stored as floats are: a weight of another integer type than int8 and uint8, or of other scales than
one per row, and a bias that does not fit into int32 at the scale that it must have.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import constant_array, constant_size, is_constant
from exporters.graph.edits import add_initializer, add_node, add_tensor, unused_name
from exporters.graph.reading import input_of, shape_of
from exporters.head.affine_chain import scale_and_offset
from exporters.head.expanded_head import AnyHead
from exporters.head.patterns import HeadPattern, dequantization_of
from icis_deploy.common.arrays import Float64
from icis_deploy.head.head import Head

HEAD_WEIGHT = "head_weight"
HEAD_BIAS = "head_bias"
_INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_STEPS_PER_SIDE = 127
_ROUNDING = 1e-3
"""Fraction of a quantization step: a value that is this close to a whole number of steps was stored as that."""


def add_rows(graph: ir.Graph, pattern: HeadPattern, head: AnyHead, features: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Add all rows of `head` to a graph.

    Args:
        graph: Where to add them.
        pattern: The head that they replace.
        head: The rows.
        features: What multiplies them; its precision becomes theirs.

    Returns:
        Weight `(num_classes, feature_dim)` and bias `(num_classes,)` for a Gemm with transB = 1.
    """
    stored = dequantization_of(pattern.weight)
    dtype = None if stored is None else input_of(stored, 0).dtype
    scales = None if stored is None or dtype not in _INTEGERS else _row_scales(pattern, head, stored)
    if scales is None or dtype is None:
        weight = _add_weight(graph, head, features.dtype)
        return weight, add_initializer(graph, HEAD_BIAS, head.bias, dtype=features.dtype)
    weight = _add_quantized_weight(graph, head, scales, dtype, features, before=pattern.node)
    return weight, _add_bias(graph, pattern, head, scales, features)


def _add_weight(graph: ir.Graph, head: AnyHead, dtype: ir.DataType | None) -> ir.Value:
    if isinstance(head, Head):
        return add_initializer(graph, HEAD_WEIGHT, head.weight, dtype=dtype)
    return add_tensor(graph, head.weight_tensor(dtype or ir.DataType.FLOAT, unused_name(graph, HEAD_WEIGHT)))


def _row_scales(pattern: HeadPattern, head: AnyHead, stored: ir.Node) -> Float64 | None:
    """Return one step per row: the head's own where the row is a whole number of those, else one that spans the row.

    `None` where the head's own rows have no such steps, as with a scale per feature or per block of features.
    """
    largest = np.abs(head.weight).max(axis=1).astype(np.float64)
    own = np.where(largest > 0, largest, _STEPS_PER_SIDE) / _STEPS_PER_SIDE
    kept = np.abs(scale_and_offset(pattern.node, pattern.chain)[0]) * constant_array(input_of(stored, 1)).astype(
        np.float64
    )
    if kept.size not in {1, pattern.num_classes}:
        return None
    num_own = min(pattern.num_classes, head.num_classes)
    scales = own.copy()
    scales[:num_own] = np.broadcast_to(kept.reshape(-1), pattern.num_classes)[:num_own]
    steps = head.weight / scales[:, None]
    whole = np.abs(steps - np.rint(steps)).max(axis=1) < _ROUNDING
    fits = whole & (np.abs(steps).max(axis=1) < _STEPS_PER_SIDE + 1.5)
    return np.where(fits, scales, own) if fits[:num_own].all() else None


def _add_quantized_weight(
    graph: ir.Graph, head: AnyHead, scales: Float64, dtype: ir.DataType, features: ir.Value, *, before: ir.Node
) -> ir.Value:
    bounds = np.iinfo(dtype.numpy())
    zero = 0 if dtype == ir.DataType.INT8 else 128
    steps = np.clip(np.rint(head.weight / scales[:, None]) + zero, bounds.min, bounds.max)
    stored = add_initializer(graph, f"{HEAD_WEIGHT}_quantized", steps.astype(dtype.numpy()))
    scale = add_initializer(graph, f"{HEAD_WEIGHT}_scale", scales, dtype=features.dtype)
    zeros = add_initializer(graph, f"{HEAD_WEIGHT}_zero", np.full(head.num_classes, zero, dtype=dtype.numpy()))
    return _dequantized(graph, [stored, scale, zeros], name=HEAD_WEIGHT, features=features, before=before)


def _add_bias(graph: ir.Graph, pattern: HeadPattern, head: AnyHead, scales: Float64, features: ir.Value) -> ir.Value:
    """Add the bias as int32 where the head's own is: at the feature's scale times the row's, as runtimes expect it."""
    feature_scale = _feature_scale(features)
    bias = pattern.node.inputs[2] if len(pattern.node.inputs) > 2 else None
    if bias is not None and dequantization_of(bias) is not None and feature_scale is not None:
        steps = np.rint(head.bias.astype(np.float64) / (scales * feature_scale))
        if np.abs(steps).max() < np.iinfo(np.int32).max:
            stored = add_initializer(graph, f"{HEAD_BIAS}_quantized", steps.astype(np.int32))
            scale = add_initializer(graph, f"{HEAD_BIAS}_scale", scales * feature_scale, dtype=features.dtype)
            return _dequantized(graph, [stored, scale], name=HEAD_BIAS, features=features, before=pattern.node)
    return add_initializer(graph, HEAD_BIAS, head.bias, dtype=features.dtype)


def _feature_scale(features: ir.Value) -> float | None:
    """Return the scale of quantized features; `None` where they are not quantized as a whole."""
    node = features.producer()
    while node is not None and node.op_type in {"Flatten", "Reshape", "Squeeze"}:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if (
        node is None
        or node.op_type != "DequantizeLinear"
        or node.inputs[1] is None
        or not is_constant(node.inputs[1])  # quantized anew for each image
        or constant_size(node.inputs[1]) != 1
    ):
        return None
    return float(constant_array(node.inputs[1]).reshape(-1)[0])


def _dequantized(
    graph: ir.Graph, inputs: list[ir.Value], *, name: str, features: ir.Value, before: ir.Node
) -> ir.Value:
    return add_node(
        graph,
        "DequantizeLinear",
        inputs,
        before=before,
        name=name,
        dtype=features.dtype,
        shape=shape_of(inputs[0]),
        attributes={"axis": 0},
    )
