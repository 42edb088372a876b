"""What follows the head: which values carry the classes, and what must change when there are more of them.

From the value where the logits leave the head, the class axis is followed through every node to the graph's outputs.
"""

# Why: docs/decisions/0011.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from exporters.graph.class_axis import Carrier, Followed, changes_class_ids, class_ids_of, follow, follow_labels
from exporters.graph.constants import constant_array, is_constant
from exporters.graph.edits import add_initializer, remove_unused
from exporters.graph.label_tables import LabelTable, extend_table, extended_labels, read_label_table
from exporters.graph.reading import input_of, label


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Everything downstream of the logits, as one pass over the graph found it."""

    logits: ir.Value
    """The value, `(batch, num_classes)` or with further axes of length 1, where the logits leave the head."""

    num_classes: int
    """Length of the class axis, before it grows."""

    axes: Mapping[ir.Value, int | None]
    """Index of the class axis of the logits and of each value after them; `None` where it has gone, as after ArgMax."""

    nodes: tuple[ir.Node, ...]
    """The nodes after the logits, in the graph's order."""

    warnings: tuple[str, ...]
    """Operators, with their names, that a classifier's logits are usually not followed by."""

    obstacles: tuple[str, ...]
    """Why no class can be added, in words, in the graph's order."""

    tables: tuple[LabelTable, ...] = ()
    """What chosen classes' labels are looked up in, in the graph's order."""

    labels: Mapping[ir.Value, LabelTable] = field(default_factory=dict)
    """The values that are such labels, each with its table."""

    columns: frozenset[ir.Value] = frozenset()
    """The values that are indices of chosen classes, with nothing added to them."""

    def path_to(self, output: ir.Value) -> tuple[str, ...]:
        """Return the operators that the classes pass from the logits to an output, in the graph's order.

        An operator that only computes sizes, or one number per image, for one of those is left out.
        """
        needed: set[ir.Node] = set()
        waiting = [output]
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node in self.nodes and node not in needed:
                needed.add(node)
                waiting.extend(
                    source for source in node.inputs if source is not None and self.axes.get(source) is not None
                )
        return tuple(node.op_type for node in self.nodes if node in needed)


def trace_tail(logits: ir.Value, class_axis: int, num_classes: int) -> Tail:
    """Follow the class axis from `logits` to the outputs of the graph."""
    axes: dict[ir.Value, int | None] = {logits: class_axis}
    class_ids: set[ir.Value] = set()
    columns: set[ir.Value] = set()
    labels: dict[ir.Value, LabelTable] = {}
    tables: list[LabelTable] = []
    found: list[tuple[ir.Node, Followed]] = []
    graph = logits.graph
    assert graph is not None, "logits are the output of a node"
    for node in graph:
        if any(value in axes for value in _taken_inside(node)):
            found.append(
                (node, Followed(obstacle=f"{label(node)} ({node.op_type}) takes classes in a graph of its own"))
            )
            axes.update(dict.fromkeys(node.outputs, None))
        elif any(source in axes for source in node.inputs):
            ids = frozenset(value for value in node.inputs if value is not None and value in class_ids)
            taken = frozenset(value for value in node.inputs if value is not None and value in labels)
            table = read_label_table(node, ids, num_classes) if ids and ids <= columns and not taken else None
            if table is not None:
                followed = Followed()
                tables.append(table)
                labels.update(dict.fromkeys(node.outputs, table))
            elif taken:
                followed = follow_labels(node, taken)
                labels.update(dict.fromkeys(node.outputs, labels[min(taken, key=list(node.inputs).index)]))
            else:
                followed = _follow(node, axes, num_classes, ids)
                given = class_ids_of(node, takes_class_ids=bool(ids))
                class_ids |= given
                if ids <= columns and not changes_class_ids(node):
                    columns |= given
            found.append((node, followed))
            axes.update(dict.fromkeys(node.outputs, followed.axis))
    return Tail(
        logits=logits,
        num_classes=num_classes,
        axes=axes,
        nodes=tuple(node for node, _ in found),
        warnings=tuple(followed.warning for _, followed in found if followed.warning is not None),
        obstacles=tuple(followed.obstacle for _, followed in found if followed.obstacle is not None),
        tables=tuple(tables),
        labels=labels,
        columns=frozenset(columns),
    )


