"""Find the head of a classifier in its ONNX graph, by structure, and read its rows.

Rules:

1. From each output the graph is walked backward, through what may follow logits, to the first linear operators.
2. A head is certain if it is the only one found so, and only what usually follows logits comes after it: softmax,
   sigmoid, TopK, ArgMax, reshapes, casts. What feeds another linear operator cannot take more classes, so it is none;
   nor is that operator, where it takes the probabilities or the choice of a head, as one that sums classes to groups.
3. What is not certain is an error that names the candidates; `head_node` chooses one. No name decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from exporters.graph.class_axis import ONE_VALUE_PER_CLASS, may_follow_logits
from exporters.graph.constants import STANDARD_DOMAINS, is_constant, root_initializers
from exporters.graph.label_tables import ML_DOMAIN
from exporters.graph.ml_operators import UNLINEAR_CLASSIFIERS
from exporters.graph.reading import label
from exporters.head.patterns import (
    HeadPattern,
    Kind,
    bends_at_positions,
    describe_linear,
    has_rows,
    is_linear,
    match_head,
    pattern_rows,
)
from exporters.head.score_kinds import are_scores, score_kind
from exporters.head.tail import Tail, trace_tail
from icis_deploy.errors import AmbiguousHeadError, IncompatibleError, ModelLoadError, UsageError
from icis_deploy.head.head import Head

_MAX_NAMED = 5
_INTEGER_OPERATORS = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm"})
_DEQUANTIZED = " (dequantized)"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLocation:
    """Where the head is in a graph, by names, so that it holds for every copy of the graph.

    Example:
        location = icis_deploy.inspect("model.onnx").location
        print(location.kind, location.node_name, location.reason)
    """

    kind: Kind
    """`gemm`, `matmul`, `conv` (1x1), or `cosine` (features of unit length)."""

    node_name: str
    """Name of the linear operator; its first output's name where the node has none."""

    weight_name: str
    """Name of the initializer that holds the weight, or the largest of those that it is computed from."""

    precision: str
    """Type of the weight in the graph, such as `float32`; `int8 (dequantized)` for integers with a scale."""

    num_classes: int
    """Number of rows, one per class."""

    feature_dim: int
    """Width of a row without its bias."""

    feature_name: str
    """Name of the value that feeds the head."""

    logits_name: str
    """Name of the value where the logits leave the head."""

    output_name: str
    """Name of the graph output with one score per class that is nearest to the logits, of a kind that a bundle can hold
    if there is one; `logits_name` in a model that gives choices only (TopK, ArgMax). Head surgery makes it the first
    output, `(batch, num_classes)`."""

    followed_by: tuple[str, ...]
    """Operators between the logits and that output, in order."""

    certainty: Literal["certain", "chosen"]
    """Whether the graph's structure decided, or the user chose."""

    reason: str
    """Why this operator is the head, as a clause for messages."""

    @property
    def is_16_bit(self) -> bool:
        """Whether its rows are stored as float16 or bfloat16."""
        return self.precision in {"float16", "bfloat16"}

    @property
    def is_quantized(self) -> bool:
        """Whether its rows are stored as integers."""
        return self.precision.endswith(_DEQUANTIZED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A linear operator that could be the head, with what follows it."""

    pattern: HeadPattern
    """The operator, and the nodes after it whose effect is folded into its rows."""

    tail: Tail
    """The nodes between its logits and the outputs."""

    def describe(self) -> str:
        """Return the candidate in words, with the first reason against it."""
        against = [*self.tail.obstacles, *(f"followed by {warning}" for warning in self.tail.warnings)]
        return ": ".join([describe_linear(self.pattern.node), *against[:1]])


def find_head(model: ir.Model, head_node: str | None = None) -> HeadLocation:
    """Find the head.

    Args:
        model: With inferred shapes.
        head_node: Name of the linear operator that is the head, or of its output; where structure alone cannot decide.

    Raises:
        AmbiguousHeadError: If several operators, or one that is not certain, could be the head.
        UsageError: If `head_node` names no linear operator.
        ModelLoadError: If there is no head, or no class can be added to it.
    """
    if head_node is not None:
        return _location(
            model, _chosen(model, head_node), certainty="chosen", reason=f"chosen by its name, {head_node}"
        )
    candidates, refusals = _candidates(model)
    of_scores = [each for each in candidates if _takes_scores(each, candidates)]
    usable = [each for each in candidates if not each.tail.obstacles and each not in of_scores]
    certain = [each for each in usable if not each.tail.warnings]
    if len(certain) == 1:
        return _location(model, certain[0], certainty="certain", reason=_reason(certain[0]))
    if not candidates:
        raise _nothing_found(model, refusals)
    if not usable:
        blocked = _listed([each for each in candidates if each not in of_scores])
        raise ModelLoadError(
            f"No class can be added to this model's head: {blocked}.",
            found=blocked,
            hint=_way_around(blocked),
        )
    if len(usable) == 1:
        # Choosing it is advice only where a bundle can then hold the model: else what follows it is said.
        only = _location(model, usable[0], certainty="chosen", reason="the only candidate")
        score_kind(only.node_name, only.followed_by)
        raise AmbiguousHeadError(
            f"It is not certain that this is the head: {_listed(usable)}.",
            found=_listed(usable),
            expected="one certain head",
            hint=f"If it is, give `head_node={label(usable[0].pattern.node)!r}`.",
        )
    raise AmbiguousHeadError(
        f"Several layers could be the head: {_listed(usable)}.",
        found=tuple(label(each.pattern.node) for each in usable),
        expected="one certain head",
        hint="Choose one with `head_node`.",
    )


def read_head(model: ir.Model, location: HeadLocation, class_names: Sequence[str]) -> Head:
    """Read the head's rows, such that `logits = features @ weight.T + bias` for the features that feed it.

    Args:
        model: The model that `location` was found in, or a copy.
        location: Where the head is.
        class_names: `(num_classes,)`, in the order of the logits.

    Raises:
        IncompatibleError: If the number of names is not the number of classes, or a weight is NaN or infinite.
        ClassConflictError: If a name occurs twice.
    """
    if len(class_names) != location.num_classes:
        raise IncompatibleError(
            f"The class list has {len(class_names)} names; the head {location.node_name} has {location.num_classes} "
            f"classes. Expected one name per class, in the order of the logits.",
            found=len(class_names),
            expected=location.num_classes,
            hint=("Give the list that the model was trained with; `inspect()` shows how many classes the model has."),
        )
    return Head(rows=pattern_rows(pattern_at(model, location)), class_names=tuple(class_names))


def pattern_at(model: ir.Model, location: HeadLocation) -> HeadPattern:
    """Return the head's nodes in the model that `location` was found in, or in a copy of it.

    Raises:
        ModelLoadError: If the head is not there.
    """
    node = _node_named(model, location.node_name)
    pattern = "there is no such linear operator" if node is None or not is_linear(node) else match_head(node)
    if isinstance(pattern, str):
        raise ModelLoadError(
            f"The head {location.node_name} is not in this graph: {pattern}.",
            found=pattern,
            expected=location.node_name,
        )
    if (pattern.num_classes, pattern.feature_dim) != (location.num_classes, location.feature_dim):
        raise ModelLoadError(
            f"The head {location.node_name} is {pattern.num_classes} x {pattern.feature_dim} in this graph; it was "
            f"found as {location.num_classes} x {location.feature_dim}. This is another model.",
            found=(pattern.num_classes, pattern.feature_dim),
            expected=(location.num_classes, location.feature_dim),
            where=location.node_name,
            hint="Open the model again.",
        )
    return pattern


_ONE_NUMBER = "gives one number, which is no choice between classes"


def _candidates(model: ir.Model) -> tuple[list[Candidate], list[str]]:
    """Return the last linear operators before the outputs, and why others that were found there cannot be the head."""
    reached: dict[ir.Node, None] = {}
    refusals: list[str] = []
    for output in model.graph.outputs:
        nodes, dead_ends = _linear_before(output)
        reached.update(dict.fromkeys(nodes))
        refusals += dead_ends
    found: list[Candidate] = []
    for node in reached:
        pattern = match_head(node)
        if isinstance(pattern, str):
            refusals.insert(0, f"{label(node)} ({node.op_type}) is none, as {pattern}")
        elif pattern.num_classes < 2:
            refusals.insert(0, f"{describe_linear(node)} {_ONE_NUMBER}")
        else:
            tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
            found.append(Candidate(pattern=pattern, tail=tail))
    return found, refusals


def _takes_scores(candidate: Candidate, candidates: list[Candidate]) -> bool:
    """Say whether a linear operator multiplies the probabilities that another one gives, or the class that it chose."""
    features = candidate.pattern.features
    node = features.producer()
    for other in candidates:
        if other is candidate or features not in other.tail.axes:
            continue
        is_choice = node is not None and node.op_type == "OneHot"
        if is_choice or (other.tail.axes[features] is not None and "Softmax" in other.tail.path_to(features)):
            return True
    return False


def _linear_before(output: ir.Value) -> tuple[list[ir.Node], list[str]]:
    """Walk backward from an output to the first linear operators; return them, and where the walk ended otherwise."""
    found: dict[ir.Node, None] = {}
    dead_ends: list[str] = []
    waiting, known = [output], {output}
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or is_constant(value):
            continue
        if is_linear(node) and has_rows(node):
            found.setdefault(node)
        elif may_follow_logits(node):
            sources = [source for source in node.inputs if source is not None and source not in known]
            known.update(sources)
            waiting.extend(sources)
        else:
            dead_ends.append(f"output {output.name!r} comes from {label(node)} ({node.op_type})")
    return list(found), dead_ends


def _chosen(model: ir.Model, head_node: str) -> Candidate:
    node = _node_named(model, head_node)
    if node is None or not is_linear(node):
        what = "is no node of this graph" if node is None else f"is a {node.op_type}"
        known = "; ".join(_last_linear(model)) or "none, there is none"
        raise UsageError(
            f"The node {head_node}, chosen as the head, {what}. Expected one of: {known}.",
            found=head_node,
            expected=known,
            hint="Choose one of them with `head_node`.",
        )
    pattern = match_head(node)
    if isinstance(pattern, str):
        raise ModelLoadError(
            f"The node {head_node} cannot be used as a head: {pattern}.",
            found=pattern,
            where=head_node,
            hint="Choose another `head_node`.",
        )
    tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
    if tail.obstacles:
        raise ModelLoadError(
            f"No class can be added to the head {head_node}: {tail.obstacles[0]}.",
            found=tail.obstacles[0],
            where=head_node,
            hint=_way_around(tail.obstacles[0]),
        )
    if not any(output in tail.axes for output in model.graph.outputs):
        raise ModelLoadError(
            f"The node {head_node}, chosen as the head, reaches no output of the graph.",
            where=head_node,
            hint="Choose another `head_node`.",
        )
    return Candidate(pattern=pattern, tail=tail)


def _way_around(obstacle: str) -> str:
    """Return what to do about something behind the head that no class can pass."""
    if ONE_VALUE_PER_CLASS in obstacle:
        return (
            "Export the model without that part. Constants that are added to the logits themselves, or multiplied with "
            "them, can go into the head's own bias, or into its weight and bias."
        )
    return "Export the model without that part."


def _node_named(model: ir.Model, name: str) -> ir.Node | None:
    named = next((node for node in model.graph if node.name == name), None)
    by_output = next((node for node in model.graph if any(value.name == name for value in node.outputs)), None)
    return named or by_output


def _last_linear(model: ir.Model) -> list[str]:
    return [describe_linear(node) for node in model.graph if is_linear(node) and has_rows(node)][-_MAX_NAMED:]


def _listed(candidates: list[Candidate]) -> str:
    return "; ".join(each.describe() for each in candidates[:_MAX_NAMED])


def _nothing_found(model: ir.Model, refusals: list[str]) -> ModelLoadError:
    if refusals and refusals[0].endswith(_ONE_NUMBER):
        return ModelLoadError(
            f"No head was found: {refusals[0]}. Expected a row for each class, at least two.",
            found=refusals[0],
            expected="a row for each class, at least two",
            hint="If the model answers yes or no by a sigmoid, give its last layer two rows, one of zeros and the one "
            "that it has, and a softmax instead of the sigmoid: the softmax of (0, z) is the sigmoid of z.",
        )
    found = (
        refusals[0] if refusals else f"the outputs of its {model.graph.num_nodes()} nodes depend on no linear operator"
    )
    last, choice = _last_candidate(model)
    return ModelLoadError(
        f"No head was found: {found}. Expected a Gemm, a MatMul or a 1x1 Conv with a constant weight before the "
        f"output.{last}",
        found=found,
        expected="a Gemm, a MatMul or a 1x1 Conv with a constant weight before the output",
        hint=" ".join([choice, _advice(model, found)]).strip() or None,
    )


def _advice(model: ir.Model, found: str) -> str:
    """Return a sentence on what to give instead of a model whose operators hide its head, if it is one.

    Args:
        model: The model.
        found: Why there is no head, which begins with the name of the operator that was refused, if one was.
    """
    last = next((node for node in reversed(model.graph) if is_linear(node) and has_rows(node)), None)
    is_refused = last is not None and found.startswith(f"{label(last)} (") and "at every position" in found
    if last is not None and is_refused and bends_at_positions(last):
        return (
            "Such is SqueezeNet's head: average the features first, then apply the 1x1 Conv without what comes after "
            "it, and train that layer again."
        )
    if any(node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPERATORS for node in model.graph):
        return "It computes in integers: export the float model that it was made from, with `precision='int8'`."
    nodes = list(model.graph)
    unlinear = next((node for node in nodes if node.op_type in UNLINEAR_CLASSIFIERS and node.domain == ML_DOMAIN), None)
    if unlinear is not None:
        return (
            f"{label(unlinear)} ({unlinear.op_type}) is {UNLINEAR_CLASSIFIERS[unlinear.op_type]}: it has no row for "
            f"each class that a new one could be added to. Train a classifier with a linear last layer, such as a "
            f"logistic regression or a network, on what it takes."
        )
    foreign = next((node for node in nodes if node.domain not in {*STANDARD_DOMAINS, ML_DOMAIN}), None)
    if foreign is None:
        return ""
    return (
        f"It has operators that are not ONNX's own, such as {foreign.op_type} of {foreign.domain}: if a runtime has "
        f"optimized it, give the model from before that."
    )


def _last_candidate(model: ir.Model) -> tuple[str, str]:
    """Return a sentence on the last linear operator that could be a head, and one on how to choose it, if there is one.

    The first begins with a space; both are empty where there is none.
    """
    for node in reversed(model.graph):
        pattern = match_head(node) if is_linear(node) else ""
        if isinstance(pattern, HeadPattern) and pattern.num_classes > 1:
            tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
            candidate = Candidate(pattern=pattern, tail=tail)
            choice = "" if tail.obstacles else f"If it is the head, give `head_node={label(node)!r}`."
            return f" The last linear operator is {candidate.describe()}.", choice
    return "", ""


def _location(
    model: ir.Model, candidate: Candidate, *, certainty: Literal["certain", "chosen"], reason: str
) -> HeadLocation:
    pattern, tail = candidate.pattern, candidate.tail
    roots = root_initializers(pattern.weight)
    weight = roots[0] if roots else pattern.weight
    dtype = weight.dtype.numpy().name if weight.dtype is not None else "float32"
    scored = [output for output in model.graph.outputs if _has_scores(output, tail.axes.get(output))]
    paths = {value: tail.path_to(value) for value in scored}
    output = min(scored, key=lambda value: (not are_scores(paths[value]), len(paths[value])), default=pattern.logits)
    return HeadLocation(
        kind=pattern.kind,
        node_name=label(pattern.node),
        weight_name=str(weight.name),
        precision=f"{dtype}{_DEQUANTIZED}" if pattern.is_quantized else dtype,
        num_classes=pattern.num_classes,
        feature_dim=pattern.feature_dim,
        feature_name=str(pattern.features.name),
        logits_name=str(pattern.logits.name),
        output_name=str(output.name),
        followed_by=tail.path_to(output),
        certainty=certainty,
        reason=reason,
    )


def _has_scores(output: ir.Value, class_axis: int | None) -> bool:
    """Say whether an output has the images on its first axis, the classes on another one, and nothing else."""
    if not class_axis or output.shape is None:
        return False
    return all(size == 1 for axis, size in enumerate(output.shape) if axis not in {0, class_axis})


def _reason(candidate: Candidate) -> str:
    after = dict.fromkeys(node.op_type for node in candidate.tail.nodes)
    return f"the only linear operator before the outputs, with {', '.join(after) or 'nothing'} after it"
