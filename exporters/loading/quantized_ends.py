"""Models that take or give integers with a scale, as TFLite's do: both ends become the real numbers they stand for.

    integers -> the model -> integers    becomes    float32 -> QuantizeLinear -> the model -> scores in float32

Rules:

1. What an input's integers stand for is what the model itself makes of them: a DequantizeLinear's scale and zero point,
   those of a quantized operator, or, after a Cast, the numbers themselves (pixels from 0 to 255).
2. The bundle's model rounds to the same integers, so that both compute the same from there on.
3. An output's integers are its scores, rounded. The bundle gives them before they are rounded, under the same name.
4. Scores that an operator makes of integers at once, as QLinearSoftmax does, are nowhere in the model's file unrounded:
   the original is asked for what that operator takes, or for what was rounded to it, and the scores are computed of it.

Sources: ONNX QuantizeLinear-13 (division, rounding half to even, saturation), QLinearConv-10, QLinearMatMul-10.
"""

# Why: docs/decisions/0099.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.constants import constant_array, is_constant
from exporters.graph.edits import add_initializer, remove_unused, unused_name
from exporters.graph.integer_operators import CONTRIB_DOMAIN
from exporters.graph.reading import graph_input, input_of
from exporters.loading.margin_removal import Feed, NamedRunner
from exporters.onnx_io.files import check_model

_INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_SCALED_INPUTS = frozenset({"DequantizeLinear", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul", "QLinearMul"})
"""Operators whose first three inputs are integers, their scale and their zero point."""

_SCORES = frozenset({"LogSoftmax", "Sigmoid", "Softmax"})
_INTEGER_SCORES = {"QLinearSigmoid": "Sigmoid", "QLinearSoftmax": "Softmax"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedInput:
    """An input of integers, and the numbers that they stand for: `(integer - zero_point) * scale`."""

    name: str

    dtype: np.dtype[np.integer[Any]]
    """int8, uint8, int16 or uint16."""

    scale: float

    zero_point: int

    @property
    def value_range(self) -> tuple[float, float]:
        """The least and the greatest number that can be given."""
        limits = np.iinfo(self.dtype)
        return (limits.min - self.zero_point) * self.scale, (limits.max - self.zero_point) * self.scale

    def integers(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return numbers as the integers that QuantizeLinear makes of them."""
        limits = np.iinfo(self.dtype)
        rounded = np.rint(np.asarray(values, np.float32) / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(rounded, limits.min, limits.max), dtype=self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerScores:
    """Scores that one operator makes of integers and rounds to integers."""

    op_type: str
    """`Softmax` or `Sigmoid`."""

    scale: float

    zero_point: int

    axis: int
    """That the softmax is over."""

    def of(self, integers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the scores before they are rounded, of what the operator takes; floats have scale 1."""
        logits = (integers.astype(np.float64) - self.zero_point) * self.scale
        if self.op_type == "Sigmoid":
            return np.asarray(np.exp(-np.logaddexp(0.0, -logits)), np.float32)
        powers = np.exp(logits - logits.max(axis=self.axis, keepdims=True))
        return np.asarray(powers / powers.sum(axis=self.axis, keepdims=True), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedOutput:
    """An output of rounded scores, and what the original is asked for instead."""

    value: str
    """Name of the value that is rounded, or that the scores are made of."""

    scores: IntegerScores | None = None
    """What makes the scores of that value; `None` where it is the scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedEnds:
    """The input and the outputs of a model that are integers with a scale."""

    input: QuantizedInput | None = None
    """`None` for a model that takes none."""

    outputs: Mapping[str, RoundedOutput] = field(default_factory=dict)
    """By its name, each output of rounded scores."""

    def __bool__(self) -> bool:
        """Say whether there is anything to change."""
        return self.input is not None or bool(self.outputs)


def read_quantized_ends(model: ir.Model) -> QuantizedEnds:
    """Find the input and the outputs of a model that are integers with a scale."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    rounded = {str(output.name): found for output in model.graph.outputs if (found := _read_output(output)) is not None}
    return QuantizedEnds(input=_read_input(inputs[0]) if len(inputs) == 1 else None, outputs=rounded)


@dataclass(frozen=True, slots=True)
class FloatEndsPass(ir.passes.InPlacePass):
    """Let a model take and give float32 where it takes and gives integers with a scale.

    Raises:
        ExportError: If the edited graph is not valid.
    """

    ends: QuantizedEnds

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change them in place."""
        graph = model.graph
        if self.ends.input is not None:
            _take_float(graph, self.ends.input)
        for index, output in enumerate(list(graph.outputs)):
            rounded = self.ends.outputs.get(str(output.name))
            if rounded is not None:
                _give_float(graph, index, rounded)
        return ir.passes.PassResult(model, modified=bool(self.ends))

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


def with_float_ends(run: NamedRunner, ends: QuantizedEnds) -> NamedRunner:
    """Return a runner of the original that takes and gives what the model with float ends does."""

    def run_with_float(feed: Feed, output: str) -> NDArray[np.generic]:
        given = ends.input
        integers = {
            name: given.integers(values) if given is not None and name == given.name else values
            for name, values in feed.items()
        }
        rounded = ends.outputs.get(output)
        if rounded is None:
            return run(integers, output)
        values = run(integers, rounded.value)
        return values if rounded.scores is None else rounded.scores.of(values)

    return run_with_float


def _read_input(value: ir.Value) -> QuantizedInput | None:
    if value.dtype not in _INTEGERS:
        return None
    found: set[tuple[float, int]] = set()
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type in _MOVES and index == 0:
                waiting.extend(node.outputs)
            elif node.op_type == "Cast":
                found.add((1.0, 0))
            elif node.op_type in _SCALED_INPUTS and index == 0 and (scaled := _scale_of(node)) is not None:
                found.add(scaled)
            elif node.op_type != "Shape":
                return None
    if len(found) != 1:
        return None
    scale, zero_point = found.pop()
    return QuantizedInput(name=str(value.name), dtype=np.dtype(value.dtype.numpy()), scale=scale, zero_point=zero_point)


def _scale_of(node: ir.Node) -> tuple[float, int] | None:
    scale = input_of(node, 1)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if not is_constant(scale) or constant_array(scale).size != 1 or not (zero is None or is_constant(zero)):
        return None
    return float(constant_array(scale).reshape(())), 0 if zero is None else int(constant_array(zero).reshape(()))


def _read_output(output: ir.Value) -> RoundedOutput | None:
    """Read an output of rounded scores; `None` for any other."""
    source = _before_rounding(output)
    if source is not None:
        return RoundedOutput(value=str(source.name))
    node = _before_moves(output).producer()
    if node is not None and node.op_type == "DequantizeLinear":
        node = input_of(node, 0).producer()
    if node is None or node.domain != CONTRIB_DOMAIN or node.op_type not in _INTEGER_SCORES:
        return None
    scaled = _scale_of(node)
    if scaled is None:
        return None
    taken, (scale, zero_point) = input_of(node, 0), scaled
    rounding = taken.producer()
    if rounding is not None and rounding.op_type == "QuantizeLinear":
        taken, scale, zero_point = input_of(rounding, 0), 1.0, 0  # a head of floats: what it gives is in the file
    axis = node.attributes.get_int("axis", -1)
    scores = IntegerScores(op_type=_INTEGER_SCORES[node.op_type], scale=scale, zero_point=zero_point, axis=axis)
    return RoundedOutput(value=str(taken.name), scores=scores)


def _before_rounding(output: ir.Value) -> ir.Value | None:
    """Return the scores that an output gives rounded: as integers, or as few numbers after a softmax."""
    value, is_rounded = _before_moves(output), False
    while (node := value.producer()) is not None and node.op_type == "QuantizeLinear":
        value, is_rounded = input_of(node, 0), True
        again = value.producer()
        before = None if again is None or again.op_type != "DequantizeLinear" else input_of(again, 0)
        made = None if before is None else before.producer()
        if before is not None and made is not None and made.op_type == "QuantizeLinear":
            value = before  # rounded twice: to the type of the operators, then to that of the output
    if node is not None and node.op_type == "DequantizeLinear" and _is_rounded_score(input_of(node, 0)):
        value, is_rounded = input_of(input_of(node, 0).producer() or node, 0), True
    return value if is_rounded else None


def _before_moves(output: ir.Value) -> ir.Value:
    """Return the integers that an output gives in another shape."""
    value = output
    while (node := value.producer()) is not None and value.dtype in _INTEGERS and node.op_type in _MOVES:
        value = input_of(node, 0)
    return value


def _is_rounded_score(value: ir.Value) -> bool:
    """Say whether a value is the integers that probabilities, or scores like them, were rounded to."""
    node = value.producer()
    made = input_of(node, 0).producer() if node is not None and node.op_type == "QuantizeLinear" else None
    return made is not None and made.op_type in _SCORES


def _take_float(graph: ir.Graph, given: QuantizedInput) -> None:
    old = graph_input(graph, given.name)
    integers = ir.DataType.from_numpy(given.dtype)
    old.name = unused_name(graph, f"{given.name}_integers")
    real = ir.Value(name=given.name, shape=old.shape, type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs[list(graph.inputs).index(old)] = real
    scale = add_initializer(graph, f"{given.name}_scale", np.asarray(given.scale, np.float32))
    zero = add_initializer(graph, f"{given.name}_zero_point", np.asarray(given.zero_point, given.dtype))
    rounded = ir.Value(name=unused_name(graph, f"{given.name}_rounded"), shape=old.shape, type=ir.TensorType(integers))
    node = ir.Node("", "QuantizeLinear", [real, scale, zero], outputs=[rounded], name=f"node_{rounded.name}")
    if len(graph):
        graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(old, rounded)


def _give_float(graph: ir.Graph, index: int, rounded: RoundedOutput) -> None:
    output = graph.outputs[index]
    name = str(output.name)
    if rounded.scores is None:
        source = next((value for node in graph for value in node.outputs if value.name == rounded.value), None)
    else:  # the operator is written out by now, and has the scores inside
        source = _before_rounding(output)
    if source is None or source.is_graph_output():
        return
    if (moved := _before_moves(output)) is not output:
        _move_unrounded(output, moved, source)
        return
    graph.outputs[index] = source
    output.name = unused_name(graph, f"{name}_rounded")
    source.name = name
    producer = output.producer()
    if producer is not None:
        remove_unused(graph, [producer])


def _move_unrounded(output: ir.Value, integers: ir.Value, source: ir.Value) -> None:
    """Let what moves integers to an output move scores that are not rounded."""
    value = output
    while value is not integers and (node := value.producer()) is not None:
        value.type = source.type
        before = input_of(node, 0)
        if before is integers:
            node.replace_input_with(0, source)
        value = before
