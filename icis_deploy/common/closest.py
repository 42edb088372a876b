"""The name that somebody may have meant, for messages about one that is not known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from icis_deploy.common.terminal_text import printable, shown

_LEAST_ALIKE = 0.6
"""Ratio of `difflib`, 0..1, below which a name is not suggested; its own default."""


def closest(name: str, known: Iterable[str], *, least_alike: float = _LEAST_ALIKE) -> str | None:
    """Return the known name that is most like another one, whatever the case; `None` where none is like it.

    Args:
        name: What was given.
        known: What there is.
        least_alike: Ratio of `difflib`, 0..1, below which a name is not returned.
    """
    # On the path of an error alone, and a device should not import it to answer.
    from difflib import get_close_matches

    by_folded = {each.casefold(): each for each in known}
    found = get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=least_alike)
    return by_folded[found[0]] if found else None


def did_you_mean(names: Sequence[str], known: Iterable[str]) -> str:
    """Return a question for the first of some unknown names that is like a known one, with a space after it, or ''.

    Args:
        names: What was given and is not known, at least one.
        known: What there is.
    """
    listed = list(known)
    for name in names:
        meant = closest(name, listed)
        if meant is not None:
            by = "" if len(names) == 1 else f" by {shown(name)}"
            return f"Did you mean {shown(meant)}{by}? "
    return ""


def did_you_mean_path(path: str | os.PathLike[str]) -> str:
    """Return a question for the file or folder in the same folder whose name is most like one that is not there, or ''.

    Args:
        path: What was given.
    """
    given = Path(path)
    try:
        found = closest(given.name, [each.name for each in given.parent.iterdir()])
    except (OSError, ValueError):
        return ""
    return "" if found is None else f"Did you mean {printable(repr(str(given.with_name(found))))}? "
