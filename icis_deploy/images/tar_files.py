"""Archives of WebDataset as inputs of a model: `.tar` files, whose members belong together by name.

    images/0001.jpg     an image, by its ending; `.npy` is one input as an array
    images/0001.cls     the class that it shows: its name, or its number
    images/0001.json    or an object with the class under `class` or `label`
    images/0001.txt     or its name as a text

As WebDataset has it, what belongs together has the same name up to the first dot of its last part, and lies side by
side. Numbers have names in `classes.txt` next to the archive, one a line, from 0 on.

An archive is gone through once, from header to header, for where images lie and what they show; images are read from
there as they are needed, and nothing is unpacked to disk.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import ImageError
from icis_deploy.images.array_files import array_of_bytes
from icis_deploy.images.input_files import InputFile, exists, file_beside, open_input, read_input, unchanged, version_of
from icis_deploy.images.sources import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, InputItem, InputValue

MAX_SAMPLES = 1 << 25
MAX_NAME_BYTES = 1 << 16
"""Of what a header may add to itself: a long name, or further fields."""

MAX_CLASS_BYTES = 1 << 20
"""Of a member that says a class; it may have other fields."""

MAX_NAMES_BYTES = 1 << 26
NAMES_FILE = "classes.txt"

_LABEL_FIELDS = ("class", "label")
_LABEL_SUFFIXES = (".cls", ".json", ".txt")
"""Of members that say a class; the first that does is believed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TarSamples:
    """Inputs that are read from an archive whenever they are needed."""

    file: InputFile
    """The archive."""

    version: str
    """Of the archive, when it was gone through."""

    members: tuple[str, ...]
    """`(num_inputs,)`, names of the images in it."""

    places: NDArray[np.int64]
    """`(num_inputs, 2)`, where each begins and how many bytes it has."""

    labels: tuple[str, ...] | None
    """`(num_inputs,)`, names of the classes that they show; `None` where no member says it."""

    @property
    def where(self) -> str:
        """Whence they come, for messages."""
        return str(self.file)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[InputItem]:
        labels = (None,) * len(self) if self.labels is None else self.labels
        with _reading(self.file), unchanged(self.file, self.version), open_input(self.file) as archive:
            for name, (start, size), label in zip(self.members, self.places.tolist(), labels, strict=True):
                key = f"{self.file}/{name}"
                archive.seek(start)
                data = archive.read(size)
                if len(data) != size:
                    raise ValueError(f"{shown(name)} ends after {len(data)} of its {size} bytes")
                yield InputItem(key, label, _value(name, data, key))

    def select(self, indices: Sequence[int]) -> TarSamples:
        """Return those with these indices, in the order of the indices."""
        return replace(
            self,
            members=tuple(self.members[index] for index in indices),
            places=self.places[np.asarray(indices, dtype=np.intp)],
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
        )


def load_tar(file: InputFile) -> TarSamples:
    """Go through an archive of WebDataset.

    Raises:
        ImageError: If it cannot be read, is cut short, is changed meanwhile, holds no image, or something in it belongs
            to no image; if some images have a class and others have none, or a number has no name.
        MissingDependencyError: As `open_input`.
    """
    if file.suffix.lower() != ".tar":
        raise ImageError(
            f"{file} is compressed; an archive is read from place to place, which takes one that is not.",
            found=file.suffix,
            expected=".tar",
            where=str(file),
            hint=f"Decompress it first, such as by gzip -d {file.name}. Images are compressed already.",
        )
    members: list[str] = []
    places: list[tuple[int, int]] = []
    labels: list[str] = []

    @cache
    def names() -> tuple[str, ...] | None:
        return _names_beside(file)

    with _reading(file):
        version = version_of(file)
        with unchanged(file, version), open_input(file) as archive:
            for sample in _samples(archive):
                image = sample.image(file)
                if len(members) == MAX_SAMPLES:
                    raise ValueError(f"it holds more than {MAX_SAMPLES} images")
                label = _label(sample, archive)
                if label is not None:
                    labels.append(sys.intern(_named(label, names, sample, file)))
                members.append(image.name)
                places.append((image.start, image.size))
                if labels and len(labels) != len(members):
                    raise _unlabelled(file, sample if label is None else None, members[0])
    if not members:
        raise ImageError(
            f"There is no image in {file}.",
            found=0,
            expected=tuple(sorted(IMAGE_SUFFIXES)),
            where=str(file),
            hint="Name images by their format, such as 0001.jpg, and give their classes as 0001.cls.",
        )
    return TarSamples(
        file=file,
        version=version,
        members=tuple(members),
        places=np.array(places, dtype=np.int64),
        labels=tuple(labels) if labels else None,
    )


class _Member(NamedTuple):
    name: str
    start: int
    size: int


class _Sample(NamedTuple):
    """What belongs together."""

    key: str
    members: Mapping[str, _Member]
    """By all of their endings, in lower case, such as `.jpg`."""

    def image(self, file: InputFile) -> _Member:
        """Return the image among its members, the only one."""
        found = [member for suffix, member in self.members.items() if suffix in IMAGE_SUFFIXES]
        if len(found) != 1:
            names = [member.name for member in self.members.values()]
            raise ImageError(
                f"{file} has {len(found)} images under {shown(self.key)}: {shown(names)}; expected one.",
                found=len(found),
                expected=f"one of {', '.join(sorted(IMAGE_SUFFIXES))}",
                where=f"{file}/{self.key}",
                hint="What belongs together has one name up to its first dot, and lies side by side in the archive.",
            )
        if found[0].size > MAX_IMAGE_BYTES:
            raise ImageError(
                f"{file}/{found[0].name} has {found[0].size} bytes; at most {MAX_IMAGE_BYTES} are read of an image.",
                found=found[0].size,
                expected=f"at most {MAX_IMAGE_BYTES} bytes",
                where=f"{file}/{found[0].name}",
                hint="Give smaller images.",
            )
        return found[0]


