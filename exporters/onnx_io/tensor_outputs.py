"""Give a model tensors as outputs where it has sequences or maps, which hold the same numbers under their names.

scikit-learn's exports and Azure Custom Vision end in a ZipMap: `(num_images, num_classes)` becomes a list of
dictionaries. The scores before it are the model. A graph that also computes with sequences or maps cannot be edited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icis_deploy.errors import ModelLoadError

if TYPE_CHECKING:
    import onnx

ZIP_MAP = "ZipMap"


def give_tensors(model: onnx.ModelProto) -> None:
    """Replace each output that a ZipMap makes by what that takes, and leave other sequences and maps out, in place.

    A model whose outputs are tensors is not changed.

    Raises:
        ModelLoadError: If no output is left.
    """
    graph = model.graph
    others = [output for output in graph.output if _is_other(output)]
    if not others:
        return
    made_by = {name: node for node in graph.node for name in node.output}
    kept: list[onnx.ValueInfoProto] = []
    for output in graph.output:
        node = made_by.get(output.name)
        if not _is_other(output):
            kept.append(output)
        elif node is not None and node.op_type == ZIP_MAP and node.input[0] not in {each.name for each in graph.output}:
            kept.append(_of_unknown_type(node.input[0], graph))
    if not kept:
        names = ", ".join(repr(output.name) for output in others)
        raise ModelLoadError(
            f"The model gives no tensor: {names} are sequences or maps.",
            found=tuple(output.name for output in others),
            expected="a tensor of scores as an output",
            hint="Export it with its scores as a tensor.",
        )
    del graph.output[:]
    graph.output.extend(kept)
    _remove_unused(graph, {output.name for output in others})
    infos = [info for info in graph.value_info if not _is_other(info)]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def _is_other(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") in {"sequence_type", "map_type", "optional_type"}


def _of_unknown_type(name: str, graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """Return an output for an inner value: with its type where the graph states it, as inference finds it elsewhere."""
    import onnx

    for info in graph.value_info:
        if info.name == name:
            stated: onnx.ValueInfoProto = info
            return stated
    # ZipMap takes float32 alone.
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None])


def _remove_unused(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the nodes that made these values, and those that made only what they took."""
    while names:
        used = {output.name for output in graph.output} | _taken(graph)
        unused = [node for node in graph.node if names.intersection(node.output) and not used.intersection(node.output)]
        names = {name for node in unused for name in node.input}
        for node in unused:
            graph.node.remove(node)


def _taken(graph: onnx.GraphProto) -> set[str]:
    """Return the names of what a graph's nodes take, those in graphs of their own included."""
    taken: set[str] = set()
    for node in graph.node:
        taken.update(node.input)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                taken |= _taken(inner) | {output.name for output in inner.output}
    return taken
