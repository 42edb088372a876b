"""Values that a caller of the Python API gives, where another type would end in a traceback of Python or a library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, KeysView, Sequence, Set
from datetime import datetime
from numbers import Integral, Real
from typing import Any

from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.terminal_text import printable, shown
from icis_deploy.errors import UsageError


def whole_number(value: object, *, name: str, at_least: int | None = None) -> int:
    """Return a whole number of Python's or NumPy's types as an `int`.

    Args:
        value: What was given; `True` is no number.
        name: The parameter.
        at_least: The smallest that is taken; `None` leaves the range to the caller.

    Raises:
        UsageError: If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise refused(value, "a whole number", name=name)
    if at_least is not None and value < at_least:
        raise UsageError(
            f"`{name}` is {shown(int(value))}; expected at least {at_least}.",
            found=int(value),
            expected=f"at least {at_least}",
            hint=f"Give `{name}` as {at_least} or more.",
        )
    return int(value)


def is_real(value: object) -> bool:
    """Say whether a value is a real number of Python's or NumPy's types; an array, a text or `True` is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(value: object, *, name: str) -> None:
    """Raise `UsageError` if a parameter is no number, whole or not."""
    if not is_real(value):
        raise refused(value, "a number", name=name)


def check_flag(value: object, *, name: str) -> None:
    """Raise `UsageError` if a parameter is neither `True` nor `False`: a text such as 'no' would count as true."""
    if type(value).__name__ not in {"bool", "bool_"}:  # of Python's or NumPy's types, the older of which has a `_`
        raise refused(value, "True or False", name=name)


def check_time(value: object, *, name: str) -> None:
    """Raise `UsageError` if a parameter is no `datetime`, such as a text or a date."""
    if not isinstance(value, datetime):
        raise refused(value, "a datetime with a time zone", name=name)


def check_type(value: object, kind: type, *, name: str) -> None:
    """Raise `UsageError` if a parameter is of another type, such as a dict or a name in place of options."""
    if not isinstance(value, kind):
        raise refused(value, f"{kind.__name__}(...)", name=name)


def check_choice(value: object, known: Sequence[str], *, what: str, name: str) -> None:
    """Raise `UsageError` if a parameter is none of some words.

    Args:
        value: What was given.
        known: The words.
        what: What they are, for the message: precision, target.
        name: The parameter.
    """
    if isinstance(value, str) and value in known:
        return
    meant = did_you_mean([value], known) if isinstance(value, str) else ""
    raise UsageError(
        f"There is no {what} {shown(value)}; choose among {', '.join(known)}.",
        found=value if isinstance(value, str) else type(value).__name__,
        expected=tuple(known),
        hint=f"{meant}Give another `{name}`.",
    )


def items(value: object, of: str, *, name: str) -> tuple[Any, ...]:
    """Return what a parameter lists.

    Args:
        value: A list, or anything else that gives one value after the other. A text does so too, and bytes: their
            characters are no list, so that one word is refused in place of several.
        of: What it lists, for the message: paths, names of targets.
        name: The parameter.

    Raises:
        UsageError: If it is no list.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise refused(value, f"a list of {of}", name=name)
    return tuple(value)


def ordered_items(value: object, of: str, *, name: str) -> tuple[Any, ...]:
    """Return what a parameter lists where the n-th belongs to the n-th of something else, such as rows of an array.

    Args:
        value: As in `items`.
        of: As in `items`.
        name: The parameter.

    Raises:
        UsageError: As `items`, or if it is a set: which of its values comes first is another in each process.
    """
    if isinstance(value, Set) and not isinstance(value, KeysView):
        kind = printable(type(value).__name__)
        raise UsageError(
            f"`{name}` is a {kind}, which has no order.",
            found=kind,
            expected=f"a list of {of}",
            hint=f"Give `{name}` as a list of {of}, in the order of what belongs to them.",
        )
    return items(value, of, name=name)


def check_callable(value: Callable[..., object] | None, *, name: str) -> None:
    """Raise `UsageError` if a parameter is no function and not `None`: it would show after minutes of work."""
    if value is not None and not callable(value):
        raise refused(value, "a function, or None", name=name)


def refused(value: object, expected: str, *, name: str) -> UsageError:
    """Return the error for a parameter of another type.

    Args:
        value: What was given.
        expected: What was expected, with its article.
        name: The parameter.
    """
    kind = printable(type(value).__name__)
    return UsageError(
        f"`{name}` is {shown(value)}, of type {kind}; expected {expected}.",
        found=kind,
        expected=expected,
        hint=f"Give `{name}` as {expected}.",
    )
