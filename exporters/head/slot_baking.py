"""Bake rows into an exported model between its seen classes and its slots, and change how many slots come after them.

    features -> the head that was there        \
             -> Gemm with baked rows            } Concat on the class axis -> whatever follows
             -> Gemm with the slots' rows      /

Rules:

1. Everything before the features, and the head that was there, stays as it is: backbone, precision, calibration, bits.
2. Baked rows are float32 and are multiplied as the slots are, so that a class keeps its logits when it moves there;
   its arbiter, if it has one, multiplies the statistics that are there for the slots.
3. A model that was compacted before gets one block of baked rows again, not a second one.
4. Before: the model has slots as `AddSlotsPass` makes them. After: the ONNX checker passes, and the first output has as
   many scores as there are classes and slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from exporters.graph.edits import add_initializer, add_node, free_name, remove_unused
from exporters.graph.reading import input_of, only_user, shape_of
from exporters.head.tail import grow_tail, resized, trace_tail
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.head.slots import SlotTable

BAKED_WEIGHT = "baked_weight"
BAKED_BIAS = "baked_bias"
BAKED_ARBITER = "baked_arbiter"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SlotNodes:
    """The nodes that multiply the slots and join their logits to those before."""

    gemm: ir.Node
    """Multiplies the features with the slots' rows."""

    path: tuple[ir.Node, ...]
    """The nodes that let its logits follow the arbiter, and bring them to the type and the rank of the head's own, in
    order."""

    concat: ir.Node
    """Joins them to the logits of the head and of baked rows."""

    axis: int
    """Index of the class axis of its inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeRowsPass(ir.passes.InPlacePass):
    """Bake rows after the classes that the head has, and let the slots hold other rows.

    Raises:
        IncompatibleError: If the model has no slots, or none as `AddSlotsPass` makes them.
        ExportError: If the edited graph is not valid.
    """

    num_seen: int
    """Number of classes of the original head."""

    baked: SlotTable = field(repr=False)
    """Every row that is baked after those, in order. The first ones may be in the head already, where rows were fused
    into it before it got its slots."""

    slots: SlotTable = field(repr=False)
    """What the slots hold afterwards; their number may differ from that in the model."""

    @property
    def num_scores(self) -> int:
        """Number of scores that the model gives afterwards."""
        return self.num_seen + self.baked.capacity + self.slots.capacity

    def requires(self, model: ir.Model) -> None:
        """Raise if there are no slots, or none with an arbiter where a row has one."""
        _slot_nodes(model)
        has_arbiter = self.baked.arbiter is not None or self.slots.arbiter is not None
        if has_arbiter and SLOT_ARBITER not in model.graph.initializers:
            raise IncompatibleError(
                f"Rows with an arbiter cannot be baked into a model without the input {SLOT_ARBITER!r}.",
                expected=SLOT_ARBITER,
                hint="Export it again with `arbiter='auto'`.",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bake the rows in place."""
        graph, nodes = model.graph, _slot_nodes(model)
        joined = nodes.concat.outputs[0]
        tail = trace_tail(joined, nodes.axis, _size(joined, nodes.axis))
        _remove_baked(graph)
        _set_slots(graph, nodes, self.slots)
        first = input_of(nodes.concat, 0)
        num_fused = _size(first, nodes.axis) - self.num_seen
        rows, arbiter = self.baked.rows()[num_fused:], self.baked.coefficients[num_fused:]
        if len(rows):
            _set_inputs(nodes.concat, [first, _baked_logits(graph, nodes, rows, arbiter), nodes.concat.inputs[-1]])
        _resize(joined, nodes.axis, self.num_scores)
        grow_tail(tail, self.num_scores)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or has not one score per class and slot."""
        check_model(model)
        scores = model.graph.outputs[0]
        if scores.shape is None or list(scores.shape)[1:] != [self.num_scores]:
            raise ExportError(
                f"The first output of the edited graph is {scores.name!r} {scores.shape}; expected "
                f"{self.num_scores} scores.",
                found=str(scores.shape),
                expected=self.num_scores,
            )


def _slot_nodes(model: ir.Model) -> _SlotNodes:
    weight = model.graph.initializers.get(SLOT_WEIGHT)
    gemm = node = None if weight is None or not weight.is_graph_input() else only_user(weight)
    path = []
    while node is not None and node.op_type != "Concat":
        path.append(node)
        node = only_user(node.outputs[0])
    if gemm is None or node is None:
        raise IncompatibleError(
            "The model has no slots whose logits are joined to those of its head, so there is nothing to bake.",
            hint="Export it with `head='updatable'`.",
        )
    return _SlotNodes(gemm=gemm, path=tuple(path[1:]), concat=node, axis=node.attributes["axis"].as_int())


def _remove_baked(graph: ir.Graph) -> None:
    """Remove the block of rows that an earlier compaction baked."""
    weight = graph.initializers.get(BAKED_WEIGHT)
    last = None if weight is None else only_user(weight)
    after = None if last is None else only_user(last.outputs[0])
    while after is not None and after.op_type != "Concat":
        last, after = after, only_user(after.outputs[0])
    if last is None or after is None:
        return
    _set_inputs(after, [value for value in after.inputs if value is not last.outputs[0]])
    remove_unused(graph, [last])


def _set_slots(graph: ir.Graph, nodes: _SlotNodes, slots: SlotTable) -> None:
    for name, array in ((SLOT_WEIGHT, slots.weight), (SLOT_BIAS, slots.bias), (SLOT_ARBITER, slots.coefficients)):
        if (value := graph.initializers.get(name)) is None:  # no arbiter
            continue
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    _resize(nodes.gemm.outputs[0], 1, slots.capacity)
    for node in nodes.path:
        output = node.outputs[0]
        _resize(output, 1 if len(shape_of(output)) == 2 else nodes.axis, slots.capacity)


def _baked_logits(graph: ir.Graph, nodes: _SlotNodes, rows: Float32, arbiter: Float32) -> ir.Value:
    """Add a copy of the slots' nodes with constant rows; return its logits."""
    for name in (BAKED_WEIGHT, BAKED_BIAS, BAKED_ARBITER):
        free_name(graph, name)
    weight, bias = add_initializer(graph, BAKED_WEIGHT, rows[:, :-1]), add_initializer(graph, BAKED_BIAS, rows[:, -1])
    logits = input_of(nodes.gemm, 0)
    for node in (nodes.gemm, *nodes.path):
        old = node.outputs[0]
        shape = shape_of(old)
        if node is nodes.gemm:
            inputs = [logits, weight, bias]
        elif not _follows_arbiter(node):
            inputs = [logits, *(value for value in node.inputs[1:] if value is not None)]
        elif arbiter.any():
            inputs = [input_of(node, 0), add_initializer(graph, BAKED_ARBITER, arbiter), logits]
        else:
            continue
        logits = add_node(
            graph,
            node.op_type,
            inputs,
            name=str(old.name).replace("slot", "baked"),
            dtype=old.dtype,
            shape=resized(shape, 1 if len(shape) == 2 else nodes.axis, len(rows)),
            before=nodes.concat,
            attributes=dict(node.attributes),
        )
    return logits


def _follows_arbiter(node: ir.Node) -> bool:
    """Say whether a node adds to its last input what follows from statistics and the slots' arbiters."""
    return any(value is not None and value.name == SLOT_ARBITER for value in node.inputs)


def _set_inputs(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    kept = list(values)
    node.resize_inputs(len(kept))
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)


def _resize(value: ir.Value, axis: int, size: int) -> None:
    value.shape = resized(shape_of(value), axis, size)


def _size(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise ExportError(
            f"The model does not state how many classes {value.name!r} holds.",
            where=value.name,
            hint="Export it again.",
        )
    return size
