"""What a bundle holds in its slots now, as a device would open it."""

from __future__ import annotations

from pathlib import Path

from icis_deploy.bundle.manifest import Bundle, load_manifest
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.journal import Journal
from icis_deploy.runtime.state.store import Store


def slots_of(folder: Path, *, purpose: str) -> tuple[Bundle, Journal, SlotTable]:
    """Read a bundle's manifest, its journal and the slots of its current state.

    Args:
        folder: The bundle.
        purpose: What the slots are for, after "no slots", for the message.

    Raises:
        BundleError, CorruptFileError: If one of them cannot be read.
        IncompatibleError: If its head is fused, or its state is of another bundle.
    """
    bundle, store = load_manifest(folder), Store(folder)
    journal = store.load_journal(bundle)
    table = store.load_table(bundle, journal.current)
    if table is None:
        raise IncompatibleError(
            f"The bundle {folder} has a fused head: it has no slots {purpose}.",
            found="fused",
            expected="updatable",
            where=folder,
            hint="Export it with `head='updatable'`.",
        )
    return bundle, journal, table
