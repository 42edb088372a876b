"""Frozen values as JSON and back, by the types of their fields, so that a format is written down once.

Rules:

1. A field is what its annotation says: `float`, `int`, `bool`, `str`, `None`, a `Literal`, a `tuple[X, ...]`, a
   `Mapping[str, X]`, another dataclass, or a union of those. A field of type `object` holds any JSON value.
2. JSON has no infinity: an unbounded `float` is written as null, and null for a `float` is read as infinity. A NaN is
   refused.
3. What follows from the fields (a verdict) is written too where a class names it in `DERIVED`, for readers in other
   languages. It is not read: it is worked out again.
4. Reading is strict, by `icis_deploy.common.json_fields`: a key that is missing, unknown, or of the wrong type is an
   error that says where.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Literal, TypeVar, Union, cast

from icis_deploy.common.json_fields import (
    Reader,
    boolean_from_json,
    check_fields,
    integer_from_json,
    mapping_from_json,
    number_from_json,
    object_from_json,
    text_from_json,
    tuple_from_json,
)

Value = TypeVar("Value")


def json_from_value(value: object) -> Any:
    """Return a value as `json.dumps(..., allow_nan=False)` takes it.

    Raises:
        TypeError: If something in it has no form in JSON.
        ValueError: If a number is NaN.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [*(field.name for field in dataclasses.fields(value)), *derived_names(type(value))]
        return {name: json_from_value(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): json_from_value(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [json_from_value(each) for each in value]
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("a number is NaN, which JSON does not have")
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def value_from_json(kind: type[Value], data: object, *, where: str = "the result") -> Value:
    """Return the value that JSON holds.

    Args:
        kind: A dataclass.
        data: What `load_strict` gave.
        where: Path of `data`, for messages.

    Raises:
        TypeError: If something has another type than `kind` says.
        ValueError: If a key is missing or unknown.
    """
    return cast(Value, _read(kind, data, where=where))


def derived_names(kind: type) -> tuple[str, ...]:
    """Return the properties of a class that are written although they follow from its fields."""
    return tuple(getattr(kind, "DERIVED", ()))


@cache
def field_types(kind: type) -> Mapping[str, Any]:
    """Return the annotation of every field of a dataclass, resolved."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _read(kind: Any, data: object, *, where: str) -> object:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(cast(type, kind), data, where)
    if origin in (Union, types.UnionType):
        return _read_union(typing.get_args(kind), data, where)
    if origin is Literal:
        if data not in typing.get_args(kind):
            raise TypeError(f"{where} is {data!r}; expected one of {list(typing.get_args(kind))}")
        return data
    if origin is tuple:
        (each_kind, _) = typing.get_args(kind)
        return tuple_from_json(data, read=partial(_read, each_kind), where=where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return mapping_from_json(data, read=partial(_read, typing.get_args(kind)[1]), where=where)
    return _read_plain(kind, data, where)


def _read_dataclass(kind: type, data: object, where: str) -> object:
    values, fields = object_from_json(data, where=where), field_types(kind)
    check_fields(values, fields, optional=derived_names(kind), where=where)
    return kind(**{name: _read(each, values[name], where=f"{where}.{name}") for name, each in fields.items()})


def _read_union(kinds: tuple[Any, ...], data: object, where: str) -> object:
    if data is None and types.NoneType in kinds:
        return None
    (kind,) = [each for each in kinds if each is not types.NoneType]
    return _read(kind, data, where=where)


def _read_plain(kind: Any, data: object, where: str) -> object:
    if kind is object:
        return data
    if kind is float and data is None:
        return math.inf
    return _PLAIN_READERS[kind](data, where=where)


_PLAIN_READERS: Mapping[type, Reader[object]] = {
    float: number_from_json,
    int: integer_from_json,
    str: text_from_json,
    bool: boolean_from_json,
}
