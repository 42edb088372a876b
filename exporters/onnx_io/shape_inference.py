"""Shapes of values in an ONNX graph, as far as they can be derived without running it.

ONNX's own inference leaves open what classifiers are full of: `x.view(len(x), -1)`, a Reshape to a target that is
computed in the graph. Where that feeds a linear operator, the weight says how wide it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes import common

_TARGETS_UNREAD_OPSET = 13
"""Up to it, inference does not look at a Reshape's target unless it is a constant."""


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types that can be derived, in place; keep those that are known already.

    A model that inference cannot follow (operators of other domains) keeps what it has.
    """
    inference = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    with _quiet_onnx_ir(), _targets_read(model):
        inference(model)
        matrices = [node for node in model.graph if node.op_type == "Gemm" and _of_unknown_shape(node.inputs[0])]
        for node in model.graph:
            axes = _width_axes(node)
            if axes is not None:
                _state_width(node, *axes)
        rest = [_state_rest(node) for node in model.graph]
        if matrices or any(rest):  # what follows them can be derived now
            inference(model)


def derive_shapes(model: ir.Model) -> None:
    """Fill in shapes and types from the inputs on, in place; what a file states counts where no size can be derived.

    Files state sizes that their graphs do not have: those of before a head was replaced, a batch of one, no axes at
    all. Runtimes warn of it and go by the graph; inference stops where the two contradict each other.
    """
    stated = {
        value: value.shape
        for node in model.graph
        for value in node.outputs
        if value.shape is not None and value.const_value is None
    }
    for value in stated:
        value.shape = None
    infer_shapes(model)
    added = [_state_where_open(value, shape) for value, shape in stated.items()]
    if any(added):
        infer_shapes(model)


def _state_where_open(value: ir.Value, stated: ir.Shape) -> bool:
    """Give a value what a file states of its shape and was not derived; say whether more sizes are known by it."""
    derived = value.shape
    if derived is None:
        value.shape = stated
        return True
    if len(derived) != len(stated):
        return False
    pairs = list(zip(derived, stated, strict=True))
    value.shape = ir.Shape([own if isinstance(own, int) or _is_unnamed(said) else said for own, said in pairs])
    return any(isinstance(said, int) and not isinstance(own, int) for own, said in pairs)


def _is_unnamed(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None


@contextmanager
def _targets_read(model: ir.Model) -> Iterator[None]:
    """Let opset 13 be inferred as 14: a Reshape's target is looked at there, and no shape differs otherwise."""
    imports = model.opset_imports
    stated = {domain: imports[domain] for domain in ("", "ai.onnx") if imports.get(domain) == _TARGETS_UNREAD_OPSET}
    imports.update(dict.fromkeys(stated, _TARGETS_UNREAD_OPSET + 1))
    try:
        yield
    finally:
        imports.update(stated)


def _width_axes(node: ir.Node) -> tuple[int, int] | None:
    """Return on which axis of what it takes, and of its weight, a linear operator has as many features."""
    if node.domain not in {"", "ai.onnx"}:
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transA", 0) else 1, 1 if node.attributes.get_int("transB", 0) else 0
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1:
        return 1, 1
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    is_matrix = weight is not None and weight.shape is not None and len(weight.shape) == 2
    return (-1, 0) if is_matrix else None


def _state_width(node: ir.Node, axis: int, weight_axis: int) -> None:
    """Put the width of a linear operator's weight into the shape of what it takes, where that is open."""
    value, weight = node.inputs[0], node.inputs[1]
    if value is None or weight is None or weight.shape is None:
        return
    if _of_unknown_shape(value) and node.op_type == "Gemm":  # it takes matrices alone, all of one type
        value.shape, value.type = ir.Shape([None, None]), value.type or weight.type
    width = weight.shape[weight_axis]
    if value.shape is not None and isinstance(width, int) and not isinstance(value.shape[axis], int):
        dims = list(value.shape)
        dims[axis] = width
        value.shape = ir.Shape(dims)


def _state_rest(node: ir.Node) -> bool:
    """Put the one size that a Reshape leaves open into what it gives, where the others are known; say whether it was.

    It has as many elements as what it takes: `(n, 12, 1, 1)` becomes `(n, 12)` in `x.view(len(x), -1)`.
    """
    if node.op_type != "Reshape" or node.domain not in {"", "ai.onnx"} or node.inputs[0] is None:
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if not before or not after or before[0] != after[0] or (not isinstance(before[0], int) and before[0].value is None):
        return False
    taken = [size for size in before[1:] if isinstance(size, int)]
    given = [size for size in after[1:] if isinstance(size, int)]
    if len(taken) != len(before) - 1 or len(given) != len(after) - 2 or math.prod(taken) % (math.prod(given) or 1):
        return False
    rest = math.prod(taken) // (math.prod(given) or 1)
    node.outputs[0].shape = ir.Shape([after[0], *(size if isinstance(size, int) else rest for size in after[1:])])
    return True


def _of_unknown_shape(value: ir.Value | None) -> bool:
    return value is not None and value.shape is None


@contextmanager
def _quiet_onnx_ir() -> Iterator[None]:
    """Keep onnx-ir's warnings off the user's terminal: what they say of is checked afterwards."""
    logger = logging.getLogger("onnx_ir")
    was = logger.disabled, logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.disabled, logger.level = was
