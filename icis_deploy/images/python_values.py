"""Inputs as somebody has them in Python.

One input is a path, the bytes of an image file, a Pillow image, an array, a tensor of PyTorch, or a list of numbers;
several are an array or tensor with one more dimension, a table of pandas, or anything that yields single ones. A text
is one path, never its characters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.files import path_from
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import ImageError, UsageError
from icis_deploy.images.array_files import array_source, is_array_file, load_array_file, map_array
from icis_deploy.images.input_files import InputFile, input_file
from icis_deploy.images.inputs import InputForm, as_array, is_picture
from icis_deploy.images.loading import open_inputs
from icis_deploy.images.shards import SHARD_SUFFIXES
from icis_deploy.images.sources import InputItem, InputSource, InputValue, ListedValues, checked_labels

if TYPE_CHECKING:
    from PIL.Image import Image

PythonInputs: TypeAlias = Any
"""Inputs in any of the forms of this module."""

_EXPECTED = "paths, bytes of image files, Pillow images, arrays or tensors"


def single_values(
    given: PythonInputs, form: InputForm, *, on_unreadable: Callable[[ImageError], None] | None = None
) -> Iterator[tuple[str, InputValue]]:
    """Yield inputs one by one, each with what it is called in messages.

    Args:
        given: One input or several; what yields them is read as it is needed.
        form: What the model takes, which tells one array from a batch of them.
        on_unreadable: Told of a file of arrays that cannot be read, which is then left out; `None` raises instead.

    Raises:
        UsageError: If something is no input.
        ImageError: If a file of arrays cannot be read.
    """
    if isinstance(given, str | os.PathLike):
        yield from _of_path(input_file(given), form, on_unreadable)
        return
    value = as_array(given, form)
    if _is_table(value):
        value = _numbers_of(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        is_one = form.fits(value.shape) or (form.preprocessing is not None and is_picture(value))
        if is_one or value.ndim < 2:
            yield "the array", value
        else:
            yield from ((f"array[{index}]", one) for index, one in enumerate(value))
    elif _is_single(value):
        yield "the image", value
    elif isinstance(value, Iterable) and not isinstance(value, Mapping | bytearray | memoryview):
        for index, one in enumerate(value):
            yield from _item(one, index, form, on_unreadable)
    else:
        raise _no_input(value, "the inputs")


def _of_path(
    path: InputFile, form: InputForm, on_unreadable: Callable[[ImageError], None] | None
) -> Iterator[tuple[str, InputValue]]:
    try:
        yield from _in_file(path, form)
    except ImageError as error:
        if on_unreadable is None:
            raise
        on_unreadable(error)


def _in_file(path: InputFile, form: InputForm) -> Iterator[tuple[str, InputValue]]:
    """Yield what a file holds: one image, or the inputs of a file of arrays."""
    if isinstance(path, Path) and path.suffix.lower() == ".npy":
        array = map_array(path)
        values = [array] if form.fits(array.shape) else array_source(array, None, where=str(path)).values
        yield from ((str(path) if len(values) == 1 else f"{path}[{i}]", one) for i, one in enumerate(values))
    elif path.suffix.lower() in SHARD_SUFFIXES:
        yield from ((item.key, item.value) for item in open_inputs(str(path)))
    elif isinstance(path, Path) and is_array_file(path):
        yield from ((item.key, item.value) for item in load_array_file(path))
    else:
        yield str(path), path


def _item(
    one: object, index: int, form: InputForm, on_unreadable: Callable[[ImageError], None] | None
) -> Iterator[tuple[str, InputValue]]:
    if isinstance(one, str | os.PathLike):
        yield from _of_path(input_file(one), form, on_unreadable)
        return
    value, key = as_array(one, form), f"input {index}"
    if isinstance(value, list | tuple | np.ndarray):
        yield key, _number_array(value, key)
    elif _is_single(value):
        yield key, value
    elif isinstance(value, np.number | int | float):
        raise UsageError(
            f"{key} is the number {shown(value)}; expected an input of shape {form.shape}.",
            found=shown(value),
            expected=_EXPECTED,
            hint="Give one input as an array, or several as a list of arrays.",
        )
    else:
        raise _no_input(value, key)


def _number_array(value: object, key: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # lists of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise _no_input(value, key)
    return array


def _is_single(value: object) -> TypeGuard[bytes | Image]:
    image = sys.modules.get("PIL.Image")
    return isinstance(value, bytes) or (image is not None and isinstance(value, image.Image))


def _no_input(value: object, key: str) -> UsageError:
    return UsageError(
        f"{key} cannot be {shown(type(value).__name__)}; expected {_EXPECTED}.",
        found=type(value).__name__,
        expected=_EXPECTED,
    )


def _is_table(value: object) -> bool:
    """Say whether a value is a table of pandas, or works like one."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def _numbers_of(table: Any) -> NDArray[Any]:
    array = np.asarray(table.to_numpy())
    if array.dtype.kind == "O":  # columns of several types, such as whole numbers and truth values
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"The table has columns that are no numbers: {shown(list(table.columns))}.",
                found=tuple(str(name) for name in table.columns),
                expected="columns of numbers, in the order of the model's input",
                hint="Choose the columns that the model takes.",
            ) from error
    return array


