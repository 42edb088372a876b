"""Between a head's own shapes and `(batch, n)`: features brought to a matrix, logits brought back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import add_initializer, add_node, opset_of
from exporters.graph.reading import shape_of
from exporters.head.patterns import HeadPattern
from exporters.head.tail import resized

_AXES_AS_INPUT_OPSET = 18


def add_feature_matrix(graph: ir.Graph, pattern: HeadPattern) -> ir.Value:
    """Return a head's features as `(batch, feature_dim)`, adding the nodes for that before the head.

    The mean over positions comes before the rows here, where a convolution would come first: the two commute, and this
    order multiplies once per image and not once per position.
    """
    if not pattern.positions:
        return pattern.features
    if pattern.node.op_type != "Conv" and pattern.averages:
        return _mean_over_positions(graph, pattern)
    features = pattern.features
    shape = shape_of(features)
    if pattern.averages:
        features = add_node(
            graph,
            "GlobalAveragePool",
            [features],
            before=pattern.node,
            name="features_pooled",
            dtype=features.dtype,
            shape=ir.Shape([*list(shape)[:2], *(1 for _ in pattern.positions)]),
        )
    return add_node(
        graph,
        "Flatten",
        [features],
        before=pattern.node,
        name="features_flat",
        dtype=features.dtype,
        shape=ir.Shape([shape[0], pattern.feature_dim]),
        attributes={"axis": 1},
    )


def logits_like(graph: ir.Graph, pattern: HeadPattern, logits: ir.Value) -> ir.Value:
    """Give `(batch, n)` logits the type and the rank of the head's own, adding the nodes for that."""
    own = pattern.logits
    if own.dtype is not None and logits.dtype != own.dtype:
        logits = add_node(
            graph,
            "Cast",
            [logits],
            name=f"{logits.name}_cast",
            dtype=own.dtype,
            shape=shape_of(logits),
            attributes={"to": own.dtype},
        )
    own_shape = shape_of(own)
    if len(own_shape) == 2:
        return logits
    class_axis = pattern.chain.class_axis
    axes = np.array([axis for axis in range(1, len(own_shape)) if axis != class_axis], dtype=np.int64)
    name = f"{logits.name}_unsqueezed"
    return add_node(
        graph,
        "Unsqueeze",
        [logits, add_initializer(graph, f"{name}_axes", axes)],
        name=name,
        dtype=own.dtype,
        shape=resized(own_shape, class_axis, shape_of(logits)[1]),
    )


def _mean_over_positions(graph: ir.Graph, pattern: HeadPattern) -> ir.Value:
    features = pattern.features
    as_input = opset_of(graph) >= _AXES_AS_INPUT_OPSET
    axes = np.array(pattern.positions, dtype=np.int64)
    inputs = [features, add_initializer(graph, "features_pooled_axes", axes)] if as_input else [features]
    return add_node(
        graph,
        "ReduceMean",
        inputs,
        before=pattern.node,
        name="features_pooled",
        dtype=features.dtype,
        shape=ir.Shape([shape_of(features)[0], pattern.feature_dim]),
        attributes={"keepdims": 0} if as_input else {"keepdims": 0, "axes": list(pattern.positions)},
    )
