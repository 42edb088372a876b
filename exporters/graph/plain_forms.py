"""Write what can be said in several ways in the one that is looked for: nothing that a model computes changes.

    Squeeze without axes     with the axes whose length is 1 in the graph
    Sum of two               Add
    one number, as often     that number: what torch.full_like gives to divide logits by
    as the other has some

A Squeeze without axes takes away the batch as well where that is one image: a model that gives `(batch, classes)` for
two images would give `(classes,)` for one. That is not meant, so where the batch alone is open the others are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.constants import STANDARD_DOMAINS, constant_array, constant_size, is_constant
from exporters.graph.edits import add_initializer, remove_unused

_NUM_ADDED = 2
_OF_TWO = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})


@dataclass(frozen=True, slots=True)
class PlainFormsPass(ir.passes.InPlacePass):
    """Rewrite such nodes; a model without them is not modified."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite them in place."""
        graph, modified = model.graph, False
        for node in list(graph):
            if node.domain not in STANDARD_DOMAINS:
                continue
            if node.op_type == "Sum" and len(node.inputs) == _NUM_ADDED:
                node.op_type = "Add"
                modified = True
            elif node.op_type == "Squeeze":
                modified |= _name_axes(graph, node)
            elif node.op_type in _OF_TWO:
                modified |= _take_one_number(graph, node)
        return ir.passes.PassResult(model, modified=modified)


def _name_axes(graph: ir.Graph, node: ir.Node) -> bool:
    """Name the axes of a Squeeze that names none, where it is known which they are."""
    source = node.inputs[0]
    if any(value is not None for value in node.inputs[1:]) or source is None or not source.shape:
        return False
    batch, *others = source.shape
    if isinstance(batch, int) or not all(isinstance(size, int) for size in others):
        return False  # nothing is open, or more than the batch is, which may be of length 1 and meant
    axes = [axis for axis, size in enumerate(others, start=1) if size == 1]
    named = add_initializer(graph, f"{node.outputs[0].name}_axes", np.array(axes, dtype=np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, named)
    return True


def _take_one_number(graph: ir.Graph, node: ir.Node) -> bool:
    """Give a node one number itself where it takes it as often as its other operand has numbers."""
    for index, other in ((0, 1), (1, 0)):
        value = node.inputs[index]
        spread = None if value is None else value.producer()
        if spread is None or spread.domain not in STANDARD_DOMAINS or spread.op_type not in _SPREADS:
            continue
        number, shape = _SPREADS[spread.op_type](spread)
        if number is not None and _is_shape_of(shape, node.inputs[other]):
            name = f"{spread.outputs[0].name}_number"
            node.replace_input_with(index, add_initializer(graph, name, number.reshape(())))
            remove_unused(graph, [spread])
            return True
    return False


def _of_expand(node: ir.Node) -> tuple[NDArray[Any] | None, ir.Value | None]:
    number, shape = node.inputs
    if number is None or not is_constant(number) or constant_size(number) != 1:
        return None, shape
    array = constant_array(number)
    return array if array.ndim <= 1 else None, shape  # with more axes than the shape has, the result has them too


def _of_constant_of_shape(node: ir.Node) -> tuple[NDArray[Any] | None, ir.Value | None]:
    stated = node.attributes.get("value")
    return np.zeros(1, dtype=np.float32) if stated is None else stated.as_tensor().numpy(), node.inputs[0]


_SPREADS = {"Expand": _of_expand, "ConstantOfShape": _of_constant_of_shape}
"""What gives one number many times: that number, if it is known, and the shape."""


def _is_shape_of(shape: ir.Value | None, value: ir.Value | None) -> bool:
    """Say whether `shape` is the whole shape of `value`. Source: the attributes of ONNX's Shape, since opset 15."""
    node = None if shape is None else shape.producer()
    if node is None or node.domain not in STANDARD_DOMAINS or node.op_type != "Shape":
        return False
    return node.inputs[0] is value and not node.attributes.get_int("start", 0) and "end" not in node.attributes
