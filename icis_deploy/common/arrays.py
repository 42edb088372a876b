"""Types of arrays, and copies of arrays as values: the right dtype and dimensions, finite, contiguous, read-only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import IncompatibleError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Images = NDArray[np.generic]
"""A batch of a model's inputs, `(batch, ...)`, in whatever dtype the model takes."""

_BLOCK = 1 << 22


def row_labels(values: object) -> tuple[Any, ...] | None:
    """Return what the rows of a table of pandas are called, or the numbers of a series; `None` of anything else."""
    index = getattr(values, "index", None)  # a list has a method of this name
    return tuple(index) if hasattr(values, "to_numpy") and isinstance(index, Iterable) else None


def misplaced_labels(rows: object, class_names: Sequence[object]) -> tuple[Any, ...]:
    """Return what the rows of a table of pandas are called, if that is text and not the classes in their order."""
    labels = row_labels(rows) or ()
    has_names = any(isinstance(label, str) for label in labels)
    return labels if has_names and labels != tuple(class_names) else ()


def check_row_order(rows: object, class_names: Sequence[object], *, name: str) -> None:
    """Raise `IncompatibleError` if rows are a table of pandas that names them otherwise than the classes are.

    Args:
        rows: Any array; only a table whose rows have names is looked at.
        class_names: Which class each row is said to belong to.
        name: What the rows are, for the error message.
    """
    if labels := misplaced_labels(rows, class_names):
        raise IncompatibleError(
            f"The {name} are named {shown(labels)}; the class names are {shown(tuple(class_names))}.",
            found=labels,
            expected=tuple(class_names),
            hint="Give the rows in the order of the class names.",
        )


def frozen_float32(values: ArrayLike, *, name: str, ndim: int) -> Float32:
    """Return a read-only float32 copy, or the array itself where it already is a read-only float32 array.

    Args:
        values: Any array of real numbers with `ndim` dimensions.
        name: What the array is, for the error message.
        ndim: The number of dimensions it must have.

    Raises:
        IncompatibleError: If it is no array of real numbers, has another number of dimensions, or a value that is NaN
            or infinite in float32.
    """
    try:
        source = np.asarray(values)
    except (ValueError, TypeError) as error:  # lists of different lengths
        raise IncompatibleError(
            f"The {name} are no array of {ndim} dimensions: {error}",
            found=type(values).__name__,
            expected=f"{ndim} dimensions",
        ) from error
    if source.ndim != ndim:
        raise IncompatibleError(
            f"The {name} have shape {source.shape}; expected {ndim} dimensions.",
            found=source.shape,
            expected=f"{ndim} dimensions",
        )
    if source.dtype.kind not in "biuf":
        raise IncompatibleError(
            f"The {name} have type {source.dtype}; expected real numbers.",
            found=str(source.dtype),
            expected="real numbers",
        )
    if owns_its_frozen_memory(source) and source.dtype == np.float32:
        array = source
    else:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused below by name
            array = np.array(source, dtype=np.float32, order="C")
        array.flags.writeable = False
    first = _first_not_finite(array)
    if first is not None:
        raise IncompatibleError(
            f"The {name} hold {array[first]} at {first}; every value must be a finite float32.",
            found=float(array[first]),
            expected="finite float32",
            where=f"{name} {first}",
        )
    return array


def _first_not_finite(array: Float32) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity; by blocks, as a mask of a large head is a quarter of its size."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        finite = np.isfinite(flat[start : start + _BLOCK])
        if not finite.all():
            return tuple(int(i) for i in np.unravel_index(start + int(np.argmin(finite)), array.shape))
    return None


def owns_its_frozen_memory(array: NDArray[np.generic]) -> bool:
    """Say whether an array can be shared instead of copied: nobody can write to its memory, and it is contiguous."""
    flags = array.flags
    return not flags.writeable and flags.c_contiguous and (array.base is None or _is_over_bytes(array))


def _is_over_bytes(array: NDArray[np.generic]) -> bool:
    owner = array.base
    return isinstance(owner.base if isinstance(owner, np.ndarray) else owner, bytes)


def same_value(one: Any, other: Any) -> bool:
    """Say whether two dataclasses are of one class and hold the same: arrays bit for bit, the rest by `==`."""
    if type(one) is not type(other):
        return False
    return all(_are_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):  # an optional array that one of them lacks
        return False
    return bool(one == other)
