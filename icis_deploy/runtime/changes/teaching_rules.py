"""What a device does with a class that it is taught: the rules, on values. `rules.py` has those of updates.

Rules:

1. Teaching needs no signature: whoever can run it holds the device.
2. A taught class takes the lowest empty slot, or its own if it is taught anew, and spends no version.
3. It never blocks an update: one that adds a class of the same name takes its slot, as if it replaced it.
   From then on the class is the publisher's.
4. It is rolled back like an update.
5. Its row has the arbiter that the generator states for it, whatever those of other classes are.
"""

# Why: docs/decisions/0041.

from __future__ import annotations

from datetime import datetime

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.rules import check_arbiter, trusted_time
from icis_deploy.runtime.state.journal import HistoryEntry, Journal


def still_taught(journal: Journal, update: ClassUpdate) -> tuple[str, ...]:
    """Return the taught classes that an update leaves as they are (rule 3)."""
    changed = {*update.added, *update.replaced, *update.removed}
    return tuple(name for name in journal.current.taught if name not in changed)


def plan_teaching(
    journal: Journal,
    class_name: str,
    row: Float32,
    arbiter: Float32 | None,
    *,
    table: SlotTable | None,
    bundle: Bundle,
    clock: datetime,
) -> tuple[HistoryEntry, SlotTable]:
    """Return what a taught class makes of the slots, and its line in the history (rules 2, 3 and 5).

    Args:
        journal: What the device remembers.
        class_name: The class; one that was taught before is taught anew, in the same slot.
        row: `(feature_dim + 1,)`, calibrated.
        arbiter: `(5,)` float32, the row's coefficients; `None` for a constant offset.
        table: What the slots hold now; `None` for a fused head.
        bundle: The device's.
        clock: The time by the device's clock.

    Raises:
        IncompatibleError, ClassConflictError, CapacityError: If it does not fit.
    """
    if table is None:
        raise IncompatibleError(
            "The bundle's head is fused: it has no slots to teach a class in.",
            found="fused",
            expected="updatable",
            hint="Export it with `head='updatable'`.",
        )
    is_known = class_name in journal.current.taught
    update = ClassUpdate(
        base_fingerprint=bundle.base_fingerprint,
        rows=row[None],
        arbiter=None if arbiter is None else arbiter[None],
        added=() if is_known else (class_name,),
        replaced=(class_name,) if is_known else (),
    )
    check_arbiter(update, bundle, hint="Export it again with `arbiter='auto'`, or apply a class update.")
    entry = HistoryEntry(
        sequence=journal.sequence + 1,
        time=trusted_time(journal, clock),
        action="teach",
        version=journal.current.version,
        num_added=len(update.added),
        num_replaced=len(update.replaced),
        class_name=class_name,
    )
    return entry, table.apply(update, seen_names=frozenset(bundle.class_names))
