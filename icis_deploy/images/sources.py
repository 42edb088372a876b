"""What a model is run on, one input after the other, whatever it comes from.

A list of files, a folder, an array, the rows of a Parquet file and values in Python are sources of one kind: each knows
how many inputs it has and which classes they show, yields them in order, and picks some of them. None prepares them:
that takes a model, and is done in batches (`icis_deploy.images.inputs`), so that what is large need not be held.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from numpy.typing import NDArray

from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import ImageError
from icis_deploy.images.input_files import RemoteFile

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 1 << 29
"""Of one image file: as many pixels as are taken, not compressed, of four channels and 16 bits. Some of Pillow's
readers take the whole file into memory."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp", ".npy"})
"""What is an image, or an input as an array, among the files of a folder or an archive; a list may name others."""

InputValue: TypeAlias = "Path | RemoteFile | bytes | Image | NDArray[Any]"
"""A file, on disk or at a URI, the bytes of one, a picture, or an array: pixels `(height, width, channels)`, or as the
model takes it."""


class InputItem(NamedTuple):
    """One input of a model, not prepared."""

    key: str
    """What tells it from the others, for messages and tables: a path, or the source with a number."""

    label: str | None
    """The class that it shows; `None` where nobody says."""

    value: InputValue
    """What is prepared for the model."""


class InputStream(Protocol):
    """Inputs of a model in order, which need not be there more than once."""

    @property
    def where(self) -> str:
        """Whence they come, for messages."""

    def __iter__(self) -> Iterator[InputItem]:
        """Yield them in order."""


class InputSource(Protocol):
    """Inputs of a model in order, with or without the classes that they show."""

    @property
    def where(self) -> str:
        """Whence they come, for messages."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """`(num_inputs,)`, names of the classes that they show; `None` where nobody says."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __iter__(self) -> Iterator[InputItem]:
        """Yield them in order; each iteration yields the same ones."""

    def select(self, indices: Sequence[int]) -> InputSource:
        """Return those with these indices, in the order of the indices."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListedValues:
    """Inputs that are in memory, or rows of an array that is mapped into it."""

    values: Sequence[InputValue] | NDArray[Any]
    """`(num_inputs,)` values, or an array `(num_inputs, *shape)`."""

    labels: tuple[str, ...] | None = None
    """`(num_inputs,)`, names of the classes that they show; `None` where nobody says."""

    where: str = "the inputs"
    """Whence they come, for messages."""

    keys: tuple[str, ...] | None = None
    """`(num_inputs,)`, what each is called; `None` for its number."""

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[InputItem]:
        for index, value in enumerate(self.values):
            key = f"{self.where}[{index}]" if self.keys is None else self.keys[index]
            yield InputItem(key, None if self.labels is None else self.labels[index], value)

    def select(self, indices: Sequence[int]) -> ListedValues:
        """Return those with these indices, in the order of the indices."""
        return ListedValues(
            values=[self.values[index] for index in indices],
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            where=self.where,
            keys=tuple(f"{self.where}[{index}]" if self.keys is None else self.keys[index] for index in indices),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JoinedSources:
    """Inputs of several sources, one after the other, such as the shards of a data set."""

    parts: tuple[InputSource, ...]
    """At least one; all of them say which classes their inputs show, or none does."""

    where: str
    """Whence they come, for messages."""

    labels: tuple[str, ...] | None
    """`(num_inputs,)`, names of the classes that they show; `None` where nobody says."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[InputItem]:
        for part in self.parts:
            yield from part

    def select(self, indices: Sequence[int]) -> InputSource:
        """Return those with these indices, in the order of the indices."""
        starts = [0, *accumulate(map(len, self.parts))]
        runs = groupby(((bisect_right(starts, index) - 1, index) for index in indices), key=lambda found: found[0])
        chosen = tuple(self.parts[part].select([index - starts[part] for _, index in run]) for part, run in runs)
        return _joined(chosen, self.where)


def join(parts: Sequence[InputSource], *, where: str) -> InputSource:
    """Return several sources as one.

    Raises:
        ImageError: If some of them say which classes their inputs show, and others do not.
    """
    silent = next((part for part in parts if part.labels is None), None)
    speaking = next((part for part in parts if part.labels is not None), None)
    if silent is not None and speaking is not None:
        raise ImageError(
            f"{silent.where} does not say which classes its inputs show, and {speaking.where} does.",
            found="no classes",
            expected="classes in every file of a data set, or in none",
            where=silent.where,
            hint="Give classes in all of them, or in none.",
        )
    return _joined(tuple(parts), where)


def _joined(parts: tuple[InputSource, ...], where: str) -> JoinedSources:
    of_parts = [part.labels for part in parts]
    is_labelled = bool(parts) and of_parts[0] is not None
    labels = tuple(name for names in of_parts for name in names or ()) if is_labelled else None
    return JoinedSources(parts=parts, where=where, labels=labels)


def checked_labels(labels: Sequence[object] | NDArray[Any], num_inputs: int, *, where: str) -> tuple[str, ...]:
    """Return labels as names of classes.

    Args:
        labels: `(num_inputs,)` texts.
        num_inputs: How many inputs there are.
        where: Whence they come, for messages.

    Raises:
        ImageError: If there are more or fewer, or one is no text.
    """
    listed: list[object] = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(listed) != num_inputs:
        raise ImageError(
            f"{where}: there are {num_inputs} inputs and {len(listed)} labels; expected a label for each input.",
            found=(num_inputs, len(listed)),
            expected="a label for each input",
            where=where,
            hint="Give one label for each input.",
        )
    wrong = next((each for each in listed if not isinstance(each, str) or not each), None)
    if wrong is not None or "" in listed:
        raise ImageError(
            f"{where}: the label {shown(wrong)} is no name of a class.",
            found=shown(wrong),
            expected="names of classes, as text",
            where=where,
            hint="Labels are names: write the name of the class for each number.",
        )
    return tuple(str(each) for each in listed)


def labels_of(source: InputSource) -> tuple[str, ...]:
    """Return the labels of a source that must have some.

    Raises:
        ImageError: If nobody says what its inputs show.
    """
    if source.labels is None:
        raise ImageError(
            f"Nothing says which classes the {len(source)} inputs of {source.where} show.",
            found="no labels",
            expected="the name of a class for each input",
            where=source.where,
            hint="Give a CSV with the columns file and class, a folder for each class, an .npz with inputs and labels, "
            "a .parquet with a column class, or a pair of inputs and labels.",
        )
    return source.labels
