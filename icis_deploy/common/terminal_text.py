"""Text from elsewhere, as a terminal and a log may show it.

A name can hold an escape sequence that rewrites a terminal, a line break that forges a line of a log, or a mark that
turns the direction of what follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from icis_deploy.errors import ICISDeployError

MAX_REASON = 300
"""Characters that an error quotes of a file."""

MAX_SHOWN = 80
"""Characters of one value that an error quotes."""


def reason_of(error: BaseException) -> str:
    """Return what an error says, as a part of one line that is not too long: it may quote an untrusted file.

    Its hint is left out; the caller passes it on where it helps a reader of the file as well.
    """
    text = error.what if isinstance(error, ICISDeployError) else str(error)
    # Some libraries end with a full stop, and the caller's sentence has one.
    whole = text if text.endswith("..") else text.removesuffix(".")
    return printable(whole, max_length=MAX_REASON)


def one_line(error: BaseException) -> str:
    """Return what a library's error says as a part of a sentence: some break their lines, and some end with a stop."""
    return " ".join(str(error).split()).removesuffix(".")


def shown(value: object) -> str:
    """Return one value of a file as Python writes it, as a part of one line that is not too long."""
    return printable(repr(value), max_length=MAX_SHOWN)


def printable(text: str, *, max_length: int | None = None) -> str:
    """Return a text in which everything that is neither visible nor a plain space is escaped.

    Args:
        text: Any text.
        max_length: How many of its characters are returned, with an ellipsis if there are more; `None` returns all.
    """
    cut = text if max_length is None or len(text) <= max_length else text[:max_length] + "…"
    if cut.isprintable():
        return cut
    # Not by the codec, which Python reads from a file when it is first needed: there may be no descriptor to be had.
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in cut])


_IMAGE_WORDS = re.compile(r"(?<![-\w`/])([Ii])mage(s?)(?![-\w`(]|/(?!s\b)|\.\w)")


def called_inputs(text: str) -> str:
    """Return sentences about images in the words of a model that takes none: what it is run on are inputs.

    One word is as long as the other, so that tables keep their columns. Names of options, parameters and files stay.
    """
    return _IMAGE_WORDS.sub(lambda found: f"{found[1]}nput{found[2]}", text)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return rows as aligned columns, two spaces apart; a cell never breaks its line.

    Args:
        rows: Equally long rows of cells.
        right: Indices of the columns that are aligned to the right, such as numbers.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def percent(fraction: float | None) -> str:
    """Return a fraction of 1 as a percentage with one decimal, or a dash where it is unknown."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def points_text(fraction: float) -> str:
    """Return a fraction of 1 as points: 2 points, 0.5 points."""
    number = f"{100 * fraction:.4g}"
    return f"{number} point{'s' * (number != '1')}"
