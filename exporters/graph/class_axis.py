"""Follow the class axis of logits through one ONNX operator.

For each operator that may follow a head: on which axis of its output the classes are, what suggests that these are not
a classifier's logits (a *warning*), and what keeps the axis from growing (an *obstacle*). Sources: the ONNX operator
specifications, opset 13 and newer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from exporters.graph.constants import STANDARD_DOMAINS, constant_array, constant_shape, constant_size, is_constant
from exporters.graph.label_tables import ML_DOMAIN
from exporters.graph.reading import integers, label, shape_of

_USUAL_ELEMENTWISE = frozenset(
    {"Add", "Cast", "DequantizeLinear", "Div", "Dropout", "Identity", "Mul", "QuantizeLinear", "Sigmoid", "Sub"}
)
_UNUSUAL_ELEMENTWISE = frozenset(
    {
        *("Abs", "Acos", "And", "Asin", "Ceil", "Clip", "Cos", "Elu", "Equal", "Erf", "Exp", "Floor", "Greater"),
        *("GreaterOrEqual", "HardSigmoid", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Neg", "Not", "Or"),
        *("Pow", "Reciprocal", "Relu", "Round", "Sign", "Sin", "Softplus", "Sqrt", "Tanh", "Where"),
    }
)
_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
)
_KEEPS_CLASS_IDS = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""What gives the indices that it takes as its first input in another shape or type, or some of them."""

