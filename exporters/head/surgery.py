"""Head surgery: change the head of an ONNX classifier, and nothing else in its graph.

Rules:

1. Every function returns an edited copy that shares the weights which did not change; the model that it is given stays
   as it was.
2. *Fused*: one Gemm with all rows takes the head's place. *Updatable*: the head stays untouched, so the seen logits
   keep their bits; the logits of the slots are joined to them on the class axis, before whatever follows (a softmax).
3. The output with the scores comes first and is `(batch, num_classes)`, whatever other axes of length 1 it had. A model
   that gives choices only (TopK, ArgMax) gets its logits there.
4. Before: the head is where the location says, and the sizes fit. After: the ONNX checker passes, and the outputs have
   the classes that they must have.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.graph.edits import GraphPass, add_initializer, add_node, free_name, remove_unused, replace_uses, run_pass
from exporters.head.expanded_head import AnyHead
from exporters.head.feature_matrix import add_feature_matrix, logits_like
from exporters.head.finding import HeadLocation, find_head, pattern_at
from exporters.head.outputs import (
    add_features,
    ensure_outputs,
    put_scores_first,
    require_room_for_features,
    require_unused,
)
from exporters.head.patterns import HeadPattern
from exporters.head.rows import add_rows
from exporters.head.tail import grow_tail, resized, trace_tail
from exporters.onnx_io.files import check_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.bundle.manifest import FEATURES, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import frozen_float32
from icis_deploy.errors import ExportError, IncompatibleError, UsageError
from icis_deploy.head.slots import EMPTY_SLOT_BIAS

FUSED_LOGITS = "head_logits"


def add_features_output(model: ir.Model, location: HeadLocation) -> ir.Model:
    """Return a copy with a last output `features` `(batch, feature_dim)` float32: what the head's rows apply to.

    Features at several positions, before a 1x1 Conv that is pooled, are averaged.

    Raises:
        IncompatibleError: If an input or another output is called `features`.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(features_output_pass(location), model).model


def backbone(model: ir.Model, location: HeadLocation) -> ir.Model:
    """Return a copy that ends in the features, `(batch, feature_dim)` float32, without the head and its weights.

    Raises:
        IncompatibleError, ExportError: As `add_features_output`.
    """
    return _ending_in_features(add_features_output(model, location).clone())


def own_backbone(path: Path) -> ir.Model:
    """Return the backbone of an exported model: what `backbone` gives of it.

    Raises:
        ExportError: If the file holds no head that `fuse_head` or `add_slots` made.
    """
    model = ir.load(path)
    infer_shapes(model)
    if any(output.name == FEATURES for output in model.graph.outputs):
        return _ending_in_features(model)
    made = [
        node for node in model.graph if node.op_type == "Gemm" and str(node.name).startswith(f"node_{FUSED_LOGITS}")
    ]
    if not made:
        raise ExportError(
            f"{path} has no head that icis-deploy made.",
            where=path,
            hint="Export it again.",
        )
    return backbone(model, find_head(model, str(made[-1].name)))


def fuse_head(model: ir.Model, location: HeadLocation, head: AnyHead) -> ir.Model:
    """Return a copy whose head is one Gemm with all rows of `head`, in the precision of the head that was there.

    Args:
        model: The model that `location` was found in.
        location: Where the head is.
        head: All rows, those of the model's own classes first.

    Raises:
        IncompatibleError: If the rows have another width than the features.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(fused_head_pass(location, head), model).model


def add_slots(model: ir.Model, location: HeadLocation, capacity: int) -> ir.Model:
    """Return a copy with `capacity` slots after the seen classes, and a last output `features`.

    The slots are two float32 inputs with defaults, `slot_weight` `[capacity, feature_dim]` and `slot_bias`
    `[capacity]`; the defaults are empty slots, which never win.

    Raises:
        UsageError: If the capacity is not positive, or the model has slots already.
        IncompatibleError: If an input or another output is called `features`, or an output as a slot is.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(slots_pass(location, capacity), model).model


def set_slot_defaults(model: ir.Model, weight: ArrayLike, bias: ArrayLike) -> ir.Model:
    """Return a copy whose slots hold these rows where no others are fed.

    Args:
        model: With slots.
        weight: `(capacity, feature_dim)`.
        bias: `(capacity,)`; `EMPTY_SLOT_BIAS` where the slot is empty.

    Raises:
        UsageError: If the model has no slots.
        IncompatibleError: If the shapes are not those of the slots.
    """
    return run_pass(slot_defaults_pass(weight, bias), model).model


def features_output_pass(location: HeadLocation) -> GraphPass:
    """Return the pass of `add_features_output`; it changes nothing in a model that has this output."""

    def call(model: ir.Model) -> bool:
        pattern = pattern_at(model, location)
        before = list(model.graph.outputs)
        add_features(model.graph, pattern)
        put_scores_first(model.graph, location, pattern.logits)
        return list(model.graph.outputs) != before

    return GraphPass(
        requires=partial(require_room_for_features, location),
        call=call,
        ensures=partial(ensure_outputs, location, num_classes=location.num_classes, features=True),
    )


