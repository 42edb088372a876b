"""Slots: the reserved rows of an updatable head, and what a class update does to them.

Rules:

1. Rows are written into the lowest empty slots, in the update's order; a replaced class keeps its slot.
2. An empty slot has a zero weight and the bias `EMPTY_SLOT_BIAS`, so that it can never win.
3. Applying an update gives a new table. The old one stays as it was, so a request that started with it ends with it.
"""

# Why: docs/decisions/0004.

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32, frozen_float32, same_value
from icis_deploy.common.closest import did_you_mean
from icis_deploy.errors import CapacityError, ClassConflictError, IncompatibleError
from icis_deploy.head.arbiter import STATISTICS, no_arbiter
from icis_deploy.head.class_names import check_unique, quoted
from icis_deploy.head.class_update import ClassUpdate

# Why: docs/decisions/0008.
EMPTY_SLOT_BIAS = -6e4
"""Some heads have only negative logits, where a zero row would win. Float16 can hold it: its least is -65504."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTable:  # noqa: PLW1641 - compared, never a key
    """The contents of all slots of one head at one moment.

    Example:
        >>> from icis_deploy.head.slots import SlotTable
        >>> table = SlotTable(
        ...     weight=[[0.0, 1.0], [0.0, 0.0]], bias=[0.5, -6e4], class_names=("okapi", None)
        ... )
        >>> table.capacity, table.filled_names
        (2, ('okapi',))

    Raises:
        IncompatibleError: On construction, if shapes disagree.
        ClassConflictError: On construction, if a name occurs twice.
    """

    weight: Float32
    """`(capacity, feature_dim)` float32, read-only."""

    bias: Float32
    """`(capacity,)` float32, read-only."""

    class_names: tuple[str | None, ...]
    """`(capacity,)`: the class in each slot, `None` where it is empty."""

    arbiter: Float32 | None = None
    """`(capacity, 5)` float32, read-only: what each slot's logit follows from `arbiter.STATISTICS` of the image; zero
    for a slot without an arbiter. `None` where no slot has one; zeros become `None`."""

    filled: NDArray[np.intp] = field(init=False, repr=False)
    """`(num_filled,)`, read-only: the indices of the slots that hold a class, ascending."""

    filled_names: tuple[str, ...] = field(init=False, repr=False)
    """`(num_filled,)`: the classes in the slots, in slot order."""

    slot_of: Mapping[str, int] = field(init=False, repr=False)
    """The slot of each class, in slot order."""

    __eq__ = same_value

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", frozen_float32(self.weight, name="slot weights", ndim=2))
        object.__setattr__(self, "bias", frozen_float32(self.bias, name="slot biases", ndim=1))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if not len(self.weight) == len(self.bias) == len(self.class_names):
            raise IncompatibleError(
                f"The slot table has {len(self.weight)} weights, {len(self.bias)} biases and {len(self.class_names)} "
                f"names; expected one of each per slot.",
                found=(len(self.weight), len(self.bias), len(self.class_names)),
                expected="one weight, one bias and one name per slot",
            )
        if self.arbiter is not None:
            object.__setattr__(self, "arbiter", self._checked_arbiter(self.arbiter))
        check_unique([name for name in self.class_names if name is not None])
        self._find_filled()

    def _checked_arbiter(self, arbiter: Float32) -> Float32 | None:
        arbiter = frozen_float32(arbiter, name="arbiters of the slots", ndim=2)
        expected = (len(self.class_names), len(STATISTICS))
        if arbiter.shape != expected:
            raise IncompatibleError(
                f"The arbiters of the slots have shape {arbiter.shape}; expected {expected}: {len(STATISTICS)} "
                f"coefficients for each slot.",
                found=arbiter.shape,
                expected=expected,
            )
        return arbiter if arbiter.any() else None

    def _find_filled(self) -> None:
        slot_of = {name: index for index, name in enumerate(self.class_names) if name is not None}
        indices = np.array([*slot_of.values()], dtype=np.intp)
        indices.flags.writeable = False
        object.__setattr__(self, "filled", indices)
        object.__setattr__(self, "filled_names", tuple(slot_of))
        object.__setattr__(self, "slot_of", slot_of)

    @classmethod
    def _of_checked(
        cls, weight: Float32, bias: Float32, arbiter: Float32 | None, class_names: list[str | None]
    ) -> SlotTable:
        """Return a table of new arrays, which become read-only, whose rows and names were checked where they are from.

        Looking for NaN in all slots again takes as long as changing some of them.
        """
        table = object.__new__(cls)
        weight.flags.writeable = bias.flags.writeable = False
        if arbiter is not None:
            arbiter.flags.writeable = False
            arbiter = arbiter if arbiter.any() else None
        object.__setattr__(table, "weight", weight)
        object.__setattr__(table, "bias", bias)
        object.__setattr__(table, "arbiter", arbiter)
        object.__setattr__(table, "class_names", tuple(class_names))
        table._find_filled()
        return table

    @property
    def capacity(self) -> int:
        """Number of slots, empty ones included."""
        return len(self.class_names)

    @property
    def feature_dim(self) -> int:
        """Width of a feature."""
        return int(self.weight.shape[1])

    def differing(self, other: SlotTable) -> tuple[int, ...]:
        """Return the slots that hold another class, or another row, than in a table of the same size."""
        differ = (self.weight != other.weight).any(axis=1) | (self.bias != other.bias)
        differ |= (self.coefficients != other.coefficients).any(axis=1)
        differ |= [name != former for name, former in zip(self.class_names, other.class_names, strict=True)]
        return tuple(np.flatnonzero(differ).tolist())

    @property
    def coefficients(self) -> Float32:
        """`(capacity, 5)` float32, read-only: `arbiter`, with zeros where no slot has one."""
        return no_arbiter(self.capacity) if self.arbiter is None else self.arbiter

    @property
    def fills_first_slots(self) -> bool:
        """Whether no empty slot comes before a filled one."""
        return not self.filled.size or bool(self.filled[-1] == self.filled.size - 1)

    def filled_weight(self) -> Float32:
        """Return `(num_filled, feature_dim)` float32, in slot order: a view where the filled slots are the first."""
        return self.weight[: self.filled.size] if self.fills_first_slots else self.weight[self.filled]

    def _copied_weight(self) -> Float32:
        """Return a copy of the weights that does not read the empty slots after the last class (rule 2)."""
        end = int(self.filled[-1]) + 1 if self.filled.size else 0
        weight = np.empty_like(self.weight)
        weight[:end], weight[end:] = self.weight[:end], 0.0
        return weight

    def rows(self) -> Float32:
        """Return `(num_filled, feature_dim + 1)` float32: the rows of the filled slots, in slot order."""
        rows = np.empty((self.filled.size, self.feature_dim + 1), dtype=np.float32)
        rows[:, :-1], rows[:, -1] = self.filled_weight(), self.bias[self.filled]
        return rows

    def digest(self, *, leaving_out: Collection[str] = ()) -> str:
        """Return the SHA-256 of the classes in slots, whichever slots they are in, lower-case hexadecimal.

        It covers names, weights, biases and arbiters, in the order of the names' UTF-8 bytes. Two devices with the same
        classes have the same digest, whatever their capacity and however they came to them.

        Args:
            leaving_out: Classes that are no part of it: those that a device was taught.
        """
        named = sorted((name.encode(), slot) for name, slot in self.slot_of.items() if name not in leaving_out)
        parts: list[bytes | memoryview] = [b"icis-deploy slots 1"]
        tensors = [(_bytes_of(tensor), 4 * tensor[:1].size) for tensor in (self.weight, self.bias, self.coefficients)]
        for name, slot in named:
            parts += (len(name).to_bytes(4, "little"), name)
            parts += [data[slot * step : (slot + 1) * step] for data, step in tensors]
        return hashlib.sha256(b"".join(parts)).hexdigest()  # at once, in half the time of many pieces

    def without(self, class_names: Collection[str]) -> SlotTable:
        """Return the table with the slots of these classes empty; a class that is in no slot is left out."""
        emptied = [slot for name, slot in self.slot_of.items() if name in class_names]
        if not emptied:
            return self
        weight, bias = self.weight.copy(), self.bias.copy()
        weight[emptied], bias[emptied] = 0.0, EMPTY_SLOT_BIAS
        arbiter = None if self.arbiter is None else self.arbiter.copy()
        if arbiter is not None:
            arbiter[emptied] = 0.0
        names = list(self.class_names)
        for slot in emptied:
            names[slot] = None
        return SlotTable._of_checked(weight, bias, arbiter, names)

    def apply(self, update: ClassUpdate, *, seen_names: frozenset[str], keeping: Collection[str] = ()) -> SlotTable:
        """Return the table after an update.

        Args:
            update: Made for the head that these slots extend; the caller has compared the fingerprints.
            seen_names: The classes in the baked part of the head, which no update can change.
            keeping: Classes that a complete update leaves in their slots; it empties all others.

        Raises:
            IncompatibleError: If the rows have another width.
            ClassConflictError: If an added class is already known, or a replaced or removed one is in no slot.
            CapacityError: If there are more added classes than empty slots.
        """
        if update.complete and (dropped := [name for name in self.filled_names if name not in keeping]):
            return self.without(dropped).apply(update, seen_names=seen_names, keeping=keeping)
        if update.feature_dim != self.feature_dim:
            raise IncompatibleError(
                f"The class update's rows are for feature_dim {update.feature_dim}; this head has {self.feature_dim}.",
                found=update.feature_dim,
                expected=self.feature_dim,
            )
        slot_of = self.slot_of
        _check_conflicts(update, slot_of, seen_names)
        names = list(self.class_names)
        for name in update.removed:
            names[slot_of[name]] = None
        empty = [index for index, name in enumerate(names) if name is None]
        if len(update.added) > len(empty):
            raise CapacityError(
                f"The class update adds {len(update.added)} classes; {self.capacity} slots, "
                f"{self.capacity - len(empty)} used.",
                found=len(update.added),
                expected=len(empty),
                hint=(
                    "Remove classes first, or bake those in the slots with `compact()` on the workbench and hand the "
                    "new bundle over."
                ),
            )
        targets = [*empty[: len(update.added)], *(slot_of[name] for name in update.replaced)]
        for index, name in zip(targets, update.class_names, strict=True):
            names[index] = name
        weight, bias = self._copied_weight(), self.bias.copy()
        emptied = [slot_of[name] for name in update.removed if names[slot_of[name]] is None]
        if emptied:
            weight[emptied], bias[emptied] = 0.0, EMPTY_SLOT_BIAS
        weight[targets], bias[targets] = update.rows[:, :-1], update.rows[:, -1]
        arbiter = None
        if self.arbiter is not None or update.arbiter is not None:
            arbiter = self.coefficients.copy()
            arbiter[emptied] = 0.0
            arbiter[targets] = 0.0 if update.arbiter is None else update.arbiter
        return SlotTable._of_checked(weight, bias, arbiter, names)


def _bytes_of(tensor: Float32) -> memoryview:
    return np.ascontiguousarray(tensor, dtype="<f4").view(np.uint8).reshape(-1).data


def empty_slots(capacity: int, feature_dim: int) -> SlotTable:
    """Return `capacity` empty slots for features of width `feature_dim`."""
    return SlotTable(
        weight=np.zeros((capacity, feature_dim), dtype=np.float32),
        bias=np.full(capacity, EMPTY_SLOT_BIAS, dtype=np.float32),
        class_names=(None,) * capacity,
    )


def _check_conflicts(update: ClassUpdate, slot_of: Mapping[str, int], seen_names: frozenset[str]) -> None:
    known = [name for name in update.added if name in slot_of or name in seen_names]
    if known:
        raise ClassConflictError(
            f"The class update adds {quoted(known)}, which the head already knows.",
            found=tuple(known),
            hint="Replace or remove it instead.",
        )
    absent = [name for name in (*update.replaced, *update.removed) if name not in slot_of]
    if absent:
        baked = [name for name in absent if name in seen_names]
        reason = "is baked into the head and cannot be changed" if baked else "is in no slot"
        raise ClassConflictError(
            f"The class update replaces or removes {quoted(baked or absent)}, which {reason}.",
            found=tuple(baked or absent),
            hint=None if baked else did_you_mean(absent, slot_of).rstrip() or None,
        )
