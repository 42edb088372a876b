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
from icis_deploy.errors import BundleError, CapacityError, IncompatibleError, UsageError
from icis_deploy.files import read_capped
from icis_deploy.generator_facts import GENERATOR_NAME, MAX_GENERATOR_BYTES
from icis_deploy.runtime.journal import Journal
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
    # Taught classes stay in slots: a signed update of the same name must still be able to take their place.
    taught = [name for name in table.filled_names if name in journal.current.taught]
    published = compacted(table.without(taught))
    baked = published if former is None else _joined(former, published)
    return HeadPlan(
        seen_names=bundle.seen_names,
        base_fingerprint=bundle.base_fingerprint,
        table=_in_slots(compacted(table.without(set(table.filled_names) - set(taught))), capacity),
        head_kind="updatable",
        updates=tuple(bundle.updates),
        version=journal.current.version,
        baked=baked,
        generator=_generator_of(folder, bundle),
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


def _in_slots(filled: SlotTable, capacity: int) -> SlotTable:
    """Return filled slots with empty ones after them."""
    if filled.capacity > capacity:
        raise CapacityError(
            f"The bundle was taught {filled.capacity} classes, which stay in slots; a capacity of {capacity} does not "
            f"hold them. Give a greater --capacity."
        )
    return _joined(filled, empty_slots(capacity - filled.capacity, filled.feature_dim))


def _generator_of(folder: Path, bundle: Bundle) -> bytes | None:
    if GENERATOR_NAME not in bundle.files:
        return None
    return read_capped(folder / GENERATOR_NAME, max_bytes=MAX_GENERATOR_BYTES, what="generator", error_type=BundleError)


def _joined(first: SlotTable, second: SlotTable) -> SlotTable:
    return SlotTable(
        weight=np.concatenate([first.weight, second.weight]),
        bias=np.concatenate([first.bias, second.bias]),
        class_names=(*first.class_names, *second.class_names),
    )


def journal_after_compaction(journal: Journal) -> Journal:
    """Return what a compacted bundle remembers (rule 3)."""
    return replace(journal, states=(replace(journal.current, slots=None),))
