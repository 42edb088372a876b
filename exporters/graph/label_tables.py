"""Tables of labels behind a choice: an operator that gives chosen classes' names or numbers instead of their indices.

    Gather (table, ids)                    ArrayFeatureExtractor (table, ids)    a constant of one label per class
    LabelEncoder (ids)                     keys 0 to num_classes - 1, a label each; or a list of labels

Such a table has no entry for a new class, whose index ONNX Runtime answers with an error, the last entry or a default.
Labels that are strings get the new names; integers get the number that a name spells, or go on counting.

Sources: ONNX Gather; ai.onnx.ml ArrayFeatureExtractor-1, LabelEncoder-1, -2 and -4.
"""

# Why: docs/decisions/0098.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import STANDARD_DOMAINS, constant_array, constant_shape, is_constant
from exporters.graph.edits import unused_name
from exporters.graph.reading import input_of, label
from icis_deploy.errors import IncompatibleError

ML_DOMAIN = "ai.onnx.ml"
_LABEL_TYPES = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.STRING})
_VALUE_ATTRIBUTES = ("values_strings", "values_int64s", "values_tensor")
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """An operator that looks labels up, with what it holds."""

    node: ir.Node
    """Gather, ArrayFeatureExtractor or LabelEncoder."""

    labels: tuple[str, ...] | tuple[int, ...]
    """`(num_classes,)`: the label of each class, in the order of the logits."""


def read_label_table(node: ir.Node, class_ids: frozenset[ir.Value], num_classes: int) -> LabelTable | None:
    """Return the table that a node looks classes up in; `None` where it is none that can be extended.

    Args:
        node: Takes indices of chosen classes.
        class_ids: Those of its inputs that are such indices.
        num_classes: How many classes there are to choose from.
    """
    if node.op_type == "LabelEncoder" and node.domain == ML_DOMAIN:
        labels = _labels_by_key(node, num_classes) if node.inputs[0] in class_ids else None
    elif _looks_up_by_position(node) and node.inputs[1] in class_ids:
        labels = _labels_by_position(node, num_classes)
    else:
        labels = None
    return None if labels is None else LabelTable(node=node, labels=labels)


def extended_labels(
    table: LabelTable, seen_names: Sequence[str], new_names: Sequence[str]
) -> tuple[str, ...] | tuple[int, ...]:
    """Return the labels of all classes.

    Args:
        table: Holds those of the seen ones.
        seen_names: `(num_classes,)`: what the seen classes are called, to know whether numbers spell their names.
        new_names: Of the classes after them.

    Raises:
        IncompatibleError: If a new class has no plain label, or the table gives it to another class.
    """
    own = [each for each in table.labels if isinstance(each, int)]
    if not own:
        new: list[str] | list[int] = list(new_names)
    elif [str(each) for each in own] == list(seen_names) and all(_spells_number(name) for name in new_names):
        new = [int(name) for name in new_names]
    elif own == list(range(own[0], own[0] + len(own))):
        new = [own[-1] + 1 + index for index in range(len(new_names))]
    else:
        raise IncompatibleError(
            f"{_described(table)} gives classes the numbers {_shown(own)}, which do not count on; there is none for "
            f"{_shown(new_names)}.",
            found=tuple(own),
            expected="consecutive numbers, or new classes whose names are numbers",
            where=label(table.node),
            hint="Export the model without that table.",
        )
    taken = [each for each in new if each in table.labels]
    if taken:
        raise IncompatibleError(
            f"{_described(table)} gives the label {taken[0]!r} to a class that the model knows already; a new class "
            f"would get it too.",
            found=taken[0],
            where=label(table.node),
            hint="Call the new class differently, or give the class list that the model's own labels spell.",
        )
    return (*table.labels, *new)


def extend_table(table: LabelTable, labels: tuple[str, ...] | tuple[int, ...]) -> None:
    """Let a table hold these labels, of all classes in their order, in place."""
    node = table.node
    if node.op_type != "LabelEncoder":
        _replace_input(node, labels)
        return
    if "classes_strings" in node.attributes:
        node.attributes["classes_strings"] = ir.AttrStrings("classes_strings", [str(each) for each in labels])
        return
    old = len(table.labels)
    added = labels[old:]
    _append(
        node, next(name for name in ("keys_int64s", "keys_tensor") if name in node.attributes), range(old, len(labels))
    )
    _append(node, next(name for name in _VALUE_ATTRIBUTES if name in node.attributes), added)


