"""Remove a training margin that reads labels from an ONNX graph.

ArcFace, CosFace and similar losses lower the logit of the image's own class in training: the exported graph then
has labels as a second input, and no device has labels. The margin is removed by assuming that no class is the label:
each mask that is made from the labels becomes the constant that it is for all other classes, and operations that become
trivial (times one, plus zero, a choice that is always the same) are removed as well.

Sources: Deng et al. 2019 (ArcFace), Wang et al. 2018 (CosFace); ONNX OneHot, Equal, ScatterElements, ScatterND.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.constants import constant_array, constant_size, is_constant
from exporters.graph.edits import add_initializer, add_node, remove_unused
from exporters.graph.reading import graph_input, input_of, label
from exporters.onnx_io.files import check_model
from icis_deploy.errors import IncompatibleError, ModelLoadError

_MOVES_LABELS = frozenset({"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_SWITCH = "no_label"
_FOLDABLE = frozenset({"Add", "And", "Cast", "Div", "Mul", "Neg", "Not", "Or", "Sub", "Where"})

Feed = Mapping[str, NDArray[np.generic]]
NamedRunner = Callable[[Feed, str], NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveMarginPass(ir.passes.InPlacePass):
    """Remove the input for labels, and its effect on the logits.

    Raises:
        ModelLoadError: If the labels are used for anything but a mask over the classes.
        ExportError: If the edited graph is not valid.
    """

    labels: str
    """Name of the input that takes the labels."""

    images: str
    """Name of the input that takes the images."""

    def requires(self, model: ir.Model) -> None:
        """Raise if one of the inputs is not there."""
        for name in (self.labels, self.images):
            graph_input(model.graph, name)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the input in place."""
        graph = model.graph
        labels, images = graph_input(graph, self.labels), graph_input(graph, self.images)
        _read_batch_size_from_images(graph, labels, images)
        masks = _masks(labels)
        for node, off in masks.items():
            _replace(node, add_initializer(graph, _SWITCH, np.asarray(off)))
        trivial = _simplify(graph, {value for node in masks for value in node.outputs})
        remove_unused(graph, [*trivial, *masks])
        if labels.uses():
            raise _refusal(self.labels, next(iter(labels.uses())).node)
        graph.inputs.remove(labels)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


def without_margin(run: NamedRunner, labels: str, images: str, dtype: np.dtype[np.generic]) -> NamedRunner:
    """Return a runner without labels for a model that takes them: no logit is that of the label.

    Each logit is taken from a run in which another class is the label.

    Args:
        run: Runs the original model.
        labels: Name of the input that takes the labels.
        images: Name of the other one.
        dtype: Type of the labels.
    """

    def run_without(feed: Feed, output: str) -> NDArray[np.generic]:
        first, second = (
            run({images: feed[images], labels: np.full(len(feed[images]), label, dtype=dtype)}, output)
            for label in (0, 1)
        )
        if first.ndim != 2 or first.shape[1] < 3 or not np.array_equal(first[:, 2:], second[:, 2:]):
            raise IncompatibleError(
                f"The model's output {output!r} changes in every class with the labels that it is given, so it cannot "
                f"be compared with a model that takes none.",
                where=output,
                hint="Export the model in evaluation mode, without labels.",
            )
        logits: NDArray[np.generic] = first.copy()
        logits[:, 0] = second[:, 0]
        return logits

    return run_without


def _refusal(labels: str, node: ir.Node) -> ModelLoadError:
    return ModelLoadError(
        f"The input {labels!r} feeds {label(node)} ({node.op_type}), which is no mask over the classes, so the "
        f"margin cannot be taken out.",
        found=node.op_type,
        where=labels,
        hint="Export the model in evaluation mode, without labels.",
    )


def _read_batch_size_from_images(graph: ir.Graph, labels: ir.Value, images: ir.Value) -> None:
    """Read the batch size from the images where it is read from the labels: exporters use either."""
    shapes = [node for node, _ in labels.uses() if node.op_type == "Shape" and not node.attributes.get_int("start", 0)]
    if not shapes or labels.shape is None or len(labels.shape) != 1:
        return
    first = add_initializer(graph, "batch_axis", np.zeros(1, dtype=np.int64))
    for node in shapes:
        sizes = ir.Shape([None if images.shape is None else len(images.shape)])
        whole = add_node(
            graph, "Shape", [images], before=node, name="image_sizes", dtype=ir.DataType.INT64, shape=sizes
        )
        batch = add_node(
            graph,
            "Gather",
            [whole, first],
            before=node,
            name="batch_size",
            dtype=ir.DataType.INT64,
            shape=ir.Shape([1]),
        )
        _replace(node, batch)
        remove_unused(graph, [node])


