"""The lines of text files."""

from __future__ import annotations


def split_lines(text: str) -> list[str]:
    """Return the lines of a text file, which end in LF, CR LF or CR; an end after the last line adds none.

    `str.splitlines` also ends lines at characters that occur within names and sentences, such as U+2028 or U+0085.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]
