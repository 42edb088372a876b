"""The files of a data set that is in several: a folder of them, or a pattern such as `shard-{000..009}.tar`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import ImageError
from icis_deploy.images.input_files import InputFile, input_file

MAX_SHARDS = 1 << 20
SHARD_SUFFIXES = (".parquet", ".tar")

SAVED_NAMES = ("state.json", "dataset_dict.json")
"""What `save_to_disk` of Hugging Face's `datasets` writes: for one split, and for several in folders of their own."""

_PATTERN = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)\.\w+")
"""As Hugging Face and TensorFlow name the files of one split: `train-00000-of-00004.parquet`."""


def shards_of(given: str | Path) -> tuple[InputFile, ...] | None:
    """Return the files of a data set in order; `None` where something is no pattern, and no folder of such files.

    Raises:
        ImageError: If a folder holds files of two kinds or two splits, or lacks some that the others count.
    """
    pattern = _PATTERN.search(str(given))
    if pattern is not None and not (isinstance(input_file(given), Path) and os.path.exists(given)):  # noqa: PTH110
        return tuple(map(input_file, _expanded(str(given), pattern)))
    folder = input_file(given)
    if not isinstance(folder, Path) or not os.path.isdir(folder):  # noqa: PTH112 - a name that is too long is none
        return None
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SHARD_SUFFIXES and path.is_file())
    except OSError as error:
        raise ImageError(
            f"Cannot read the folder {folder}: {error.strerror}.", where=folder, hint="Check its permissions."
        ) from error
    if not files:
        return None
    _check_one_set(folder, files)
    return tuple(files)


def is_saved_dataset(given: str | Path) -> bool:
    """Say whether a path is a folder that `datasets` of Hugging Face saved."""
    folder = input_file(given)
    return isinstance(folder, Path) and any(
        os.path.isfile(folder / name)  # noqa: PTH113 - a name that is too long is none
        for name in SAVED_NAMES
    )


def _expanded(text: str, pattern: re.Match[str]) -> list[str]:
    first, last = int(pattern[1]), int(pattern[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise ImageError(
            f"{text} counts from {first} to {last}; expected the smaller number first, and at most {MAX_SHARDS} files.",
            found=(first, last),
            expected=f"at most {MAX_SHARDS} files, counted upwards",
            where=text,
            hint="Write a range such as images-{000..099}.tar.",
        )
    numbers = [str(number).zfill(len(pattern[1])) for number in range(first, last + 1)]
    return [text[: pattern.start()] + number + text[pattern.end() :] for number in numbers]


def _check_one_set(folder: Path, files: Sequence[Path]) -> None:
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) > 1:
        raise ImageError(
            f"{folder} holds files of two kinds: {shown(kinds)}.",
            found=tuple(kinds),
            expected="the files of one data set",
            where=folder,
            hint="Name one of the files, or move the others away.",
        )
    found = [match for path in files if (match := _NUMBERED.fullmatch(path.name)) is not None]
    splits = sorted({match[1] for match in found})
    if len(splits) > 1:
        raise ImageError(
            f"{folder} holds several splits: {shown(splits)}.",
            found=tuple(splits),
            expected="the files of one split",
            where=folder,
            hint=f"Name the files of one, as {splits[0]}-{{{found[0][2]}..{found[-1][2]}}}-of-….",
        )
    count = max((int(match[3]) for match in found), default=0)
    if found and count != len(found):
        there = {int(match[2]) for match in found}
        missing = next(number for number in range(count + 1) if number not in there)
        raise ImageError(
            f"{folder} has {len(found)} of the {count} files that their names count; number {missing} is not there.",
            found=len(found),
            expected=count,
            where=folder,
            hint="Download the rest of them.",
        )
