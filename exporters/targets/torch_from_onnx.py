"""A backbone in ONNX as a module of torch, and a whole classifier made of it, for compilers that take torch programs.

Rules:

1. Every size is fixed. Shapes that a graph computes are therefore numbers here, and only tensors become operations.
2. What does not depend on the image is computed once, when the module is made; weights are its buffers.
3. An operator is translated for the attributes that it has, or refused with its node. Nothing is approximated.

torch itself has no importer of ONNX; onnx2torch (1.5.15, of 2024) needs torchvision, and knows other opsets.
Source of what each operator computes: ONNX's documents `Operators.md` and `Changelog.md`.
"""

# Why: docs/decisions/0130.

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.graph.constants import constant_array, is_constant
from exporters.graph.edits import opset_of
from exporters.graph.reading import label
from exporters.targets.converted import unsupported_operators
from exporters.targets.head_parts import HeadParts
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ExportError
from icis_deploy.head.arbiter import GREATEST, TINY

Value: TypeAlias = Any
"""A tensor, or a numpy array of integers that a graph computes with: shapes, axes, indices."""


class BackboneModule(nn.Module):
    """A backbone whose nodes are run one after the other; a trace of it holds their operations alone.

    Raises:
        ExportError: If an operator has no translation, on construction; if a use of one has none, on a run.
    """

    def __init__(self, model: ir.Model) -> None:
        """Translate a model of one input and one output.

        Args:
            model: With a fixed batch.
        """
        super().__init__()
        graph = model.graph
        self._opset = opset_of(graph)
        self._image, self._features = graph.inputs[0], graph.outputs[0]
        self._nodes = [node for node in graph if not all(is_constant(output) for output in node.outputs)]
        unknown = dict.fromkeys(node.op_type for node in self._nodes if not _is_known(node))
        if unknown:
            raise unsupported_operators("The translation to torch", model, list(unknown))
        self._constants: dict[ir.Value, Value] = {}
        for node in self._nodes:
            for value in node.inputs:
                if value is not None and value not in self._constants and is_constant(value):
                    self._constants[value] = self._constant(
                        constant_array(value), is_number=node.op_type in _OF_NUMBERS
                    )

    def _constant(self, array: np.ndarray, *, is_number: bool) -> Value:
        """Keep an array: integers and single numbers as they are, weights under the name of a buffer."""
        if array.dtype.kind != "f" or array.ndim == 0 or (is_number and array.size == 1):
            return array
        name = f"constant_{len(self._constants)}"
        self.register_buffer(name, torch.from_numpy(np.array(array)))
        return name

    def forward(self, image: Tensor) -> Tensor:
        """Return features of a batch of the shape that the model states."""
        values: dict[ir.Value | None, Value] = {self._image: image, None: None}
        for value, constant in self._constants.items():
            values[value] = getattr(self, constant) if isinstance(constant, str) else constant
        for node in self._nodes:
            outputs = _run(node, [values[value] for value in node.inputs], self._opset)
            values.update(zip(node.outputs, outputs, strict=False))
        return values[self._features]  # type: ignore[no-any-return]


