"""What a device does with a class that it is taught: the rules, on values. `rules.py` has those of updates.

Rules:

1. Teaching needs no signature: whoever can run it holds the device.
2. A taught class takes the lowest empty slot, or its own if it is taught anew, and spends no version.
3. It never blocks an update: one that adds a class of the same name takes its slot, as if it replaced it.
   From then on the class is the publisher's.
4. It is rolled back like an update.
5. Its row has the arbiter that the generator states for it, whatever those of other classes are.
6. A class that is taught by photos has no arbiter. All of them in the slots have one offset, which is set anew with
   each: such that together they take no more answers on the bundle's reference from all other classes than the budget
   allows. So the rows do not depend on the order in which classes are taught, and the tenth does not spend a tenth
   budget. The offset is kept beside the slots, and rolled back with them.
"""

# Why: docs/decisions/0041, docs/decisions/0088 (rule 6).

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.few_shot import FewShot
from icis_deploy.bundle.manifest import Bundle, FileEntry
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import IncompatibleError
from icis_deploy.few_shot.offset import may_lose_of, offset_for_loss
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.rules import check_arbiter, trusted_time
from icis_deploy.runtime.state.journal import HistoryEntry, Journal, StateEntry
from icis_deploy.runtime.state.origins import Origin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaughtRows:
    """The rows that teaching a class writes."""

    class_names: tuple[str, ...]
    """`(num_rows,)`: the class, and after it, with photos, all others that were taught by photos (rule 6)."""

    rows: Float32
    """`(num_rows, feature_dim + 1)`, calibrated."""

    arbiter: Float32 | None = None
    """`(5,)` float32, coefficients of each row; `None` for constant offsets."""

    photo_offset: float | None = None
    """What was taken off the biases, in logits; `None` of a class that was not taught by photos."""

    photos_sha256: tuple[str, ...] = ()
    """Of the photos."""


def state_after_update(
    journal: Journal, update: ClassUpdate, slots: FileEntry | None, *, origins: tuple[Origin, ...]
) -> StateEntry:
    """Return the state with an update's slots; classes that it changes are no taught ones any more (rule 3)."""
    changed, current = {*update.added, *update.replaced, *update.removed}, journal.current
    return _state(
        version=update.version,
        slots=slots,
        taught=tuple(name for name in current.taught if name not in changed),
        by_photos=tuple(name for name in current.by_photos if name not in changed),
        photo_offset=current.photo_offset,
        origins=origins,
    )


def state_after_teaching(
    journal: Journal, class_name: str, made: TaughtRows, slots: FileEntry | None, *, origins: tuple[Origin, ...]
) -> StateEntry:
    """Return the state in which a class was taught."""
    current = journal.current
    by_photos = tuple(name for name in current.by_photos if name != class_name)
    return _state(
        version=current.version,
        slots=slots,
        taught=(*(name for name in current.taught if name != class_name), class_name),
        by_photos=by_photos if made.photo_offset is None else (*by_photos, class_name),
        photo_offset=current.photo_offset if made.photo_offset is None else made.photo_offset,
        origins=origins,
    )


def _state(
    *,
    version: int,
    slots: FileEntry | None,
    taught: tuple[str, ...],
    by_photos: tuple[str, ...],
    photo_offset: float,
    origins: tuple[Origin, ...],
) -> StateEntry:
    return StateEntry(
        version=version,
        slots=slots,
        taught=taught,
        by_photos=by_photos,
        photo_offset=photo_offset if by_photos else 0.0,
        origins=origins,
    )


