"""Make a classifier's backbone int8: weights per channel, activations by calibration images, Q/DQ in the graph.

Rules:

1. The head, its slots and what follows them stay float: rows keep their bits, and can be changed on a device.
2. Calibration is MinMax, and the error that rounded weights make on average goes into the biases first
   (`bias_correction.py`). Other calibration methods moved the features of a MobileNetV2 by less than 0.3 dB; bias
   correction moved them by 5.
3. Whatever gives the features is not quantized itself: the head would see only 8 bits of each feature.
4. Where values are normalised at run time, as in a transformer, only products with weights take integers, and they give
   floats. There, a sum of residuals has one range for small tokens and large ones, and normalising amplifies its
   rounding. A LayerNormalization may be written out, as exporters below opset 17 do.

Source: ONNX Runtime's "Quantize ONNX models" (onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

# Why: docs/decisions/0045.

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.backbone.activations import Inputs
from exporters.backbone.splitting import backbone_of, with_backbone
from exporters.conversion.bias_correction import correct_biases, has_float_weight
from exporters.conversion.fp16 import require_float32
from exporters.graph.constants import constant_array, is_constant
from exporters.head.finding import HeadLocation
from exporters.onnx_io.files import first_line, serialize_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.errors import ExportError, IncompatibleError

NUM_MEAN_BATCHES = 64
"""Number of calibration batches over which the mean input of each layer is taken."""

SHAPING = frozenset(
    {"AveragePool", "Flatten", "Gather", "GlobalAveragePool", "Identity", "MaxPool", "ReduceMean", "Reshape", "Slice"}
    | {"Squeeze", "Transpose"}
)
_NORMALISING = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax"})
_GUARDS = frozenset({"Add", "Cast", "Clip", "Max"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """A classifier with an int8 backbone, and both backbones, by which `worst_layers` measures each layer's error."""

    model: ir.Model = field(repr=False)
    """The classifier; the location of its head still holds."""

    float_backbone: ir.Model = field(repr=False)
    """The float32 backbone that was quantized, with its biases corrected."""

    backbone: ir.Model = field(repr=False)
    """The int8 backbone alone, from the images to the features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedBackbone:
    """What quantizers of other runtimes are given: a float32 backbone, and the images that ranges are taken from."""

    model: ir.Model = field(repr=False)
    """From the images to the features `(batch, feature_dim)`, with biases corrected for weights of eight bits."""

    calibration: Inputs = field(repr=False)
    """Gives prepared images, each alone; in whole batches where the model takes no other."""


def quantize_model(model: ir.Model, location: HeadLocation, input_name: str, calibration: Inputs) -> QuantizedModel:
    """Return a classifier with an int8 backbone.

    Args:
        model: The float32 classifier; it is not changed.
        location: Its head.
        input_name: Its input for images.
        calibration: Gives prepared images of the kind that the device will see.

    Raises:
        IncompatibleError: If the model holds quantized or half precision layers already, has no backbone, or none that
            can be quantized.
        ExportError: If ONNX Runtime cannot quantize it.
    """
    require_float32(model)
    backbone = backbone_of(model, location, input_name)
    with tempfile.TemporaryDirectory(prefix="icis-int8-") as folder, quantizing_quietly():
        try:
            prepared = _preprocessed(backbone, Path(folder))
            correct_biases(prepared, islice(calibration(), NUM_MEAN_BATCHES))
            quantized = _quantized(prepared, input_name, calibration, Path(folder))
        except (ExportError, IncompatibleError):
            raise
        except Exception as error:  # onnxruntime.quantization raises any type
            raise ExportError(
                f"ONNX Runtime cannot quantize this backbone: {first_line(error)}.",
                found=first_line(error),
                hint="Export it with `precision='fp16'` or `precision='fp32'`.",
            ) from error
    if not any(node.op_type == "DequantizeLinear" for node in quantized.graph):
        kinds = ", ".join(sorted({node.op_type for node in prepared.graph}))
        raise IncompatibleError(
            f"No layer of this backbone takes integers; its operators are {kinds}.",
            found=kinds,
            hint=(
                "Give the model as it was exported, before a runtime optimized it, or export it with "
                "`precision='fp32'`."
            ),
        )
    graft = with_backbone(model, location, input_name, quantized.clone())
    return QuantizedModel(model=graft, float_backbone=prepared, backbone=quantized)


def _preprocessed(backbone: ir.Model, folder: Path) -> ir.Model:
    """Return the backbone as the quantizer needs it: constants folded, BatchNormalization in the convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, path = folder / "backbone.onnx", folder / "prepared.onnx"
    source.write_bytes(serialize_model(backbone))  # the quantizer loses the weights of a model in memory
    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    prepared = ir.load(path)
    infer_shapes(prepared)
    return prepared