def _masks(labels: ir.Value) -> dict[ir.Node, NDArray[np.generic]]:
    """Return the nodes that turn labels into one value per class, each with what it gives a class that is no label."""
    masks: dict[ir.Node, NDArray[np.generic]] = {}
    waiting = [labels]
    while waiting:
        for node, index in waiting.pop().uses():
            off = _off_value(node, index)
            if off is not None:
                masks.setdefault(node, off)
            elif node.op_type in _MOVES_LABELS:
                waiting.extend(node.outputs)
            elif node.op_type != "Shape":  # the shape of the labels is only used for that of a mask
                raise _refusal(str(labels.name), node)
    return masks


def _off_value(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    """Return what a mask is for every class that is not the label, as `()`; `None` if the node makes no mask.

    Args:
        node: Takes labels.
        index: As which of its inputs.
    """
    if node.op_type == "Equal" and is_constant(node.inputs[1 - index]):
        return np.zeros((), dtype=np.bool_)
    if node.op_type == "OneHot" and index == 0 and is_constant(node.inputs[2]):
        off: NDArray[np.generic] = constant_array(input_of(node, 2)).reshape(-1)[0].reshape(())
        return off
    if node.op_type in {"ScatterElements", "ScatterND"} and index == 1:
        return _fill(node.inputs[0])
    return None


def _fill(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the number that all elements of a value are, as `()`; `None` if they differ or are not constant."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Expand" and is_constant(node.inputs[0]):
        return _fill(node.inputs[0])
    if node is not None and node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        return np.zeros((), np.float32) if attribute is None else attribute.as_tensor().numpy().reshape(())
    if value is None or not is_constant(value):
        return None
    array = constant_array(value).reshape(-1)
    return array[0].reshape(()) if array.size and (array == array[0]).all() else None


def _simplify(graph: ir.Graph, changed: set[ir.Value]) -> list[ir.Node]:
    """Bypass nodes that became trivial after values became constant; return those."""
    trivial = []
    for node in list(graph):
        sources = [source for source in node.inputs if source is not None]
        touched = any(source in changed or _is_switch(source) for source in sources)
        if not touched or node.outputs[0].is_graph_output():
            continue
        simple = _simplified(graph, node)
        if simple is not None:
            changed.add(simple)
            _replace(node, simple)
            trivial.append(node)
    return trivial


def _is_switch(value: ir.Value) -> bool:
    return value.is_initializer() and str(value.name).startswith(_SWITCH)


def _simplified(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """Return the value that a node's output always equals, or `None`."""
    inputs = [source for source in node.inputs if source is not None]
    numbers = [_number(source) for source in inputs]
    if node.op_type in _FOLDABLE and all(number is not None for number in numbers):
        return add_initializer(graph, _SWITCH, constant_array(node.outputs[0]).reshape(()))
    if node.op_type == "Where" and numbers[0] is not None:
        return inputs[1] if numbers[0] else inputs[2]
    if node.op_type == "Cos":
        return _cosine_of_angle(inputs[0])
    return _without_neutral(node.op_type, inputs, numbers) if node.op_type in _NEUTRAL else None


def _cosine_of_angle(angle: ir.Value) -> ir.Value | None:
    """Return the cosine whose angle a value is, without the Clip that only keeps the angle defined."""
    acos = angle.producer()
    cosine = acos.inputs[0] if acos is not None and acos.op_type == "Acos" else None
    clip = None if cosine is None else cosine.producer()
    return clip.inputs[0] if clip is not None and clip.op_type == "Clip" else cosine


def _without_neutral(op_type: str, inputs: list[ir.Value], numbers: list[float | None]) -> ir.Value | None:
    """Return the value of a sum or product with a neutral term, or with a factor of zero; `None` if it has neither."""
    (left, right), (left_number, right_number) = inputs, numbers
    commutes = op_type in {"Add", "Mul"}
    if right_number == _NEUTRAL[op_type]:
        return left
    if commutes and left_number == _NEUTRAL[op_type]:
        return right
    if op_type == "Mul" and 0 in numbers:
        return left if left_number == 0 else right
    return None


def _number(value: ir.Value) -> float | None:
    return float(constant_array(value).reshape(-1)[0]) if is_constant(value) and constant_size(value) == 1 else None


def _replace(node: ir.Node, value: ir.Value) -> None:
    if node.outputs[0].is_graph_output():
        raise ModelLoadError(
            f"The output {node.outputs[0].name!r} is made from labels alone.",
            hint="Export the model without it.",
        )
    for user, index in list(node.outputs[0].uses()):
        user.replace_input_with(index, value)
