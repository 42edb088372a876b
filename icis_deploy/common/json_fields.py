"""Read JSON strictly: what is not exactly as a format says is an error, never a guess.

Rules:

1. A file is UTF-8 without a byte order mark, has no key twice in an object, and no NaN or infinity, which JSON does not
   have: whoever else reads the file, with whatever JSON reader, reads the same.
2. A value has the type that is asked for. `true` is no number, and a whole number is no text.
3. An object that becomes a dataclass has all of its fields and no others.

A format states its fields as `{name: reader}`. Each reader takes a value and `where`, its path for messages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NoReturn, TypeVar

from icis_deploy.common.terminal_text import shown

_TIME_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)

Value = TypeVar("Value")
Reader = Callable[..., Value]
"""Called as `reader(value, where=...)`; gives the value, or raises `TypeError`, `ValueError` or `OverflowError`."""


MAX_VALUES = 1 << 21
"""Values of one JSON file: four times what the names of half a million classes need. Each may take 100 bytes of memory,
and three of the file."""


MAX_DEPTH = 256
"""Lists and objects within each other: no format needs ten. Without a limit of ours, it would be what is left of
Python's stack, which depends on the caller and on the release of Python."""


def load_strict(data: str | bytes, *, max_values: int = MAX_VALUES) -> Any:
    """Return the JSON value of a file (rule 1).

    Args:
        data: What is in the file; how many bytes may be read of it is for the caller to say.
        max_values: How many values it may hold, the empty ones included. More are refused before any is made.

    Raises:
        ValueError: If it is no JSON in UTF-8, has a key twice in an object, a number that JSON does not have, or more
            values, or they are nested too deeply.
    """
    if has_more_values(data, max_values):
        raise ValueError(f"it holds more than {max_values} JSON values")
    # `json.loads` makes a decoder with every call, which takes longer than to read a small file with it.
    text = data.decode() if isinstance(data, bytes) else data
    try:
        value = _STRICT.decode(text)
    except RecursionError as error:  # no caller shall have to think of it
        raise ValueError(_TOO_DEEP) from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = "its values are nested too deeply"


def _is_too_deep(value: Any) -> bool:
    """Return whether lists and objects are more than `MAX_DEPTH` within each other."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return False


def has_more_values(data: str | bytes, limit: int) -> bool:
    """Say whether `[`, `{` and `,`, one of which precedes each JSON value but the first, are more than `limit`.

    Those inside of texts are counted too, which errs on the safe side.
    """
    if len(data) <= limit:  # nearly every file: each mark is a byte
        return False
    marks: tuple[Any, ...] = ("[", "{", ",") if isinstance(data, str) else (b"[", b"{", b",")
    # A search skips long texts, such as the payload of an update, ten times as fast as a count.
    num_found = 0
    for mark in marks:
        index = data.find(mark)
        while index >= 0:
            num_found += 1
            if num_found > limit:
                return True
            index = data.find(mark, index + 1)
    return False


def _object_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_object_from_pairs, parse_constant=_refuse_constant)


def text_from_json(value: object, *, where: str = "") -> str:
    """Return a string.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, str):
        raise _wrong_type(value, "a text", where)
    return value


def boolean_from_json(value: object, *, where: str = "") -> bool:
    """Return `true` or `false`.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise _wrong_type(value, "true or false", where)
    return value


def integer_from_json(value: object, *, where: str = "") -> int:
    """Return a whole number.

    Raises:
        TypeError: If it is not one; `true` is not.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(value, "a whole number", where)
    return value


def number_from_json(value: object, *, where: str = "") -> float:
    """Return a number, whole or not.

    Raises:
        TypeError: If it is not one; `true` is not.
        OverflowError: If no float can hold it.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong_type(value, "a number", where)
    number = float(value)
    if math.isinf(number):  # what Python makes of 1e999
        raise OverflowError(f"{where or 'a number'} is too large for a float")
    return number


def list_from_json(value: object, *, where: str = "") -> list[Any]:
    """Return a list.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, list):
        raise _wrong_type(value, "a list", where)
    return value


def names_from_json(value: object, *, where: str = "") -> tuple[str, ...]:
    """Return a list of strings as a tuple.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, list) or not {str}.issuperset(map(type, value)):  # without a loop in Python
        raise _wrong_type(value, "a list of texts", where)
    return tuple(value)


def object_from_json(value: object, *, where: str = "") -> dict[str, Any]:
    """Return an object.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, dict):
        raise _wrong_type(value, "an object", where)
    return value


def tuple_from_json(value: object, *, read: Reader[Value], where: str = "") -> tuple[Value, ...]:
    """Return a list as a tuple of what `read` makes of each value.

    Raises:
        TypeError: If it is no list; and as `read`.
    """
    values = list_from_json(value, where=where)
    return tuple([read(each, where=f"{where}[{index}]") for index, each in enumerate(values)])


def mapping_from_json(value: object, *, read: Reader[Value], where: str = "") -> dict[str, Value]:
    """Return an object as a mapping of what `read` makes of each value.

    Raises:
        TypeError: If it is no object; and as `read`.
    """
    values = object_from_json(value, where=where)
    return {name: read(each, where=_joined(where, name)) for name, each in values.items()}


def dataclass_from_json(
    kind: Callable[..., Value], value: object, *, readers: Mapping[str, Reader[Any]], where: str = ""
) -> Value:
    """Return the dataclass that an object holds (rule 3).

    Args:
        kind: The dataclass.
        value: A JSON value.
        readers: A reader for each field.
        where: Path of the object, for messages.

    Raises:
        TypeError: If it is no object, or a field has another type.
        ValueError: If a field is missing or unknown.
        ICISDeployError: If the dataclass refuses the fields.
    """
    values = object_from_json(value, where=where)
    check_fields(values, readers, where=where)
    return kind(**{name: read(values[name], where=_joined(where, name)) for name, read in readers.items()})


def check_fields(
    values: Mapping[str, Any], names: Iterable[str], *, optional: Iterable[str] = (), where: str = ""
) -> None:
    """Raise `ValueError` if an object lacks a field of `names`, or has one that is neither there nor `optional`."""
    known = set(names)
    missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known.union(optional))
    problems = ([f"lacks {missing}"] if missing else []) + ([f"has the unknown {shown(unknown)}"] if unknown else [])
    if problems:
        raise ValueError(f"{where or 'it'} {' and '.join(problems)}")


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong_type(value: object, expected: str, where: str) -> TypeError:
    found = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else shown(value)
    return TypeError(f"{where + ': ' if where else ''}expected {expected}, found {found}")


def json_from_time(value: datetime) -> str:
    """Return a time in UTC as `2026-11-23T09:00:00Z`, the only form that is read back."""
    return value.astimezone(timezone.utc).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def time_from_json(value: object) -> datetime:
    """Return a time in UTC.

    Raises:
        TypeError: If it is no text.
        ValueError: If it has not the form `2026-11-23T09:00:00Z`.
    """
    text = text_from_json(value)
    if not _TIME_FORM.fullmatch(text):
        raise ValueError(f"the time {shown(text)} has not the form 2026-11-23T09:00:00Z")
    return datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc)