class ClassifierModule(nn.Module):
    """A backbone with a head behind it: from a batch, and slots where it has any, to scores and features."""

    seen_weight: Tensor
    seen_bias: Tensor
    new_weight: Tensor
    new_bias: Tensor
    new_arbiter: Tensor
    lengths: Tensor

    def __init__(self, backbone: nn.Module, head: HeadParts) -> None:
        super().__init__()
        self.backbone = backbone
        self._head = head
        self.register_buffer("seen_weight", _tensor(head.rows[: head.num_seen, :-1]))
        self.register_buffer("seen_bias", _tensor(head.rows[: head.num_seen, -1]))
        if head.lengths is not None:
            self.register_buffer("lengths", _tensor(head.lengths))
        self._has_new = len(head.rows) > head.num_seen  # torch cannot save an empty tensor
        if self._has_new:
            self.register_buffer("new_weight", _tensor(head.rows[head.num_seen :, :-1]))
            self.register_buffer("new_bias", _tensor(head.rows[head.num_seen :, -1]))
            if head.baked_arbiter is not None:
                self.register_buffer("new_arbiter", _tensor(head.baked_arbiter))

    def forward(self, image: Tensor, *slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `(batch, num_outputs)` and features `(batch, feature_dim)`.

        Args:
            image: `(batch, *image_shape)`, of the size that the backbone fixes.
            slots: Weights `(capacity, feature_dim)` and biases `(capacity,)` of an updatable head, and coefficients
                `(capacity, 5)` where it has an arbiter.
        """
        features = self.backbone(image).reshape(image.shape[0], -1)
        seen = F.linear(features, self.seen_weight, self.seen_bias)
        statistics = None if self._head.lengths is None else self._statistics(features, seen)
        parts = [seen]
        if self._has_new:
            new = F.linear(features, self.new_weight, self.new_bias)
            parts.append(new if statistics is None else new + F.linear(statistics, self.new_arbiter))
        if slots:
            new = F.linear(features, slots[0], slots[1])
            parts.append(new if statistics is None else new + F.linear(statistics, slots[2]))
        logits = torch.cat(parts, dim=1) if len(parts) > 1 else seen
        return _SCORES[self._head.score_kind](logits), features

    def _statistics(self, features: Tensor, seen: Tensor) -> Tensor:
        """Return the statistics of `icis_deploy.head.arbiter.seen_statistics`."""
        mean = seen.mean(dim=1, keepdim=True)
        centred = seen - mean
        squares = [(centred * centred).mean(dim=1, keepdim=True), (features * features).sum(dim=1, keepdim=True)]
        logarithms = torch.log(torch.clamp(torch.cat(squares, dim=1), float(TINY), float(GREATEST)))
        deviation = self.lengths[seen.argmax(dim=1)].reshape(-1, 1)
        return torch.cat([seen.amax(dim=1, keepdim=True), mean, logarithms, deviation], dim=1)


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: torch.softmax(logits, dim=1),
    "log-probabilities": lambda logits: torch.log_softmax(logits, dim=1),
    "sigmoid": torch.sigmoid,
}


def _tensor(array: Float32) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _is_known(node: ir.Node) -> bool:
    return node.domain in {"", "ai.onnx"} and node.op_type in {*_UNARY, *_BINARY, *_OPERATORS}


def _run(node: ir.Node, inputs: Sequence[Value], opset: int) -> tuple[Value, ...]:
    if node.op_type in _UNARY:
        return (_UNARY[node.op_type](inputs[0]),)
    if node.op_type in _BINARY:
        if all(isinstance(each, np.ndarray) for each in inputs):  # sizes: torch's tensors have no values in a trace
            function = operator.floordiv if node.op_type == "Div" else _BINARY[node.op_type]
            return (np.asarray(function(*inputs)),)
        return (_BINARY[node.op_type](*(_operand(each) for each in inputs)),)
    found = _OPERATORS[node.op_type](_Node(node, opset), *inputs)
    return found if isinstance(found, tuple) else (found,)


def _operand(value: Value) -> Value:
    if not isinstance(value, np.ndarray):
        return value
    return value.item() if value.ndim == 0 else torch.from_numpy(value)


class _Node:
    """The attributes of a node, and the opset that says what they mean."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node, self.opset = node, opset

    def integer(self, name: str, default: int) -> int:
        return int(self.node.attributes.get_int(name, default))

    def number(self, name: str, default: float) -> float:
        return float(self.node.attributes.get_float(name, default))

    def text(self, name: str, default: str) -> str:
        return str(self.node.attributes.get_string(name, default))

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        found = self.node.attributes.get(name)
        return list(default) if found is None else [int(each) for each in found.as_ints()]

    def given(self, name: str, value: Value) -> list[int] | None:
        """Return integers that newer opsets take as an input, and older ones as an attribute; `None` for neither."""
        if value is not None:
            return [int(each) for each in np.ravel(self.array(value))]
        return None if name not in self.node.attributes else self.integers(name, ())

    def array(self, value: Value) -> np.ndarray:
        if not isinstance(value, np.ndarray):
            raise self.refusal("it takes sizes or indices that depend on the image")
        return value

    def refusal(self, reason: str) -> ExportError:
        where = label(self.node)
        return ExportError(
            f"The operator {self.node.op_type} (node {where!r}) has no translation to torch: {reason}.",
            found=reason,
            where=where,
            hint="Leave this target out, or replace the layer before exporting.",
        )


def _paddings(node: _Node, image: Tensor, kernel: Sequence[int]) -> list[int]:
    """Return the paddings of a window as ONNX states them, all beginnings before all ends; a size is fixed."""
    num_axes = len(kernel)
    kind = node.text("auto_pad", "NOTSET")
    if kind in {"NOTSET", "VALID"}:
        return [0] * 2 * num_axes if kind == "VALID" else node.integers("pads", [0] * 2 * num_axes)
    strides, dilations = (node.integers(name, [1] * num_axes) for name in ("strides", "dilations"))
    begins, ends = [], []
    for size, width, stride, dilation in zip(image.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-int(size) // stride) - 1) * stride + (width - 1) * dilation + 1 - int(size))
        begins.append(total // 2 if kind == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def _padded(image: Tensor, paddings: Sequence[int], value: float) -> tuple[Tensor, list[int]]:
    """Return an image and the paddings that torch's operators can add themselves; others are added here."""
    half = len(paddings) // 2
    begins, ends = list(paddings[:half]), list(paddings[half:])
    if begins == ends:
        return image, begins
    pairs = [each for pair in zip(reversed(begins), reversed(ends), strict=True) for each in pair]
    return F.pad(image, pairs, value=value), [0] * half


def _conv(node: _Node, image: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    image, paddings = _padded(image, _paddings(node, image, kernel), 0.0)
    strides, dilations = (node.integers(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(len(kernel))
    if convolve is None:
        raise node.refusal(f"it has {len(kernel)} axes")
    result: Tensor = convolve(image, weight, bias, strides, paddings, dilations, node.integer("group", 1))
    return result


def _max_pool(node: _Node, image: Tensor) -> Tensor:
    kernel = node.integers("kernel_shape", ())
    if len(kernel) != 2 or len(node.node.outputs) > 1:
        raise node.refusal("it pools other axes than height and width, or asks for indices")
    image, paddings = _padded(image, _paddings(node, image, kernel), -np.inf)
    strides, dilations = (node.integers(name, [1, 1]) for name in ("strides", "dilations"))
    return F.max_pool2d(image, kernel, strides, paddings, dilations, bool(node.integer("ceil_mode", 0)))


def _average_pool(node: _Node, image: Tensor) -> Tensor:
    kernel = node.integers("kernel_shape", ())
    counts, ceil = bool(node.integer("count_include_pad", 0)), bool(node.integer("ceil_mode", 0))
    stated = _paddings(node, image, kernel)
    if len(kernel) != 2 or node.integers("dilations", [1, 1]) != [1, 1]:
        raise node.refusal("it pools other axes than height and width, or is dilated")
    padded, paddings = _padded(image, stated, 0.0)
    if padded is not image and not counts:
        raise node.refusal("it leaves paddings out of its means that differ on both sides")
    return F.avg_pool2d(padded, kernel, node.integers("strides", [1, 1]), paddings, ceil, counts)


def _batch_normalization(node: _Node, image: Tensor, *weights: Tensor) -> Tensor:
    scale, bias, mean, variance = weights
    return F.batch_norm(image, mean, variance, scale, bias, False, 0.0, node.number("epsilon", 1e-5))


def _layer_normalization(node: _Node, value: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.integer("axis", -1) % value.ndim
    sizes = list(value.shape[axis:])
    if list(scale.shape) != sizes:
        raise node.refusal(f"its scale has shape {tuple(scale.shape)}")
    return F.layer_norm(value, sizes, scale, bias, node.number("epsilon", 1e-5))


def _group_normalization(node: _Node, image: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.integer("num_groups", 1)
    if len(scale) != image.shape[1]:
        raise node.refusal(f"it scales {len(scale)} groups and not {image.shape[1]} channels")
    return F.group_norm(image, groups, scale, bias, node.number("epsilon", 1e-5))


def _instance_normalization(node: _Node, image: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(image, len(scale), scale, bias, node.number("epsilon", 1e-5))


def _gemm(node: _Node, first: Tensor, second: Tensor, third: Tensor | None = None) -> Tensor:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    first = first.t() if node.integer("transA", 0) else first
    if alpha == beta == 1.0 and (third is None or third.ndim == 1):
        return F.linear(first, second if node.integer("transB", 0) else second.t(), third)
    product = alpha * (first @ (second.t() if node.integer("transB", 0) else second))
    return product if third is None else product + beta * third


def _softmax(node: _Node, value: Tensor) -> Tensor:
    return _over_classes(node, value, torch.softmax)


def _log_softmax(node: _Node, value: Tensor) -> Tensor:
    return _over_classes(node, value, torch.log_softmax)


def _over_classes(node: _Node, value: Tensor, function: Callable[..., Tensor]) -> Tensor:
    if node.opset >= 13:
        return function(value, dim=node.integer("axis", -1))
    axis = node.integer("axis", 1) % value.ndim  # then all later axes are one
    return function(value.flatten(axis), dim=axis).reshape(value.shape)


def _clip(node: _Node, value: Tensor, least: Value = None, greatest: Value = None) -> Tensor:
    bounds = [
        node.number(name, default) if given is None else float(given)
        for name, given, default in (("min", least, -np.inf), ("max", greatest, np.inf))
    ]
    return torch.clamp(value, *(None if np.isinf(bound) else bound for bound in bounds))


def _reshape(node: _Node, value: Value, sizes: Value = None) -> Value:
    target = node.given("shape", sizes) or []
    if not node.integer("allowzero", 0):
        target = [int(value.shape[axis]) if size == 0 else size for axis, size in enumerate(target)]
    return value.reshape(target)


def _flatten(node: _Node, value: Tensor) -> Tensor:
    axis = node.integer("axis", 1)
    first = int(np.prod(value.shape[: axis % value.ndim if axis < 0 else axis], dtype=np.int64))
    return value.reshape(first, -1)


def _transpose(node: _Node, value: Tensor) -> Tensor:
    return value.permute(node.integers("perm", list(reversed(range(value.ndim)))))


def _squeeze(node: _Node, value: Value, axes: Value = None) -> Value:
    chosen = node.given("axes", axes)
    gone = [axis for axis in range(value.ndim) if value.shape[axis] == 1] if chosen is None else chosen
    kept = [size for axis, size in enumerate(value.shape) if axis not in {each % value.ndim for each in gone}]
    return value.reshape(kept)


def _unsqueeze(node: _Node, value: Value, axes: Value = None) -> Value:
    chosen = node.given("axes", axes) or []
    num_axes = value.ndim + len(chosen)
    sizes, new = list(value.shape), {axis % num_axes for axis in chosen}
    return value.reshape([1 if axis in new else sizes.pop(0) for axis in range(num_axes)])


def _concat(node: _Node, *values: Value) -> Value:
    axis = node.integer("axis", 0)
    if all(isinstance(value, np.ndarray) for value in values):
        return np.concatenate(values, axis=axis)
    return torch.cat([torch.from_numpy(each) if isinstance(each, np.ndarray) else each for each in values], dim=axis)


def _split(node: _Node, value: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    axis, number = node.integer("axis", 0), len(node.node.outputs)
    given = node.given("split", sizes)
    if given is None:
        each = -(-int(value.shape[axis]) // number)
        given = [each] * (number - 1) + [int(value.shape[axis]) - each * (number - 1)]
    return tuple(torch.split(value, given, dim=axis))


def _slice(node: _Node, value: Value, *given: Value) -> Value:
    starts, ends, axes, steps = (
        node.given(name, given[index] if index < len(given) else None)
        for index, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    starts, ends = starts or [], ends or []
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if min(steps, default=1) < 1:
        raise node.refusal("it goes backwards")
    chosen = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen[axis] = slice(start, min(end, int(value.shape[axis])), step)
    return value[tuple(chosen)]


def _gather(node: _Node, value: Value, indices: Value) -> Value:
    index = node.array(indices)
    axis = node.integer("axis", 0) % value.ndim
    index = np.where(index < 0, index + value.shape[axis], index).astype(np.int64)
    if isinstance(value, np.ndarray):
        return np.take(value, index, axis=axis)
    if index.ndim == 0:
        return value.select(axis, int(index))
    picked = torch.index_select(value, axis, torch.from_numpy(index.ravel()))
    return picked.reshape([*value.shape[:axis], *index.shape, *value.shape[axis + 1 :]])


def _expand(node: _Node, value: Tensor, sizes: Value) -> Tensor:
    target = node.given("shape", sizes) or []
    return value.expand(list(np.broadcast_shapes(tuple(value.shape), tuple(target))))


def _pad(node: _Node, value: Tensor, pads: Value = None, constant: Value = None, axes: Value = None) -> Tensor:
    given = node.given("pads", pads) or []
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if (mode := modes.get(node.text("mode", "constant"))) is None or axes is not None:
        raise node.refusal("it wraps round, or names its axes")
    half = len(given) // 2
    pairs = [each for axis in reversed(range(half)) for each in (given[axis], given[half + axis])]
    while mode != "constant" and len(pairs) > 2 and pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    fill = node.number("value", 0.0) if constant is None else float(constant)
    return F.pad(value, pairs, mode, fill if mode == "constant" else None)


def _cast(node: _Node, value: Value) -> Value:
    dtype = ir.DataType(node.integer("to", 1)).numpy()
    if isinstance(value, np.ndarray):
        return value.astype(dtype)
    return value.to(torch.from_numpy(np.zeros(0, dtype)).dtype)


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(node: _Node, value: Tensor, axes: Value = None) -> Tensor:
        chosen = node.given("axes", axes) or []
        if not chosen and node.integer("noop_with_empty_axes", 0):
            return value
        return function(value, chosen or list(range(value.ndim)), bool(node.integer("keepdims", 1)))

    return reduce


def _many(
    function: Callable[[Tensor, Tensor], Tensor], bounded: Callable[[Tensor, float], Tensor]
) -> Callable[..., Tensor]:
    def fold(_node: _Node, *values: Value) -> Tensor:
        first, *others = sorted(values, key=lambda value: isinstance(value, np.ndarray))  # a tensor first
        for other in others:
            number = _operand(other)
            first = function(first, number) if isinstance(number, Tensor) else bounded(first, number)
        return first  # type: ignore[no-any-return]

    return fold


def _mean_of_square(value: Tensor, eps: float) -> Tensor:
    return value * torch.rsqrt((value * value).mean(dim=-1, keepdim=True) + eps)


_UNARY: dict[str, Callable[[Value], Value]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Dropout": lambda value: value,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda value: value,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Shape": lambda value: np.asarray([int(size) for size in value.shape], dtype=np.int64),
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Value, Value], Value]] = {
    "Add": operator.add,
    "Div": operator.truediv,
    "MatMul": operator.matmul,
    "Mul": operator.mul,
    "PRelu": lambda value, slope: torch.where(value < 0, value * slope, value),
    "Pow": operator.pow,
    "Sub": operator.sub,
}
_OF_NUMBERS = {"Clip", "Pad"}
"""Operators whose further inputs are single numbers, which some exporters write as arrays of one."""
_OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Elu": lambda node, value: F.elu(value, node.number("alpha", 1.0)),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda node, value: F.gelu(value, approximate=node.text("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _node, image: image.mean(dim=list(range(2, image.ndim)), keepdim=True),
    "GlobalMaxPool": lambda _node, image: image.amax(dim=list(range(2, image.ndim)), keepdim=True),
    "GroupNormalization": _group_normalization,
    "HardSigmoid": lambda node, value: torch.clamp(
        node.number("alpha", 0.2) * value + node.number("beta", 0.5), 0.0, 1.0
    ),
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": lambda node, value: F.leaky_relu(value, node.number("alpha", 0.01)),
    "LogSoftmax": _log_softmax,
    "Max": _many(torch.maximum, lambda value, bound: torch.clamp(value, min=bound)),
    "MaxPool": _max_pool,
    "Min": _many(torch.minimum, lambda value, bound: torch.clamp(value, max=bound)),
    "Pad": _pad,
    "ReduceL2": _reduced(lambda value, axes, keep: (value * value).sum(dim=axes, keepdim=keep).sqrt()),
    "ReduceMax": _reduced(lambda value, axes, keep: value.amax(dim=axes, keepdim=keep)),
    "ReduceMean": _reduced(lambda value, axes, keep: value.mean(dim=axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda value, axes, keep: value.amin(dim=axes, keepdim=keep)),
    "ReduceSum": _reduced(lambda value, axes, keep: value.sum(dim=axes, keepdim=keep)),
    "ReduceSumSquare": _reduced(lambda value, axes, keep: (value * value).sum(dim=axes, keepdim=keep)),
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
