"""Head surgery: change the head of an ONNX classifier, and nothing else in its graph.

Rules:

1. Each operation is an onnx-ir pass; `exporters.graph.edits.apply_passes` runs it on a copy that shares the weights
   which did not change, so that the model that it is given stays as it was.
2. *Fused*: one Gemm with all rows replaces the head. *Updatable*: the head stays untouched, so the seen logits
   keep their bits; the logits of the slots are joined to them on the class axis, before whatever follows (a softmax).
   In both, new logits may also follow an arbiter (`arbiter.py`).
3. The output with the scores comes first and is `(batch, num_classes)`, whatever other axes of length 1 it had. A model
   that gives choices only (TopK, ArgMax) gets its logits there.
4. Required: the head is where the location says, and the sizes fit. Ensured: the ONNX checker passes, and the outputs
   have the classes that they must have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.graph.edits import add_initializer, add_node, apply_passes, free_name, remove_unused, replace_uses
from exporters.graph.reading import shape_of
from exporters.head.arbiter import add_offsets, add_statistics, require_lengths
from exporters.head.expanded_head import AnyHead, ExpandedHead
from exporters.head.feature_matrix import add_feature_matrix, logits_like
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.outputs import (
    add_features,
    ensure_outputs,
    put_scores_first,
    require_room_for_features,
    require_unused,
)
from exporters.head.patterns import HeadPattern, match_head
from exporters.head.rows import add_rows
from exporters.head.tail import drop_labels, grow_tail, name_new_classes, resized, trace_tail
from exporters.onnx_io.files import check_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.bundle.manifest import FEATURES, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import Float32, frozen_float32
from icis_deploy.errors import ExportError, IncompatibleError, UsageError
from icis_deploy.head.arbiter import no_arbiter
from icis_deploy.head.slots import EMPTY_SLOT_BIAS

FUSED_LOGITS = "head_logits"
_SLOT_INPUTS = (SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER)


@dataclass(frozen=True, slots=True)
class AddFeaturesOutputPass(ir.passes.InPlacePass):
    """Add a last output `features` `(batch, feature_dim)` float32: what the head's rows apply to.

    Features at several positions, before a 1x1 Conv that is pooled, are averaged. A model that has this output is not
    modified.

    Raises:
        IncompatibleError: If an input or another output is called `features`.
        ExportError: If the edited graph is not valid.
    """

    location: HeadLocation
    """Where the head is."""

    def requires(self, model: ir.Model) -> None:
        """Raise if the output's name is taken."""
        require_room_for_features(self.location, model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the output in place."""
        pattern = pattern_at(model, self.location)
        before = list(model.graph.outputs)
        add_features(model.graph, pattern)
        put_scores_first(model.graph, self.location, pattern.logits)
        return ir.passes.PassResult(model, modified=list(model.graph.outputs) != before)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or does not end in the features."""
        ensure_outputs(self.location, model, num_classes=self.location.num_classes, features=True)


@dataclass(frozen=True, slots=True)
class KeepFeaturesOnlyPass(ir.passes.InPlacePass):
    """Remove every output but the last, `features`, and whatever fed only those."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove outputs and nodes in place."""
        model.graph.outputs[:] = [model.graph.outputs[-1]]
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


@dataclass(frozen=True, slots=True)
class FuseHeadPass(ir.passes.InPlacePass):
    """Replace the head by one Gemm with all rows of another one, in the precision of the head that was there.

    Raises:
        IncompatibleError: If the rows have another width than the features.
        ExportError: If the edited graph is not valid.
    """

    location: HeadLocation
    """Where the head is."""

    head: AnyHead = field(repr=False)
    """All rows, those of the model's own classes first; with names, where the model has tables of labels."""

    def requires(self, model: ir.Model) -> None:
        """Raise if the head is not there, or the rows have another width."""
        pattern_at(model, self.location)
        if self.head.feature_dim != self.location.feature_dim:
            raise IncompatibleError(
                f"The rows have feature_dim {self.head.feature_dim}; the head {self.location.node_name} has "
                f"{self.location.feature_dim}. They were made for another model.",
                found=self.head.feature_dim,
                expected=self.location.feature_dim,
                hint="Inject again with this model.",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the head in place."""
        graph, pattern = model.graph, pattern_at(model, self.location)
        tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
        logits = _gemm_of_all_rows(graph, pattern, self.head)
        replace_uses(graph, pattern.logits, logits)
        grow_tail(tail, self.head.num_classes)
        if tail.tables:
            names, seen = self._names(), self.location.num_classes
            name_new_classes(tail, names[:seen], names[seen:])
        remove_unused(graph, [*reversed(pattern.chain.nodes), pattern.node])
        put_scores_first(graph, self.location, logits)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or has not one score per row."""
        ensure_outputs(self.location, model, num_classes=self.head.num_classes, features=False)

    def _names(self) -> tuple[str, ...]:
        names = self.head.class_names
        if len(names) != self.head.num_classes:
            raise UsageError(
                f"The model gives chosen classes' labels, and {len(names)} names are known for {self.head.num_classes} "
                f"classes.",
                found=len(names),
                expected=self.head.num_classes,
                hint="Give a head that holds its class names.",
            )
        return names


@dataclass(frozen=True, slots=True)
class AddSlotsPass(ir.passes.InPlacePass):
    """Add `capacity` slots after the seen classes, and a last output `features`.

    The slots are float32 inputs with defaults, `slot_weight` `[capacity, feature_dim]`, `slot_bias` `[capacity]` and,
    with an arbiter, `slot_arbiter` `[capacity, 5]`; the defaults are empty slots, which never win.

    Raises:
        UsageError: If the capacity is not positive, or the model has slots already.
        IncompatibleError: If an input or another output is called `features`, or an output as a slot is.
        ExportError: If the edited graph is not valid.
    """

    location: HeadLocation
    """Where the head is."""

    capacity: int
    """Number of slots, at least 1."""

    lengths: Float32 | None = field(default=None, repr=False)
    """`(num_seen,)` float32, from `arbiter.row_lengths`; `None` for slots without an arbiter."""

    def requires(self, model: ir.Model) -> None:
        """Raise if there would be no slot, there are slots already, or a name is taken."""
        if self.capacity < 1:
            raise UsageError(
                f"A capacity of {self.capacity} slots was asked for; expected at least 1.",
                found=self.capacity,
                expected="at least 1",
                hint="Give `capacity` as 1 or more.",
            )
        if any(value.name in _SLOT_INPUTS for value in model.graph.inputs):
            raise UsageError(
                "The model has slots already.",
                hint="Give the model that it was made from.",
            )
        require_unused(model.graph.outputs, "output", _SLOT_INPUTS)
        require_room_for_features(self.location, model)
        if self.lengths is not None:
            require_lengths(self.lengths, self.location.num_classes)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the slots in place."""
        graph, pattern = model.graph, pattern_at(model, self.location)
        tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
        num_classes, users = pattern.num_classes + self.capacity, list(pattern.logits.uses())
        slots = _slot_logits(graph, pattern, add_features(graph, pattern), self.capacity, self.lengths)
        joined = _join(graph, pattern, slots, num_classes)
        replace_uses(graph, pattern.logits, joined, users=users)
        grow_tail(tail, num_classes)
        drop_labels(tail)
        put_scores_first(graph, self.location, joined)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or has not one score per class and slot, or does not end in the features."""
        ensure_outputs(self.location, model, num_classes=self.location.num_classes + self.capacity, features=True)


@dataclass(frozen=True, slots=True)
class SetSlotDefaultsPass(ir.passes.InPlacePass):
    """Let the slots of a model hold these rows where no others are fed.

    Raises:
        UsageError: If the model has no slots.
        IncompatibleError: If the shapes are not those of the slots; on construction, if they are not of rows at all.
        ExportError: If the edited graph is not valid.
    """

    weight: ArrayLike = field(repr=False)
    """`(capacity, feature_dim)`; kept as float32."""

    bias: ArrayLike = field(repr=False)
    """`(capacity,)`; kept as float32; `EMPTY_SLOT_BIAS` where the slot is empty."""

    arbiter: ArrayLike | None = field(default=None, repr=False)
    """`(capacity, 5)`; kept as float32; `None` leaves what the model has, which is zero."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", frozen_float32(self.weight, name="slot weights", ndim=2))
        object.__setattr__(self, "bias", frozen_float32(self.bias, name="slot biases", ndim=1))
        if self.arbiter is not None:
            object.__setattr__(self, "arbiter", frozen_float32(self.arbiter, name="slot arbiters", ndim=2))

    def requires(self, model: ir.Model) -> None:
        """Raise if there are no slots, or they have other shapes."""
        for name, array in self._defaults():
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None or not value.is_graph_input():
                what, how = ("arbiter", "arbiter='auto'") if name == SLOT_ARBITER else ("slots", "head='updatable'")
                raise UsageError(
                    f"The model has no input {name!r} with a default, so no {what}.",
                    expected=name,
                    hint=f"Export it with `{how}`.",
                )
            if value.const_value.shape != array.shape:
                raise IncompatibleError(
                    f"The new {name} has shape {array.shape}; this model's has {tuple(value.const_value.shape)}.",
                    found=array.shape,
                    expected=tuple(value.const_value.shape),
                    where=name,
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the defaults in place."""
        for name, array in self._defaults():
            model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)

    def _defaults(self) -> tuple[tuple[str, NDArray[np.float32]], ...]:
        defaults = ((SLOT_WEIGHT, self.weight), (SLOT_BIAS, self.bias), (SLOT_ARBITER, self.arbiter))
        return tuple((name, np.asarray(array)) for name, array in defaults if array is not None)


def backbone(model: ir.Model, location: HeadLocation) -> ir.Model:
    """Return a copy that ends in the features, `(batch, feature_dim)` float32, without the head and its weights.

    Raises:
        IncompatibleError, ExportError: As `AddFeaturesOutputPass`.
    """
    return apply_passes(model, AddFeaturesOutputPass(location), KeepFeaturesOnlyPass())


def own_backbone(path: Path) -> ir.Model:
    """Return the backbone of an exported model: what `backbone` gives of it.

    Raises:
        ExportError: If the file holds no head that `FuseHeadPass` or `AddSlotsPass` made.
    """
    model = ir.load(path)
    infer_shapes(model)
    if any(output.name == FEATURES for output in model.graph.outputs):
        return apply_passes(model, KeepFeaturesOnlyPass())
    name = fused_node_name(model)
    if name is None:
        raise ExportError(
            f"{path} has no head that icis-deploy made.",
            where=path,
            hint="Export it again.",
        )
    return apply_passes(model, _KeepFeaturesOfPass(name))


def fused_node_name(model: ir.Model) -> str | None:
    """Return the name of the Gemm that `FuseHeadPass` made; `None` where there is none."""
    made = [
        node for node in model.graph if node.op_type == "Gemm" and str(node.name).startswith(f"node_{FUSED_LOGITS}")
    ]
    return str(made[-1].name) if made else None


@dataclass(frozen=True, slots=True)
class _KeepFeaturesOfPass(ir.passes.InPlacePass):
    """Remove everything but what computes the features that a linear operator multiplies, in float32.

    It asks nothing of what follows that operator: there may be an arbiter, which no head of a user's model has.
    """

    node_name: str
    """The operator."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove outputs and nodes in place."""
        pattern = match_head(next(node for node in model.graph if node.name == self.node_name))
        if isinstance(pattern, str):
            raise ExportError(
                f"The head {self.node_name} of the exported model cannot be read: {pattern}.",
                found=pattern,
                where=self.node_name,
                hint="Export it again.",
            )
        add_features(model.graph, pattern)
        return KeepFeaturesOnlyPass().call(model)


def _gemm_of_all_rows(graph: ir.Graph, pattern: HeadPattern, head: AnyHead) -> ir.Value:
    """Add one Gemm with all rows; return its logits in the shape and type that the head's own have."""
    features = add_feature_matrix(graph, pattern)
    logits = add_node(
        graph,
        "Gemm",
        [features, *add_rows(graph, pattern, head, features)],
        before=pattern.node,
        name=FUSED_LOGITS,
        dtype=features.dtype,
        shape=resized(shape_of(features), 1, head.num_classes),
        attributes={"transB": 1},
    )
    if isinstance(head, ExpandedHead) and head.arbiter is not None:
        logits = _with_arbiter(graph, features, logits, head, head.arbiter)
    return logits_like(graph, pattern, logits)


def _with_arbiter(
    graph: ir.Graph, features: ir.Value, logits: ir.Value, head: ExpandedHead, arbiter: Float32
) -> ir.Value:
    """Let the logits of injected classes follow their arbiters; the seen ones, which only pass by, keep their bits."""
    num_seen, num_classes = head.location.num_classes, head.num_classes
    seen = _columns(graph, logits, 0, num_seen, name="head_seen_logits")
    new = _columns(graph, logits, num_seen, num_classes, name="head_new_logits")
    statistics = add_statistics(graph, features, seen, head.lengths)
    coefficients = add_initializer(graph, "head_arbiter", arbiter)
    favoured = add_offsets(graph, statistics, coefficients, new, name="head_favoured_logits")
    return add_node(
        graph,
        "Concat",
        [seen, favoured],
        name="head_joined_logits",
        dtype=logits.dtype,
        shape=shape_of(logits),
        attributes={"axis": 1},
    )


def _columns(graph: ir.Graph, logits: ir.Value, first: int, last: int, *, name: str) -> ir.Value:
    bounds = [
        add_initializer(graph, f"{name}_{what}", np.array([number], dtype=np.int64))
        for what, number in (("start", first), ("end", last), ("axis", 1))
    ]
    shape = resized(shape_of(logits), 1, last - first)
    return add_node(graph, "Slice", [logits, *bounds], name=name, dtype=logits.dtype, shape=shape)


def _slot_logits(
    graph: ir.Graph, pattern: HeadPattern, features: ir.Value, capacity: int, lengths: Float32 | None
) -> ir.Value:
    """Add the slots and their Gemm, in float32 whatever the head's own precision: a class update's rows are float32."""
    weight = _slot_input(graph, SLOT_WEIGHT, np.zeros((capacity, pattern.feature_dim), dtype=np.float32))
    bias = _slot_input(graph, SLOT_BIAS, np.full(capacity, EMPTY_SLOT_BIAS, dtype=np.float32))
    logits = add_node(
        graph,
        "Gemm",
        [features, weight, bias],
        name="slot_logits" if lengths is None else "slot_products",
        dtype=ir.DataType.FLOAT,
        shape=resized(shape_of(features), 1, capacity),
        attributes={"transB": 1},
    )
    if lengths is not None:
        statistics = add_statistics(graph, features, pattern.logits, lengths)
        coefficients = _slot_input(graph, SLOT_ARBITER, no_arbiter(capacity))
        logits = add_offsets(graph, statistics, coefficients, logits, name="slot_logits")
    return logits_like(graph, pattern, logits)


# Why: docs/decisions/0015.
def _slot_input(graph: ir.Graph, name: str, default: NDArray[np.float32]) -> ir.Value:
    free_name(graph, name)
    value = add_initializer(graph, name, default)
    graph.inputs.append(value)
    return value


def _join(graph: ir.Graph, pattern: HeadPattern, slots: ir.Value, num_classes: int) -> ir.Value:
    seen, axis = pattern.logits, pattern.chain.class_axis
    return add_node(
        graph,
        "Concat",
        [seen, slots],
        name="all_logits",
        dtype=seen.dtype,
        shape=resized(shape_of(seen), axis, num_classes),
        attributes={"axis": axis},
    )
