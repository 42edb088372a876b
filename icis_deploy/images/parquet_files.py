"""Rows of a Parquet file as inputs of a model.

    class, or label       the class that a row shows: text, or numbers whose names Hugging Face's metadata states
    image, or images      the bytes of an image file, or a struct with `bytes`, as Hugging Face's data sets have it
    file                  the path of a file, relative to the folder of this one
    inputs                numbers: a list for each row, flat or nested, which is laid out as the model's input
    anything else         where there is none of these: each further column is one number of the input, in order

Rows are read a few at a time. Before, the sizes that the file states are added up: of all pages unpacked, and of all
values, since a page of a few bytes can repeat one value for millions of rows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.common.archives import unpacked_limit
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import ImageError, MissingDependencyError
from icis_deploy.images.input_files import InputFile, file_beside, open_input, unchanged, version_of
from icis_deploy.images.sources import InputItem, InputValue, ListedValues

MAX_ROWS = 1 << 25
MAX_COLUMNS = 1 << 14
MAX_BYTES = 1 << 36

LABEL_COLUMNS = ("class", "label")
_FILE_COLUMNS = ("file", "image", "images")
_NUMBER_ROWS, _FILE_ROWS = 256, 4
"""Rows that are read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParquetRows:
    """Inputs that are read from a Parquet file whenever they are needed."""

    path: InputFile
    """The file."""

    version: str
    """Of the file, when its labels were read."""

    columns: tuple[str, ...]
    """Of the inputs: one column of files, images or lists, or several of numbers."""

    num_rows: int
    """How many there are."""

    labels: tuple[str, ...] | None
    """`(num_rows,)`, names of the classes that they show; `None` where no column says it."""

    @property
    def where(self) -> str:
        """Whence they come, for messages."""
        return str(self.path)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[InputItem]:
        for index, value in enumerate(self._values()):
            yield InputItem(f"{self.path}[{index}]", None if self.labels is None else self.labels[index], value)

    def select(self, indices: Sequence[int]) -> ListedValues:
        """Return those with these indices, in the order of the indices; they are held in memory."""
        wanted = set(indices)
        found = {index: value for index, value in enumerate(self._values()) if index in wanted}
        return ListedValues(
            values=[found[index] for index in indices],
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            where=self.where,
            keys=tuple(f"{self.path}[{index}]" for index in indices),
        )

    def _values(self) -> Iterator[InputValue]:
        size = _FILE_ROWS if self.columns[0] in _FILE_COLUMNS else _NUMBER_ROWS
        try:
            with unchanged(self.path, self.version):
                for batch in self.batches(size):
                    yield from values_of(batch, self.path)
        except (ValueError, OSError) as error:  # pyarrow's own errors are of these types
            raise unreadable(self.path, error) from error

    def batches(self, size: int) -> Iterator[Any]:
        """Yield batches of at most so many rows, with the columns of inputs alone; for errors of pyarrow."""
        with _opened(self.path) as file:
            yield from file.iter_batches(batch_size=size, columns=list(self.columns))


def load_parquet(path: InputFile) -> ParquetRows:
    """Open a Parquet file, and read the classes that its rows show.

    Raises:
        ImageError: If it cannot be read, is too large, is changed meanwhile, or has no columns that are inputs.
        MissingDependencyError: If pyarrow is not installed.
    """
    try:
        version = version_of(path)
        with _opened(path) as file:
            schema = file.schema_arrow
            label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
            columns, num_rows = input_columns(schema, label, path), file.metadata.num_rows
        if label is None:
            return ParquetRows(path=path, version=version, columns=columns, num_rows=num_rows, labels=None)
        # As a dictionary, or a page of a few bytes could become one long text a million times.
        with unchanged(path, version), _opened(path, dictionary=[label]) as file:
            batches = file.iter_batches(batch_size=1 << 16, columns=[label])
            labels = tuple(read_labels(batches, label, label_names(schema, label), path))
        return ParquetRows(path=path, version=version, columns=columns, num_rows=num_rows, labels=labels)
    except (ValueError, OSError) as error:
        raise unreadable(path, error) from error


