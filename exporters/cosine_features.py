"""Recognise features of unit length: what makes a head a cosine head."""

from __future__ import annotations

import onnx_ir as ir

from exporters.graph.constants import constant_array, constant_size, is_constant

_SHAPE_ONLY = frozenset({"Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear"})
_SHAPE_ONLY_WITH_TARGET = frozenset({"Expand", "Reshape", "Squeeze", "Unsqueeze"})
_GUARDS = frozenset({"Add", "Clip", "Max"})
_MAX_STEPS = 8


def is_unit_length(features: ir.Value) -> bool:
    """Say whether a value is another one divided by its own Euclidean length.

    Sources: ONNX LpNormalization with p = 2; Div by, or Mul with the reciprocal of, a ReduceL2 or the root of a sum of
    squares, guarded against zero by Clip, Max or Add, as `torch.nn.functional.normalize` and its kin are exported.
    """
    node = features.producer()
    while node is not None and node.op_type in _SHAPE_ONLY | _SHAPE_ONLY_WITH_TARGET:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is None:
        return False
    if node.op_type == "LpNormalization":
        return bool(node.attributes.get_int("p", 2) == 2)
    if node.op_type not in {"Div", "Mul"}:
        return False
    first, second = node.inputs[0], node.inputs[1]
    assert first is not None
    assert second is not None
    return _is_length_of(second, first) or (node.op_type == "Mul" and _is_length_of(first, second))


def _is_length_of(length: ir.Value, vector: ir.Value) -> bool:
    """Say whether `length` is the Euclidean length of `vector`, or its reciprocal."""
    value, rooted = length, False
    for _ in range(_MAX_STEPS):
        node = value.producer()
        if node is None:
            return False
        if node.op_type.startswith("Reduce"):
            return _is_sum_over(node, vector, rooted=rooted)
        is_root = node.op_type == "Sqrt" or _exponent(node) in {0.5, -0.5}
        if not is_root and node.op_type not in _GUARDS | _SHAPE_ONLY | _SHAPE_ONLY_WITH_TARGET | {"Reciprocal"}:
            return False
        rooted = rooted or is_root
        source = next((each for each in node.inputs if each is not None and not is_constant(each)), None)
        if source is None:
            return False
        value = source
    return False


def _is_sum_over(node: ir.Node, vector: ir.Value, *, rooted: bool) -> bool:
    source = node.inputs[0]
    if source is None:
        return False
    if node.op_type == "ReduceL2":
        return source is vector
    if node.op_type == "ReduceSumSquare":
        return rooted and source is vector
    return rooted and node.op_type == "ReduceSum" and _is_square_of(source, vector)


def _is_square_of(square: ir.Value, vector: ir.Value) -> bool:
    node = square.producer()
    if node is None or node.inputs[0] is not vector:
        return False
    return _exponent(node) == 2 or (node.op_type == "Mul" and node.inputs[1] is vector)


def _exponent(node: ir.Node) -> float | None:
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    if exponent is None or not is_constant(exponent) or constant_size(exponent) != 1:
        return None
    return float(constant_array(exponent).reshape(-1)[0])
