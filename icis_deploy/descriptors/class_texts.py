"""Texts of classes, for the sources of descriptors that read words.

A class name is often an id (`n02112706`) or has the spelling of a data set (`001.Black_footed_Albatross`,
`polar+bear`). A *text* is what a person would say; a class may have several, which are averaged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from icis_deploy.common.files import path_from, read_list
from icis_deploy.common.given import items, refused
from icis_deploy.common.text_lines import split_lines
from icis_deploy.errors import DescriptorError
from icis_deploy.head.class_names import MAX_LIST_BYTES, quoted

ClassTexts = Mapping[str, Sequence[str]]
"""One or more texts for each class name."""

_DATA_SET_NUMBER = re.compile(r"^\d+\.(?=\D)")
_LETTER = re.compile(r"[^\W_]")
_SEPARATORS = re.compile(r"[\s_+]+")


def text_from_name(class_name: str) -> str:
    """Return a class name as a person would write it: without CUB's number, with spaces for `_` and AWA2's `+`."""
    return _SEPARATORS.sub(" ", _DATA_SET_NUMBER.sub("", class_name)).strip()


def load_class_texts(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a text file with a class name, a tab and a text on each line; a class with several lines has several texts.

    A header line needs no mark: it is read as the text of a class that no list contains.

    Raises:
        DescriptorError: If the file cannot be read, is not UTF-8, or a line is not a name, a tab and a text.
    """
    data = read_list(path, max_bytes=MAX_LIST_BYTES, what="text list", error_type=DescriptorError)
    try:
        lines = split_lines(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DescriptorError(
            f"The text list {path} is not text in UTF-8: {error}.",
            found=str(error),
            expected="text in UTF-8",
            where=path,
            hint="Save it again as UTF-8.",
        ) from error
    texts: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, text = (part.strip() for part in line.partition("\t"))
        if not (name and text) or "\t" in text:
            raise DescriptorError(
                f"The text list {path}, line {number}: {line[:60]!r}; expected a class name, a tab, and a text.",
                found=line[:60],
                expected="a class name, a tab, and a text",
                where=f"{path}, line {number}",
                hint="Put a tab between the name and the text; several texts of a class are several lines.",
            )
        texts[name] = (*texts.get(name, ()), text)
    return texts


def texts_from(given: object) -> ClassTexts | None:
    """Return texts by class name, read from their file where a path is given; `None` stays `None`.

    Raises:
        UsageError: If something else is given, or a class has something else than texts.
        DescriptorError: As `load_class_texts`.
    """
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        return load_class_texts(path_from(given, name="texts"))
    if not isinstance(given, Mapping):
        raise refused(given, "the path of a file of texts, or texts by class name", name="texts")
    # One text is a text as a file has it: its letters are none.
    return {
        name: items((each,) if isinstance(each, str) else each, "texts", name="texts") for name, each in given.items()
    }


def texts_of(class_names: Sequence[str], known: ClassTexts | None) -> dict[str, tuple[str, ...]]:
    """Return the texts of each class: those that are known, or its own name in words where none are given at all.

    Args:
        class_names: Unique.
        known: Texts by class name, `None` where the names themselves are the texts.

    Raises:
        DescriptorError: If texts are given but not for every class, or a name has no word in it.
    """
    texts: dict[str, tuple[str, ...]]
    if known is None:
        texts = {name: (text_from_name(name),) for name in class_names}
    else:
        missing = [name for name in class_names if not known.get(name)]
        if missing:
            raise DescriptorError(
                f"No text for {quoted(missing)}; there are texts of {len(known)} classes, such as "
                f"{quoted(list(known)[:2])}.",
                found=tuple(known),
                expected=tuple(missing),
                hint="Texts are matched to classes by name: add a line for each.",
            )
        texts = {name: tuple(known[name]) for name in class_names}
    wordless = [name for name, each in texts.items() if not all(_LETTER.search(text) for text in each)]
    if wordless:
        raise DescriptorError(
            f"The text of {quoted(wordless)} has no word in it.",
            found=tuple(wordless),
            expected="a text for each class",
            hint="Give a text for each class.",
        )
    return texts
