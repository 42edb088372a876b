"""A copy of a bundle that trusts a key of the benchmark: updates are applied to it, and the bundle stays as it was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from icis_deploy.errors import UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.state.store import STATE_FOLDER, TRUST_FOLDER
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import keygen, load_private_key


def slot_table(device: Device) -> SlotTable:
    """Return what the slots of a device hold now.

    Raises:
        UsageError: If its head has no slots.
    """
    table = state_of(device).table
    if table is None:
        raise UsageError(
            "The head has no slots, so nothing can be updated.",
            found="fused",
            expected="updatable",
            hint="Export the bundle with `head='updatable'`.",
        )
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleCopy:
    """A copy of a bundle, as it was exported."""

    folder: Path
    """The copied bundle; whatever else the benchmark writes goes to its parent folder."""

    private_key: Path
    """The private key, in PEM, of the key that the copy trusts."""

    def signed(self, update: ClassUpdate) -> bytes:
        """Return the bytes of a signed update file that the copy accepts."""
        envelope = envelope_of(update)
        envelope.sign(load_private_key(self.private_key))
        return serialize_envelope(envelope)


@contextmanager
def bundle_copy(bundle_folder: Path) -> Iterator[BundleCopy]:
    """Copy a bundle for the length of the context.

    The copy is made in the bundle's parent folder and not in /tmp, which may be in memory: writing to the disk is a
    part of what is measured.
    """
    with tempfile.TemporaryDirectory(dir=bundle_folder.resolve().parent, prefix=".bench-update-") as name:
        folder = Path(name) / "bundle"
        shutil.copytree(bundle_folder, folder, ignore=shutil.ignore_patterns(STATE_FOLDER))
        keys = keygen(Path(name) / "bench-key")
        (folder / TRUST_FOLDER).mkdir(exist_ok=True)
        shutil.copy(keys.public_path, folder / TRUST_FOLDER)
        yield BundleCopy(folder=folder, private_key=keys.private_path)