_GIVES_CLASS_IDS = _KEEPS_CLASS_IDS | {"Add", "Concat", "Sub"}
_TAKES_ONE_NUMBER = frozenset({"Add", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sub"})
_TABLE_LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND", "OneHot"})
_LABEL_LOOKUPS = frozenset({"ArrayFeatureExtractor", "LabelEncoder"})

ONE_VALUE_PER_CLASS = "combines the logits with one value per class"
"""An obstacle; where the values are constants, the rows of the head could hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A value that carries the classes on one of its axes."""

    value: ir.Value
    """Logits, or something computed from them; of any floating or boolean type."""

    axis: int
    """Index of the class axis, from 0."""

    num_classes: int
    """Length of the class axis."""

    @property
    def dims(self) -> tuple[int | ir.SymbolicDim, ...]:
        """The value's shape, which is known of every carrier."""
        return tuple(shape_of(self.value))

    @property
    def from_right(self) -> int:
        """Index of the class axis counted from the last axis, which is 1: by this, broadcasting aligns."""
        return len(self.dims) - self.axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Where the classes are after an operator."""

    axis: int | None = None
    """The class axis of the outputs; `None` if they have none."""

    warning: str | None = None
    """An operator, with its name, that a classifier's logits are usually not followed by; `None` if it is usual."""

    obstacle: str | None = None
    """Why no class can be added, in words; `None` where one can."""


def follow(node: ir.Node, carriers: list[Carrier], class_ids: frozenset[ir.Value] = frozenset()) -> Followed:
    """Follow the class axis through a node.

    Args:
        node: Takes something that is computed from the logits.
        carriers: Those of its inputs that have a class axis; none, if it only takes what has none any more.
        class_ids: Those of its inputs that are indices of chosen classes.
    """
    if class_ids and not carriers:
        return _follow_class_ids(node, class_ids)
    if not carriers:
        # Input 1 holds the indices; a Gather of a shape's entry has what is computed from the logits as input 0.
        looks_up = node.op_type in _TABLE_LOOKUPS and is_constant(node.inputs[0])
        return (
            Followed(obstacle=f"{label(node)} ({node.op_type}) looks classes up in a table") if looks_up else Followed()
        )
    if any(source.value.shape is None for source in carriers):
        return Followed(obstacle=f"the shape of what {label(node)} ({node.op_type}) takes is unknown")
    if node.domain in STANDARD_DOMAINS:
        if node.op_type in _USUAL_ELEMENTWISE | _UNUSUAL_ELEMENTWISE:
            return _follow_elementwise(node, carriers)
        handler = _HANDLERS.get(node.op_type)
        if handler is not None and carriers[0].value is node.inputs[0]:
            return handler(node, carriers[0])
    return Followed(obstacle=f"{label(node)} ({node.op_type}) mixes classes, or takes a fixed number of them")


def class_ids_of(node: ir.Node, takes_class_ids: bool) -> frozenset[ir.Value]:
    """Return those outputs of a node that are indices of chosen classes.

    Args:
        node: May be followed.
        takes_class_ids: Whether it takes indices of chosen classes.
    """
    if node.domain not in STANDARD_DOMAINS:
        return frozenset()
    if node.op_type == "TopK" and not takes_class_ids:
        return frozenset(node.outputs[1:])
    is_choice = node.op_type in {"ArgMax", "ArgMin"} or (node.op_type in _GIVES_CLASS_IDS and takes_class_ids)
    return frozenset(node.outputs) if is_choice else frozenset()


def changes_class_ids(node: ir.Node) -> bool:
    """Say whether a node that gives indices of chosen classes may have changed them, as one that counts from 1 does."""
    return node.op_type in _GIVES_CLASS_IDS - _KEEPS_CLASS_IDS


def _follow_class_ids(node: ir.Node, class_ids: frozenset[ir.Value]) -> Followed:
    """Follow indices of chosen classes, of which there may be greater ones than the model was made for.

    An operator that only moves them, adds a number, or compares them with one gives the right result for these too.
    Whatever else takes them may look them up in a table, of any operator, domain or form, and has no entry for a new
    class: ONNX Runtime gives the last entry, a default, or an error.
    """
    if node.domain in STANDARD_DOMAINS:
        others = [value for value in node.inputs if value is not None and value not in class_ids]
        if node.op_type in _KEEPS_CLASS_IDS and node.inputs[0] in class_ids and not class_ids & {*node.inputs[1:]}:
            return Followed()
        if node.op_type == "Shape" or (node.op_type == "Concat" and not others):
            return Followed()
        if node.op_type in _TAKES_ONE_NUMBER and all(_is_one_number(value) for value in others):
            return Followed()
    return Followed(
        obstacle=f"{label(node)} ({node.op_type}) looks classes up in a table, or takes a fixed number of them"
    )


def follow_labels(node: ir.Node, labels: frozenset[ir.Value]) -> Followed:
    """Follow labels of chosen classes, which a table gave: new ones are as good as the others where none is computed.

    Args:
        node: Takes labels.
        labels: Those of its inputs that are labels.
    """
    moves = node.domain in STANDARD_DOMAINS and node.op_type in _KEEPS_CLASS_IDS and node.inputs[0] in labels
    if moves and not labels & {*node.inputs[1:]}:
        return Followed()
    return Followed(obstacle=f"{label(node)} ({node.op_type}) computes something of the labels of chosen classes")


def _is_one_number(value: ir.Value) -> bool:
    return is_constant(value) and constant_size(value) == 1


def may_follow_logits(node: ir.Node) -> bool:
    """Say whether the class axis can be followed through nodes of this type at all."""
    if node.domain == ML_DOMAIN:
        return node.op_type in _LABEL_LOOKUPS
    known = _USUAL_ELEMENTWISE | _UNUSUAL_ELEMENTWISE | _HANDLERS.keys() | _TABLE_LOOKUPS
    return node.domain in STANDARD_DOMAINS and node.op_type in known


def reduced_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Return the axes that a Reduce node takes together, ascending from 0; `None` if they are not constant.

    Source: up to opset 17 they are an attribute of most reductions, then an input.
    """
    axes: Sequence[int] = integers(node, "axes")
    if not axes:
        given = node.inputs[1] if len(node.inputs) > 1 else None
        if given is None:
            return () if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
        if not is_constant(given):
            return None
        axes = [int(axis) for axis in constant_array(given).reshape(-1)]
    return tuple(sorted(axis % rank for axis in axes))


def _follow_elementwise(node: ir.Node, carriers: list[Carrier]) -> Followed:
    from_right = carriers[0].from_right
    if any(source.from_right != from_right for source in carriers):
        return Followed(obstacle=f"{label(node)} ({node.op_type}) combines classes with classes")
    values = [source.value for source in carriers]
    others = [source for source in node.inputs if source is not None and source not in values]
    quantizes = node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    for other in others:
        if _varies_by_class(other, from_right) or (quantizes and not _is_one_number(other)):
            return Followed(obstacle=f"{label(node)} ({node.op_type}) {ONE_VALUE_PER_CLASS}")
    rank = max(len(source.shape) for source in (*values, *others) if source.shape is not None)
    warning = f"{node.op_type} {label(node)}" if node.op_type in _UNUSUAL_ELEMENTWISE else None
    return Followed(axis=rank - from_right, warning=warning)


def _varies_by_class(value: ir.Value, from_right: int) -> bool:
    if is_constant(value):
        shape: tuple[int | ir.SymbolicDim, ...] = constant_shape(value)
    elif value.shape is not None:
        shape = tuple(value.shape)
    else:
        return True
    return len(shape) >= from_right and shape[len(shape) - from_right] != 1


def _follow_reduction(node: ir.Node, source: Carrier) -> Followed:
    axes = reduced_axes(node, len(source.dims))
    if axes is None or source.axis in axes:
        return Followed(warning=f"{node.op_type} {label(node)}")
    if any(source.dims[axis] != 1 for axis in axes):
        return Followed(
            obstacle=f"{label(node)} ({node.op_type}) takes the logits of several images or positions together"
        )
    keeps = node.attributes.get_int("keepdims", 1)
    return Followed(axis=source.axis if keeps else source.axis - sum(axis < source.axis for axis in axes))


def _follow_softmax(node: ir.Node, source: Carrier) -> Followed:
    if node.attributes.get_int("axis", -1) % len(source.dims) != source.axis:
        return Followed(obstacle=f"{label(node)} ({node.op_type}) is not over the classes")
    return Followed(axis=source.axis)


def _follow_pool(node: ir.Node, source: Carrier) -> Followed:
    if source.axis != 1 or any(dim != 1 for dim in source.dims[2:]):
        return Followed(
            obstacle=f"{label(node)} ({node.op_type}) pools logits in a way that does not commute with rows"
        )
    return Followed(axis=1)


def _follow_choice(node: ir.Node, source: Carrier) -> Followed:
    """Follow TopK and ArgMax: their outputs have no class axis, and are correct for more classes too."""
    default = -1 if node.op_type == "TopK" else 0
    over_classes = node.attributes.get_int("axis", default) % len(source.dims) == source.axis
    if not over_classes or not node.attributes.get_int("largest", 1):
        return Followed(obstacle=f"{label(node)} ({node.op_type}) does not choose the greatest logits")
    return Followed()


def _follow_flatten(node: ir.Node, source: Carrier) -> Followed:
    stated = node.attributes.get_int("axis", 1)
    split = stated + len(source.dims) if stated < 0 else stated
    rest = [dim for axis, dim in enumerate(source.dims) if axis >= split and axis != source.axis]
    if split > source.axis or any(dim != 1 for dim in rest):
        return Followed(obstacle=f"{label(node)} (Flatten) mixes classes with another axis")
    return Followed(axis=1)


def _follow_reshape(node: ir.Node, source: Carrier) -> Followed:
    target = node.outputs[0].shape
    mixes = Followed(obstacle=f"{label(node)} (Reshape) mixes classes with another axis")
    if target is None or source.axis == 0:
        return mixes
    # The first axis may hold the classes only where a fixed batch of one image has no axis of its own afterwards.
    first = 0 if source.dims[0] == 1 else 1
    axes = [axis for axis, dim in enumerate(target) if axis >= first and dim == source.num_classes]
    alone = all(dim == 1 for axis, dim in enumerate(source.dims) if axis not in {0, source.axis})
    if not alone or len(axes) != 1 or any(dim != 1 for axis, dim in enumerate(target) if axis not in {0, *axes}):
        return mixes
    return Followed(axis=axes[0])


def _follow_squeeze(node: ir.Node, source: Carrier) -> Followed:
    axes = _axes_input(node)
    rank = len(source.dims)
    gone = [i for i in range(rank) if source.dims[i] == 1] if axes is None else [axis % rank for axis in axes]
    return Followed(axis=source.axis - sum(axis < source.axis for axis in gone))


def _follow_unsqueeze(node: ir.Node, source: Carrier) -> Followed:
    axes = _axes_input(node)
    if axes is None:
        return Followed(obstacle=f"{label(node)} (Unsqueeze) has axes that are not constant")
    rank = len(source.dims) + len(axes)
    new = {axis % rank for axis in axes}
    return Followed(axis=[axis for axis in range(rank) if axis not in new][source.axis])


def _follow_transpose(node: ir.Node, source: Carrier) -> Followed:
    order = integers(node, "perm") or tuple(reversed(range(len(source.dims))))
    return Followed(axis=order.index(source.axis))


def _follow_gather(node: ir.Node, source: Carrier) -> Followed:
    """Follow a Gather that takes the one entry of an axis, such as the only position of a map."""
    axis = node.attributes.get_int("axis", 0) % len(source.dims)
    indices = node.inputs[1]
    if axis == source.axis or source.dims[axis] != 1 or indices is None or not _is_one_number(indices):
        return Followed(obstacle=f"{label(node)} (Gather) takes some of the classes, or of several positions")
    is_kept = len(constant_shape(indices)) == 1
    return Followed(axis=source.axis if is_kept or axis > source.axis else source.axis - 1)


def _follow_slice(node: ir.Node, source: Carrier) -> Followed:
    """Follow a Slice of axes of length 1, which leaves them as they are."""
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = None
    if given is not None and is_constant(given):
        axes = [int(axis) % len(source.dims) for axis in constant_array(given).reshape(-1)]
    after = node.outputs[0].shape
    changes = after is None or any(after[axis] != 1 or source.dims[axis] != 1 for axis in axes or [])
    if axes is None or source.axis in axes or changes:
        return Followed(obstacle=f"{label(node)} (Slice) takes some of the classes, or of several positions")
    return Followed(axis=source.axis)


def _follow_shape(node: ir.Node, source: Carrier) -> Followed:  # noqa: ARG001 - one signature for all operators
    return Followed()


def _axes_input(node: ir.Node) -> list[int] | None:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None or not is_constant(given):
        return None
    return [int(axis) for axis in constant_array(given).reshape(-1)]


_HANDLERS: dict[str, Callable[[ir.Node, Carrier], Followed]] = {
    "ArgMax": _follow_choice,
    "AveragePool": _follow_pool,
    "Flatten": _follow_flatten,
    "Gather": _follow_gather,
    "GlobalAveragePool": _follow_pool,
    "GlobalMaxPool": _follow_pool,
    "LogSoftmax": _follow_softmax,
    "MaxPool": _follow_pool,
    "Reshape": _follow_reshape,
    "Shape": _follow_shape,
    "Slice": _follow_slice,
    "Softmax": _follow_softmax,
    "Squeeze": _follow_squeeze,
    "TopK": _follow_choice,
    "Transpose": _follow_transpose,
    "Unsqueeze": _follow_unsqueeze,
    **dict.fromkeys(_REDUCTIONS, _follow_reduction),
}