@contextmanager
def _opened(path: InputFile, dictionary: Sequence[str] = ()) -> Iterator[Any]:
    """Give the file, whose stated sizes are within limits."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path} needs pyarrow, which cannot be imported ({error}).",
            found=str(error),
            expected="pyarrow",
            where=str(path),
            hint="Install it: pip install 'icis-deploy[data]'.",
        ) from error
    with open_input(path) as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        with ParquetFile(path if isinstance(path, Path) else opened, read_dictionary=list(dictionary)) as file:
            _check_sizes(file.metadata, size)
            yield file


def _check_sizes(metadata: Any, size: int) -> None:
    limit = unpacked_limit(size, MAX_BYTES)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if metadata.num_columns > MAX_COLUMNS or metadata.num_rows > MAX_ROWS:
        problem = f"it has {metadata.num_rows} rows of {metadata.num_columns} columns"
    elif unpacked > limit:
        problem = f"it unpacks to {unpacked} bytes; at most {limit} are read of such a file"
    elif (values := sum(group.column(i).num_values for group in groups for i in range(group.num_columns))) * 8 > limit:
        problem = f"it states {values} values; at most {limit // 8} are read of such a file"
    else:
        return
    raise ValueError(problem)


def input_columns(schema: Any, label: str | None, path: InputFile) -> tuple[str, ...]:
    """Return the columns of a schema that are inputs.

    Raises:
        ImageError: If there are none.
    """
    from pyarrow import types

    for name in (*_FILE_COLUMNS, "inputs"):
        if name in schema.names:
            return (name,)
    others = [name for name in schema.names if name != label]
    wrong = [
        name
        for name in others
        if not any(kind(schema.field(name).type) for kind in (types.is_integer, types.is_floating, types.is_boolean))
    ]
    if wrong or not others:
        raise ImageError(
            f"{path} has the columns {shown(list(schema.names))}; expected `image`, `file`, `inputs`, or numbers alone "
            f"besides `class`.",
            found=tuple(schema.names),
            expected="image, file, inputs, or columns of numbers; and class",
            where=str(path),
            hint="Name the column of lists 'inputs', or leave out those that are no input of the model.",
        )
    return tuple(others)


def read_labels(batches: Iterable[Any], label: str, names: Sequence[str] | None, path: InputFile) -> Iterator[str]:
    """Yield the classes of rows, from batches that hold their column alone.

    Args:
        batches: Record batches of Arrow.
        label: The column's name.
        names: Of numbered classes; `None` where nobody states them.
        path: Of the file, for messages.

    Raises:
        ImageError: If one is no name, and the number of none.
    """
    row = 0
    for batch in batches:
        for given in batch.column(0).to_pylist():
            is_number = isinstance(given, int) and names is not None and 0 <= given < len(names)
            value = names[given] if is_number and names is not None else given
            if not isinstance(value, str) or not value:
                raise ImageError(
                    f"{path}: the {label} of row {row} is {shown(value)}, which is no name of a class.",
                    found=shown(value),
                    expected="names of classes, as text",
                    where=f"{path}, row {row}",
                    hint="Write the names of the classes, not their numbers.",
                )
            yield sys.intern(value)
            row += 1


def label_names(schema: Any, label: str) -> list[str] | None:
    """Return the names of numbered classes, as Hugging Face's `datasets` writes them; `None` where it did not."""
    try:
        stated = load_strict((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = stated["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def values_of(batch: Any, path: InputFile) -> Iterator[InputValue]:
    """Yield the inputs of a batch of rows, which has the columns of inputs alone.

    Raises:
        ImageError: If a cell is empty, or holds no input.
    """
    for column in batch.columns:
        if column.null_count:
            raise ImageError(
                f"{path} has {column.null_count} empty cells among its inputs.",
                found=column.null_count,
                expected="a value in each row",
                where=str(path),
                hint="Fill or leave out the rows.",
            )
    name = batch.schema.names[0]
    if name == "file":
        yield from (file_beside(path, str(value)) for value in batch.column(0).to_pylist())
    elif name in _FILE_COLUMNS:
        yield from (_image_bytes(value, path) for value in batch.column(0).to_pylist())
    elif name == "inputs":
        yield from (_array(value, path) for value in batch.column(0).to_pylist())
    else:
        yield from np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)


def _image_bytes(value: object, path: InputFile) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ImageError(
            f"{path}: an image is {shown(type(data).__name__)}; expected the bytes of an image file.",
            found=type(data).__name__,
            expected="bytes, or a struct with bytes",
            where=str(path),
        )
    return data


def _array(value: object, path: InputFile) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise ImageError(
            f"{path}: `inputs` holds {shown(type(value).__name__)}s that are no arrays of numbers.",
            found=shown(type(value).__name__),
            expected="lists of numbers, all of one length",
            where=str(path),
        )
    return array


def unreadable(path: InputFile, error: Exception, expected: str = "a Parquet file") -> ImageError:
    """Return the error of a file whose rows cannot be read."""
    return ImageError(
        f"Cannot read the inputs in {path}: {reason_of(error)}.",
        found=reason_of(error),
        expected=expected,
        where=str(path),
        hint="Copy or write it again.",
    )
