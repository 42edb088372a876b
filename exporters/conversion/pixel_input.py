"""Let a model take pixels: scale, mean, deviation, layout and colour order become its own first nodes.

    uint8 (batch, height, width, channels) -> [colour order] -> [layout] -> float32 -> x scale + offset -> the model

A quarter of the bytes goes in, and the runtime does what Python needs five passes over an image for. Resizing and
cropping stay outside: runtimes differ in how they interpolate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import add_initializer, unused_name
from exporters.graph.reading import graph_input, shape_of
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.resampling import PILLOW


def pixel_input(model_input: ModelInput, preprocessing: Preprocessing) -> ModelInput:
    """Return what a model takes once it takes pixels."""
    return ModelInput(name=model_input.name, shape=preprocessing.pixel_shape, dtype="uint8")


@dataclass(frozen=True, slots=True)
class AddPixelInputPass(ir.passes.InPlacePass):
    """Let a model take `(batch, *pixel_shape)` uint8, red before green before blue, under the same input name.

    Raises:
        IncompatibleError: If the input is not of the shape and type that preparing gives, or resized images are no
            8-bit pixels.
        ExportError: If the edited graph is not valid.
    """

    input_name: str
    """The model's input for images, which takes prepared float32 ones."""

    preprocessing: Preprocessing
    """Size, scale, mean, deviation, layout and colour order of those."""

    def requires(self, model: ir.Model) -> None:
        """Raise if the input does not take prepared images, or pixels are not all that goes into them."""
        if (obstacle := self.preprocessing.obstacle_to_pixels) is not None:
            raise IncompatibleError(
                f"The preprocessing has {obstacle}: a model that takes 8-bit pixels cannot do the rest itself.",
                found=self.preprocessing.antialias,
                expected=PILLOW,
                where="antialias",
                hint="Leave `model_input='uint8'` out, or prepare images with antialias 'pillow'.",
            )
        value = graph_input(model.graph, self.input_name)
        expected = self.preprocessing.input_shape
        stated = () if value.shape is None else tuple(value.shape)[1:]
        fits = len(stated) == 3 and all(
            not isinstance(own, int) or own == size for own, size in zip(stated, expected, strict=True)
        )
        if not fits or value.dtype != ir.DataType.FLOAT:
            raise IncompatibleError(
                f"The model's input {self.input_name!r} is {value.dtype} of shape {list(stated)}; preparing gives "
                f"float32 of shape {list(expected)}. Only a model that takes such images can take their pixels.",
                found=(str(value.dtype), stated),
                expected=("float32", tuple(expected)),
                where=self.input_name,
                hint="Leave `model_input` out, or give the preprocessing that this model has.",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the preparation in place."""
        graph, old = model.graph, graph_input(model.graph, self.input_name)
        old.name = unused_name(graph, f"{self.input_name}_prepared")
        pixels = ir.Value(
            name=self.input_name,
            shape=ir.Shape([shape_of(old)[0], *self.preprocessing.pixel_shape]),
            type=ir.TensorType(ir.DataType.UINT8),
        )
        graph.inputs[list(graph.inputs).index(old)] = pixels
        nodes = _nodes(graph, pixels, self.preprocessing)
        graph.insert_before(graph[0], nodes)
        for index, node in enumerate(nodes):
            node.outputs[0].name = unused_name(graph, f"{self.input_name}_step_{index}")
            node.name = f"node_{node.outputs[0].name}"
        prepared = nodes[-1].outputs[0]
        prepared.shape, prepared.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(old, prepared)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or takes no pixels."""
        check_model(model)
        value = graph_input(model.graph, self.input_name)
        if value.dtype != ir.DataType.UINT8 or tuple(value.shape or ())[1:] != self.preprocessing.pixel_shape:
            raise ExportError(
                f"The edited graph takes {value.dtype} {value.shape}; expected pixels.",
                found=(str(value.dtype), str(value.shape)),
                expected="pixels",
            )


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
    scale = add_initializer(graph, "pixel_scale", (preprocessing.rescale / std).astype(np.float32).reshape(shape))
    offset = add_initializer(graph, "pixel_offset", (-mean / std).astype(np.float32).reshape(shape))
    append("Add", [append("Mul", [value, scale]), offset])
    return nodes
