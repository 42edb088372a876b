"""A copy of a bundle that trusts a key of the benchmark: updates are applied to it, and the bundle stays as it was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.state.store import STATE_FOLDER, TRUST_FOLDER
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import keygen, load_private_key


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleCopy:
    """A copy of a bundle, as it was exported."""

    folder: Path
    """The copied bundle; its parent takes whatever else the benchmark writes."""

    private_key: Path
    """The key whose updates it takes."""

    def signed(self, update: ClassUpdate) -> bytes:
        """Return an update as a file that the copy takes."""
        envelope = envelope_of(update)
        envelope.sign(load_private_key(self.private_key))
        return serialize_envelope(envelope)


@contextmanager
def bundle_copy(bundle_folder: Path) -> Iterator[BundleCopy]:
    """Copy a bundle for the length of the context.

    The copy is beside the bundle and not in /tmp, which may be in memory: the disk's share belongs to a measurement.
    """
    with tempfile.TemporaryDirectory(dir=bundle_folder.resolve().parent, prefix=".bench-update-") as name:
        folder = Path(name) / "bundle"
        shutil.copytree(bundle_folder, folder, ignore=shutil.ignore_patterns(STATE_FOLDER))
        keys = keygen(Path(name) / "bench-key")
        (folder / TRUST_FOLDER).mkdir(exist_ok=True)
        shutil.copy(keys.public_path, folder / TRUST_FOLDER)
        yield BundleCopy(folder=folder, private_key=keys.private_path)