def source_from(given: PythonInputs, *, where: str = "the inputs") -> InputSource:
    """Return inputs with or without labels as a source.

    Args:
        given: The path of a list, a folder or a file of arrays; a pair of inputs and the names of their classes (or
            `None`); inputs by name of the class; a table of pandas with the column `class` and either `file` or
            numbers; inputs without labels; or a source.
        where: What values in memory are called in messages.

    Raises:
        ImageError: If they cannot be read, or labels do not fit.
        UsageError: If something is no input.
        MissingDependencyError: As `open_inputs`.
    """
    if isinstance(given, str | os.PathLike):
        path = path_from(given, name=where.strip("`"))
        return open_inputs(given if isinstance(given, str) else path)  # a text may be a URI
    if _is_source(given):
        source: InputSource = given
        return source
    if _is_table(given):
        return _source_of_table(given, where)
    if isinstance(given, Mapping):
        values: list[InputValue] = []
        labels: list[str] = []
        for name, inputs in given.items():
            listed = _values_of(inputs, where)
            values.extend(listed)  # of an array its rows; `+=` would add numbers
            labels += [name] * len(listed)
        return _source(values, labels, where)
    if isinstance(given, tuple) and len(given) == 2 and (given[1] is None or _is_list_of_names(given[1])):
        return _source(_values_of(given[0], where), given[1], where)
    return _source(_values_of(given, where), None, where)


def _is_source(given: object) -> bool:
    return all(hasattr(given, name) for name in ("select", "labels", "where", "__iter__", "__len__")) and not _is_table(
        given
    )


def _is_list_of_names(labels: object) -> bool:
    if isinstance(labels, str | bytes) or not hasattr(labels, "__len__"):
        return False
    return all(isinstance(label, str) for label in labels)  # type: ignore[attr-defined]


def _values_of(given: PythonInputs, where: str) -> Sequence[InputValue] | NDArray[Any]:
    """Return values one by one; those of an array stay its rows."""
    value = as_array(given)
    if _is_table(value):
        return _numbers_of(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value
    if isinstance(value, str | os.PathLike):
        return [input_file(value)]
    if _is_single(value):
        return [value]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise _no_input(value, where)
    return [_value_of(one, f"input {index}") for index, one in enumerate(value)]


def _value_of(one: object, key: str) -> InputValue:
    value = as_array(one)
    if isinstance(value, str | os.PathLike):
        return input_file(value)
    if isinstance(value, list | tuple | np.ndarray):
        return _number_array(value, key)
    if _is_single(value):
        return value
    raise _no_input(value, key)


class LabelledStream:
    """Labelled inputs that an iterator yields, each of which is taken once and not kept."""

    def __init__(self, given: Iterator[object], *, where: str) -> None:
        """Take the first one, which says what all are.

        Args:
            given: Yields `(key, label, value)`: what tells an input from all others, the name of the class that it
                shows, and the input as anywhere in Python.
            where: What they are called in messages.

        Raises:
            ImageError: If it yields nothing.
            UsageError: If what it yields is something else.
        """
        self.where = where
        self.labels: set[str] = set()
        """Classes that the inputs show which were taken so far."""
        self.num_taken = 0
        self._given = given
        try:
            self.first = self._item(next(given))
        except StopIteration:
            raise ImageError(
                f"There is nothing in {where}.",
                found=0,
                expected="at least 1 input",
                where=where,
                hint="Give one input at least.",
            ) from None

    def __iter__(self) -> Iterator[InputItem]:
        if self.num_taken == 1:
            yield self.first
        for each in self._given:
            yield self._item(each)

    def _item(self, each: object) -> InputItem:
        number = self.num_taken
        key, label, value = each if isinstance(each, tuple) and len(each) == 3 else ("", "", None)
        if not (isinstance(key, str) and key and isinstance(label, str) and label):
            found = [type(part).__name__ for part in each] if isinstance(each, tuple) else type(each).__name__
            raise UsageError(
                f"{self.where} yields {shown(found)} as number {number}; expected (key, label, value).",
                found=found,
                expected="a tuple: what the input is called, the name of its class, and the input",
                where=self.where,
                hint="Give texts as key and label. No two inputs have the same key.",
            )
        self.num_taken += 1
        self.labels.add(label)
        return InputItem(key, label, _value_of(value, key))


def _source(values: Sequence[InputValue] | NDArray[Any], labels: Any, where: str) -> ListedValues:
    if isinstance(values, np.ndarray):
        return array_source(values, labels, where=where)
    if not values:
        raise ImageError(
            f"There is nothing in {where}.",
            found=0,
            expected="at least 1 input",
            where=where,
            hint="Give one input at least.",
        )
    names = None if labels is None else checked_labels(labels, len(values), where=where)
    return ListedValues(values=values, labels=names, where=where)


def _source_of_table(table: Any, where: str) -> ListedValues:
    labels = list(table["class"]) if "class" in table.columns else None
    rest = [name for name in table.columns if name != "class"]
    if "file" in rest:
        return _source([input_file(file) for file in table["file"]], labels, where)
    return _source(_numbers_of(table[rest]), labels, where)
