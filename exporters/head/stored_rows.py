"""Store the rows of a head in fewer bits than a runtime multiplies them in.

    int8 rows -> Cast -> Mul with a step per row -> [Cast] -> the head's own operator

Rules:

1. Only the weights change: each row is rounded to 255 steps of its own, or each weight to float16. Features, biases,
   slots, the operator and what follows it stay as they are, so that nothing has to be calibrated.
2. What computes the weights is a constant. Runtimes compute it once, when they load the model, and multiply floats as
   fast as before. A DequantizeLinear in its place would be left for every request (ONNX Runtime 1.32).
3. Rows that are stored in as few bits already are left alone.
"""

# Why: docs/decisions/0111.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.constants import constant_array, root_initializers
from exporters.graph.edits import add_initializer, add_node, remove_unused, unused_name
from exporters.graph.reading import input_of, only_user
from exporters.head.patterns import has_rows_first
from exporters.onnx_io.files import check_model
from icis_deploy.errors import ExportError, IncompatibleError

STORED_ROWS = "head_rows_stored"
"""Initializer with the rows as they are stored: int8 or float16, in the shape of the operator's weight."""

ROW_STEPS = "head_rows_steps"
"""Initializer with the step of each int8 row, float32, of one number per class along the axis of classes."""

_STEPS_PER_SIDE = 127
_LARGEST_FLOAT16 = 65504.0
_BITS = {"fp16": 16, "int8": 8}


@dataclass(frozen=True, slots=True)
class StoreRowsPass(ir.passes.InPlacePass):
    """Store the rows of one linear operator in float16 or int8; rows of as few bits already are not modified.

    The rows are read into memory as a whole.

    Raises:
        IncompatibleError: If float16 does not hold a weight.
        ExportError: If there is no such operator, or the edited graph is not valid.
    """

    node_name: str
    """The operator: Gemm, MatMul or 1x1 Conv with a constant weight."""

    precision: str
    """`fp16` or `int8`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the weight in place."""
        node = next((each for each in model.graph if each.name == self.node_name), None)
        if node is None:
            raise ExportError(
                f"The model has no node {self.node_name!r}, whose rows were to be stored in {self.precision}.",
                expected=self.node_name,
            )
        weight = input_of(node, 1)
        if _stored_bits(weight) <= _BITS[self.precision]:
            return ir.passes.PassResult(model, modified=False)
        stored = _add_stored(model.graph, node, weight, self.precision)
        node.replace_input_with(1, stored)
        producer, name = weight.producer(), str(weight.name)
        if producer is not None:
            remove_unused(model.graph, [producer])
        elif not weight.uses() and not weight.is_graph_output():
            model.graph.initializers.pop(name, None)
        if not weight.uses():
            stored.name = name
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


@dataclass(frozen=True, slots=True)
class UnpackRowsPass(ir.passes.InPlacePass):
    """Make stored rows floats again, for runtimes whose integers may only be quantized activations and weights.

    A model without such rows is not modified.

    Raises:
        ExportError: If the edited graph is not valid.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace what computes the rows by what it gives, in place."""
        graph = model.graph
        stored = next((value for name, value in graph.initializers.items() if name.startswith(STORED_ROWS)), None)
        node = None if stored is None else only_user(stored)
        if node is None:
            return ir.passes.PassResult(model, modified=False)
        last = node
        while (following := only_user(last.outputs[0])) is not None and following.op_type in {"Cast", "Mul"}:
            last = following
        weight = last.outputs[0]
        name = str(weight.name)
        array = constant_array(weight)
        weight.name = unused_name(graph, f"{name}_unpacked")
        rows = add_initializer(graph, name, array, dtype=weight.dtype)
        for user, index in list(weight.uses()):
            user.replace_input_with(index, rows)
        remove_unused(graph, [last])
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


def _stored_bits(weight: ir.Value) -> int:
    """Return how many bits each value of the largest constant that a weight is made of has."""
    roots = root_initializers(weight)
    dtype = roots[0].dtype if roots else weight.dtype
    return 32 if dtype is None else round(8 * dtype.itemsize)


def _add_stored(graph: ir.Graph, node: ir.Node, weight: ir.Value, precision: str) -> ir.Value:
    """Add what computes a weight from stored rows before the node that multiplies it; return the weight."""
    array = constant_array(weight)
    shape = ir.Shape(array.shape)
    if precision == "fp16":
        stored = add_initializer(graph, STORED_ROWS, _as_float16(array, str(node.name)))
        return _cast(graph, stored, weight.dtype, shape, before=node)
    axis = 0 if has_rows_first(node) else array.ndim - 1
    values = np.asarray(array, dtype=np.float64)
    largest = np.abs(values).max(axis=tuple(other for other in range(array.ndim) if other != axis), keepdims=True)
    steps = np.where(largest > 0, largest, _STEPS_PER_SIDE).astype(np.float32) / np.float32(_STEPS_PER_SIDE)
    rounded = np.clip(np.rint(values / steps), -_STEPS_PER_SIDE, _STEPS_PER_SIDE).astype(np.int8)
    stored = add_initializer(graph, STORED_ROWS, rounded)
    floats = _cast(graph, stored, ir.DataType.FLOAT, shape, before=node)
    product = add_node(
        graph,
        "Mul",
        [floats, add_initializer(graph, ROW_STEPS, steps)],
        name="head_rows_scaled",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        before=node,
    )
    return product if weight.dtype == ir.DataType.FLOAT else _cast(graph, product, weight.dtype, shape, before=node)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape, *, before: ir.Node) -> ir.Value:
    target = ir.DataType.FLOAT if dtype is None else dtype
    return add_node(
        graph,
        "Cast",
        [value],
        name="head_rows_cast",
        dtype=target,
        shape=shape,
        before=before,
        attributes={"to": int(target)},
    )


def _as_float16(array: NDArray[np.floating], where: str) -> NDArray[np.float16]:
    largest = float(np.abs(array).max(initial=0.0))
    if largest > _LARGEST_FLOAT16:
        raise IncompatibleError(
            f"The head {where} has a weight of magnitude {largest:.3g}; float16 holds at most {_LARGEST_FLOAT16:.0f}.",
            found=largest,
            expected=f"at most {_LARGEST_FLOAT16:.0f}",
            where=where,
            hint="Export it with `head_precision='int8'`, whose rows have steps of their own, or leave it out.",
        )
    return array.astype(np.float16)
