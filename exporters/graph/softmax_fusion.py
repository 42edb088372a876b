"""Bring a softmax that a converter wrote in primitives back to one operator, so that what follows a head is known.

JAX and TensorFlow write `exp(x - max(x)) / sum(exp(x - max(x)))`, and its logarithm `z - log(sum(exp(z)))`; some leave
the maximum out, multiply by a reciprocal, sum by a ReduceL1, or subtract a ReduceLogSumExp. The logarithm of a Softmax
is a LogSoftmax, whose exponential is a Softmax.
Source: ONNX operators Softmax and LogSoftmax, opset 13, one axis each.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.graph.class_axis import reduced_axes
from exporters.graph.constants import STANDARD_DOMAINS
from exporters.graph.edits import add_node, remove_unused, replace_uses
from exporters.graph.reading import input_of, shape_of


@dataclass(frozen=True, slots=True)
class FuseSoftmaxPass(ir.passes.InPlacePass):
    """Replace each softmax and log-softmax in primitives by the operator; a model without one is not modified."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them in place; steps that something else uses as well stay."""
        found = [(node, *match) for node in model.graph if (match := _match(node)) is not None]
        for node, op_type, source, axis in found:
            _replace(node, op_type, source, axis)
        return ir.passes.PassResult(model, modified=bool(found))


def _match(node: ir.Node) -> tuple[str, ir.Value, int] | None:  # noqa: PLR0911 - a form each
    """Return the operator that a node ends, what it is of, and its axis; `None` if it ends none."""
    if node.domain not in STANDARD_DOMAINS:
        return None
    if node.op_type == "Div":
        return _softmax(input_of(node, 0), input_of(node, 1))
    if node.op_type == "Mul":
        return _by_reciprocal(node)
    if node.op_type == "Sub":
        logarithm = _producer(input_of(node, 1), "Log")
        if logarithm is None:
            return _less_logsumexp(input_of(node, 0), input_of(node, 1))
        return _log_softmax(input_of(node, 0), input_of(logarithm, 0))
    if node.op_type == "Log":
        return _other_form("LogSoftmax", _producer(input_of(node, 0), "Softmax"))
    if node.op_type == "Exp":
        before = _producer(input_of(node, 0), "Sub")
        matched = None if before is None else _match(before)
        if matched is not None:
            return "Softmax", *matched[1:]
        return _other_form("Softmax", _producer(input_of(node, 0), "LogSoftmax"))
    return None


def _by_reciprocal(node: ir.Node) -> tuple[str, ir.Value, int] | None:
    for exponential, factor in ((0, 1), (1, 0)):
        inverse = _producer(input_of(node, factor), "Reciprocal")
        if inverse is not None:
            return _softmax(input_of(node, exponential), input_of(inverse, 0))
    return None


def _other_form(op_type: str, node: ir.Node | None) -> tuple[str, ir.Value, int] | None:
    """Match the logarithm of a Softmax, or the exponential of a LogSoftmax."""
    source = None if node is None else input_of(node, 0)
    if node is None or source is None or source.shape is None:
        return None
    return op_type, source, node.attributes.get_int("axis", -1) % len(source.shape)


def _less_logsumexp(value: ir.Value, total: ir.Value) -> tuple[str, ir.Value, int] | None:
    """Match `x - logsumexp(x)`, as scikit-learn's naive Bayes is written: kept, or reshaped to one column."""
    reshaped = _producer(total, "Reshape")
    node = _producer(total if reshaped is None else input_of(reshaped, 0), "ReduceLogSumExp")
    if node is None or input_of(node, 0) is not value or value.shape is None:
        return None
    if reshaped is None:
        axis = _kept_axis(node)
        return None if axis is None else ("LogSoftmax", value, axis)
    is_column = total.shape is not None and len(total.shape) == 2 and total.shape[1] == 1
    is_of_rows = len(value.shape) == 2 and reduced_axes(node, 2) == (1,)
    return ("LogSoftmax", value, 1) if is_column and is_of_rows else None


def _softmax(exponential: ir.Value, total: ir.Value) -> tuple[str, ir.Value, int] | None:
    power, axis = _producer(exponential, "Exp"), _sum_axis(total, exponential)
    if power is None or axis is None:
        return None
    return "Softmax", _before_shift(input_of(power, 0), axis), axis


def _log_softmax(shifted: ir.Value, total: ir.Value) -> tuple[str, ir.Value, int] | None:
    summed = _producer(total, "ReduceSum") or _producer(total, "ReduceL1")
    power = None if summed is None else _producer(input_of(summed, 0), "Exp")
    if summed is None or power is None or input_of(power, 0) is not shifted:
        return None
    axis = _sum_axis(total, input_of(summed, 0))
    return None if axis is None else ("LogSoftmax", _before_shift(shifted, axis), axis)


def _sum_axis(total: ir.Value, of: ir.Value) -> int | None:
    """Return the one axis over which a value is the sum of another, kept with length 1."""
    node = _producer(total, "ReduceSum") or _producer(total, "ReduceL1")  # exponentials are their own magnitudes
    return None if node is None or input_of(node, 0) is not of else _kept_axis(node)


def _before_shift(value: ir.Value, axis: int) -> ir.Value:
    """Return what a value was before its greatest element on an axis was subtracted; softmax is the same for both."""
    node = _producer(value, "Sub")
    if node is None:
        return value
    source = input_of(node, 0)
    greatest = _producer(input_of(node, 1), "ReduceMax")
    if greatest is None or input_of(greatest, 0) is not source or _kept_axis(greatest) != axis:
        return value
    return source


def _kept_axis(node: ir.Node) -> int | None:
    shape = input_of(node, 0).shape
    if shape is None or not node.attributes.get_int("keepdims", 1):
        return None
    axes = reduced_axes(node, len(shape))
    return axes[0] if axes is not None and len(axes) == 1 else None


def _producer(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the node of a type that a value comes from; copies in between are looked through."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.domain in STANDARD_DOMAINS:
        node = input_of(node, 0).producer()
    is_it = node is not None and node.op_type == op_type and node.domain in STANDARD_DOMAINS
    return node if is_it else None


def _replace(node: ir.Node, op_type: str, source: ir.Value, axis: int) -> None:
    graph, before = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph), "a node that was found is in a graph"
    fused = add_node(
        graph,
        op_type,
        [source],
        before=node,
        name=str(before.name),
        dtype=before.dtype,
        shape=before.shape if before.shape is not None else shape_of(source),
        attributes={"axis": axis},
    )
    replace_uses(graph, before, fused)
    remove_unused(graph, [node])
