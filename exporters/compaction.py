"""Compact a bundle: bake what is in its slots into the model, and give it free slots.

Rules:

1. The rows are those that the slots hold, bit for bit; the model around them is made from the original again and passes
   the same gate as an export. Nothing is grafted onto a model that was exported before.
2. The base fingerprint stays the original head's, so that updates made for it are taken afterwards as before.
3. What stands outside the rollback stack stays: the highest version, the last time seen, trusted keys, disabled classes
   and the history. The stack itself begins anew: there is no state before that a rollback could go to.
4. A class that was baked can be disabled, and no longer be replaced or removed by an update.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from exporters.bundle_writing import HeadPlan, compacted
from icis_deploy.bundle import INJECTED_NAME, Bundle
from icis_deploy.errors import BundleError, IncompatibleError, UsageError
from icis_deploy.files import read_capped
from icis_deploy.runtime.journal import Journal, StateEntry
from icis_deploy.slot_files import MAX_SLOTS_BYTES, parse_slots
from icis_deploy.slots import SlotTable, empty_slots


def plan_compaction(
    folder: Path, bundle: Bundle, journal: Journal, table: SlotTable | None, *, capacity: int
) -> HeadPlan:
    """Plan the head of a bundle whose slots are baked, with free slots after them.

    Args:
        folder: The bundle, which may have been compacted before.
        bundle: What its manifest says.
        journal: What it remembers.
        table: What its slots hold now; `None` for a fused head.
        capacity: Number of slots afterwards.

    Raises:
        IncompatibleError: If the head is fused, or the bundle holds a model that `export` made in another form.
        UsageError: If there would be no slot.
        BundleError, CorruptFileError: If its baked rows cannot be read.
    """
    if table is None:
        raise IncompatibleError(f"The bundle {folder} has a fused head: there are no slots to bake.")
    if bundle.precision != "fp32" or bundle.model_input.takes_pixels or bundle.top:
        raise IncompatibleError(
            f"The bundle {folder} computes in {bundle.precision}, takes {bundle.model_input.dtype} and chooses "
            f"{bundle.top} classes; only what export writes by default can be compacted. Export the model again, with "
            f"all class updates and a greater --capacity."
        )
    if capacity < 1:
        raise UsageError(f"An updatable head needs a capacity of at least 1 slot, not {capacity}.")
    former = injected_table(folder, bundle)
    baked = compacted(table) if former is None else _joined(former, compacted(table))
    return HeadPlan(
        seen_names=bundle.seen_names,
        base_fingerprint=bundle.base_fingerprint,
        table=empty_slots(capacity, bundle.feature_dim),
        head_kind="updatable",
        updates=tuple(bundle.updates),
        version=journal.current.version,
        baked=baked,
    )


def injected_table(folder: Path, bundle: Bundle) -> SlotTable | None:
    """Return the rows that are baked beside the original's; `None` where there are none.

    Raises:
        BundleError, CorruptFileError: If they cannot be read.
    """
    if INJECTED_NAME not in bundle.files:
        return None
    data = read_capped(folder / INJECTED_NAME, max_bytes=MAX_SLOTS_BYTES, what="injected rows", error_type=BundleError)
    return parse_slots(data)


def _joined(first: SlotTable, second: SlotTable) -> SlotTable:
    return SlotTable(
        weight=np.concatenate([first.weight, second.weight]),
        bias=np.concatenate([first.bias, second.bias]),
        class_names=(*first.class_names, *second.class_names),
    )


def journal_after_compaction(journal: Journal) -> Journal:
    """Return what a compacted bundle remembers (rule 3)."""
    return replace(journal, states=(StateEntry(version=journal.current.version, slots=None),))