def _samples(archive: BinaryIO) -> Iterator[_Sample]:
    key, members = "", dict[str, _Member]()
    for member in _members(archive):
        folder, slash, last = member.name.rpartition("/")
        base, dot, suffix = last.partition(".")
        if not base:  # hidden files, such as those that macOS adds
            continue
        if members and f"{folder}{slash}{base}" != key:
            yield _Sample(key, members)
            members = {}
        key = f"{folder}{slash}{base}"
        members[f"{dot}{suffix}".lower()] = member
    if members:
        yield _Sample(key, members)


def _members(archive: BinaryIO) -> Iterator[_Member]:
    """Yield the files of an archive from header to header.

    Raises:
        ValueError: If it is damaged, cut short, or holds something else than files and folders.
    """
    end = archive.seek(0, os.SEEK_END)
    archive.seek(0)
    try:
        headers = tarfile.TarFile(fileobj=_ShortReads(archive))
        while (header := headers.next()) is not None:
            headers.members.clear()  # type: ignore[attr-defined]  # or all of them would be kept
            if header.isdir():
                continue
            if not header.isreg() or header.issparse():
                raise ValueError(f"its member {shown(header.name)} is no plain file")
            if header.offset_data + header.size > end:
                raise ValueError(f"{shown(header.name)} has {header.size} bytes, and the archive ends before")
            yield _Member(header.name, header.offset_data, header.size)
        stopped_at = headers.offset
    except tarfile.TarError as error:
        raise ValueError(f"it is damaged or cut short ({reason_of(error)})") from error
    # tarfile also stops where something is no header, and where a half-written archive ends.
    archive.seek(stopped_at)
    if archive.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"it is damaged or cut short: at byte {stopped_at} there is neither a member nor its end")


class _ShortReads(io.RawIOBase):
    """A file of which no piece longer than headers have is read at once, whatever size a header claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _label(sample: _Sample, archive: BinaryIO) -> str | int | None:
    """Return the class of a sample, a name or a number; `None` where nothing says it."""
    for suffix in _LABEL_SUFFIXES:
        member = sample.members.get(suffix)
        if member is None:
            continue
        if member.size > MAX_CLASS_BYTES:
            raise ValueError(f"{shown(member.name)} has {member.size} bytes; at most {MAX_CLASS_BYTES} are read")
        archive.seek(member.start)
        data = archive.read(member.size)
        try:
            label = _stated(load_strict(data)) if suffix == ".json" else _text(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown(member.name)} does not say a class: {reason_of(error)}") from error
        if label is not None:
            return label
    return None


def _text(text: str) -> str | int:
    name = text.strip()
    if not name or "\n" in name:
        raise ValueError(f"it holds {shown(name)}; expected one name or number")
    return int(name) if name.isascii() and name.isdigit() else name


def _stated(fields: object) -> str | int | None:
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    found = next((fields[name] for name in _LABEL_FIELDS if name in fields), None)
    if found is None or (isinstance(found, int) and not isinstance(found, bool)):
        return found
    if isinstance(found, str) and found:
        return found
    raise ValueError(f"its class is {shown(found)}; expected a name or a number")


def _named(label: str | int, names: Callable[[], tuple[str, ...] | None], sample: _Sample, file: InputFile) -> str:
    if isinstance(label, str):
        return label
    known = names()
    if known is not None and 0 <= label < len(known):
        return known[label]
    reason = f"there is no {NAMES_FILE} next to it" if known is None else f"{NAMES_FILE} has {len(known)} names"
    raise ImageError(
        f"{file} gives the class of {shown(sample.key)} as the number {label}, and {reason}.",
        found=label,
        expected="names of classes, or their numbers and a list of names",
        where=f"{file}/{sample.key}",
        hint=f"Write the names of the classes, one a line from number 0 on, to {NAMES_FILE} in the archive's folder.",
    )


def _names_beside(file: InputFile) -> tuple[str, ...] | None:
    path = file_beside(file, NAMES_FILE)
    if not exists(path):
        return None
    text = read_input(path, max_bytes=MAX_NAMES_BYTES).decode("utf-8-sig")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _unlabelled(file: InputFile, sample: _Sample | None, first: str) -> ImageError:
    name = first if sample is None else sample.key
    return ImageError(
        f"Nothing in {file} says which class {shown(name)} shows, and others have one.",
        found="no class",
        expected=f"a class for each image: {', '.join(_LABEL_SUFFIXES)}",
        where=f"{file}/{name}",
        hint="What belongs together has one name up to its first dot, and lies side by side in the archive.",
    )


def _value(name: str, data: bytes, key: str) -> InputValue:
    return array_of_bytes(data, where=key) if name.lower().endswith(".npy") else data


@contextmanager
def _reading(file: InputFile) -> Iterator[None]:
    """Raise what goes wrong with an archive as an `ImageError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(
            f"There is no archive {file}.",
            found="no such file",
            expected="a .tar file, as WebDataset has it",
            where=str(file),
            hint="Check the path; of several archives, the first and the last number.",
        ) from error
    except (OSError, ValueError) as error:
        raise ImageError(
            f"Cannot read the archive {file}: {reason_of(error)}.",
            found=reason_of(error),
            expected="a whole .tar file, as WebDataset has it",
            where=str(file),
            hint="Copy or write it again.",
        ) from error