def _quantized(prepared: ir.Model, input_name: str, calibration: Inputs, folder: Path) -> ir.Model:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    source, target = folder / "corrected.onnx", folder / "int8.onnx"
    normalises = _normalises(prepared.graph)
    others = [str(node.name) for node in prepared.graph if normalises and not has_float_weight(node)]
    onnx.save(ir.to_proto(prepared), source)
    quantize_static(
        str(source),
        str(target),
        calibration_reader(input_name, calibration()),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=[*_nodes_after_the_last_layer(prepared), *others, *_instance_norms(prepared)],
        extra_options={
            # A convolution that gives floats is computed in floats by ONNX Runtime, and keeps its integers.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"] if normalises else [],
            "QDQKeepRemovableActivations": any(_clips_above_or_below_zero(node) for node in prepared.graph),
        },
    )
    quantized = ir.load(target)
    for node in quantized.graph:
        # What exporters note of a node (torch: the lines of a developer's files that it came of) is not of this graph.
        node.metadata_props.clear()
    infer_shapes(quantized)
    return quantized


def _normalises(graph: ir.Graph) -> bool:
    """Say whether layers are normalised at run time, by an operator or written out: divided by the root of a mean.

    A root before the first product with a weight is the images' own standardisation, which changes nothing here.
    """
    computed: set[ir.Value] = set()
    for node in graph:
        if has_float_weight(node) or any(source in computed for source in node.inputs):
            computed.update(node.outputs)
        if node.op_type in _NORMALISING or (node.outputs[0] in computed and _is_root_of_mean(node)):
            return True
    return False


def _is_root_of_mean(node: ir.Node) -> bool:
    if node.op_type != "Sqrt" and not (node.op_type == "Pow" and is_constant(node.inputs[1])):
        return False
    source = node
    while True:
        given = next((value for value in source.inputs if value is not None and not is_constant(value)), None)
        producer = None if given is None else given.producer()
        if producer is None or producer.op_type not in _GUARDS:
            return producer is not None and producer.op_type == "ReduceMean"
        source = producer


def _instance_norms(backbone: ir.Model) -> list[str]:
    """Return the InstanceNormalizations that a GroupNorm is exported as, which share one neutral scale and bias.

    ONNX Runtime copies a bias that is shared, under a name that another value may have.
    """
    return [str(node.name) for node in backbone.graph if node.op_type == "InstanceNormalization"]


def _clips_above_or_below_zero(node: ir.Node) -> bool:
    """Say whether a Clip's lower bound is not 0, where a range of integers may not begin.

    The quantizer drops an activation function and relies on the range of integers to clip: a range that always holds 0,
    and that TensorRT makes symmetric.
    """
    if node.op_type != "Clip":
        return False
    least = node.inputs[1] if len(node.inputs) > 1 else None
    # One number of no dimension by the standard; converters from TensorFlow Lite write one of one dimension.
    return least is None or not is_constant(least) or bool((constant_array(least) != 0).any())


def _nodes_after_the_last_layer(backbone: ir.Model) -> list[str]:
    """Return the nodes that only pool and reshape the output of the last layer."""
    names: list[str] = []
    node = backbone.graph.outputs[0].producer()
    while node is not None and node.op_type in SHAPING:
        names.append(str(node.name))
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return names


def calibration_reader(input_name: str, batches: Iterator[NDArray[np.float32]]) -> Any:
    """Return batches as an `onnxruntime.quantization.CalibrationDataReader`."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library asks for a subclass
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(batches, None)
            return None if batch is None else {input_name: batch}

    return Reader()


@contextmanager
def quantizing_quietly() -> Iterator[None]:
    """Keep the quantizer's advice off the user's terminal: errors come as exceptions, and the gate judges the rest."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
