"""The scales, offsets and pooling after a linear operator that belong to its head, and what they do to its rows.

Rules:

1. Every operator that keeps the logits an affine function of the features belongs to the head: a bias that is added
   after a MatMul, a scale per class, a temperature, a cosine head's scale and constant margin, the mean over positions.
2. All of it is folded into the rows, so that `logits = features @ weight.T + bias` holds.
3. A cast belongs to it too: a float16 head's logits are joined to others where they are float32 again. So does what
   moves logits between axes, where a bias or a temperature follows it: a 1x1 convolution, flattened, then divided.
4. A value that something else uses as well ends the head.
"""

# Why: docs/decisions/0013.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.class_axis import Carrier, follow, reduced_axes
from exporters.graph.constants import constant_array, constant_shape, constant_size, is_constant
from exporters.graph.reading import input_of, integers, only_user
from icis_deploy.common.arrays import Float64

FLOAT_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})
_AFFINE = frozenset({"Add", "Div", "Mul", "Sub"})
_PASSED_THROUGH = frozenset({"Dropout", "Identity", "QuantizeLinear"})
_MOVES = frozenset({"Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineChain:
    """The nodes after a linear operator that belong to the head."""

    nodes: tuple[ir.Node, ...]
    """In order; each takes the output of the one before, which nothing else uses."""

    logits: ir.Value
    """The value where the logits leave the head."""

    class_axis: int
    """Index of the class axis of `logits`."""

    has_positions: bool
    """Whether there are still logits at several positions per image."""


def trace_affine_chain(linear: ir.Node, *, num_classes: int, class_axis: int) -> AffineChain:
    """Follow a linear operator's output for as long as it is an affine function of the features.

    Args:
        linear: The operator.
        num_classes: Its rows.
        class_axis: Axis of the classes in its output.
    """
    value, axis = linear.outputs[0], class_axis
    chain = AffineChain(nodes=(), logits=value, class_axis=axis, has_positions=_has_positions(value, axis))
    nodes: list[ir.Node] = []
    while (node := only_user(value)) is not None:
        following = _axis_after(node, value, axis, num_classes)
        if following is None:
            break
        nodes.append(node)
        value, axis = node.outputs[0], following
        # What only passes logits through stays outside, unless something that belongs to the head comes after it.
        if node.op_type not in _PASSED_THROUGH | _MOVES:
            chain = AffineChain(
                nodes=tuple(nodes), logits=value, class_axis=axis, has_positions=_has_positions(value, axis)
            )
    return chain


def scale_and_offset(linear: ir.Node, chain: AffineChain) -> tuple[Float64, Float64]:
    """Return what is done to `features @ weight`: multiplied by a scale, then an offset added.

    Returns:
        Scale and offset, each `()`, `(1,)` or `(num_classes,)`.
    """
    scale: Float64 = np.ones(())
    offset: Float64 = np.zeros(())
    gemm = linear.op_type == "Gemm"
    if gemm:
        scale = scale * np.float32(linear.attributes.get_float("alpha", 1.0))
    if len(linear.inputs) > 2 and linear.inputs[2] is not None:
        beta = np.float64(np.float32(linear.attributes.get_float("beta", 1.0))) if gemm else np.float64(1)
        offset = beta * _flat(linear.inputs[2])
    value = linear.outputs[0]
    for node in chain.nodes:
        operand = _affine_operand(node, value)
        if operand is not None:
            scale, offset = _apply(node, operand_first=node.inputs[1] is value, scale=scale, offset=offset)
        value = node.outputs[0]
    return scale, offset


def _apply(node: ir.Node, *, operand_first: bool, scale: Float64, offset: Float64) -> tuple[Float64, Float64]:
    array = _flat(input_of(node, 0 if operand_first else 1))
    if node.op_type == "Add":
        return scale, offset + array
    if node.op_type == "Mul":
        return scale * array, offset * array
    if node.op_type == "Div":
        return scale / array, offset / array
    return (-scale, array - offset) if operand_first else (scale, offset - array)


def _flat(constant: ir.Value) -> Float64:
    return constant_array(constant).astype(np.float64).reshape(-1)


def _has_positions(value: ir.Value, class_axis: int) -> bool:
    if value.shape is None:
        return True
    return any(dim != 1 for axis, dim in enumerate(value.shape) if axis not in {0, class_axis})


def _axis_after(node: ir.Node, value: ir.Value, axis: int, num_classes: int) -> int | None:
    """Return the class axis after a node that may belong to the head; `None` if it does not."""
    if node.op_type in _AFFINE:
        operand = _affine_operand(node, value)
        return axis if operand is not None and _fits(operand, value, axis, num_classes) else None
    if node.op_type in _PASSED_THROUGH:
        return axis
    if node.op_type in {"Cast", "DequantizeLinear"}:
        return axis if node.outputs[0].dtype in FLOAT_TYPES else None
    if node.op_type in _MOVES and not _has_positions(value, axis):
        return _axis_after_move(node, value, axis, num_classes)
    moved = _AXIS_AFTER.get(node.op_type)
    return None if moved is None else moved(node, value, axis)


def _affine_operand(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the constant that a node scales `value` with or adds to it; `None` if it does anything else."""
    if node.op_type not in _AFFINE:
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or other is value or not is_constant(other):
        return None
    return None if node.op_type == "Div" and node.inputs[0] is not value else other


def _fits(operand: ir.Value, value: ir.Value, axis: int, num_classes: int) -> bool:
    """Say whether a constant is one number, or one number per class."""
    if value.shape is None:
        return False
    shape = constant_shape(operand)
    rank = len(value.shape)
    if len(shape) > rank:
        return False
    if constant_size(operand) == 1:
        return True
    along = [size for index, size in enumerate(shape, start=rank - len(shape)) if index != axis]
    return constant_size(operand) == num_classes and all(size == 1 for size in along)


def _axis_after_move(node: ir.Node, value: ir.Value, axis: int, num_classes: int) -> int | None:
    """Return the class axis after logits of one position moved; `None` where the images are then not the first axis."""
    if node.inputs[0] is not value:
        return None
    followed = follow(node, [Carrier(value=value, axis=axis, num_classes=num_classes)])
    before, after = value.shape, node.outputs[0].shape
    if followed.obstacle is not None or not followed.axis or before is None or after is None:
        return None
    # A Reshape may leave the number of images open; what it joins with classes is an obstacle.
    return followed.axis if node.op_type == "Reshape" or before[0] == after[0] else None


def _axis_after_flattening(node: ir.Node, value: ir.Value, axis: int) -> int | None:
    """Return the class axis after a reshape that joins height and width; `None` if a node is another reshape.

    `(batch, classes, height, width)` becomes `(batch, classes, height * width)`; the classes may also come last.
    """
    before, after = value.shape, node.outputs[0].shape
    if before is None or after is None or len(before) <= 3 or len(after) != 3 or before[0] != after[0]:
        return None
    if axis == 1 and before[1] == after[1]:
        return 1
    return 2 if axis == len(before) - 1 and before[axis] == after[2] else None


def _axis_after_transpose(node: ir.Node, value: ir.Value, axis: int) -> int | None:
    """Return the class axis after a transpose that leaves the images first; `None` if a node is another one."""
    if value.shape is None:
        return None
    order = integers(node, "perm") or tuple(reversed(range(len(value.shape))))
    return order.index(axis) if order[0] == 0 else None


def _axis_after_pool(node: ir.Node, value: ir.Value, axis: int) -> int | None:
    """Return the class axis after the mean over all positions; `None` if a node is another kind of pooling."""
    if value.shape is None:
        return None
    rank = len(value.shape)
    if node.op_type == "ReduceMean":
        axes = reduced_axes(node, rank)
        if axes is None or set(axes) != set(range(1, rank)) - {axis}:
            return None
        return axis if node.attributes.get_int("keepdims", 1) else axis - sum(other < axis for other in axes)
    if axis != 1 or rank < 3:
        return None
    if node.op_type == "AveragePool":
        covers_all = integers(node, "kernel_shape") == tuple(value.shape)[2:]
        return axis if covers_all and not any(integers(node, "pads")) else None
    return axis


_AXIS_AFTER: dict[str, Callable[[ir.Node, ir.Value, int], int | None]] = {
    "Reshape": _axis_after_flattening,
    "Transpose": _axis_after_transpose,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _axis_after_pool),
}
