"""Write the golden files of what says what it follows, and of roles: see `make_golden.py`, which wrote `v1`.

    python tests/golden/make_golden_v4.py

They hold class updates of schema 3 (one that follows a state, one that is complete and has an arbiter), a signed set of
trusted keys of schema 2, the journal of a device with root keys, and a signed bundle's `bundle.dsse` with its manifest.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import icis_deploy
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen
from icis_deploy.updates.trusted_keys import TrustedKeys
from testing.bundles import make_update, trust, write_bundle, write_signed
from tests.golden.make_golden_v3 import ARBITER

FOLDER = Path(__file__).resolve().parent / "v4"
EXPIRES = datetime(2100, 1, 1, tzinfo=timezone.utc)


def following() -> ClassUpdate:
    """The class update that is in `following.dsse`."""
    follows = FollowedState(version=2, digest="ab" * 32)
    return make_update("okapi", version=3, expires=EXPIRES, follows=follows, targets=("cd" * 32, "ef" * 32))


def complete() -> ClassUpdate:
    """The class update that is in `complete.dsse`."""
    return make_update("okapi", "Bärtierchen 水熊", version=4, complete=True, arbiter=ARBITER)


def main() -> None:
    """Write the files."""
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        keys, roots = keygen(work / "release-key"), [keygen(work / f"root-{number}") for number in range(2)]
        for public in (keys, *roots):
            shutil.copy(public.public_path, FOLDER)
        write_signed(FOLDER / "following.dsse", following(), keys.private_path)
        write_signed(FOLDER / "complete.dsse", complete(), keys.private_path)
        roles = TrustedKeys(
            public_keys=(keys.public_path.read_text(),),
            version=2,
            root_keys=tuple(root.public_path.read_text() for root in roots),
            root_threshold=2,
        )
        path = write_signed(FOLDER / "trusted-keys.dsse", roles, keys.private_path)
        for root in roots:
            icis_deploy.sign(path, key=root.private_path)
        bundle = write_bundle(work / "bundle")
        trust(bundle, keys.public_path)
        icis_deploy.sign_bundle(bundle, key=keys.private_path)
        Device.open(bundle).apply(path)
        for source in ("bundle.dsse", "manifest.json", "state/journal.json"):
            shutil.copy(bundle / source, FOLDER)


if __name__ == "__main__":
    main()
