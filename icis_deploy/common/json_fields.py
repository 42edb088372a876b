"""Read single JSON values of a file format strictly: a wrong type is an error, never a guess."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from icis_deploy.common.terminal_text import shown

_TIME_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def text_from_json(value: object) -> str:
    """Return a string.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} stands where a text is expected")
    return value


def names_from_json(value: object) -> tuple[str, ...]:
    """Return a list of strings as a tuple.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("a list of names is not a list of strings")
    return tuple(value)


def integer_from_json(value: object) -> int:
    """Return a whole number.

    Raises:
        TypeError: If it is not one; `true` is not.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{shown(value)} stands where a whole number is expected")
    return value


def number_from_json(value: object) -> float:
    """Return a number, whole or not.

    Raises:
        TypeError: If it is not one; `true` is not.
        OverflowError: If no float can hold it.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{shown(value)} stands where a number is expected")
    return float(value)


def object_from_json(value: object) -> dict[str, Any]:
    """Return an object.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} stands where an object is expected")
    return value


def list_from_json(value: object) -> list[Any]:
    """Return a list.

    Raises:
        TypeError: If it is not one.
    """
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} stands where a list is expected")
    return value


def load_strict(text: str) -> Any:
    """Return what JSON holds in which no key stands twice, where another reader could believe another one.

    Raises:
        ValueError: If a key stands twice in an object, or it is no JSON.
        RecursionError: If it is nested too deeply.
    """
    # `json.loads` makes a decoder with every call, which takes longer than to read a small file with it.
    return _STRICT.decode(text)


def _object_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return fields


_STRICT = json.JSONDecoder(object_pairs_hook=_object_from_pairs)


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
