"""The arbiter in a graph: the statistics of an image, and what the logits of new classes follow from them.

    features (batch, feature_dim), seen logits (batch, num_seen)
       |  ReduceSumSquare               |  ReduceMax, ReduceMean, Sub, Mul, ReduceMean, ArgMax, Gather
       '------------- Clip, Log --------'
                       |
                 statistics (batch, 5) -> Gemm with coefficients (num_new, 5), added to the new logits

Rules:

1. Nothing feeds back into the seen logits: they keep their bits.
2. Everything is float32, whatever the head's precision, and computes what `icis_deploy.head.arbiter.seen_statistics`
   does. Statistics are finite where the seen logits are, since a row without an arbiter multiplies them by 0.
3. One Gemm multiplies the coefficients, whether fed or baked, and adds the product to the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import add_initializer, add_node, free_name, opset_of
from exporters.graph.reading import shape_of
from exporters.head.tail import resized
from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.arbiter import STATISTICS, TINY

ROW_LENGTHS = "seen_row_lengths"
"""Constant `(num_seen,)` float32 of a model with an arbiter: `icis_deploy.head.arbiter.deviation_lengths`."""

_GREATEST = np.finfo(np.float32).max
_AXES_AS_INPUT_OPSET = 18


def row_lengths(blocks: Callable[[], Iterable[Float32]]) -> Float32:
    """Return what `icis_deploy.head.arbiter.deviation_lengths` does, of rows that are read in blocks, twice.

    Lengths beyond float32 become its greatest number.

    Args:
        blocks: Yields all seen rows in order, `(block, feature_dim + 1)` float32 at a time.
    """
    total, count = np.zeros(1), 0
    for block in blocks():
        total = total + block.sum(axis=0, dtype=np.float64)
        count += len(block)
    mean = total / count
    lengths = [np.linalg.norm(block.astype(np.float64) - mean, axis=1) for block in blocks()]
    return np.asarray(np.minimum(np.concatenate(lengths), _GREATEST), dtype=np.float32)


def exact_statistics(features: Float64, seen_logits: Float64, lengths: Float32, top: np.ndarray) -> Float64:
    """Return what `icis_deploy.head.arbiter.seen_statistics` does, in float64.

    Args:
        features: `(num_images, feature_dim)`.
        seen_logits: `(num_images, num_seen)`.
        lengths: `(num_seen,)`, from `row_lengths`.
        top: `(num_images,)`: the index of the seen class that counts as the greatest.
    """
    variance, squared_length = seen_logits.var(axis=1), np.square(features).sum(axis=1)
    columns = [
        seen_logits.max(axis=1),
        seen_logits.mean(axis=1),
        np.log(np.maximum(variance, TINY)),
        np.log(np.maximum(squared_length, TINY)),
        lengths[top].astype(np.float64),
    ]
    return np.stack(columns, axis=1)


def add_statistics(graph: ir.Graph, features: ir.Value, seen_logits: ir.Value, lengths: Float32) -> ir.Value:
    """Add the nodes that compute the statistics of each image, and return them, `(batch, 5)` float32.

    Args:
        graph: Where to add them.
        features: `(batch, feature_dim)`, of any floating type.
        seen_logits: `(batch, num_seen)`, with further axes of length 1 or not, of any floating type.
        lengths: `(num_seen,)` float32, from `row_lengths`.
    """
    logits = in_float32(graph, _as_matrix(graph, seen_logits), "seen_logits_float32")
    features = in_float32(graph, features, "features_float32")
    column = resized(shape_of(logits), 1, 1)

    def reduced(op_type: str, value: ir.Value, name: str) -> ir.Value:
        as_input = opset_of(graph) >= _AXES_AS_INPUT_OPSET
        axes = [add_initializer(graph, f"{name}_axes", np.array([1], dtype=np.int64))] if as_input else []
        attributes = {"keepdims": 1} if as_input else {"keepdims": 1, "axes": [1]}
        return add_node(
            graph, op_type, [value, *axes], name=name, dtype=ir.DataType.FLOAT, shape=column, attributes=attributes
        )

    def computed(op_type: str, inputs: list[ir.Value], name: str, shape: ir.Shape, **attributes: int) -> ir.Value:
        return add_node(graph, op_type, inputs, name=name, dtype=ir.DataType.FLOAT, shape=shape, attributes=attributes)

    greatest = reduced("ReduceMax", logits, "top_logit")
    mean = reduced("ReduceMean", logits, "mean_logit")
    centred = computed("Sub", [logits, mean], "centred_logits", shape_of(logits))
    squares = computed("Mul", [centred, centred], "squared_logits", shape_of(logits))
    variance = reduced("ReduceMean", squares, "logit_variance")
    squared_length = reduced("ReduceSumSquare", features, "squared_length")
    pair = resized(column, 1, 2)
    positive = computed("Concat", [variance, squared_length], "squared_statistics", pair, axis=1)
    bounds = [
        add_initializer(graph, f"{name}_statistic", np.asarray(bound, dtype=np.float32))
        for name, bound in (("least", TINY), ("greatest", _GREATEST))
    ]
    logarithms = computed(
        "Log", [computed("Clip", [positive, *bounds], "clipped_statistics", pair)], "logarithms", pair
    )
    index = add_node(
        graph,
        "ArgMax",
        [logits],
        name="top_seen_class",
        dtype=ir.DataType.INT64,
        shape=column,
        attributes={"axis": 1, "keepdims": 1},
    )
    free_name(graph, ROW_LENGTHS)
    deviation = computed("Gather", [add_initializer(graph, ROW_LENGTHS, lengths), index], "top_deviation", column)
    whole = resized(column, 1, len(STATISTICS))
    return computed("Concat", [greatest, mean, logarithms, deviation], "arbiter_statistics", whole, axis=1)


def add_offsets(
    graph: ir.Graph, statistics: ir.Value, coefficients: ir.Value, logits: ir.Value, *, name: str
) -> ir.Value:
    """Add what new logits follow from statistics, and return the sum, in the type of `logits`.

    Args:
        graph: Where to add it.
        statistics: `(batch, 5)` float32, from `add_statistics`.
        coefficients: `(num_new, 5)` float32, a constant or an input.
        logits: `(batch, num_new)`, of any floating type.
        name: The wanted name of the sum.
    """
    total = add_node(
        graph,
        "Gemm",
        [statistics, coefficients, in_float32(graph, logits, f"{name}_float32")],
        name=name,
        dtype=ir.DataType.FLOAT,
        shape=shape_of(logits),
        attributes={"transB": 1},
    )
    return _cast(graph, total, logits.dtype, f"{name}_cast")


def in_float32(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """Return a value in float32, adding a cast called `name` where it is not."""
    return _cast(graph, value, ir.DataType.FLOAT, name)


def require_lengths(lengths: Float32, num_seen: int) -> None:
    """Raise `IncompatibleError` if there is not one length for each seen class."""
    if lengths.shape != (num_seen,):
        raise IncompatibleError(
            f"The arbiter's row lengths have shape {lengths.shape}; the head has {num_seen} classes.",
            found=lengths.shape,
            expected=(num_seen,),
            hint="Compute them from this model's rows.",
        )


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType | None, name: str) -> ir.Value:
    if dtype is None or value.dtype == dtype:
        return value
    return add_node(
        graph, "Cast", [value], name=name, dtype=dtype, shape=shape_of(value), attributes={"to": int(dtype)}
    )


def _as_matrix(graph: ir.Graph, logits: ir.Value) -> ir.Value:
    shape = shape_of(logits)
    if len(shape) == 2:
        return logits
    (num_classes,) = [size for size in list(shape)[1:] if size != 1] or [1]
    return add_node(
        graph,
        "Flatten",
        [logits],
        name="seen_logits_flat",
        dtype=logits.dtype,
        shape=ir.Shape([shape[0], num_classes]),
        attributes={"axis": 1},
    )
