"""Small edits of an ONNX graph that passes are made of, and how passes run: on a copy, with our own errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from icis_deploy.errors import ICISDeployError


# Why: docs/decisions/0062.
def apply_passes(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    """Run passes, one after the other, on a copy of a model that shares its weights.

    onnx-ir checks what each pass requires and ensures, and wraps whatever is raised there in its own errors; those of
    ours come out as they are.

    Returns:
        The edited copy, or the model itself where no pass had anything to change.

    Raises:
        ICISDeployError: Whatever a pass raises; the model is as it was.
    """
    try:
        result = ir.passes.functionalize(ir.passes.Sequential(*passes))(model)
    except (ir.passes.PassError, ir.passes.InvariantError) as error:
        own = _own_error(error)
        if own is None:
            raise
    else:
        return result.model if result.modified else model
    raise own


def _own_error(error: BaseException) -> ICISDeployError | None:
    """Return the error of ours that made onnx-ir raise its own, if it was one of ours."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ICISDeployError):
        cause = cause.__cause__
    return cause


def opset_of(graph: ir.Graph) -> int:
    """Return the version of the standard operators that a graph uses."""
    return graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))


def unused_name(graph: ir.Graph, wanted: str) -> str:
    """Return `wanted`, or that with a number where a value of the graph or of a subgraph is called so already."""
    return unused_names(graph, [wanted])[0]


def unused_names(graph: ir.Graph, wanted: Iterable[str]) -> list[str]:
    """Return what `unused_name` does for each of many names, all different, in one look at the graph."""
    taken = {value.name for value in _all_values(graph)}
    names = []
    for name in wanted:
        free, count = name, 1
        while free in taken:
            free, count = f"{name}_{count}", count + 1
        taken.add(free)
        names.append(free)
    return names


def free_name(graph: ir.Graph, name: str) -> None:
    """Rename an inner value called `name`, so that an input or an output can be called so."""
    for value in list(_all_values(graph)):
        if value.name == name and not value.is_graph_output() and not value.is_graph_input():
            value.name = unused_name(graph, f"{name}_inner")


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any], dtype: ir.DataType | None = None) -> ir.Value:
    """Add a constant called `name`, or that with a number where the name is taken.

    Args:
        graph: Where to add it.
        name: The wanted name.
        array: Its values; copied only where they are converted or not contiguous.
        dtype: What to convert them to; their own type if not given.
    """
    name = unused_name(graph, name)
    target = array.dtype if dtype is None else dtype.numpy()
    # `ascontiguousarray` would make a vector of a single number, and a scale of one number per axis of a single one.
    return add_tensor(graph, ir.Tensor(np.asarray(array, dtype=target, order="C"), name=name))


def add_tensor(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a constant under the tensor's own name, which must be free."""
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_node(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value],
    *,
    name: str,
    dtype: ir.DataType | None,
    shape: ir.Shape,
    before: ir.Node | None = None,
    attributes: dict[str, Any] | None = None,
) -> ir.Value:
    """Add a node with one output, and return that output.

    Args:
        graph: Where to add it.
        op_type: A standard operator.
        inputs: What it takes.
        name: The wanted name of its output.
        dtype: Type of its output.
        shape: Shape of its output.
        before: The node to put it before; if not given it comes right after the last of its inputs is there.
        attributes: Of the operator.
    """
    output = ir.Value(name=unused_name(graph, name), shape=ir.Shape(list(shape)))
    output.type = None if dtype is None else ir.TensorType(dtype)
    node = ir.node(op_type, inputs, attributes=attributes or {}, outputs=[output], name=f"node_{output.name}")
    if before is not None:
        graph.insert_before(before, node)
        return output
    producers = {source.producer() for source in inputs} - {None}
    last = next((other for other in reversed(graph) if other in producers), None)
    if last is not None:
        graph.insert_after(last, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
    return output


def replace_uses(
    graph: ir.Graph, old: ir.Value, new: ir.Value, *, users: Iterable[tuple[ir.Node, int]] | None = None
) -> None:
    """Use `new` wherever `old` was used, its name and the graph's outputs included; `old` may still feed `new`.

    Args:
        graph: That holds both.
        old: The value that is replaced.
        new: The value that is used instead.
        users: The uses that are replaced; everywhere but by the node that gives `new` if not given.
    """
    for node, index in list(old.uses()) if users is None else users:
        if node is not new.producer():
            node.replace_input_with(index, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    name = str(old.name)
    old.name = unused_name(graph, f"{name}_seen")
    new.name = name


def remove_unused(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove those of `nodes` that nothing uses any more, and whatever fed only them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        if node.graph is not graph or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        sources = [source for source in node.inputs if source is not None]
        graph.remove(node, safe=True)
        for source in sources:
            producer = source.producer()
            if producer is not None:
                waiting.append(producer)
            elif source.is_initializer() and not source.uses() and not source.is_graph_output():
                _drop_initializer(graph, source)


def _drop_initializer(graph: ir.Graph, value: ir.Value) -> None:
    if value.is_graph_input():
        graph.inputs.remove(value)
    graph.initializers.pop(str(value.name), None)


def _all_values(graph: ir.Graph) -> Iterable[ir.Value]:
    # Not `graph.all_nodes()`, which would look into every node for subgraphs once more.
    for each in (graph, *graph.subgraphs()):
        yield from each.inputs
        yield from each.initializers.values()
        for node in each:
            yield from node.outputs