def rows_without_offset(
    journal: Journal, class_name: str, row: Float32, table: SlotTable
) -> tuple[tuple[str, ...], Float32]:
    """Return the classes that were taught by photos, a new one first, and their rows before any offset (rule 6).

    Args:
        journal: What the device remembers.
        class_name: The new one.
        row: `(feature_dim + 1,)`, its row.
        table: What the slots hold now.
    """
    others = [name for name in journal.current.by_photos if name != class_name]
    slots = [table.class_names.index(name) for name in others]
    biases = table.bias[slots].astype(np.float64) + journal.current.photo_offset
    rows = np.concatenate([table.weight[slots], biases.astype(np.float32)[:, None]], axis=1)
    return (class_name, *others), np.concatenate([row[None], rows])


def photo_offset(leads: Float32, answers: NDArray[np.int32], few_shot: FewShot, *, limit: float) -> float:
    """Return what is taken off the biases of classes that were taught by photos (rule 6).

    The reference has images that the original head is right on: it stands for more of them, of which it was right on
    `few_shot.seen_accuracy`. Classes count the same, as in macro-averaged accuracy.

    Args:
        leads: `(num_images,)`, from `Guard.leads` and rows without an offset, and so is `answers`.
        answers: `(num_images,)`, classes of the images, by their indices.
        few_shot: The bundle's, which says what may be lost.
        limit: Share of the answers that the guard allows to change, 0..1.

    Raises:
        IncompatibleError: If no image counts.
    """
    if not len(leads):
        raise IncompatibleError(
            "All classes that the bundle's reference shows are disabled: nothing says how far a class that is taught "
            "by photos may be favoured.",
            found=0,
            expected="at least one reference image of an enabled class",
            hint="Enable some of them with `Device.enable()`.",
        )
    _, inverse, counts = np.unique(answers, return_inverse=True, return_counts=True)
    weights = few_shot.seen_accuracy / (counts[inverse] * len(counts))
    of_all = may_lose_of(len(leads) / few_shot.seen_accuracy, few_shot.max_seen_loss)
    equal = np.full(len(leads), 1.0 / len(leads))
    return max(
        offset_for_loss(leads, weights, may_lose=of_all),
        offset_for_loss(leads, equal, may_lose=limit),  # the guard would refuse more
    )


def check_has_slots(table: SlotTable | None) -> SlotTable:
    """Return the slots of a head that has some.

    Raises:
        IncompatibleError: If it is fused.
    """
    if table is None:
        raise IncompatibleError(
            "The bundle's head is fused: it has no slots to teach a class in.",
            found="fused",
            expected="updatable",
            hint="Export it with `head='updatable'`.",
        )
    return table


def plan_teaching(
    journal: Journal,
    class_name: str,
    made: TaughtRows,
    *,
    table: SlotTable | None,
    bundle: Bundle,
    clock: datetime,
) -> tuple[HistoryEntry, SlotTable]:
    """Return what a taught class makes of the slots, and its line in the history (rules 2, 3 and 5).

    Args:
        journal: What the device remembers.
        class_name: The class; one that was taught before is taught anew, in the same slot.
        made: Its row, and those that change with it.
        table: What the slots hold now; `None` for a fused head.
        bundle: The device's.
        clock: The time by the device's clock.

    Raises:
        IncompatibleError, ClassConflictError, CapacityError: If it does not fit.
    """
    table = check_has_slots(table)
    is_known = class_name in journal.current.taught
    update = ClassUpdate(
        base_fingerprint=bundle.base_fingerprint,
        rows=made.rows,
        arbiter=None if made.arbiter is None else np.tile(made.arbiter, (len(made.rows), 1)),
        added=() if is_known else (class_name,),
        replaced=made.class_names if is_known else made.class_names[1:],
    )
    check_arbiter(update, bundle, hint="Export it again with `arbiter='auto'`, or apply a class update.")
    entry = HistoryEntry(
        sequence=journal.sequence + 1,
        time=trusted_time(journal, clock),
        action="teach",
        version=journal.current.version,
        num_added=len(update.added),
        num_replaced=int(is_known),
        class_name=class_name,
        photos_sha256=made.photos_sha256,
    )
    return entry, table.apply(update, seen_names=frozenset(bundle.class_names))
