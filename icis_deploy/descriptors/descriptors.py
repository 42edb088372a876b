"""Class descriptors: one vector per class that says what the class is, made without any image of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.common.arrays import Bool, Float32, frozen_float32, misplaced_labels, same_value
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.given import ordered_items
from icis_deploy.errors import ClassConflictError, DescriptorError
from icis_deploy.head.class_names import check_unique, quoted

UNNAMED_BLOCK = "descriptors"
"""What the only block of descriptors is called that nobody divided into blocks."""

_USABLE = (1e-16, 1e16)
"""Of the greatest value of a descriptor: the sum of the squares of a million such is still a number of float32."""


@dataclass(frozen=True, slots=True)
class DescriptorBlock:
    """Neighbouring columns of descriptors that come from one source, such as tags or word vectors.

    Example:
        >>> icis_deploy.DescriptorBlock("tags", 40)
        DescriptorBlock(name='tags', width=40)

    Raises:
        DescriptorError: On construction, if the name is not text on one line without spaces around it, or the width is
            no whole number from 1.
    """

    name: str

    width: int
    """Number of columns."""

    def __post_init__(self) -> None:
        if (
            not isinstance(self.name, str)
            or not self.name
            or not self.name.isprintable()
            or self.name != self.name.strip()
        ):
            raise DescriptorError(
                f"A block of descriptors is called {self.name!r}; expected printable text without spaces around it.",
                found=self.name,
                expected="printable text without spaces around it",
            )
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            raise DescriptorError(
                f"Block {self.name!r} of the descriptors has width {self.width!r}; expected a whole number from 1.",
                found=self.width,
                expected="a whole number from 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:  # noqa: PLW1641 - compared, never a key
    """Descriptors of named classes, in one space; the columns may be divided into blocks, one for each source.

    A class whose columns of a block are all zero is missing there: nothing is known of it from that source.

    Example:
        >>> both = icis_deploy.Descriptors(values=[[1, 0, 1], [0, 1, 1]], class_names=("okapi", "zebra"))
        >>> both.select(["zebra"]).values
        array([[0., 1., 1.]], dtype=float32)
        >>> tags = icis_deploy.DescriptorBlock("tags", 3)
        >>> vectors = icis_deploy.Descriptors(values=[[0.5, 2]], class_names=["okapi"])
        >>> tagged = icis_deploy.Descriptors(values=both.values, class_names=both.class_names, blocks=[tags])
        >>> icis_deploy.Descriptors.merged([tagged, vectors]).missing_in("descriptors")
        ('zebra',)

    Raises:
        DescriptorError: On construction, naming the first classes whose descriptor is NaN, infinite, zero, or of values
            so large or small that float32 computes no length of them; or if the values are not a matrix of real
            numbers with one row per name, or if a name is given twice, or if two blocks have one name, or the widths
            of the blocks do not sum to `descriptor_dim`.
    """

    values: Float32
    """`(num_classes, descriptor_dim)` float32, read-only; attributes, or an embedding of the class's name."""

    class_names: tuple[str, ...]
    """`(num_classes,)`, unique."""

    blocks: tuple[DescriptorBlock, ...] = ()
    """In the order of the columns; one block named `descriptors` where none are given."""

    def __post_init__(self) -> None:
        names = ordered_items(self.class_names, "names of classes", name="class_names")
        object.__setattr__(self, "class_names", names)
        self._check_row_labels()
        raw = _real_array(self.values)
        if raw.ndim != 2 or raw.shape[1] == 0:
            raise DescriptorError(
                f"The descriptors have shape {raw.shape}; expected (num_classes, descriptor_dim): one vector of the "
                f"same width for every class.",
                found=raw.shape,
                expected="(num_classes, descriptor_dim)",
                hint="Give a table with a row for each class.",
            )
        if len(raw) != len(self.class_names):
            raise DescriptorError(
                f"There are {len(raw)} descriptors but {len(self.class_names)} class names.",
                found=len(raw),
                expected=len(self.class_names),
                hint="Give one name for each row.",
            )
        try:
            check_unique(self.class_names)
        except ClassConflictError as error:
            raise DescriptorError.at("Descriptors", error) from error
        with np.errstate(over="ignore", under="ignore"):
            values = raw.astype(np.float32)
        self._refuse(np.logical_not(np.isfinite(values).all(axis=1)), "a NaN or infinite value in its descriptor")
        self._refuse(np.logical_not(values.any(axis=1)), "an all-zero descriptor, which describes nothing")
        greatest = np.abs(values).max(axis=1)
        low, high = _USABLE
        scale = "Multiply all descriptors by one number, so that their values are near 1."
        self._refuse(greatest > high, f"a value beyond {high:.0e}, of which float32 computes no length", hint=scale)
        self._refuse(greatest < low, f"no value above {low:.0e}, of which float32 computes no length", hint=scale)
        object.__setattr__(self, "values", frozen_float32(raw, name="descriptors", ndim=2))
        object.__setattr__(self, "blocks", tuple(self.blocks) or (DescriptorBlock(UNNAMED_BLOCK, raw.shape[1]),))
        self._check_blocks()

    def _check_row_labels(self) -> None:
        """Refuse a table of pandas whose rows have names of their own, in another order than the classes."""
        labels = misplaced_labels(self.values, self.class_names)
        if not labels:
            return
        raise DescriptorError(
            f"The rows of the values are named {quoted(labels)}; the class names are {quoted(self.class_names)}.",
            found=labels,
            expected=self.class_names,
            hint="Give the rows in the order of the class names.",
        )

    def _check_blocks(self) -> None:
        names = [block.name for block in self.blocks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DescriptorError(
                f"Two blocks of the descriptors are called {quoted(twice)}.",
                found=tuple(names),
                expected="a name of its own for each block",
                hint="Give one of them another name.",
            )
        total = sum(block.width for block in self.blocks)
        if total != self.descriptor_dim:
            raise DescriptorError(
                f"The blocks of the descriptors ({quoted(names)}) have {total} columns together; the values have "
                f"{self.descriptor_dim}.",
                found=total,
                expected=self.descriptor_dim,
            )

    def _refuse(self, bad: Bool, what: str, *, hint: str = "Correct or drop it.") -> None:
        if bad.any():
            names = [name for name, is_bad in zip(self.class_names, bad, strict=True) if is_bad]
            raise DescriptorError(
                f"{quoted(names)} has {what}.",
                found=tuple(names),
                hint=hint,
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

    def block(self, name: str) -> Float32:
        """Return the columns of one block, `(num_classes, width)` float32, read-only; zero rows are missing classes.

        Raises:
            DescriptorError: Naming the blocks that there are.
        """
        start = 0
        for block in self.blocks:
            if block.name == name:
                return self.values[:, start : start + block.width]
            start += block.width
        names = tuple(block.name for block in self.blocks)
        raise DescriptorError(
            f"The descriptors have no block {name!r}; they have {quoted(names)}.",
            found=name,
            expected=names,
            hint="Describe the classes with the same sources as before.",
        )

    def missing_in(self, name: str) -> tuple[str, ...]:
        """Return the classes of which a block says nothing, in the order of `class_names`.

        Raises:
            DescriptorError: If there is no block of this name.
        """
        missing = np.flatnonzero(np.logical_not(self.block(name).any(axis=1)))
        return tuple(self.class_names[index] for index in missing)

    @classmethod
    def merged(cls, parts: Sequence[Descriptors]) -> Descriptors:
        """Return descriptors with the blocks of all parts, matched by class name.

        The classes are those of any part, in the order in which they first appear; a class that a part does not
        describe is missing in its blocks.

        Raises:
            DescriptorError: If there are no parts, or two blocks have one name.
        """
        if not parts:
            raise DescriptorError(
                "There are no descriptors to merge.",
                found=0,
                expected="one part or more",
                hint="Give one at least.",
            )
        class_names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
        index_of = {name: index for index, name in enumerate(class_names)}
        values = np.zeros((len(class_names), sum(part.descriptor_dim for part in parts)), dtype=np.float32)
        start = 0
        for part in parts:
            rows = [index_of[name] for name in part.class_names]
            values[rows, start : start + part.descriptor_dim] = part.values
            start += part.descriptor_dim
        return cls(values=values, class_names=class_names, blocks=tuple(b for part in parts for b in part.blocks))

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
                hint=f"{did_you_mean(missing, self.class_names)}Descriptors are matched to classes by name: check that "
                f"both files use the same names.",
            )
        return Descriptors(
            values=self.values[[index_of[name] for name in class_names]],
            class_names=tuple(class_names),
            blocks=self.blocks,
        )


def _real_array(values: ArrayLike) -> NDArray[np.generic]:
    masked = sys.modules.get("numpy.ma")  # whoever has a masked array has imported it
    if masked is not None and isinstance(values, masked.MaskedArray) and masked.is_masked(values):
        num_masked = int(masked.count_masked(values))
        raise DescriptorError(
            f"The descriptors mask {num_masked} of their {values.size} values, which are missing.",
            found=f"{num_masked} masked values",
            expected="real numbers",
            hint="Fill them, or leave the classes or columns out that have them.",
        )
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
            hint="Give numbers; words become numbers by `describe()`.",
        )
    return array
