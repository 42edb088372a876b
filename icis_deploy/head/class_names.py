"""Class names: unique, in the order of the logits, one a line in a file, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icis_deploy.common.files import read_list
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import shown
from icis_deploy.common.text_lines import split_lines
from icis_deploy.errors import ClassConflictError, LoadError, UsageError

MAX_LIST_BYTES = 1 << 26
MAX_NAMES_IN_MESSAGE = 5
MAX_NAME_BYTES = 1 << 10
"""In UTF-8. A device keeps names in its journal, which may not outgrow what is read back of it."""


def check_unique(class_names: Sequence[str]) -> None:
    """Raise `ClassConflictError` if a name occurs twice, is empty, too long, or no text that a file can hold."""
    if _are_valid(class_names):
        return
    seen: set[str] = set()
    for index, name in enumerate(class_names):
        if not isinstance(name, str) or not _is_utf8(name):
            raise ClassConflictError(
                f"Class {index} is named {shown(name)}; a name is a text that UTF-8 can hold.",
                found=shown(name),
                expected="a text that UTF-8 can hold",
                where=f"class {index}",
            )
        if not name:
            raise ClassConflictError(
                f"Class {index} has an empty name; every class needs one.",
                found="",
                expected="a name",
                where=f"class {index}",
                hint="Give each class a name: an empty line of a list counts as one.",
            )
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ClassConflictError(
                f"Class {index}, {name[:20]!r}…, has a name of {len(name.encode())} bytes in UTF-8; at most "
                f"{MAX_NAME_BYTES} are taken.",
                found=len(name.encode()),
                expected=MAX_NAME_BYTES,
                where=f"class {index}",
                hint="Give it a shorter name.",
            )
        if name in seen:
            raise ClassConflictError(
                f"Class {shown(name)} is named twice (again at index {index}); names must be unique.",
                found=name,
                expected="unique names",
                where=f"class {index}",
                hint="Rename one of them.",
            )
        seen.add(name)


def _are_valid(class_names: Sequence[str]) -> bool:
    """Say whether names are valid, in a few calls without a loop in Python: a device asks often."""
    try:
        longest = max(map(len, map(str.encode, class_names)), default=0)
    except (TypeError, UnicodeEncodeError):
        return False
    return longest <= MAX_NAME_BYTES and "" not in class_names and len(set(class_names)) == len(class_names)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can smuggle in
        return False
    return True


def quoted(class_names: Sequence[str]) -> str:
    """Return the first few names in quotes, and how many more there are, for a message."""
    first = ", ".join([shown(name) for name in class_names[:MAX_NAMES_IN_MESSAGE]])
    more = len(class_names) - MAX_NAMES_IN_MESSAGE
    return f"{first} and {more} more" if more > 0 else first


def names_in_order(stated: Mapping[Any, Any] | Sequence[Any]) -> tuple[str, ...]:
    """Return names that are listed, or stand by their numbers from 0 on, in the order of the logits.

    Raises:
        UsageError: If one is no text, or the numbers are others.
    """
    names = list(stated)
    if isinstance(stated, Mapping):
        by_number = {str(number): name for number, name in stated.items()}
        missing = next((number for number in range(len(by_number)) if str(number) not in by_number), None)
        if missing is not None:
            raise UsageError(
                f"The names by number have none for {missing}.",
                found=tuple(stated),
                expected=f"0 to {len(by_number) - 1}",
                hint="Give a name for each output of the model, from 0 on.",
            )
        names = [by_number[str(number)] for number in range(len(by_number))]
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise UsageError(
            f"The class name {shown(wrong)} is {shown(type(wrong).__name__)}; expected text.",
            found=shown(wrong),
            expected="names of classes, as text",
            hint="Give names as text: a list of numbers is no list of names.",
        )
    return tuple(str(name) for name in names)


def _json_names(text: str) -> Mapping[Any, Any] | Sequence[Any] | None:
    """Return what a class list holds as JSON; `None` where it is none: a name may begin with a bracket, too."""
    if text[:1] not in {"[", "{"}:
        return None
    try:
        value = load_strict(text)
    except ValueError:
        return None
    named = value.get("id2label", value) if isinstance(value, dict) else value
    return named if isinstance(named, dict | list) and named else None


def load_class_list(path: Path) -> tuple[str, ...]:
    """Read a text file with one class name a line, in the order of the logits, or with all of them as JSON.

    JSON is a list of names, names by number, or an object that has these as `id2label`, as transformers' `config.json`.
    Lines end as in text files of any system; a line separator or form feed within a name is part of it. Spaces around a
    name and empty lines at the end are dropped; an empty line between names is an error, because it would shift every
    class after it.

    Raises:
        LoadError: If the file cannot be read, is not UTF-8, is empty, or has an empty or repeated name.
    """
    data = read_list(path, max_bytes=MAX_LIST_BYTES, what="class list", error_type=LoadError)
    try:
        text = data.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise LoadError(
            f"The class list {path} is not text in UTF-8: {error}. Expected one class name a line.",
            found=str(error),
            expected="one class name a line in UTF-8",
            where=path,
            hint="Save it again as UTF-8.",
        ) from error
    stated = _json_names(text)
    if stated is None and path.suffix.lower() == ".json":
        raise LoadError(
            f"The class list {path} holds no names as JSON. Expected a list of names, or an object of names by number, "
            f"in the order of the model's outputs.",
            expected='["name", ...] or {"0": "name", ...}',
            where=path,
            hint="Write the names so, or one a line into a text file.",
        )
    names = tuple(line.strip() for line in split_lines(text)) if stated is None else ()
    if not names and stated is None:
        raise LoadError(
            f"The class list {path} is empty. Expected one class name a line.",
            found="nothing",
            expected="one class name a line",
            where=path,
            hint="Write the names of the model's classes into it, in the order of its outputs.",
        )
    try:
        names = names if stated is None else names_in_order(stated)
        check_unique(names)
    except (ClassConflictError, UsageError) as error:
        raise LoadError.at(f"The class list {path}", error) from error
    return names
