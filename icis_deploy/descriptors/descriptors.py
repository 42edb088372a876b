"""Class descriptors: one vector per class that says what the class is, made without any image of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.common.arrays import Bool, Float32, frozen_float32, same_value
from icis_deploy.errors import ClassConflictError, DescriptorError
from icis_deploy.head.class_names import check_unique, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:  # noqa: PLW1641 - compared, never a key
    """Descriptors of named classes, in one space.

    Example:
        >>> both = icis_deploy.Descriptors(values=[[1, 0, 1], [0, 1, 1]], class_names=("okapi", "zebra"))
        >>> both.select(["zebra"]).values
        array([[0., 1., 1.]], dtype=float32)

    Raises:
        DescriptorError: On construction, naming the first classes whose descriptor is NaN, infinite or zero, or if the
            values are not a matrix of real numbers with one row per name, or if a name is given twice.
    """

    values: Float32
    """`(num_classes, descriptor_dim)` float32, read-only; attributes, or an embedding of the class's name."""

    class_names: tuple[str, ...]
    """`(num_classes,)`, unique."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        raw = _real_array(self.values)
        if raw.ndim != 2 or raw.shape[1] == 0:
            raise DescriptorError(
                f"The descriptors have shape {raw.shape}; expected (num_classes, descriptor_dim): one vector of the "
                f"same width for every class.",
                found=raw.shape,
                expected="(num_classes, descriptor_dim)",
            )
        if len(raw) != len(self.class_names):
            raise DescriptorError(
                f"There are {len(raw)} descriptors but {len(self.class_names)} class names.",
                found=len(raw),
                expected=len(self.class_names),
            )
        try:
            check_unique(self.class_names)
        except ClassConflictError as error:
            raise DescriptorError.at("Descriptors", error) from error
        with np.errstate(over="ignore", under="ignore"):
            values = raw.astype(np.float32)
        self._refuse(np.logical_not(np.isfinite(values).all(axis=1)), "a NaN or infinite value in its descriptor")
        self._refuse(np.logical_not(values.any(axis=1)), "an all-zero descriptor, which describes nothing")
        object.__setattr__(self, "values", frozen_float32(raw, name="descriptors", ndim=2))

    def _refuse(self, bad: Bool, what: str) -> None:
        if bad.any():
            names = [name for name, is_bad in zip(self.class_names, bad, strict=True) if is_bad]
            raise DescriptorError(
                f"{quoted(names)} has {what}.",
                found=tuple(names),
                hint="Correct or drop it.",
            )

    __eq__ = same_value

    @property
    def num_classes(self) -> int:
        """Number of described classes."""
        return len(self.values)

    @property
    def descriptor_dim(self) -> int:
        """Width of a descriptor."""
        return int(self.values.shape[1])

    def select(self, class_names: Sequence[str]) -> Descriptors:
        """Return the descriptors of `class_names`, in that order.

        Raises:
            DescriptorError: Naming the classes that have none.
        """
        index_of = {name: index for index, name in enumerate(self.class_names)}
        missing = [name for name in class_names if name not in index_of]
        if missing:
            raise DescriptorError(
                f"No descriptor for {quoted(missing)}; there are descriptors of {self.num_classes} classes, such as "
                f"{quoted(self.class_names)}.",
                found=self.class_names,
                expected=tuple(missing),
                hint="Descriptors are matched to classes by name: check that both files use the same names.",
            )
        return Descriptors(values=self.values[[index_of[name] for name in class_names]], class_names=tuple(class_names))


def _real_array(values: ArrayLike) -> NDArray[np.generic]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DescriptorError(
            f"The descriptors are no matrix: {error} Expected one vector of the same width for every class.",
            found=str(error),
            expected="(num_classes, descriptor_dim)",
        ) from error
    if array.dtype.kind not in "biuf":
        raise DescriptorError(
            f"The descriptors have type {array.dtype}; expected real numbers.",
            found=str(array.dtype),
            expected="real numbers",
        )
    return array
