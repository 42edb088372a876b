"""Read one linear operator of an ONNX graph as a head: Gemm, MatMul or 1x1 Conv with a constant weight.

features -> Gemm | MatMul | 1x1 Conv -> [scale, offset, quantization, mean over positions] -> logits
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.constants import (
    STANDARD_DOMAINS,
    constant_array,
    constant_nodes,
    constant_shape,
    constant_size,
    is_constant,
)
from exporters.graph.reading import input_of, integers, label, shape_of
from exporters.head.affine_chain import FLOAT_TYPES, AffineChain, scale_and_offset, trace_affine_chain
from icis_deploy.head.head import rows_per_block

Kind = Literal["gemm", "matmul", "conv", "cosine"]
_KINDS: dict[str, Kind] = {"Gemm": "gemm", "MatMul": "matmul", "Conv": "conv"}

_BENT = frozenset({"Clip", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh"})
"""Operators that are not linear: what they give for an average is not the average of what they give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPattern:
    """A linear operator that can be read as a head, with everything that belongs to it."""

    kind: Kind
    """Type of the linear operator, or `cosine` where its features have unit length."""

    node: ir.Node
    """The linear operator."""

    features: ir.Value
    """Its input: `(batch, feature_dim)`, or with the axes in `positions`."""

    weight: ir.Value
    """Its weight, a constant of 2 dimensions, or of 4 with a kernel of 1x1."""

    chain: AffineChain
    """The nodes after it that keep its output affine in the features."""

    positions: tuple[int, ...]
    """Axes of `features` besides batch and feature; the rows apply to the mean over them."""

    num_classes: int
    """Number of rows, one per class."""

    feature_dim: int
    """Width of a row without its bias."""

    @property
    def logits(self) -> ir.Value:
        """The value where the logits leave the head."""
        return self.chain.logits

    @property
    def averages(self) -> bool:
        """Whether there are features at several positions, and are to be averaged."""
        shape = shape_of(self.features)
        return any(shape[axis] != 1 for axis in self.positions)

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is stored as integers that a DequantizeLinear turns into floats."""
        return dequantization_of(self.weight) is not None


def is_linear(node: ir.Node) -> bool:
    """Say whether a node is of a type that can be a head."""
    return node.op_type in _KINDS and node.domain in STANDARD_DOMAINS


def has_rows(node: ir.Node) -> bool:
    """Say whether a linear operator multiplies something that depends on the input with a constant."""
    return is_constant(node.inputs[1]) and not is_constant(node.inputs[0])


def dequantization_of(weight: ir.Value) -> ir.Node | None:
    """Return the DequantizeLinear that a constant comes from, through a transposition or not; `None` if from none."""
    nodes = constant_nodes(weight) or []
    found = [node for node in nodes if node.op_type == "DequantizeLinear"]
    others = {node.op_type for node in nodes} - {"DequantizeLinear", "Transpose", "Identity", "Reshape"}
    return found[0] if len(found) == 1 and not others else None


def match_head(node: ir.Node) -> HeadPattern | str:
    """Read a linear operator as a head, or return why it is none, as a clause."""
    refusal = _refusal(node)
    if refusal is not None:
        return refusal
    features, weight = input_of(node, 0), input_of(node, 1)
    sizes = shape_of(features)
    num_classes, feature_dim = head_size(node)
    rank = len(sizes)
    feature_axis = 1 if node.op_type == "Conv" else rank - 1
    chain = trace_affine_chain(node, num_classes=num_classes, class_axis=feature_axis)
    if chain.has_positions:
        shape = ", ".join(str(size) for size in sizes)
        user = next((use.node for use in chain.logits.uses()), None)
        before = "" if user is None else f" before {label(user)} ({user.op_type})"
        why = (
            "; scores that are cut or bent at each position do not follow from averaged features by a row, which is "
            "what a new class gets"
        )
        return (
            f"it is applied at every position of features of shape [{shape}], which nothing averages{before}"
            f"{why if bends_at_positions(node) else ''}"
        )
    return HeadPattern(
        kind="cosine" if is_unit_length(features) else _KINDS[node.op_type],
        node=node,
        features=features,
        weight=weight,
        chain=chain,
        positions=tuple(axis for axis in range(1, rank) if axis != feature_axis),
        num_classes=num_classes,
        feature_dim=feature_dim,
    )


def bends_at_positions(node: ir.Node) -> bool:
    """Say whether what follows a linear operator at each position is not linear, as in SqueezeNet's head."""
    num_classes, _ = head_size(node)
    axis = 1 if node.op_type == "Conv" else len(node.outputs[0].shape or ()) - 1
    chain = trace_affine_chain(node, num_classes=num_classes, class_axis=axis)
    user = next((use.node for use in chain.logits.uses()), None)
    return chain.has_positions and user is not None and user.op_type in _BENT


def pattern_rows(pattern: HeadPattern) -> NDArray[np.float32]:
    """Return a head's rows, with the scales and offsets after it folded in.

    Returns:
        `(num_classes, feature_dim + 1)` float32, read-only. Where there is nothing to fold, the initializers' own bits.
    """
    rows = np.empty((pattern.num_classes, pattern.feature_dim + 1), dtype=np.float32)
    start = 0
    for block in pattern_row_blocks(pattern):
        rows[start : start + len(block)] = block
        start += len(block)
    rows.flags.writeable = False  # a Head takes a read-only array without a copy
    return rows


