"""Float16 on a CPU: the same graph in float32, with every value rounded as float16 would round it.

ONNX Runtime has few float16 kernels for CPUs. It runs the rest in float32 and, between two of them, drops the casts to
float16: nothing is rounded, and an overflow to infinity becomes a large number. A gate that trusts that run would pass
a model that fails on a GPU. Here the rounding is arithmetic, which no optimizer removes.

Source of the rounding: Veltkamp's splitting, x (2^s + 1) - (x (2^s + 1) - x), which leaves 24 - s significant bits
(Dekker, Numerische Mathematik 18, 1971). Values below 6e-5, for which float16 has fewer bits, are not rounded further.
"""

# Why: docs/decisions/0044.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import add_initializer

_SPLIT = np.float32(2**13 + 1)
_OVERFLOWS_AT = np.float32(65520)
"""The least magnitude that float16 rounds to infinity."""


@dataclass(frozen=True, slots=True)
class EmulateFloat16Pass(ir.passes.InPlacePass):
    """Make a float16 model a float32 one that gives what float16 hardware would, up to the order of sums."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Widen types and round values in place."""
        graph = model.graph
        constants = {
            "split": add_initializer(graph, "float16_split", np.asarray(_SPLIT)),
            "bound": add_initializer(graph, "float16_bound", np.asarray(_OVERFLOWS_AT)),
            "infinity": add_initializer(graph, "float16_infinity", np.asarray(np.float32(np.inf))),
        }
        for value in list(graph.initializers.values()):
            if value.dtype == ir.DataType.FLOAT16 and value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in list(graph):
            rounded = [output for output in node.outputs if output.dtype == ir.DataType.FLOAT16]
            _widen_attributes(node)
            for output in rounded:
                output.type = ir.TensorType(ir.DataType.FLOAT)
                _round(graph, node, output, constants)
        return ir.passes.PassResult(model, modified=True)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if (
            name in {"to", "dtype"}
            and attribute.type == ir.AttributeType.INT
            and attribute.value == ir.DataType.FLOAT16
        ):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT16:
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.value.numpy().astype(np.float32)))


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, constants: dict[str, ir.Value]) -> None:
    """Put a rounded copy of `output` where it is used."""
    users = list(output.uses())
    scaled = ir.node("Mul", [output, constants["split"]])
    rest = ir.node("Sub", [scaled.outputs[0], output])
    kept = ir.node("Sub", [scaled.outputs[0], rest.outputs[0]])
    magnitude = ir.node("Abs", [kept.outputs[0]])
    fits = ir.node("Less", [magnitude.outputs[0], constants["bound"]])
    overflowed = ir.node("Mul", [kept.outputs[0], constants["infinity"]])
    rounded = ir.node("Where", [fits.outputs[0], kept.outputs[0], overflowed.outputs[0]])
    added = [scaled, rest, kept, magnitude, fits, overflowed, rounded]
    for index, new in enumerate(added):
        new.outputs[0].name = f"{output.name}_float16_{index}"
        new.outputs[0].shape = output.shape
        new.outputs[0].type = ir.TensorType(ir.DataType.BOOL if new is fits else ir.DataType.FLOAT)
        new.name = f"node_{new.outputs[0].name}"
    graph.insert_after(node, added)
    for user, index in users:
        user.replace_input_with(index, rounded.outputs[0])
