"""Correct a layer's bias for the mean error of rounded weights, before its weights are rounded.

A rounded weight is wrong by a constant, and a layer's input is not zero on average (after a ReLU it never is): so its
output is off by a constant too, which can be subtracted: `bias += (weight - rounded weight) @ mean input`. In a
depthwise convolution, with nine weights to a channel, this is most of the error. It costs nothing at run time.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2
("empirical" variant, with the means of the float model).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.backbone.activations import iterate_activations
from exporters.graph.constants import STANDARD_DOMAINS, constant_array
from exporters.graph.edits import add_initializer
from exporters.graph.reading import input_of
from icis_deploy.common.arrays import Float32

_STEPS_PER_SIDE = 127


def correct_biases(model: ir.Model, batches: Iterator[Float32]) -> int:
    """Correct the bias of each Conv, Gemm and MatMul + Add for int8 weights with one scale per output channel.

    Args:
        model: In float32; its biases are changed in place.
        batches: Prepared images, `(batch, *input_shape)`.

    Returns:
        How many layers were corrected.
    """
    layers = [node for node in model.graph if has_float_weight(node)]
    means = _mean_inputs(model, layers, batches)
    corrected = 0
    for node in layers:
        corrected += _correct(model.graph, node, means[str(input_of(node, 0).name)])
    return corrected


def rounding_error(weight: Float32, axis: int) -> Float32:
    """Return a weight minus its rounded value, in symmetric int8 with one scale per index of `axis`."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    step = np.abs(weight).max(axis=others, keepdims=True) / _STEPS_PER_SIDE
    step = np.where(step > 0, step, 1)
    return np.asarray(weight - np.rint(weight / step) * step, dtype=np.float32)


def has_float_weight(node: ir.Node) -> bool:
    """Say whether a node multiplies its input with a float32 weight."""
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.domain not in STANDARD_DOMAINS:
        return False
    weight = node.inputs[1]
    return weight is not None and weight.is_initializer() and weight.dtype == ir.DataType.FLOAT


def _channel_axis(node: ir.Node) -> int:
    return 1 if node.op_type == "Conv" else -1


def _mean_inputs(model: ir.Model, layers: list[ir.Node], batches: Iterator[Float32]) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each layer's input per channel, over images and positions."""
    axes = {str(input_of(node, 0).name): _channel_axis(node) for node in layers}
    image_input = str(model.graph.inputs[0].name)
    computed = [name for name in axes if name != image_input]
    totals: dict[str, NDArray[np.float64]] = {}
    count = 0
    kept: list[Float32] = []

    def passed() -> Iterator[Float32]:
        for batch in batches:
            kept[:] = [batch]
            yield batch

    for arrays in iterate_activations(model, computed, passed()):
        count += 1
        for name, array in [*arrays.items(), (image_input, kept[0])]:
            if name in axes:
                totals[name] = totals.get(name, 0.0) + _channel_mean(array, axes[name])
    return {name: total / count for name, total in totals.items()}


def _channel_mean(array: Float32, axis: int) -> NDArray[np.float64]:
    channel = axis % array.ndim
    others = tuple(other for other in range(array.ndim) if other != channel)
    return np.asarray(array.mean(axis=others, dtype=np.float64))


def _correct(graph: ir.Graph, node: ir.Node, mean: NDArray[np.float64]) -> int:
    user, index = _bias_of(node)
    if user is None:
        return 0
    shift = _mean_output_error(node, mean)
    bias = user.inputs[index] if len(user.inputs) > index else None
    if bias is None:
        old: NDArray[np.float64] = np.zeros(len(shift))
        beta = 1.0
    else:
        old, beta = constant_array(bias).astype(np.float64), user.attributes.get_float("beta", 1.0)
    if old.size not in {1, len(shift)} or beta == 0:
        return 0
    corrected = add_initializer(
        graph, f"{node.outputs[0].name}_bias", (old.reshape(-1) + shift / beta).astype(np.float32)
    )
    if len(user.inputs) <= index:
        user.resize_inputs(index + 1)
    user.replace_input_with(index, corrected)
    if bias is not None and not bias.uses():
        graph.initializers.pop(str(bias.name))
    return 1


def _bias_of(node: ir.Node) -> tuple[ir.Node | None, int]:
    """Return the node and the input that add a layer's bias; `None` where nothing does, or a value of another shape."""
    if node.op_type in {"Conv", "Gemm"}:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return (node, 2) if bias is None or bias.is_initializer() else (None, 0)
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None, 0
    add, index = uses[0].node, 1 - uses[0].idx
    bias = add.inputs[index]
    is_bias = bias is not None and bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1
    return (add, index) if is_bias else (None, 0)


def _mean_output_error(node: ir.Node, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much a layer's output falls short on average, `(num_outputs,)`, once its weight is rounded."""
    weight = constant_array(input_of(node, 1))
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        error = rounding_error(weight, 0).reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)
        by_group = mean.reshape(groups, -1)[np.arange(len(weight)) // (len(weight) // groups)]
        return np.asarray((error * by_group).sum(axis=1))
    rows_first = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    error = rounding_error(weight, 0 if rows_first else weight.ndim - 1).astype(np.float64)
    alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    return np.asarray(alpha * (error @ mean if rows_first else mean @ error))
