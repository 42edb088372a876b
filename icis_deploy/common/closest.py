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
            alike = "They look alike, but are other characters of Unicode: write both in one form, such as NFC. "
            return f"Did you mean {shown(meant)}{by}? {alike if _composed(name) == _composed(meant) else ''}"
    return ""


def respelled(names: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """Return each name that a name before it, or a known one, differs from in spelling alone, with that other one.

    Spelling is upper and lower case, spaces, hyphens and underscores, and which characters of Unicode a letter is.

    Args:
        names: New ones, none of them known.
        known: What there is.
    """
    first = {_spelled_plainly(name): name for name in known}
    pairs = [(name, first.setdefault(_spelled_plainly(name), name)) for name in names]
    return [(name, other) for name, other in pairs if name != other]


def _spelled_plainly(name: str) -> str:
    import unicodedata  # a device should not import it to answer

    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in plain if c not in "_-" and not c.isspace() and unicodedata.category(c) != "Cf") or name


def _composed(name: str) -> str:
    import unicodedata  # see `_spelled_plainly`

    return unicodedata.normalize("NFC", str(name))


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
