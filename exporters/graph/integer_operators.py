"""Write quantized operators of ONNX Runtime in ONNX's own: integers as QuantizeLinear and DequantizeLinear state them.

    QLinearConv, QLinearMatMul, QGemm, QLinearAdd, ...    DequantizeLinear -> the operator -> QuantizeLinear
    com.microsoft QuantizeLinear, DequantizeLinear        those of ONNX

Both compute the same real numbers; ONNX Runtime fuses the second form into the first when it loads a model. So a
head in integers is found, and grown, as every other one.

Sources: ONNX QLinearConv-10, QLinearMatMul-10, QuantizeLinear-13 and -21; ONNX Runtime's contrib operators.
"""

# Why: docs/decisions/0099.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import STANDARD_DOMAINS, constant_array, is_constant
from exporters.graph.edits import add_initializer, add_node, remove_unused, replace_uses, unused_name
from exporters.graph.reading import input_of, only_user, shape_of, walk_backward

CONTRIB_DOMAIN = "com.microsoft"
WIDE_OPSET = 21
"""From it on, ONNX's own QuantizeLinear and DequantizeLinear take 16 bits."""

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_WIDE = frozenset({ir.DataType.INT16, ir.DataType.UINT16})
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_UNARY = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SCORES = frozenset({"LogSoftmax", "Sigmoid", "Softmax"})
_OWN_ATTRIBUTES = frozenset({"channels_last", "opset"})
"""Attributes of ONNX Runtime's operators that ONNX's own do not have."""


def needs_wide_quantization(model: ir.Model) -> bool:
    """Say whether a model quantizes to 16 bits by ONNX Runtime's operators."""
    return any(
        node.domain == CONTRIB_DOMAIN
        and node.op_type in _QDQ
        and any(value is not None and value.dtype in _WIDE for value in (*node.inputs, *node.outputs))
        for node in model.graph.all_nodes()
    )


@dataclass(frozen=True, slots=True)
class WriteOutIntegersPass(ir.passes.InPlacePass):
    """Replace quantized operators; a model without them is not modified.

    Operators whose scales are not constant, or that take their channels last, stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them in place."""
        graph, modified = model.graph, False
        for node in list(graph):
            if node.domain == CONTRIB_DOMAIN and node.op_type in _QDQ:
                node.domain = ""
                modified = True
            elif node.domain in {*STANDARD_DOMAINS, CONTRIB_DOMAIN} and (write := _writer(node.op_type)) is not None:
                modified |= _replaced(graph, node, write)
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True, slots=True)
class BypassRoundingPass(ir.passes.InPlacePass):
    """Let logits and scores pass unrounded where they are only moved between being quantized and dequantized.

    That rounding is for the range of the classes that the model knows. Where it follows a linear operator at once, it
    belongs to the head, and stays there.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bypass the pairs in place."""
        graph, modified = model.graph, False
        for last in _behind_heads(graph):
            quantize = _quantized_before(last)
            source = None if quantize is None else quantize.inputs[0]
            if quantize is None or source is None:
                continue
            made, direct = source.producer(), last.inputs[0] is quantize.outputs[0]
            if direct and (made is None or made.op_type not in _MOVES):
                continue
            for node, index in list(quantize.outputs[0].uses()):
                node.replace_input_with(index, source)
            _retype(source, last)
            before = input_of(last, 0)
            replace_uses(graph, last.outputs[0], _copy_for_output(graph, last, before))
            remove_unused(graph, [last, quantize])
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _behind_heads(graph: ir.Graph) -> list[ir.Node]:
    """Return the DequantizeLinear nodes between a linear operator and an output, the first ones first."""

    def sources(node: ir.Node) -> Sequence[ir.Value | None]:
        goes_on = node.domain in STANDARD_DOMAINS and node.op_type in _MOVES | _SCORES | _QDQ
        return node.inputs[:1] if goes_on else ()

    walked = walk_backward(graph, sources)
    found = {node for node in walked if node.op_type == "DequantizeLinear" and node.domain in STANDARD_DOMAINS}
    return [node for node in graph if node in found]


