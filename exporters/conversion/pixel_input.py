"""Let a model take pixels: scale, mean, deviation, layout and colour order become its own first nodes.

    uint8 (batch, height, width, channels) -> [colour order] -> [layout] -> float32 -> x scale + offset -> the model

A quarter of the bytes goes in, and what Python does in five passes over an image is done in the runtime. Resizing and
cropping stay outside: runtimes differ in how they interpolate.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import GraphPass, add_initializer, run_pass, unused_name
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.images.preprocessing import Preprocessing


def pixel_input(model_input: ModelInput, preprocessing: Preprocessing) -> ModelInput:
    """Return what a model takes once it takes pixels."""
    return ModelInput(name=model_input.name, shape=preprocessing.pixel_shape, dtype="uint8")


def add_pixel_input(model: ir.Model, input_name: str, preprocessing: Preprocessing) -> ir.Model:
    """Return a copy that takes `(batch, *pixel_shape)` uint8, red before green before blue, under the same input name.

    Args:
        model: Takes prepared float32 images.
        input_name: Its input for images.
        preprocessing: How they are prepared.

    Raises:
        IncompatibleError: If the input is not of the shape and type that preparing gives.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(pixel_input_pass(input_name, preprocessing), model).model


def pixel_input_pass(input_name: str, preprocessing: Preprocessing) -> GraphPass:
    """Return the pass of `add_pixel_input`."""
    return GraphPass(
        requires=partial(_require_prepared_images, input_name, preprocessing),
        call=partial(_prepare_inside, input_name, preprocessing),
        ensures=partial(_ensure_pixels, input_name, preprocessing),
    )


def _input_named(model: ir.Model, name: str) -> ir.Value:
    return next(value for value in model.graph.inputs if value.name == name)


def _require_prepared_images(input_name: str, preprocessing: Preprocessing, model: ir.Model) -> None:
    value = _input_named(model, input_name)
    stated = () if value.shape is None else tuple(value.shape)[1:]
    fits = len(stated) == 3 and all(
        not isinstance(own, int) or own == size for own, size in zip(stated, preprocessing.input_shape, strict=True)
    )
    if not fits or value.dtype != ir.DataType.FLOAT:
        raise IncompatibleError(
            f"The model's input {input_name!r} is {value.dtype} of shape {list(stated)}; preparing gives float32 of "
            f"shape {list(preprocessing.input_shape)}. Only a model that takes such images can take their pixels.",
            found=(str(value.dtype), tuple(stated)),
            expected=("float32", tuple(preprocessing.input_shape)),
            where=input_name,
        )


def _prepare_inside(input_name: str, preprocessing: Preprocessing, model: ir.Model) -> bool:
    graph = model.graph
    old = _input_named(model, input_name)
    assert old.shape is not None
    old.name = unused_name(graph, f"{input_name}_prepared")
    pixels = ir.Value(
        name=input_name,
        shape=ir.Shape([old.shape[0], *preprocessing.pixel_shape]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    graph.inputs[list(graph.inputs).index(old)] = pixels
    nodes = _nodes(graph, pixels, preprocessing)
    graph.insert_before(graph[0], nodes)
    for index, node in enumerate(nodes):
        node.outputs[0].name = unused_name(graph, f"{input_name}_step_{index}")
        node.name = f"node_{node.outputs[0].name}"
    prepared = nodes[-1].outputs[0]
    prepared.shape, prepared.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(old, prepared)
    return True


def _nodes(graph: ir.Graph, pixels: ir.Value, preprocessing: Preprocessing) -> list[ir.Node]:
    nodes: list[ir.Node] = []

    def append(op_type: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, attributes=attributes))
        return nodes[-1].outputs[0]

    value = pixels
    if preprocessing.color == "BGR":
        order = add_initializer(graph, "channel_order", np.array([2, 1, 0], dtype=np.int64))
        value = append("Gather", [value, order], axis=3)
    channels_first = preprocessing.layout == "NCHW"
    if channels_first:
        value = append("Transpose", [value], perm=[0, 3, 1, 2])  # of bytes, which is a quarter of the work
    value = append("Cast", [value], to=int(ir.DataType.FLOAT))
    shape = (1, -1, 1, 1) if channels_first else (1, 1, 1, -1)
    mean, std = (np.asarray(part, dtype=np.float64) for part in (preprocessing.mean, preprocessing.std))
    scale = add_initializer(graph, "pixel_scale", (1 / (255 * std)).astype(np.float32).reshape(shape))
    offset = add_initializer(graph, "pixel_offset", (-mean / std).astype(np.float32).reshape(shape))
    append("Add", [append("Mul", [value, scale]), offset])
    return nodes


def _ensure_pixels(input_name: str, preprocessing: Preprocessing, model: ir.Model) -> None:
    check_model(model)
    value = _input_named(model, input_name)
    if value.dtype != ir.DataType.UINT8 or tuple(value.shape or ())[1:] != preprocessing.pixel_shape:
        raise ExportError(
            f"The edited graph takes {value.dtype} {value.shape}; expected pixels.",
            found=(str(value.dtype), str(value.shape)),
            expected="pixels",
        )
