"""Files of arrays that a model takes as they are, such as rows of a table, spectrograms or embedded text.

    inputs.npy            `(num_inputs, *input_shape)`; nobody says which classes they show
    inputs.npz            `inputs` (or `images`, or the only array), and `labels`, the names of their classes
    inputs.safetensors    `inputs` (or `images`, or the only tensor); the names as a JSON list under `labels` in the
                          metadata
    inputs.parquet        a row for each input (`parquet_files.py`)

Nothing of a file's own numbers is believed before it was compared with the file's size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.archives import read_npz
from icis_deploy.common.closest import did_you_mean_path
from icis_deploy.common.files import open_plain, read_capped
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.tensor_files import MAX_HEADER_BYTES, load_tensors, read_header
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import ImageError
from icis_deploy.images.input_files import InputFile
from icis_deploy.images.sources import InputSource, ListedValues, checked_labels

MAX_ARRAY_BYTES = 1 << 34

ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".safetensors", ".parquet"})
"""Endings of files that hold any number of inputs."""

_INPUT_NAMES = ("inputs", "images")
_OTHER_NAMES = frozenset({"labels", "features"})


def is_array_file(path: InputFile) -> bool:
    """Say whether a file is one of arrays, by its ending."""
    return path.suffix.lower() in ARRAY_SUFFIXES and not (isinstance(path, Path) and path.is_dir())


def load_array_file(path: InputFile) -> InputSource:
    """Open a file of inputs, whose ending gives its format; one of features alone is none.

    Raises:
        ImageError: If it cannot be read, holds no inputs, or inputs and labels do not fit.
        MissingDependencyError: If it is a Parquet file and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from icis_deploy.images.parquet_files import load_parquet

        return load_parquet(path)
    if not isinstance(path, Path):
        raise ImageError(
            f"{path} cannot be read where it is: only lists, .parquet and .tar files are read from a URI.",
            found=suffix,
            expected=(".csv", ".parquet", ".tar"),
            where=str(path),
            hint="Copy it to this machine first.",
        )
    labels: object = None
    if suffix == ".npy":
        array = map_array(path)
    elif suffix == ".npz":
        array, labels = _read_npz(path)
    else:
        array, labels = _read_safetensors(path)
    return array_source(array, labels, where=str(path))


def array_source(array: NDArray[Any], labels: Any, *, where: str) -> ListedValues:
    """Return the rows of an array as inputs.

    Args:
        array: `(num_inputs, *input_shape)`.
        labels: `(num_inputs,)` names of classes, or `None`.
        where: Whence they come, for messages.

    Raises:
        ImageError: If there is none, or the labels do not fit.
    """
    if array.ndim < 2 or not len(array):
        raise ImageError(
            f"{where}: the array has shape {array.shape}; expected (num_inputs, *input_shape), one input at least.",
            found=array.shape,
            expected="(num_inputs, *input_shape)",
            where=where,
            hint="Give a batch: one input alone needs an axis before the others, as array[None] makes it.",
        )
    names = None if labels is None else checked_labels(labels, len(array), where=where)
    return ListedValues(values=array, labels=names, where=where)


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of a `.npy` file into memory, read-only.

    Raises:
        ImageError: If it cannot be read, or its header states another size than the file has.
    """
    try:
        with open_plain(path) as raw, BufferedReader(raw) as file:
            shape, is_fortran, dtype = _checked_header(cast(BinaryIO, file), os.fstat(raw.fileno()).st_size)
            if not dtype.itemsize * math.prod(shape):
                return np.empty(shape, dtype)
            return np.memmap(
                file, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order="F" if is_fortran else "C"
            )
    except (OSError, ValueError, SyntaxError, TypeError, OverflowError) as error:  # of numpy's parser of headers
        raise _no_array(path, error) from error


def array_of_bytes(data: bytes, *, where: str) -> NDArray[Any]:
    """Return the array of an `.npy` file that is in memory, read-only and without a copy.

    Args:
        data: All of the file.
        where: What it is called, for messages.

    Raises:
        ImageError: As `map_array`.
    """
    try:
        file = BytesIO(data)
        shape, is_fortran, dtype = _checked_header(file, len(data))
        flat = np.frombuffer(data, dtype=dtype, offset=file.tell())
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise _no_array(where, error) from error


def _no_array(where: Path | str, error: Exception) -> ImageError:
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return ImageError(
            f"Cannot read the array {where}: {reason}.",
            found=reason,
            expected="an .npy file of numbers",
            where=where,
            hint=f"{did_you_mean_path(where) if isinstance(where, Path) else ''}Check its path and permissions.",
        )
    return ImageError(
        f"Cannot read the array {where}: {reason_of(error)}.",
        found=reason_of(error),
        expected="an .npy file of numbers",
        where=where,
        hint="Write it again with numpy.save, without pickled objects.",
    )


def _checked_header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of an `.npy` file of some bytes, which must be as many as these need."""
    shape, is_fortran, dtype = _npy_header(file)
    left, needed = size - file.tell(), dtype.itemsize * math.prod(shape)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"its type is {shown(str(dtype))}; expected numbers")
    if needed != left:
        raise ValueError(f"it has {left} bytes; its shape {shown(shape)} and type {shown(str(dtype))} need {needed}")
    return shape, is_fortran, dtype


