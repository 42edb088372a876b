"""What a class update changes: which classes come, go and move, and which come close to another one.

Rules:

1. `OLD` and `NEW` are class updates or bundles. A bundle stands for the classes in its slots now; a bundle and an
   update give what the update would do to that bundle.
2. Closeness is the cosine between weights, without bias: two rows in one direction answer to the same features, and
   only their biases and lengths decide between them.
3. Nothing here checks signatures: the comparison shows what a file says, not whether to believe it.
4. For a bundle and an update, the bundle's guard is asked as a device asks it (`icis_deploy.runtime.changes.guard`);
   what it says is shown, and refuses nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.api.bundle_slots import slots_of
from icis_deploy.api.inputs import PathLike
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.files import path_from
from icis_deploy.errors import WrongBaseError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.guard import ChangedAnswers, load_guard
from icis_deploy.runtime.state.journal import Journal
from icis_deploy.updates.envelope import load_update

_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedClass:
    """A class whose row changed.

    Example:
        for each in icis_deploy.diff("old.icis", "new.icis").moved:
            print(each.name, each.cosine, each.length_ratio)
    """

    name: str

    cosine: float
    """Between its old weight and its new one, in -1..1."""

    length_ratio: float
    """Length of the new weight over that of the old one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestClass:
    """The class that comes closest to a new or moved one.

    Example:
        for each in icis_deploy.diff("bundle", "new.icis").nearest:
            print(each.name, each.nearest, each.cosine)
    """

    name: str
    """The new or moved class."""

    nearest: str
    """The other class, among all in NEW."""

    cosine: float
    """Between their weights, in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDiff:
    """How NEW differs from OLD.

    Example:
        found = icis_deploy.diff("bundle", "new.icis")
        print(len(found.added), found.num_unchanged)
    """

    added: tuple[str, ...]
    """Classes only NEW has, in its order."""

    removed: tuple[str, ...]
    """Classes only OLD has, in its order."""

    moved: tuple[MovedClass, ...]
    """Classes of both with other rows, the one that turned furthest first."""

    num_unchanged: int
    """Classes of both with the same bits."""

    nearest: tuple[NearestClass, ...]
    """For each added or moved class, the closest one there; the closest pair first. Two such classes that are each
    other's closest one are one pair."""

    changed_answers: ChangedAnswers | None = None
    """What an update would do to the answers of a bundle on its reference images; `None` for anything but a bundle and
    an update, and for a bundle without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NamedRows:
    class_names: tuple[str, ...]
    rows: NDArray[np.float32]


def diff(old: PathLike, new: PathLike) -> UpdateDiff:
    """Compare two class updates, two bundles, or a bundle with what an update would make of it.

    Args:
        old: A class update's file, or a bundle's folder.
        new: Another one.

    Example:
        found = icis_deploy.diff("bundle", "new.icis")
        print(found.added, found.removed)

    Raises:
        LoadError, CorruptFileError: If one of them cannot be read.
        WrongBaseError: If rows were made for different heads.
        IncompatibleError: If an update does not fit the bundle.
    """
    old_path, new_path = path_from(old, name="old"), path_from(new, name="new")
    if os.path.isdir(old_path) and not os.path.isdir(new_path):  # noqa: PTH112 - a name that is too long is none
        return _diff_of_applying(old_path, new_path)
    (old_base, old_rows), (new_base, new_rows) = _rows_of(old_path), _rows_of(new_path)
    _check_same_base(old_base, new_base)
    return compare_rows(old_rows.class_names, old_rows.rows, new_rows.class_names, new_rows.rows)


def compare_rows(
    old_names: Sequence[str], old_rows: NDArray[np.float32], new_names: Sequence[str], new_rows: NDArray[np.float32]
) -> UpdateDiff:
    """Compare named rows, `(num_classes, feature_dim + 1)` float32 each."""
    old_indices = {name: index for index, name in enumerate(old_names)}
    moved, num_unchanged, changed = [], 0, []
    for index, name in enumerate(new_names):
        old_index = old_indices.get(name)
        if old_index is not None and np.array_equal(old_rows[old_index], new_rows[index]):
            num_unchanged += 1
            continue
        changed.append(index)
        if old_index is not None:
            moved.append(_moved_class(name, old_rows[old_index, :-1], new_rows[index, :-1]))
    kept = set(new_names)
    return UpdateDiff(
        added=tuple(name for name in new_names if name not in old_indices),
        removed=tuple(name for name in old_names if name not in kept),
        moved=tuple(sorted(moved, key=lambda one: one.cosine)),
        num_unchanged=num_unchanged,
        nearest=_nearest_classes(changed, new_names, new_rows[:, :-1]),
    )


def _moved_class(name: str, old: NDArray[np.float32], new: NDArray[np.float32]) -> MovedClass:
    old_wide, new_wide = old.astype(np.float64), new.astype(np.float64)
    lengths = float(np.linalg.norm(old_wide)), float(np.linalg.norm(new_wide))
    product = lengths[0] * lengths[1]
    return MovedClass(
        name=name,
        cosine=float(old_wide @ new_wide) / product if product else 0.0,
        length_ratio=lengths[1] / lengths[0] if lengths[0] else float("inf"),
    )


def _nearest_classes(
    changed: Sequence[int], names: Sequence[str], weight: NDArray[np.float32]
) -> tuple[NearestClass, ...]:
    if len(names) < 2:
        return ()
    wide = weight.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    nearest = []
    for start in range(0, len(changed), _CHUNK):
        chunk = np.array(changed[start : start + _CHUNK])
        cosines = unit[chunk] @ unit.T
        cosines[np.arange(len(chunk)), chunk] = -np.inf
        others = cosines.argmax(axis=1)
        nearest += [
            NearestClass(name=names[index], nearest=names[other], cosine=float(cosine))
            for index, other, cosine in zip(chunk, others, cosines.max(axis=1), strict=True)
        ]
    closest = {one.name: one.nearest for one in nearest}
    place = {name: number for number, name in enumerate(closest)}
    nearest = [one for one in nearest if closest.get(one.nearest) != one.name or place[one.name] < place[one.nearest]]
    return tuple(sorted(nearest, key=lambda one: -one.cosine))


def _diff_of_applying(folder: Path, path: Path) -> UpdateDiff:
    bundle, journal, table = slots_of(folder, purpose="to compare")
    update = load_update(path)
    _check_same_base(bundle.base_fingerprint, update.base_fingerprint)
    taken_over = tuple(name for name in journal.current.taught if name in update.added)
    after = table.without(taken_over).apply(update, seen_names=frozenset(bundle.class_names))
    found = compare_rows(table.filled_names, table.rows(), after.filled_names, after.rows())
    return replace(found, changed_answers=_changed_answers(folder, bundle, journal, table, after, update))


def _changed_answers(
    folder: Path, bundle: Bundle, journal: Journal, before: SlotTable, after: SlotTable, update: ClassUpdate
) -> ChangedAnswers | None:
    if bundle.max_changed_answers is None:
        return None
    guard = load_guard(folder, bundle)
    return guard.changed_answers(before, after, written=update.class_names, disabled=journal.disabled)


def _rows_of(path: Path) -> tuple[str, _NamedRows]:
    if os.path.isdir(path):  # noqa: PTH112 - a name that is too long is none
        bundle, _, table = slots_of(path, purpose="to compare")
        return bundle.base_fingerprint, _NamedRows(class_names=table.filled_names, rows=table.rows())
    update = load_update(path)
    return update.base_fingerprint, _NamedRows(class_names=update.class_names, rows=update.rows)


def _check_same_base(old: str, new: str) -> None:
    if old != new:
        raise WrongBaseError(
            f"OLD was made for the head {old[:16]}…, NEW for {new[:16]}…: rows for different heads cannot be compared.",
            found=new,
            expected=old,
            hint="Compare updates of one model, or a bundle with an update for it.",
        )
