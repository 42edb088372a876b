"""Bake rows into an exported model between its seen classes and its slots, and change how many slots come after them.

    features -> the head that was there        \
             -> Gemm with baked rows            } Concat on the class axis -> whatever follows
             -> Gemm with the slots' rows      /

Rules:

1. Everything before the features, and the head that was there, stays as it is: backbone, precision, calibration, bits.
2. Baked rows are float32 and are multiplied as the slots are, so that a class keeps its logits when it moves there.
3. A model that was compacted before gets one block of baked rows again, not a second one.
4. Before: the model has slots as `add_slots` makes them. After: the ONNX checker passes, and the first output has as
   many scores as there are classes and slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.edits import GraphPass, add_initializer, add_node, free_name, remove_unused, run_pass
from exporters.head.tail import grow_tail, resized, trace_tail
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.head.slots import SlotTable

BAKED_WEIGHT = "baked_weight"
BAKED_BIAS = "baked_bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SlotNodes:
    """The slots' part of a graph."""

    gemm: ir.Node
    """Features times the slots' rows."""

    path: tuple[ir.Node, ...]
    """What brings its logits to the type and the rank of the head's own, in order."""

    concat: ir.Node
    """What joins them to the logits before them."""

    axis: int
    """The class axis of what it joins."""


def bake_rows(model: ir.Model, *, num_seen: int, baked: SlotTable, slots: SlotTable) -> ir.Model:
    """Return a copy in which rows are baked after the classes that the head has, and the slots hold other rows.

    Args:
        model: With slots.
        num_seen: How many classes the original head had.
        baked: Every row that is baked beside those, in order. The first ones may be in the head already, where rows
            were fused into it before it got its slots.
        slots: What the slots hold afterwards.

    Raises:
        IncompatibleError: If the model has no slots, or none as `add_slots` makes them.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(baking_pass(num_seen, baked, slots), model).model


def baking_pass(num_seen: int, baked: SlotTable, slots: SlotTable) -> GraphPass:
    """Return the pass of `bake_rows`."""
    num_outputs = num_seen + baked.capacity + slots.capacity

    def requires(model: ir.Model) -> None:
        _slot_nodes(model)

    def call(model: ir.Model) -> bool:
        graph, nodes = model.graph, _slot_nodes(model)
        joined = nodes.concat.outputs[0]
        tail = trace_tail(joined, nodes.axis, _size(joined, nodes.axis))
        _remove_baked(graph)
        _set_slots(graph, nodes, slots)
        first = nodes.concat.inputs[0]
        assert first is not None
        rows = baked.rows()[_size(first, nodes.axis) - num_seen :]
        if len(rows):
            _set_inputs(nodes.concat, [first, _baked_logits(graph, nodes, rows), nodes.concat.inputs[-1]])
        _resize(joined, nodes.axis, num_outputs)
        grow_tail(tail, num_outputs)
        return True

    return GraphPass(requires=requires, call=call, ensures=partial(_ensure_scores, num_outputs=num_outputs))


def _slot_nodes(model: ir.Model) -> _SlotNodes:
    weight = model.graph.initializers.get(SLOT_WEIGHT)
    gemm = node = None if weight is None or not weight.is_graph_input() else _only_user(weight)
    path = []
    while node is not None and node.op_type != "Concat":
        path.append(node)
        node = _only_user(node.outputs[0])
    if gemm is None or node is None:
        raise IncompatibleError(
            "The model has no slots whose logits are joined to those of its head, so there is nothing to bake.",
            hint="Export it with `head='updatable'`.",
        )
    return _SlotNodes(gemm=gemm, path=tuple(path[1:]), concat=node, axis=node.attributes["axis"].as_int())


def _only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that takes a value; `None` where there are more, or none."""
    users = [node for node, _index in value.uses()]
    return users[0] if len(users) == 1 else None


def _remove_baked(graph: ir.Graph) -> None:
    """Take the block of rows out that a compaction before has baked."""
    weight = graph.initializers.get(BAKED_WEIGHT)
    last = None if weight is None else _only_user(weight)
    after = None if last is None else _only_user(last.outputs[0])
    while after is not None and after.op_type != "Concat":
        last, after = after, _only_user(after.outputs[0])
    if last is None or after is None:
        return
    _set_inputs(after, [value for value in after.inputs if value is not last.outputs[0]])
    remove_unused(graph, [last])


def _set_slots(graph: ir.Graph, nodes: _SlotNodes, slots: SlotTable) -> None:
    for name, array in ((SLOT_WEIGHT, slots.weight), (SLOT_BIAS, slots.bias)):
        value = graph.initializers[name]
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    _resize(nodes.gemm.outputs[0], 1, slots.capacity)
    for node in nodes.path:
        output = node.outputs[0]
        assert output.shape is not None
        _resize(output, 1 if len(output.shape) == 2 else nodes.axis, slots.capacity)


def _baked_logits(graph: ir.Graph, nodes: _SlotNodes, rows: NDArray[np.float32]) -> ir.Value:
    """Add a copy of the slots' nodes with constant rows; return its logits."""
    features = nodes.gemm.inputs[0]
    assert features is not None
    for name in (BAKED_WEIGHT, BAKED_BIAS):
        free_name(graph, name)
    weight, bias = add_initializer(graph, BAKED_WEIGHT, rows[:, :-1]), add_initializer(graph, BAKED_BIAS, rows[:, -1])
    logits = features
    for node in (nodes.gemm, *nodes.path):
        old = node.outputs[0]
        assert old.shape is not None
        others = [weight, bias] if node is nodes.gemm else [value for value in node.inputs[1:] if value is not None]
        logits = add_node(
            graph,
            node.op_type,
            [logits, *others],
            name=str(old.name).replace("slot", "baked"),
            dtype=old.dtype,
            shape=resized(old.shape, 1 if len(old.shape) == 2 else nodes.axis, len(rows)),
            before=nodes.concat,
            attributes=dict(node.attributes),
        )
    return logits


def _set_inputs(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    kept = list(values)
    node.resize_inputs(len(kept))
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)


def _resize(value: ir.Value, axis: int, size: int) -> None:
    assert value.shape is not None
    value.shape = resized(value.shape, axis, size)


def _size(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise ExportError(
            f"The model does not state how many classes {value.name!r} holds.",
            where=value.name,
            hint="Export it again.",
        )
    return size


def _ensure_scores(model: ir.Model, *, num_outputs: int) -> None:
    check_model(model)
    scores = model.graph.outputs[0]
    if scores.shape is None or list(scores.shape)[1:] != [num_outputs]:
        raise ExportError(
            f"The first output of the edited graph is {scores.name!r} {scores.shape}; expected {num_outputs} scores.",
            found=str(scores.shape),
            expected=num_outputs,
        )