def holds_features_alone(path: Path) -> bool:
    """Say whether a `.npz` or `.safetensors` file holds features and no inputs; what cannot be read holds none."""
    names = _array_names(path)
    return "features" in names and not any(name in names for name in _INPUT_NAMES)


def holds_inputs(path: Path) -> bool:
    """Say whether a `.npz` or `.safetensors` file says that it holds inputs; what cannot be read holds none."""
    names = _array_names(path)
    return any(name in names for name in _INPUT_NAMES)


def _array_names(path: Path) -> Collection[str]:
    try:
        with open_plain(path) as file:
            if path.suffix.lower() == ".npz":
                return read_npz(file, (), max_bytes=MAX_ARRAY_BYTES)[1]
            start = file.read(8)
            return read_header(start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES)))
    except (OSError, ValueError):
        return ()


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"it has a header of version {version}")


def _read_npz(path: Path) -> tuple[NDArray[Any], object]:
    try:
        with open_plain(path) as file:
            arrays, names = read_npz(file, (*_INPUT_NAMES, "labels"), max_bytes=MAX_ARRAY_BYTES)
            name = _inputs_among(names, path)
            if name not in arrays:
                arrays |= read_npz(file, (name,), max_bytes=MAX_ARRAY_BYTES)[0]
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "an .npz file with inputs and labels") from error
    return arrays[name], arrays.get("labels")


def _read_safetensors(path: Path) -> tuple[NDArray[Any], object]:
    data = read_capped(path, max_bytes=MAX_ARRAY_BYTES, what="file of inputs", error_type=ImageError)
    try:
        tensors, metadata = load_tensors(data)
        stated = metadata.get("labels")
        labels = load_strict(stated) if isinstance(stated, str) else stated
        if labels is not None and not isinstance(labels, list):
            raise ValueError("the labels in its metadata are not a JSON list of names")
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error, "a .safetensors file with inputs") from error
    return tensors[_inputs_among(tuple(tensors), path)], tensors.get("labels") if labels is None else labels


def _unreadable(path: Path, error: Exception, expected: str) -> ImageError:
    return ImageError(
        f"Cannot read the inputs in {path}: {reason_of(error)}.",
        found=reason_of(error),
        expected=expected,
        where=path,
        hint="Write it again, with an array inputs and, where classes are needed, labels.",
    )


def _inputs_among(names: Collection[str], path: Path) -> str:
    """Return the name of the array of inputs."""
    found = next((name for name in _INPUT_NAMES if name in names), None)
    others = [name for name in names if name not in _OTHER_NAMES]
    if found is None and len(others) == 1:
        return others[0]
    if found is None:
        raise ImageError(
            f"{path} holds {shown(sorted(names))}; expected `inputs`, as the model takes them, and `labels`, the names "
            f"of their classes.",
            found=tuple(names),
            expected=("inputs", "labels"),
            where=path,
            hint="`bench()` measures the accuracy of features." if "features" in names else None,
        )
    return found