def grow_tail(tail: Tail, num_classes: int) -> None:
    """Change the shapes and constants after the logits for a class axis of length `num_classes`."""
    for value, axis in tail.axes.items():
        if axis is not None and value.shape is not None and value is not tail.logits:
            value.shape = resized(value.shape, axis, num_classes)
    for node in tail.nodes:
        axis = tail.axes[node.outputs[0]]
        if node.op_type == "Reshape" and axis is not None:  # a Reshape that loses them is an obstacle
            _grow_reshape(node, axis, tail.num_classes, num_classes)


def name_new_classes(tail: Tail, seen_names: Sequence[str], new_names: Sequence[str]) -> None:
    """Put new classes' labels into the tables that chosen classes are looked up in.

    Raises:
        IncompatibleError: If a table has no plain label for one.
    """
    for table in tail.tables:
        extend_table(table, extended_labels(table, seen_names, new_names))


def drop_labels(tail: Tail) -> None:
    """Remove the outputs that are labels, and the tables: classes in slots have names that no graph knows.

    A device has the names of all classes, and gives them with its answers.
    """
    graph = tail.logits.graph
    assert graph is not None, "logits are the output of a node"
    dropped = [output for output in graph.outputs if output in tail.labels]
    if not dropped:
        return
    graph.outputs[:] = [output for output in graph.outputs if output not in tail.labels]
    remove_unused(graph, [node for output in dropped if (node := output.producer()) is not None])


def resized(shape: ir.Shape, axis: int, size: int | ir.SymbolicDim) -> ir.Shape:
    """Return a copy of a shape with another size on one axis."""
    dims = list(shape)
    dims[axis] = size
    return ir.Shape(dims)


def _taken_inside(node: ir.Node) -> set[ir.Value]:
    """Return the values that the graphs inside a node, such as the branches of an If, take from around it."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    nodes = [inner for graph in graphs for inner in graph.all_nodes()]
    taken = {value for inner in nodes for value in inner.inputs if value is not None}
    return taken | {value for graph in graphs for value in graph.outputs}


def _follow(
    node: ir.Node, axes: Mapping[ir.Value, int | None], num_classes: int, class_ids: frozenset[ir.Value]
) -> Followed:
    carriers = [
        Carrier(value=source, axis=axis, num_classes=num_classes)
        for source in node.inputs
        if source is not None and (axis := axes.get(source)) is not None
    ]
    followed = follow(node, carriers, class_ids)
    if followed.obstacle is None and _reverses_order(node, carriers, axes):
        return Followed(obstacle=f"{label(node)} ({node.op_type}) reverses the logits' order: the lowest would win")
    return followed


def _reverses_order(node: ir.Node, carriers: list[Carrier], axes: Iterable[ir.Value]) -> bool:
    """Say whether every logit passes through this node, and the greatest comes out as the smallest."""
    on_the_only_path = all(len(value.uses()) <= 1 for value in axes)
    if not on_the_only_path or len(carriers) != 1:
        return False
    logits = carriers[0].value
    if node.op_type == "Neg" or (node.op_type == "Sub" and node.inputs[1] is logits):
        return True
    if node.op_type not in {"Mul", "Div"}:
        return False
    other = node.inputs[0] if node.inputs[1] is logits else node.inputs[1]
    return is_constant(other) and other is not None and not bool((constant_array(other) > 0).all())


def _grow_reshape(node: ir.Node, axis: int, old: int, new: int) -> None:
    """Put the new number of classes where a reshape's target names the old one.

    The target is a constant, or several numbers joined by a Concat, of which those that are computed from the logits'
    own shape grow by themselves.
    """
    target = input_of(node, 1)
    if is_constant(target):
        _grow_constant(node, 1, [axis], old, new)
        return
    joined = target.producer()
    if joined is not None and joined.op_type == "Concat":
        for index, part in enumerate(joined.inputs):
            if part is not None and is_constant(part):
                _grow_constant(joined, index, range(constant_array(part).size), old, new)


def _grow_constant(node: ir.Node, input_index: int, indices: list[int] | range, old: int, new: int) -> None:
    source = input_of(node, input_index)
    array = np.array(constant_array(source))
    named = [index for index in indices if array.reshape(-1)[index] == old]
    if not named:
        return
    array.reshape(-1)[named] = new
    graph = node.graph
    assert isinstance(graph, ir.Graph), "a node after the logits is in their graph"
    node.replace_input_with(input_index, add_initializer(graph, f"{source.name}_grown", array))
