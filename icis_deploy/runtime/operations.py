"""What an operator does to a bundle, one function a command: apply, rollback, history, classes, enable, disable.

Only `apply` and `rollback` load the model, because they test the slots they write. The rest reads and writes the
bundle's small files, so it works where no runtime is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from numpy.typing import ArrayLike

from icis_deploy.bundle.manifest import load_bundle, load_manifest
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.updater import switch_class
from icis_deploy.runtime.device import AppliedUpdate, Device
from icis_deploy.runtime.state.journal import HistoryEntry, Journal
from icis_deploy.runtime.state.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedClass:
    """A class that a bundle knows."""

    name: str

    slot: int | None
    """Index of its slot; `None` where it is baked into the model."""

    is_enabled: bool
    """Whether answers may choose it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassListing:
    """The classes of a bundle at one moment."""

    version: int
    """Version of the head."""

    capacity: int
    """Number of slots; 0 for a fused head."""

    classes: tuple[ListedClass, ...]
    """Baked classes first, then those in slots, in the order of the logits; disabled ones included."""

    @property
    def num_free_slots(self) -> int:
        """How many classes can be added."""
        return self.capacity - sum(listed.slot is not None for listed in self.classes)


def apply(
    update: Path, folder: Path, *, allow_unsigned: bool = False, allow_changed_answers: bool = False
) -> AppliedUpdate:
    """Apply a class update, or a set of trusted keys, to a bundle.

    Raises:
        ICISDeployError: As `Device.open` and `Device.apply`; the bundle is as it was.
    """
    device = Device.open(folder)
    return device.apply(update, allow_unsigned=allow_unsigned, allow_changed_answers=allow_changed_answers)


def teach(
    folder: Path,
    class_name: str,
    descriptor: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    images: Sequence[Path] | None = None,
    skip_unreadable: bool = False,
    allow_changed_answers: bool = False,
) -> HistoryEntry:
    """Teach a bundle a class from its descriptor, with the bundle's generator, from photos, or from both.

    Raises:
        ICISDeployError: As `Device.open` and `Device.teach`; the bundle is as it was.
    """
    return Device.open(folder).teach(
        class_name,
        descriptor,
        images=images,
        skip_unreadable=skip_unreadable,
        allow_changed_answers=allow_changed_answers,
    )


def rollback(folder: Path) -> HistoryEntry:
    """Take a bundle back to the state before; the one it is in need not be readable.

    Raises:
        BundleError, CorruptFileError: If a file is not the one that the manifest states.
        ICISDeployError: As `Device.from_parts` and `Device.rollback`; the bundle is as it was.
    """
    return Device.from_parts(folder, load_bundle(folder)).rollback()


def history(folder: Path) -> tuple[HistoryEntry, ...]:
    """Return the last changes of a bundle, the oldest first.

    Raises:
        BundleError, CorruptFileError, IncompatibleError: If the manifest or the journal cannot be read.
    """
    return Store(folder).load_journal(load_manifest(folder)).history


def classes(folder: Path) -> ClassListing:
    """Return the classes that a bundle knows.

    Raises:
        BundleError, CorruptFileError, IncompatibleError: If the manifest, the journal or the slots cannot be read.
    """
    bundle, store = load_manifest(folder), Store(folder)
    journal = store.load_journal(bundle)
    table = store.load_table(bundle, journal.current)
    disabled = set(journal.disabled)
    slots = [] if table is None else [(slot, name) for slot, name in enumerate(table.class_names) if name is not None]
    return ClassListing(
        version=journal.current.version,
        capacity=bundle.capacity,
        classes=tuple(
            ListedClass(name=name, slot=slot, is_enabled=name not in disabled)
            for slot, name in [*((None, name) for name in bundle.class_names), *slots]
        ),
    )


def enable(folder: Path, class_name: str) -> bool:
    """Let a bundle's answers choose a class again; return whether that changed anything.

    Raises:
        ClassConflictError: If the bundle does not know the class.
        CorruptFileError: If its journal leaves no class to choose, which no device writes.
        ICISDeployError: As `classes`, and if the disk refuses; the bundle is as it was.
    """
    return _switch(folder, class_name, enabled=True)


def disable(folder: Path, class_name: str) -> bool:
    """Leave a class out of a bundle's answers; return whether that changed anything.

    Raises:
        ClassConflictError: If the bundle does not know the class, or no other is enabled.
        ICISDeployError: As `classes`, and if the disk refuses; the bundle is as it was.
    """
    return _switch(folder, class_name, enabled=False)


def _switch(folder: Path, class_name: str, *, enabled: bool) -> bool:
    """Commit a switch to the disk alone: no model is loaded, so there is no head state to replace."""
    bundle, store = load_manifest(folder), Store(folder)

    def commit(before: Journal, after: Journal, _table: SlotTable | None) -> None:
        with store.change(before, after):
            pass

    with store.locked(bundle):
        return switch_class(
            store,
            bundle,
            class_name,
            enabled=enabled,
            clock=datetime.now(timezone.utc),
            load_table=partial(store.load_table, bundle),
            commit=commit,
        )
