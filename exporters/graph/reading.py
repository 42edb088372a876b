"""Read nodes and values of a checked ONNX graph, which has what the format leaves optional."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from icis_deploy.errors import ModelLoadError


def label(node: ir.Node) -> str:
    """Return what to call a node in a message and on the command line: its name, or its first output's."""
    return str(node.name or node.outputs[0].name)


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Return an input that a node must have.

    Raises:
        ModelLoadError: If it is left out.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelLoadError(f"The node {label(node)} ({node.op_type}) has no input {index}.", where=label(node))
    return value


def shape_of(value: ir.Value) -> ir.Shape:
    """Return a value's shape; a size in it may be a name.

    Raises:
        ModelLoadError: If it is not known.
    """
    if value.shape is None:
        raise ModelLoadError(
            f"The shape of {value.name!r} is not known.", where=value.name, hint="Export the model with shapes."
        )
    return value.shape


def fixed_batch(value: ir.Value) -> int | None:
    """Return the size of a value's first axis where the graph fixes it; `None` for one that takes any batch."""
    size = value.shape[0] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that takes a value; `None` where others do too, or the graph gives it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def walk_backward(graph: ir.Graph, sources: Callable[[ir.Node], Iterable[ir.Value | None]]) -> Iterator[ir.Node]:
    """Yield the nodes that a graph's outputs come from, the last ones first.

    Args:
        graph: The graph.
        sources: Returns the values to go on with behind a node; none where the walk ends.
    """
    waiting, known = [*graph.outputs], set(graph.outputs)
    while waiting:
        node = waiting.pop().producer()
        if node is None:
            continue
        yield node
        new = [source for source in sources(node) if source is not None and source not in known]
        known.update(new)
        waiting.extend(new)


def integers(node: ir.Node, name: str) -> tuple[int, ...]:
    """Return an attribute that lists integers; empty where the node does not have it."""
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def graph_input(graph: ir.Graph, name: str) -> ir.Value:
    """Return an input of a graph by its name.

    Raises:
        ModelLoadError: If there is none of that name.
    """
    return _named(name, graph.inputs, "input")


def value_named(graph: ir.Graph, name: str) -> ir.Value:
    """Return an input of a graph, or an output of one of its nodes, by its name.

    Raises:
        ModelLoadError: If there is none of that name.
    """
    return _named(name, [*graph.inputs, *(value for node in graph for value in node.outputs)], "value")


def _named(name: str, values: Iterable[ir.Value], kind: str) -> ir.Value:
    found = next((value for value in values if value.name == name), None)
    if found is None:
        raise ModelLoadError(f"The graph has no {kind} {name!r}.", expected=name)
    return found
