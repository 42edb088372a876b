"""The graph of a generator: predictor and calibration as ONNX operators, one small function for each kind of them.

Large matrices may be stored as float16; everything is computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from icis_deploy.errors import IncompatibleError
from icis_deploy.injection.predictors.block_space import BlockSpace
from icis_deploy.injection.predictors.mixtures import (
    AVERAGE_NEIGHBOURS,
    AVERAGE_SHARPNESS,
    average_weights,
    costa_weights,
    equal_weights,
    nearest_weights,
)
from icis_deploy.injection.predictors.ridge import KernelPredictor
from icis_deploy.injection.rows.calibration import DeviationCalibration, LengthFactor, RowCalibration
from icis_deploy.injection.rows.predictors import AveragePredictor, LatentPredictor, RowPredictor, WeightedPredictor

OPSET = 17
TINY = float(np.finfo(np.float32).tiny)


@dataclass(slots=True, kw_only=True)
class GraphBuilder:
    """Collects the nodes and constants of a graph as they are added."""

    stores_float16_matrices: bool
    """Whether constants of 2 dimensions are stored as float16 instead of float32."""

    nodes: list[ir.Node] = field(default_factory=list)
    """In the order of computation."""

    constants: list[ir.Value] = field(default_factory=list)
    """The initializers, named."""

    def op(self, op_type: str, *inputs: ir.Value | NDArray[Any] | float, **attributes: Any) -> ir.Value:
        """Add a node and return its output; arrays and numbers become constants."""
        values = [value if isinstance(value, ir.Value) else self.constant(value) for value in inputs]
        node = ir.node(op_type, values, attributes=attributes, name=f"node_{len(self.nodes)}")
        node.outputs[0].name = f"value_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: NDArray[Any] | float) -> ir.Value:
        """Add a constant; real numbers become float32."""
        values = np.asarray(array)
        if values.dtype.kind == "f":
            is_16_bit = self.stores_float16_matrices and values.ndim == 2
            values = values.astype(np.float16 if is_16_bit else np.float32)
        name = f"constant_{len(self.constants)}"
        tensor = ir.Tensor(np.ascontiguousarray(values), name=name)
        value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.constants.append(value)
        return self.op("Cast", value, to=ir.DataType.FLOAT) if values.dtype == np.float16 else value

    def unit(self, vectors: ir.Value) -> ir.Value:
        """Return vectors `(batch, n)` at unit length; zero stays zero."""
        return self.op("Div", vectors, self.op("Max", self.length(vectors), TINY))

    def length(self, vectors: ir.Value) -> ir.Value:
        """Return lengths `(batch, 1)`."""
        return self.op("ReduceL2", vectors, axes=[1], keepdims=1)

    def at_length(self, deviations: ir.Value, length: float) -> ir.Value:
        """Return deviations at one length, as `spectrum.at_length` does."""
        negligible = max(1e-6 * length, TINY)
        found = self.length(deviations)
        factor = self.op("Div", length, self.op("Max", found, negligible))
        return self.op("Mul", deviations, self.op("Where", self.op("Greater", found, negligible), factor, 0.0))


def add_space(graph: GraphBuilder, space: BlockSpace, descriptors: ir.Value) -> ir.Value:
    """Add the nodes that join the blocks of descriptors, as `BlockSpace.apply` does, and return what methods take."""
    parts, start = [], 0
    for index, (block, weight) in enumerate(zip(space.blocks, space.weights, strict=True)):
        end = start + block.width
        if weight > 0.0:
            bounds = [np.array([at], dtype=np.int64) for at in (start, end, 1)]
            columns = graph.op("Slice", descriptors, *bounds)
            if index == space.sole:
                return columns
            centred = graph.op("Sub", columns, block.centre)
            length = graph.length(centred)
            greatest = graph.op("ReduceMax", graph.op("Abs", columns), axes=[1], keepdims=1)
            is_known = graph.op(
                "And", graph.op("Greater", greatest, 0.0), graph.op("Greater", length, block.negligible)
            )
            factor = graph.op("Div", float(np.sqrt(weight)), graph.op("Max", length, TINY))
            parts.append(graph.op("Mul", centred, graph.op("Where", is_known, factor, 0.0)))
        start = end
    return graph.unit(graph.op("Concat", *parts, axis=1))


def add_predictor(graph: GraphBuilder, predictor: RowPredictor, descriptors: ir.Value) -> ir.Value:
    """Add the nodes that compute raw rows from descriptors, and return those rows.

    Raises:
        IncompatibleError: If the method has no closed form.
    """
    if isinstance(predictor, LatentPredictor):
        hidden = graph.op("Gemm", descriptors, predictor.encoder_weight, predictor.encoder_bias, transB=1)
        bias = predictor.decoder_bias + predictor.origin
        return graph.op("Gemm", graph.op("Relu", hidden), predictor.decoder_weight, bias, transB=1)
    if isinstance(predictor, KernelPredictor):
        return _add_kernel(graph, predictor, descriptors)
    if isinstance(predictor, WeightedPredictor):
        weights = _add_weights(graph, predictor, descriptors)
        return graph.op("Add", graph.op("MatMul", weights, predictor.deviations), predictor.mean_row)
    if isinstance(predictor, AveragePredictor):
        directions = [
            graph.at_length(graph.op("Sub", add_predictor(graph, member, descriptors), predictor.mean_row), 1.0)
            for member in predictor.members
        ]
        return graph.op("Add", graph.op("Mean", *directions), predictor.mean_row)
    raise IncompatibleError(
        f"A {type(predictor).__name__} cannot be written as a generator.",
        found=type(predictor).__name__,
        hint="Choose another `method`, such as `method='ridge'`.",
    )


def add_calibration(graph: GraphBuilder, calibration: RowCalibration, rows: ir.Value) -> ir.Value:
    """Add the nodes that calibrate raw rows, and return the calibrated ones.

    Raises:
        IncompatibleError: If its type cannot be written as a graph.
    """
    if isinstance(calibration, LengthFactor):
        return graph.op("Mul", rows, calibration.factor)
    if not isinstance(calibration, DeviationCalibration):
        raise IncompatibleError(
            f"A {type(calibration).__name__} cannot be written as a generator.",
            found=type(calibration).__name__,
            hint="Choose another `method`, such as `method='ridge'`.",
        )
    deviations = graph.op("Sub", rows, calibration.mean_row)
    if len(calibration.axes) and calibration.axis_gain.any():
        along = graph.op("Mul", graph.op("Gemm", deviations, calibration.axes, transB=1), calibration.axis_gain)
        deviations = graph.op("Add", deviations, graph.op("MatMul", along, calibration.axes))
    origin = calibration.mean_row.copy()
    origin[-1] += np.float32(calibration.offset)
    if calibration.bias_law is None:
        return graph.op("Add", graph.at_length(deviations, calibration.length), origin)
    is_bias = np.zeros(len(origin), dtype=np.float32)
    is_bias[-1] = 1.0
    weights = graph.at_length(graph.op("Mul", deviations, 1.0 - is_bias), calibration.length)
    bias = graph.op("MatMul", weights, np.append(calibration.bias_law, np.float32(0.0))[:, None])
    return graph.op("Add", graph.op("Add", weights, graph.op("Mul", bias, is_bias)), origin)


def add_similarity(graph: GraphBuilder, descriptors: ir.Value, seen_descriptors: NDArray[np.float32]) -> ir.Value:
    """Add the cosines between descriptors and seen ones, both minus the mean seen one, `(batch, num_seen)`."""
    mean = seen_descriptors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return _cosines(graph, graph.op("Sub", descriptors, mean), seen_descriptors - mean)


def _cosines(graph: GraphBuilder, left: ir.Value, right: NDArray[np.float32]) -> ir.Value:
    unit = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), TINY)
    return graph.op("Gemm", graph.unit(left), unit, transB=1)


def _add_kernel(graph: GraphBuilder, predictor: KernelPredictor, descriptors: ir.Value) -> ir.Value:
    """Add `mean_row + kernel @ coefficients`; both points of a kernel have unit length, or are zero."""
    points = graph.unit(graph.op("Sub", descriptors, predictor.descriptor_mean))
    squares = graph.op("ReduceSumSquare", points, axes=[1], keepdims=1)
    landmark_squares = (predictor.landmarks**2).sum(axis=1)
    products = graph.op("Mul", graph.op("Gemm", points, predictor.landmarks, transB=1), 2.0)
    squared = graph.op("Max", graph.op("Sub", graph.op("Add", squares, landmark_squares), products), 0.0)
    kernel = graph.op("Exp", graph.op("Mul", squared, -predictor.settings.inverse_width))
    return graph.op("Add", graph.op("MatMul", kernel, predictor.coefficients), predictor.mean_row)


def _add_weights(graph: GraphBuilder, predictor: WeightedPredictor, descriptors: ir.Value) -> ir.Value:
    """Add a method's weights of seen classes, `(batch, num_seen)`."""
    seen = predictor.descriptors
    if predictor.weigh is costa_weights:
        return _normalised(graph, graph.op("Relu", _cosines(graph, descriptors, seen)))
    if predictor.weigh is equal_weights:
        similarity = graph.op("Mul", add_similarity(graph, descriptors, seen), 0.0)
        return graph.op("Add", similarity, 1.0 / len(seen))
    similarity = add_similarity(graph, descriptors, seen)
    if predictor.weigh is nearest_weights:
        index = graph.op("ArgMax", similarity, axis=1, keepdims=0)
        return graph.op("OneHot", index, np.int64(len(seen)), np.array([0.0, 1.0]), axis=1)
    if predictor.weigh is average_weights:
        count = np.array([min(AVERAGE_NEIGHBOURS, len(seen))], dtype=np.int64)
        greatest = ir.node("TopK", [similarity, graph.constant(count)], num_outputs=2, name=f"node_{len(graph.nodes)}")
        greatest.outputs[0].name, greatest.outputs[1].name = "greatest", "greatest_indices"
        graph.nodes.append(greatest)
        threshold = graph.op("ReduceMin", greatest.outputs[0], axes=[1], keepdims=1)
        sharp = graph.op("Exp", graph.op("Mul", similarity, AVERAGE_SHARPNESS))
        return _normalised(graph, graph.op("Where", graph.op("Less", similarity, threshold), 0.0, sharp))
    raise IncompatibleError(
        "The method 'mixture' solves a problem for each class, which a graph cannot.",
        found="mixture",
        hint="Choose another `method`.",
    )


def _normalised(graph: GraphBuilder, weights: ir.Value) -> ir.Value:
    total = graph.op("ReduceSum", weights, np.array([1], dtype=np.int64), keepdims=1)
    return graph.op("Div", weights, graph.op("Max", total, TINY))