def _quantized_before(last: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear whose integers a node dequantizes by the same scale, moved and used by nothing else."""
    value = input_of(last, 0)
    while (node := value.producer()) is not None and node.op_type in _MOVES and only_user(value) is not None:
        value = input_of(node, 0)
    if node is None or node.op_type != "QuantizeLinear" or only_user(value) is None:
        return None
    return node if all(_equal(node, last, index) for index in (1, 2)) else None


def _equal(first: ir.Node, second: ir.Node, index: int) -> bool:
    values = [_optional(first, index), _optional(second, index)]
    if values[0] is values[1]:
        return True
    arrays = [constant_array(value) for value in values if value is not None and is_constant(value)]
    return len(arrays) == 2 and bool(np.array_equal(arrays[0], arrays[1]))


def _retype(source: ir.Value, last: ir.Node) -> None:
    """Give the values from a source to a node the source's type."""
    value = input_of(last, 0)
    while value is not source and (node := value.producer()) is not None:
        value.type = source.type
        value = input_of(node, 0)


def _copy_for_output(graph: ir.Graph, last: ir.Node, before: ir.Value) -> ir.Value:
    """Return a value to use instead of what a node gives, which takes that one's name."""
    old = last.outputs[0]
    return add_node(
        graph,
        "Identity",
        [before],
        before=last,
        name=f"{old.name}_unrounded",
        dtype=old.dtype,
        shape=old.shape if old.shape is not None else shape_of(before),
    )


@dataclass(slots=True)
class Steps:
    """The nodes that stand for one operator, in order."""

    graph: ir.Graph
    base: str
    nodes: list[ir.Node] = field(default_factory=list)

    def append(self, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        """Add a node with one output, and return that."""
        (output,) = self.append_all(op_type, inputs, attributes, num_outputs=1)
        return output

    def append_all(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = (), *, num_outputs: int
    ) -> list[ir.Value]:
        """Add a node, and return its outputs."""
        base = f"{self.base}_{op_type.lower()}_{len(self.nodes)}"
        names = [base, *(f"{base}_{index}" for index in range(1, num_outputs))]
        outputs = [ir.Value(name=unused_name(self.graph, name)) for name in names]
        node = ir.Node("", op_type, inputs, attributes=attributes, outputs=outputs, name=f"node_{outputs[0].name}")
        self.nodes.append(node)
        return outputs

    def real(self, value: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int = 0) -> ir.Value:
        """Return what integers stand for."""
        inputs = [value, scale, *([] if zero is None else [zero])]
        return self.append("DequantizeLinear", inputs, [ir.AttrInt64("axis", axis)] if _size(scale) > 1 else [])

    def integers(self, value: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
        """Return the integers that a value is rounded to."""
        return self.append("QuantizeLinear", [value, scale, *([] if zero is None else [zero])])


_Writer = Callable[[Steps, ir.Node], ir.Value | None]


def _writer(op_type: str) -> _Writer | None:
    return {
        "QGemm": _gemm,
        "QLinearConcat": _concat,
        "QLinearConv": _conv,
        "QLinearMatMul": _matmul,
        **dict.fromkeys(_BINARY, _binary),
        **dict.fromkeys(_UNARY, _unary),
    }.get(op_type)


def _replaced(graph: ir.Graph, node: ir.Node, write: _Writer) -> bool:
    steps = Steps(graph, str(node.outputs[0].name))
    output = write(steps, node)
    if output is None:
        return False
    graph.insert_before(node, steps.nodes)
    old = node.outputs[0]
    output.shape, output.type = old.shape, old.type
    replace_uses(graph, old, output)
    remove_unused(graph, [node])
    return True


def _conv(steps: Steps, node: ir.Node) -> ir.Value | None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (input_of(node, index) for index in range(8))
    bias = _optional(node, 8)
    if not _are_constant(x_scale, w_scale):
        return None
    inputs = [steps.real(x, x_scale, x_zero), steps.real(w, w_scale, w_zero, axis=0)]
    if bias is not None:
        inputs.append(_real_bias(steps, bias, x_scale, w_scale))
    return steps.integers(steps.append("Conv", inputs, _attributes(node)), y_scale, y_zero)


def _matmul(steps: Steps, node: ir.Node) -> ir.Value | None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (input_of(node, index) for index in range(8))
    if not _are_constant(a_scale, b_scale) or _size(a_scale) != 1:
        return None
    inputs = [steps.real(a, a_scale, a_zero), steps.real(b, b_scale, b_zero, axis=-1)]
    return steps.integers(steps.append("MatMul", inputs), y_scale, y_zero)


def _gemm(steps: Steps, node: ir.Node) -> ir.Value | None:
    a, a_scale, a_zero, b, b_scale, b_zero = (input_of(node, index) for index in range(6))
    bias, y_scale, y_zero = (_optional(node, index) for index in (6, 7, 8))
    if not _are_constant(a_scale, b_scale) or _size(a_scale) != 1:
        return None
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    inputs = [steps.real(a, a_scale, a_zero), steps.real(b, b_scale, b_zero, axis=axis)]
    if bias is not None:
        inputs.append(_real_bias(steps, bias, a_scale, b_scale, factor=node.attributes.get_float("alpha", 1.0)))
    product = steps.append("Gemm", inputs, _attributes(node))
    return product if y_scale is None else steps.integers(product, y_scale, y_zero)


def _binary(steps: Steps, node: ir.Node) -> ir.Value:
    a, b = (steps.real(input_of(node, at), input_of(node, at + 1), _optional(node, at + 2)) for at in (0, 3))
    return steps.integers(steps.append(_BINARY[node.op_type], [a, b]), input_of(node, 6), _optional(node, 7))


def _unary(steps: Steps, node: ir.Node) -> ir.Value | None:
    if node.attributes.get_int("channels_last", 0):
        return None
    value = steps.real(input_of(node, 0), input_of(node, 1), _optional(node, 2))
    output = steps.append(_UNARY[node.op_type], [value], _attributes(node))
    return steps.integers(output, input_of(node, 3), _optional(node, 4))


def _concat(steps: Steps, node: ir.Node) -> ir.Value:
    values = [
        steps.real(input_of(node, at), input_of(node, at + 1), _optional(node, at + 2))
        for at in range(2, len(node.inputs), 3)
    ]
    return steps.integers(steps.append("Concat", values, _attributes(node)), input_of(node, 0), _optional(node, 1))


def _real_bias(steps: Steps, bias: ir.Value, x_scale: ir.Value, w_scale: ir.Value, factor: float = 1.0) -> ir.Value:
    """Return a bias that is stored as 32-bit integers: its scale is that of the products."""
    scale = np.float32(factor) * constant_array(x_scale).reshape(()) * constant_array(w_scale)
    scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
    return steps.real(bias, add_initializer(steps.graph, f"{steps.base}_bias_scale", scale.astype(np.float32)), None)


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return [attribute for name, attribute in node.attributes.items() if name not in _OWN_ATTRIBUTES]


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _are_constant(*values: ir.Value) -> bool:
    return all(is_constant(value) for value in values)


def _size(value: ir.Value) -> int:
    return int(constant_array(value).size) if is_constant(value) else 1
