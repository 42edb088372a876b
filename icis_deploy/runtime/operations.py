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

from icis_deploy.bundle.manifest import Bundle, load_bundle, load_manifest, target_digest
from icis_deploy.bundle.slot_files import exported_slots
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.updater import switch_class
from icis_deploy.runtime.device import AppliedUpdate, Device
from icis_deploy.runtime.state.journal import HistoryEntry, Journal
from icis_deploy.runtime.state.origins import Origin, signer_by_column
from icis_deploy.runtime.state.store import Store

ORIGINS = ("exported", "signed", "unsigned", "taught", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedClass:
    """A class that a bundle knows."""

    name: str

    slot: int | None
    """Index of its slot; `None` where it is baked into the model."""

    is_enabled: bool
    """Whether answers may choose it."""

    origin: str = "exported"
    """One of `ORIGINS`: how it came to the bundle. `exported`: with it. `unknown`: by an update, applied by a release
    that did not note who signed it."""

    signed_by: str | None = None
    """Id of the key that signed the update it came with; `None` where nobody did, or it came with none."""

    is_revoked: bool = False
    """Whether that key is not trusted any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassListing:
    """The classes of a bundle at one moment."""

    version: int
    """Version of the head."""

    capacity: int
    """Number of slots; 0 for a fused head."""

    classes: tuple[ListedClass, ...]
    """Baked classes first, then those in slots, in the order of the logits; disabled ones included."""

    highest_version: int
    """The greatest version that it ever held; an update must be newer."""

    digest: str | None
    """Of the classes in slots, without taught ones: what an update says it follows; `None` for a fused head."""

    target: str
    """What an update names the bundle by that may take it."""

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


def rollback(folder: Path, *, allow_revoked: bool = False) -> HistoryEntry:
    """Take a bundle back to the state before; the one it is in need not be readable.

    Args:
        folder: The bundle.
        allow_revoked: As `Device.rollback`.

    Raises:
        BundleError, CorruptFileError: If a file is not the one that the manifest states.
        ICISDeployError: As `Device.from_parts` and `Device.rollback`; the bundle is as it was.
    """
    return Device.from_parts(folder, load_bundle(folder)).rollback(allow_revoked=allow_revoked)


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
    signers, num_baked = signer_by_column(journal.current.origins), len(bundle.class_names)
    revoked = _revoked(store, journal)
    taught = set(journal.current.taught)
    unsettled = any(num_baked + slot not in signers and name not in taught for slot, name in slots)
    exported = set(_exported_names(folder, bundle)) if unsettled else set()

    def listed(name: str, slot: int | None, column: int) -> ListedClass:
        signed_by = signers.get(column)
        if column in signers:
            origin = "unsigned" if signed_by is None else "signed"
        else:
            origin = "taught" if name in taught else "exported" if slot is None or name in exported else "unknown"
        return ListedClass(
            name=name,
            slot=slot,
            is_enabled=name not in disabled,
            origin=origin,
            signed_by=signed_by,
            is_revoked=signed_by in revoked,
        )

    return ClassListing(
        version=journal.current.version,
        capacity=bundle.capacity,
        highest_version=journal.highest_version,
        digest=None if table is None else table.digest(leaving_out=journal.current.taught),
        target=target_digest(bundle),
        classes=(
            *(listed(name, None, column) for column, name in enumerate(bundle.class_names)),
            *(listed(name, slot, num_baked + slot) for slot, name in slots),
        ),
    )


def doubtful_origins(folder: Path) -> tuple[Origin, ...]:
    """Return the classes of a bundle that nobody signed, or a key that is not trusted any more; nobody's first.

    Raises:
        BundleError, CorruptFileError, IncompatibleError, SignatureError: If manifest, journal or keys cannot be read.
    """
    store = Store(folder)
    journal = store.load_journal(load_manifest(folder))
    revoked = _revoked(store, journal)
    return tuple(each for each in journal.current.origins if each.signed_by is None or each.signed_by in revoked)


def _revoked(store: Store, journal: Journal) -> frozenset[str]:
    """Return the ids of the keys that signed classes of the current state and are not trusted any more."""
    signers = {each.signed_by for each in journal.current.origins if each.signed_by is not None}
    return frozenset(signers - {key.keyid for key in store.trusted_keys(journal)} if signers else ())


def _exported_names(folder: Path, bundle: Bundle) -> tuple[str, ...]:
    table = exported_slots(folder, bundle)
    return () if table is None else table.filled_names


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
        with store.change(before) as pending:
            pending.write_journal(after)

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
