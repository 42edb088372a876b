"""Numbers that a caller of the Python API gives, where another type would end in a traceback of some library."""

from __future__ import annotations

from numbers import Integral, Real

from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import UsageError


def whole_number(value: object, *, name: str) -> int:
    """Return a whole number of Python's or NumPy's types as an `int`.

    Args:
        value: What was given; `True` is no number.
        name: The parameter.

    Raises:
        UsageError: If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _refused(value, "a whole number", name)
    return int(value)


def is_real(value: object) -> bool:
    """Say whether a value is a real number of Python's or NumPy's types; an array, a text or `True` is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(value: object, *, name: str) -> None:
    """Raise `UsageError` if a parameter is no number, whole or not."""
    if not is_real(value):
        raise _refused(value, "a number", name)


def _refused(value: object, expected: str, name: str) -> UsageError:
    kind = type(value).__name__
    return UsageError(
        f"`{name}` is {shown(value)}, of type {kind}; expected {expected}.",
        found=kind,
        expected=expected,
        hint=f"Give `{name}` as {expected}.",
    )