def pattern_row_blocks(pattern: HeadPattern) -> Iterator[NDArray[np.float32]]:
    """Yield a head's rows in order, a block at a time; see `pattern_rows`.

    Yields:
        `(block, feature_dim + 1)` float32.
    """
    scale, offset = scale_and_offset(pattern.node, pattern.chain)
    columns = np.broadcast_to(scale.reshape(-1, 1), (pattern.num_classes, 1))
    biases = np.broadcast_to(offset.reshape(-1), (pattern.num_classes,))
    # A weight in a file is mapped anew for each block, so that the pages that were read are released again.
    computed = None if pattern.weight.is_initializer() else oriented_weight(pattern.node)
    size = rows_per_block(pattern.feature_dim + 1)
    for start in range(0, pattern.num_classes, size):
        chosen = slice(start, min(start + size, pattern.num_classes))
        weight = (oriented_weight(pattern.node) if computed is None else computed)[chosen]
        rows = np.empty((len(weight), pattern.feature_dim + 1), dtype=np.float32)
        if np.all(scale == 1):
            rows[:, :-1] = weight
        else:
            np.multiply(weight, columns[chosen], out=rows[:, :-1], casting="same_kind", dtype=np.float64)
        rows[:, -1] = biases[chosen]
        yield rows


def head_size(node: ir.Node) -> tuple[int, int]:
    """Return a linear operator's `(num_classes, feature_dim)`."""
    shape = constant_shape(input_of(node, 1))
    return (shape[0], shape[1]) if has_rows_first(node) else (shape[1], shape[0])


def oriented_weight(node: ir.Node) -> NDArray[Any]:
    """Return a linear operator's weight as `(num_classes, feature_dim)`, a view of it where it can be one."""
    array = constant_array(input_of(node, 1))
    return array.reshape(array.shape[:2]) if has_rows_first(node) else array.T


def describe_linear(node: ir.Node) -> str:
    """Return a linear operator in words: name, type, classes, feature_dim."""
    num_classes, feature_dim = head_size(node)
    return f"{label(node)} ({node.op_type}, {num_classes} classes, feature_dim {feature_dim})"


def has_rows_first(node: ir.Node) -> bool:
    """Say whether the first axis of a linear operator's weight is that of the rows, and not the last."""
    return node.op_type == "Conv" or (node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)))


def _refusal(node: ir.Node) -> str | None:
    if not has_rows(node):
        return "its weight is not a constant" if not is_constant(node.inputs[1]) else "it does not depend on the input"
    features, weight = input_of(node, 0), input_of(node, 1)
    if features.shape is None:
        return "the shape of its features is unknown"
    if weight.dtype not in FLOAT_TYPES:
        found = "unknown" if weight.dtype is None else weight.dtype.name
        supported = ", ".join(sorted(dtype.name for dtype in FLOAT_TYPES))
        return f"its weight's type is {found}; expected one of {supported}, or integers that are dequantized to one"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not (is_constant(bias) and _is_per_class(bias, head_size(node)[0])):
        return "its bias is not a constant with one value per class"
    return {"Gemm": _gemm_refusal, "MatMul": _matmul_refusal, "Conv": _conv_refusal}[node.op_type](node)


def _is_per_class(bias: ir.Value, num_classes: int) -> bool:
    """Say whether a bias is one number, or one per class; a column of a Gemm has one per image of a fixed batch."""
    return constant_size(bias) == 1 or constant_shape(bias)[-1] == constant_size(bias) == num_classes


def _gemm_refusal(node: ir.Node) -> str | None:
    return "its features are transposed (transA)" if node.attributes.get_int("transA", 0) else None


def _matmul_refusal(node: ir.Node) -> str | None:
    shape = constant_shape(input_of(node, 1))
    if len(shape) != 2:
        return f"its weight has shape {list(shape)}; expected 2 dimensions"
    return "its features have no batch axis" if len(shape_of(input_of(node, 0))) < 2 else None


def _conv_refusal(node: ir.Node) -> str | None:
    kernel = constant_shape(input_of(node, 1))[2:]
    if any(size != 1 for size in kernel):
        return f"its kernel is {'x'.join(str(size) for size in kernel)}; expected 1x1"
    if node.attributes.get_int("group", 1) != 1:
        return "it is a grouped convolution"
    if any(integers(node, "pads")):
        return "it pads its input"
    if any(stride != 1 for stride in integers(node, "strides")):
        return "it skips positions (strides)"
    return None


_SHAPE_ONLY = frozenset({"Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear"})
_SHAPE_ONLY_WITH_TARGET = frozenset({"Expand", "Reshape", "Squeeze", "Unsqueeze"})
_GUARDS = frozenset({"Add", "Clip", "Max"})
_MAX_STEPS = 8


def is_unit_length(features: ir.Value) -> bool:
    """Say whether a value is another one divided by its own Euclidean length.

    Sources: ONNX LpNormalization with p = 2; Div by, or Mul with the reciprocal of, a ReduceL2 or the root of a sum of
    squares, guarded against zero by Clip, Max or Add, as `torch.nn.functional.normalize` is exported.
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
    first, second = input_of(node, 0), input_of(node, 1)
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