def fused_head_pass(location: HeadLocation, head: AnyHead) -> GraphPass:
    """Return the pass of `fuse_head`."""

    def requires(model: ir.Model) -> None:
        pattern_at(model, location)
        if head.feature_dim != location.feature_dim:
            raise IncompatibleError(
                f"The rows have feature_dim {head.feature_dim}; the head {location.node_name} has "
                f"{location.feature_dim}. They were made for another model.",
                found=head.feature_dim,
                expected=location.feature_dim,
            )

    def call(model: ir.Model) -> bool:
        graph, pattern = model.graph, pattern_at(model, location)
        tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
        logits = _gemm_of_all_rows(graph, pattern, head)
        replace_uses(graph, pattern.logits, logits)
        grow_tail(tail, head.num_classes)
        remove_unused(graph, [*reversed(pattern.chain.nodes), pattern.node])
        put_scores_first(graph, location, logits)
        return True

    return GraphPass(
        requires=requires,
        call=call,
        ensures=partial(ensure_outputs, location, num_classes=head.num_classes, features=False),
    )


def slots_pass(location: HeadLocation, capacity: int) -> GraphPass:
    """Return the pass of `add_slots`."""

    def requires(model: ir.Model) -> None:
        if capacity < 1:
            raise UsageError(
                f"A capacity of {capacity} slots was asked for; expected at least 1.",
                found=capacity,
                expected="at least 1",
            )
        if any(value.name in {SLOT_WEIGHT, SLOT_BIAS} for value in model.graph.inputs):
            raise UsageError(
                "The model has slots already.",
                hint="Give the model that it was made from.",
            )
        require_unused(model.graph.outputs, "output", [SLOT_WEIGHT, SLOT_BIAS])
        require_room_for_features(location, model)

    def call(model: ir.Model) -> bool:
        graph, pattern = model.graph, pattern_at(model, location)
        tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
        slots = _slot_logits(graph, pattern, add_features(graph, pattern), capacity)
        joined = _join(graph, pattern, slots, pattern.num_classes + capacity)
        replace_uses(graph, pattern.logits, joined)
        grow_tail(tail, pattern.num_classes + capacity)
        put_scores_first(graph, location, joined)
        return True

    return GraphPass(
        requires=requires,
        call=call,
        ensures=partial(ensure_outputs, location, num_classes=location.num_classes + capacity, features=True),
    )


def slot_defaults_pass(weight: ArrayLike, bias: ArrayLike) -> GraphPass:
    """Return the pass of `set_slot_defaults`."""
    defaults = {
        SLOT_WEIGHT: frozen_float32(weight, name="slot weights", ndim=2),
        SLOT_BIAS: frozen_float32(bias, name="slot biases", ndim=1),
    }

    def requires(model: ir.Model) -> None:
        for name, array in defaults.items():
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None or not value.is_graph_input():
                raise UsageError(
                    f"The model has no input {name!r} with a default, so no slots.",
                    expected=name,
                    hint="Export it with `head='updatable'`.",
                )
            if value.const_value.shape != array.shape:
                raise IncompatibleError(
                    f"The new {name} has shape {array.shape}; this model's has {tuple(value.const_value.shape)}.",
                    found=array.shape,
                    expected=tuple(value.const_value.shape),
                    where=name,
                )

    def call(model: ir.Model) -> bool:
        for name, array in defaults.items():
            model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return True

    return GraphPass(requires=requires, call=call, ensures=check_model)


def _ending_in_features(model: ir.Model) -> ir.Model:
    """Take the outputs before the last away, and whatever fed only them."""
    model.graph.outputs[:] = [model.graph.outputs[-1]]
    RemoveUnusedNodesPass()(model)
    return model


def _gemm_of_all_rows(graph: ir.Graph, pattern: HeadPattern, head: AnyHead) -> ir.Value:
    """Add one Gemm with all rows; return its logits in the shape and type that the head's own have."""
    features = add_feature_matrix(graph, pattern)
    assert features.shape is not None
    logits = add_node(
        graph,
        "Gemm",
        [features, *add_rows(graph, pattern, head, features)],
        before=pattern.node,
        name=FUSED_LOGITS,
        dtype=features.dtype,
        shape=resized(features.shape, 1, head.num_classes),
        attributes={"transB": 1},
    )
    return logits_like(graph, pattern, logits)


def _slot_logits(graph: ir.Graph, pattern: HeadPattern, features: ir.Value, capacity: int) -> ir.Value:
    """Add the slots and their Gemm, in float32 whatever the head's own precision: a class update's rows are float32."""
    assert features.shape is not None
    weight = _slot_input(graph, SLOT_WEIGHT, np.zeros((capacity, pattern.feature_dim), dtype=np.float32))
    bias = _slot_input(graph, SLOT_BIAS, np.full(capacity, EMPTY_SLOT_BIAS, dtype=np.float32))
    logits = add_node(
        graph,
        "Gemm",
        [features, weight, bias],
        name="slot_logits",
        dtype=ir.DataType.FLOAT,
        shape=resized(features.shape, 1, capacity),
        attributes={"transB": 1},
    )
    return logits_like(graph, pattern, logits)


# Why: docs/decisions/0015.
def _slot_input(graph: ir.Graph, name: str, default: NDArray[np.float32]) -> ir.Value:
    free_name(graph, name)
    value = add_initializer(graph, name, default)
    graph.inputs.append(value)
    return value


def _join(graph: ir.Graph, pattern: HeadPattern, slots: ir.Value, num_classes: int) -> ir.Value:
    seen, axis = pattern.logits, pattern.chain.class_axis
    assert seen.shape is not None
    return add_node(
        graph,
        "Concat",
        [seen, slots],
        name="all_logits",
        dtype=seen.dtype,
        shape=resized(seen.shape, axis, num_classes),
        attributes={"axis": axis},
    )