def _looks_up_by_position(node: ir.Node) -> bool:
    return (node.op_type == "Gather" and node.domain in STANDARD_DOMAINS) or (
        node.op_type == "ArrayFeatureExtractor" and node.domain == ML_DOMAIN
    )


def _labels_by_position(node: ir.Node, num_classes: int) -> tuple[str, ...] | tuple[int, ...] | None:
    table = input_of(node, 0)
    if not is_constant(table) or table.dtype not in _LABEL_TYPES:
        return None
    shape = constant_shape(table)
    axis = node.attributes.get_int("axis", 0) % len(shape) if node.op_type == "Gather" and shape else len(shape) - 1
    if not shape or shape[axis] != num_classes or np.prod(shape) != num_classes:
        return None
    return _plain(constant_array(table).reshape(-1).tolist())


def _labels_by_key(node: ir.Node, num_classes: int) -> tuple[str, ...] | tuple[int, ...] | None:
    listed = node.attributes.get("classes_strings")
    if listed is not None:
        names = tuple(listed.as_strings())
        return names if len(names) == num_classes else None
    keys = _elements(node, ("keys_int64s", "keys_tensor"))
    values = _elements(node, _VALUE_ATTRIBUTES)
    if keys is None or values is None or sorted(keys, key=str) != sorted(range(num_classes), key=str):
        return None
    by_key = dict(zip(keys, values, strict=True))
    return _plain([by_key[index] for index in range(num_classes)])


def _elements(node: ir.Node, names: Iterable[str]) -> list[object] | None:
    """Return what the first attribute of these that a node has lists."""
    attribute = next((node.attributes[name] for name in names if name in node.attributes), None)
    if attribute is None:
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        return list(attribute.as_tensor().numpy().reshape(-1).tolist())
    return list(attribute.value)


def _plain(values: Sequence[object]) -> tuple[str, ...] | tuple[int, ...] | None:
    """Return labels as strings or as integers; `None` if they are anything else."""
    if all(isinstance(each, (bytes, str)) for each in values):
        return tuple(each.decode("utf-8") if isinstance(each, bytes) else str(each) for each in values)
    if all(isinstance(each, int) for each in values):
        return tuple(each for each in values if isinstance(each, int))
    return None


def _replace_input(node: ir.Node, labels: tuple[str, ...] | tuple[int, ...]) -> None:
    """Put a constant of these labels where a node takes its table; others may take the old one."""
    source, graph = input_of(node, 0), node.graph
    assert isinstance(graph, ir.Graph), "a node after the logits is in their graph"
    shape = [
        len(labels) if size == len(constant_array(source).reshape(-1)) else size for size in constant_shape(source)
    ]
    dtype = source.dtype or ir.DataType.INT64
    name = unused_name(graph, f"{source.name}_grown")
    value = ir.Value(
        name=name,
        shape=ir.Shape(shape),
        type=ir.TensorType(dtype),
        const_value=_tensor(labels, shape, dtype, name),
    )
    graph.register_initializer(value)
    node.replace_input_with(0, value)


def _append(node: ir.Node, name: str, values: Iterable[str] | Iterable[int]) -> None:
    """Append values to an attribute that lists some."""
    attribute, added = node.attributes[name], list(values)
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        all_values = [*(_plain(tensor.numpy().reshape(-1).tolist()) or ()), *added]
        node.attributes[name] = ir.AttrTensor(name, _tensor(all_values, [len(all_values)], tensor.dtype, name))
    elif attribute.type == ir.AttributeType.STRINGS:
        node.attributes[name] = ir.AttrStrings(name, [*attribute.as_strings(), *(str(each) for each in added)])
    else:
        numbers = [each for each in added if isinstance(each, int)]
        node.attributes[name] = ir.AttrInt64s(name, [*attribute.as_ints(), *numbers])


def _tensor(
    labels: Sequence[str] | Sequence[int], shape: Sequence[int], dtype: ir.DataType, name: str
) -> ir.TensorProtocol:
    if dtype == ir.DataType.STRING:
        encoded = [str(each).encode("utf-8") for each in labels]
        return ir.StringTensor(encoded, shape=ir.Shape(shape), name=name)
    return ir.Tensor(np.array(labels, dtype=dtype.numpy()).reshape(shape), dtype=dtype, name=name)


def _spells_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and str(int(name)) == name


def _described(table: LabelTable) -> str:
    return f"The table behind the choice, {label(table.node)} ({table.node.op_type}),"


def _shown(values: Sequence[object]) -> str:
    return ", ".join(repr(each) for each in values[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")
