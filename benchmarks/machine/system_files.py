"""Read what a Linux system reports about itself in small files, under a root that a test can choose.

Whatever is not there is a value too: `Unavailable`, with the reason. A device lacks half of these files, and that is no
error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSTEM_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Something that could not be read."""

    reason: str
    """Why, in words that a reader of the report understands."""


def read_text(root: Path, name: str) -> str | Unavailable:
    """Return a file's text without white space (or the NUL of a device tree) around it.

    Args:
        root: `/`, or a copy of parts of it.
        name: Path below the root, without a leading slash.
    """
    try:
        return (root / name).read_text(encoding="utf-8", errors="replace").strip(" \t\r\n\0")
    except FileNotFoundError:
        return Unavailable(f"no /{name}")
    except OSError as error:
        return Unavailable(f"/{name}: {error.strerror or error}")


def read_number(root: Path, name: str) -> float | Unavailable:
    """Return a file's only content, a decimal number."""
    text = read_text(root, name)
    if isinstance(text, Unavailable):
        return text
    try:
        return float(text)
    except ValueError:
        return Unavailable(f"/{name} holds {text[:40]!r}, not a number")


def read_numbers(root: Path, pattern: str) -> list[float] | Unavailable:
    """Return the numbers in all files that match a pattern, in the order of their names; those unreadable left out."""
    values = [read_number(root, name) for name in matching(root, pattern)]
    numbers = [value for value in values if not isinstance(value, Unavailable)]
    if numbers:
        return numbers
    first = values[0] if values else None
    return first if isinstance(first, Unavailable) else Unavailable(f"no /{pattern}")


def read_fields(root: Path, name: str, separator: str) -> dict[str, str] | Unavailable:
    """Return the `key separator value` lines of a file; of a key that occurs several times, the first value."""
    text = read_text(root, name)
    if isinstance(text, Unavailable):
        return text
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found:
            fields.setdefault(key.strip(), value.strip().strip('"'))
    return fields


def matching(root: Path, pattern: str) -> list[str]:
    """Return the paths below the root that match, sorted; none where a folder may not be read."""
    try:
        return sorted(str(path.relative_to(root)) for path in root.glob(pattern))
    except OSError:
        return []
