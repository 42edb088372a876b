"""Make a classifier float16 in its graph, with float32 inputs and outputs.

Rules:

1. Precision belongs in the graph: a strongly typed TensorRT network has no flag for it, and takes it from here.
2. Operators that lose most in float16 stay float32 (`SENSITIVE`): sums over many values, exponentials, and divisions
   by small numbers. So does every node with a value near float16's greatest, on the inputs given.
3. Baked rows become float16 with the rest. Slots are added afterwards, in float32, whatever the backbone computes in.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.backbone.activations import Inputs, inner_values, iterate_activations
from exporters.graph.constants import constant_array
from exporters.onnx_io.files import check_model, first_line, serialize_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.errors import ExportError, IncompatibleError

SENSITIVE = (
    *("Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax"),
    *("LpNormalization", "MeanVarianceNormalization", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp"),
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "RMSNormalization", "Softmax", "Sqrt", "TopK"),
)
"""Types of operators that stay float32."""

SAFE_MAGNITUDE = 65504 / 2
"""Half of float16's greatest value: on other inputs than those looked at, a value may double before it overflows."""


def convert_to_float16(model: ir.Model, inputs: Inputs) -> ir.Model:
    """Return a float16 copy of a float32 classifier; its inputs and outputs stay float32.

    Args:
        model: The classifier; it is not changed.
        inputs: Gives prepared images, by which the nodes that would overflow are found.

    Raises:
        IncompatibleError: If the model is not float32.
        ExportError: If it cannot be converted.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    require_float32(model)
    proto = onnx.load_from_string(serialize_model(model))
    # The converter treats a weight that has a type there as float16, even where it leaves it float32.
    values = [value for value in proto.graph.value_info if value.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about constants clipped to 65504, such as a mask's: the gate judges them
            halved = convert_float_to_float16(
                proto,
                keep_io_types=True,
                disable_shape_infer=True,  # done, and kept in the graph
                op_block_list=list(SENSITIVE),
                node_block_list=overflowing_nodes(model, inputs),
            )
        copy: ir.Model = ir.from_proto(halved)
        common.TopologicalSortPass()(copy)  # the converter puts its casts last
        _drop_round_trips(copy)
        infer_shapes(copy)
        check_model(copy)
    except Exception as error:  # the converter raises any type
        raise ExportError(
            f"The model cannot be converted to float16: {first_line(error)}.",
            found=first_line(error),
            hint="Export it with `precision='fp32'`.",
        ) from error
    return copy


def overflowing_nodes(model: ir.Model, inputs: Inputs) -> list[str]:
    """Return the nodes that take or give a value whose magnitude exceeds `SAFE_MAGNITUDE` on these inputs."""
    names = inner_values(model)
    largest = dict.fromkeys(names, 0.0)
    for arrays in iterate_activations(model, names, inputs()):
        for name, array in arrays.items():
            # As numpy does it: a NaN stays, and counts as too large below.
            largest[name] = float(np.maximum(largest[name], np.abs(array).max(initial=0.0)))
    too_large = {name for name, magnitude in largest.items() if not magnitude <= SAFE_MAGNITUDE}
    too_large |= {name for name, value in model.graph.initializers.items() if _exceeds(value)}
    return [
        str(node.name)
        for node in model.graph
        if any(value is not None and value.name in too_large for value in (*node.inputs, *node.outputs))
    ]


def require_float32(model: ir.Model) -> None:
    """Raise `IncompatibleError` if a model holds quantized or half precision layers."""
    reduced = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    for node in model.graph.all_nodes():
        is_quantized = node.op_type in {"QuantizeLinear", "DequantizeLinear"}
        if is_quantized or any(output.dtype in reduced for output in node.outputs):
            found = node.op_type if is_quantized else "half precision"
            raise IncompatibleError(
                f"The model is not float32: its node {node.name} is {found}.",
                found=found,
                expected="float32",
                where=str(node.name),
                hint="Give the float32 model, or export this one as it is, with `precision='fp32'`.",
            )


def _drop_round_trips(model: ir.Model) -> None:
    """Remove casts from float32 to float16 and back, which the converter leaves between nodes that stay float32."""
    for node in list(model.graph):
        if node.op_type != "Cast" or node.attributes.get_int("to", 0) != ir.DataType.FLOAT:
            continue
        narrowing = None if node.inputs[0] is None else node.inputs[0].producer()
        if (
            narrowing is None
            or narrowing.op_type != "Cast"
            or narrowing.attributes.get_int("to", 0) != ir.DataType.FLOAT16
        ):
            continue
        source, output = narrowing.inputs[0], node.outputs[0]
        if source is None or source.producer() is None or source.dtype != ir.DataType.FLOAT:
            continue
        name = str(output.name)
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
        if source.is_graph_output():
            output.name, source.name = f"{name}_narrowed", name
    common.RemoveUnusedNodesPass()(model)


def _exceeds(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.FLOAT:
        return False
    array = constant_array(value)
    # A mask's minus infinity, or the greatest float, means "masked": clipped to float16's least it still does.
    finite = np.abs(array[np.isfinite(array) & (np.abs(array) < np.finfo(np.float32).max)])
    return bool(finite.max(initial=0.0) > SAFE_MAGNITUDE)
