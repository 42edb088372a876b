"""Take a training margin that reads labels out of an ONNX graph.

ArcFace, CosFace and their kin hold back the logit of the image's own class while they train: the exported graph then
has labels as a second input, and no device has labels. The margin is taken out by saying that no class is the label:
each mask that is made from the labels becomes the constant that it is for all other classes, and what that makes
trivial (times one, plus zero, a choice that is always the same) is taken out as well.

Sources: Deng et al. 2019 (ArcFace), Wang et al. 2018 (CosFace); ONNX OneHot, Equal, ScatterElements, ScatterND.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.class_axis import label as name_of
from exporters.graph.constants import constant_array, constant_size, is_constant
from exporters.graph.edits import GraphPass, add_initializer, add_node, remove_unused, run_pass
from exporters.onnx_io.files import check_model
from icis_deploy.errors import IncompatibleError, ModelLoadError

_MOVES_LABELS = frozenset({"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_SWITCH = "no_label"
_FOLDABLE = frozenset({"Add", "And", "Cast", "Div", "Mul", "Neg", "Not", "Or", "Sub", "Where"})

Feed = Mapping[str, NDArray[np.generic]]
NamedRunner = Callable[[Feed, str], NDArray[np.generic]]


def remove_margin(model: ir.Model, labels: str, images: str) -> ir.Model:
    """Return a copy without the input `labels` and without what it does.

    Args:
        model: With two inputs.
        labels: Name of the input that takes the labels.
        images: Name of the other one.

    Raises:
        ModelLoadError: If the labels are used for anything but a mask over the classes.
    """
    return run_pass(margin_removal_pass(labels, images), model).model


def margin_removal_pass(labels: str, images: str) -> GraphPass:
    """Return the pass of `remove_margin`."""

    def call(model: ir.Model) -> bool:
        graph = model.graph
        label_input, image_input = (_input(graph, name) for name in (labels, images))
        _ask_images_for_the_batch(graph, label_input, image_input)
        makers = _mask_makers(label_input)
        for maker in makers:
            _replace(maker, _switched_off(graph, maker))
        trivial = _simplify(graph, {value for maker in makers for value in maker.outputs})
        remove_unused(graph, [*trivial, *makers])
        if label_input.uses():
            raise _refusal(labels, next(iter(label_input.uses())).node)
        graph.inputs.remove(label_input)
        return True

    return GraphPass(requires=partial(_require_inputs, labels, images), call=call, ensures=check_model)


def without_margin(run: NamedRunner, labels: str, images: str, dtype: np.dtype[np.generic]) -> NamedRunner:
    """Return a runner without labels for a model that takes them: no logit is that of the label.

    Each logit is taken from a run in which another class is the label.

    Args:
        run: Runs the original model.
        labels: Name of the input that takes the labels.
        images: Name of the other one.
        dtype: What the labels must be.
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


def _require_inputs(labels: str, images: str, model: ir.Model) -> None:
    for name in (labels, images):
        _input(model.graph, name)


def _input(graph: ir.Graph, name: str) -> ir.Value:
    found = next((value for value in graph.inputs if value.name == name), None)
    if found is None:
        raise ModelLoadError(
            f"The graph has no input {name!r}.",
            expected=name,
        )
    return found


def _refusal(labels: str, node: ir.Node) -> ModelLoadError:
    return ModelLoadError(
        f"The input {labels!r} feeds {name_of(node)} ({node.op_type}), which is no mask over the classes, so the "
        f"margin cannot be taken out.",
        found=node.op_type,
        where=labels,
        hint="Export the model in evaluation mode, without labels.",
    )


def _ask_images_for_the_batch(graph: ir.Graph, labels: ir.Value, images: ir.Value) -> None:
    """Let the images say how many they are where the labels did: exporters take either, as both have one batch."""
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


def _mask_makers(labels: ir.Value) -> list[ir.Node]:
    """Return the nodes that turn labels into one value per class."""
    makers: dict[ir.Node, None] = {}
    waiting = [labels]
    while waiting:
        for node, index in waiting.pop().uses():
            if _makes_mask(node, index):
                makers.setdefault(node)
            elif node.op_type in _MOVES_LABELS:
                waiting.extend(node.outputs)
            elif node.op_type != "Shape":  # the shape of the labels can only be that of what a mask is filled with
                raise _refusal(str(labels.name), node)
    return list(makers)


def _makes_mask(node: ir.Node, index: int) -> bool:
    if node.op_type == "Equal":
        return is_constant(node.inputs[1 - index])
    if node.op_type == "OneHot":
        return index == 0 and is_constant(node.inputs[2])
    return node.op_type in {"ScatterElements", "ScatterND"} and index == 1 and _fill(node.inputs[0]) is not None


def _fill(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the one number that a value is full of, whatever its shape; `None` if there is no such number."""
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


def _switched_off(graph: ir.Graph, maker: ir.Node) -> ir.Value:
    """Add what a mask is for every class that is not the label."""
    if maker.op_type == "Equal":
        off: NDArray[np.generic] | None = np.zeros((), dtype=np.bool_)
    elif maker.op_type == "OneHot":
        assert maker.inputs[2] is not None
        off = constant_array(maker.inputs[2]).reshape(-1)[0].reshape(())
    else:
        off = _fill(maker.inputs[0])
    assert off is not None
    return add_initializer(graph, _SWITCH, np.asarray(off))


def _simplify(graph: ir.Graph, changed: set[ir.Value]) -> list[ir.Node]:
    """Take out what has become trivial after values became constant; return the nodes that are left over."""
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
    """Return the cosine whose angle a value is; a Clip that only keeps the angle defined goes with it."""
    acos = angle.producer()
    cosine = acos.inputs[0] if acos is not None and acos.op_type == "Acos" else None
    clip = None if cosine is None else cosine.producer()
    return clip.inputs[0] if clip is not None and clip.op_type == "Clip" else cosine


def _without_neutral(op_type: str, inputs: list[ir.Value], numbers: list[float | None]) -> ir.Value | None:
    """Return what is left of a sum or product with a term that changes nothing, or with a factor of zero."""
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
