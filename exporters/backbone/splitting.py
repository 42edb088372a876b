"""Extract the backbone, from the images to the features, and put another one in its position.

Rules:

1. The head and all that follows it keep their nodes, their names and their bits: a location found before still holds.
2. A backbone that was taken out has one input and one output, under the names that they have in the model.
3. Where another output of the model is computed from the old backbone, that part of it stays.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.graph.edits import remove_unused, unused_name, unused_names
from exporters.graph.reading import value_named
from exporters.head.finding import HeadLocation
from exporters.onnx_io.files import check_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.errors import ExportError, IncompatibleError


def backbone_of(model: ir.Model, location: HeadLocation, input_name: str) -> ir.Model:
    """Return the nodes that compute the head's features, as a model of its own that shares the weights.

    Args:
        model: The classifier.
        location: Its head.
        input_name: Its input for images.

    Raises:
        IncompatibleError: If the features are the input, or depend on another input.
    """
    if location.feature_name == input_name:
        raise IncompatibleError(
            f"The head {location.node_name} is all there is: the model has no backbone to convert.",
            where=location.node_name,
            hint="Export it as it is, with `precision='fp32'`.",
        )
    copy = model.clone()
    try:
        graph = ir.convenience.extract(copy.graph, [input_name], [location.feature_name])
    except ValueError as error:
        raise IncompatibleError(
            f"The features of {location.node_name} depend on more than {input_name!r}.",
            expected=input_name,
            where=location.node_name,
            hint="Export it with `precision='fp32'`.",
        ) from error
    graph.name = "backbone"
    return ir.Model(graph, ir_version=model.ir_version)


def with_backbone(model: ir.Model, location: HeadLocation, input_name: str, backbone: ir.Model) -> ir.Model:
    """Return a copy of a classifier whose features come from another backbone.

    Args:
        model: The classifier.
        location: Its head.
        input_name: Its input for images.
        backbone: One input and one output of the same shapes; its nodes move into the copy.

    Raises:
        ExportError: If the result is not valid.
    """
    copy = model.clone()
    graph, new = copy.graph, backbone.graph
    old = value_named(graph, location.feature_name)
    (features,), (images,) = new.outputs, new.inputs
    nodes, initializers = list(new), list(new.initializers.values())
    new.outputs.clear()
    for node in nodes:
        new.remove(node)
    new.initializers.clear()
    moved = [images, *initializers, *(output for node in nodes for output in node.outputs)]
    for value, name in zip(moved, unused_names(graph, [str(value.name) for value in moved]), strict=True):
        value.name = name
    for value in initializers:
        graph.register_initializer(value)
    graph.insert_before(graph[0], nodes)
    ir.convenience.replace_all_uses_with(images, value_named(graph, input_name))
    ir.convenience.replace_all_uses_with(old, features, replace_graph_outputs=True)
    producer = old.producer()
    features.shape, features.type = features.shape or old.shape, features.type or old.type
    old.name, features.name = unused_name(graph, f"{location.feature_name}_float"), location.feature_name
    remove_unused(graph, [] if producer is None else [producer])
    for domain, version in backbone.opset_imports.items():
        copy.opset_imports.setdefault(domain, version)
    infer_shapes(copy)
    try:
        check_model(copy)
    except ExportError as error:
        raise ExportError(
            f"The converted backbone does not fit the head {location.node_name}: {error.what}",
            where=location.node_name,
            hint=error.hint,
        ) from error
    return copy
