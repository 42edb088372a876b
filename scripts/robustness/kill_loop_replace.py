"""Kill a process that switches from one bundle to the next, again and again, and check what each kill left.

    python scripts/robustness/kill_loop_replace.py --kills 200

Each round starts a real process that calls `Device.replace` as fast as it can, kills it after a random time with
SIGKILL, and opens the bundles. Each must hold one whole state: as it was exported, or as the device switched to it,
with all that the device remembered: spent version, disabled class, keys that replaced those in `trust/`. The exit code
is 1 if any was lost.
"""

from __future__ import annotations

import shutil
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.state.store import Store
from icis_deploy.updates.signing import KeyPair, keygen, trusted_keys_from_files
from scripts.robustness.kill_loop import PRELOADED, PROCESSES, KillReport, kill_one
from scripts.robustness.loop import counted, main, say
from testing.bundles import (
    FEATURE_DIM,
    make_update,
    signed_bytes,
    trust,
    write_bundle,
)

NUM_PREPARED = 16
"""Bundles to switch to; about as many as a process manages before it is killed."""


def replace_forever(folders: list[Path], key_path: Path, ready: Event) -> None:
    """Switch from the first bundle to the second and so on, until this process is killed."""
    device = Device.open(folders[0], num_threads=1)
    # Signed with a key that only the device's memory trusts: the new bundles have the old one in `trust/`.
    version = device.version + 1
    device.apply(signed_bytes(make_update(f"class {version}", version=version, removed=device.classes()[2:]), key_path))
    ready.set()
    for folder in folders[1:]:
        device.replace(folder, num_threads=1)
    signal.pause()  # done before it was killed: the kill must still find it alive


def run_replace_kill_loop(folder: Path, num_kills: int, *, seed: int) -> KillReport:
    """Kill `num_kills` processes at random moments; keys and bundles are made in `folder`."""
    old, new = keygen(folder / "old-key"), keygen(folder / "new-key")
    current = _bundle(folder / "bundle-0", old, version=0)
    device = Device.open(current)
    device.apply(signed_bytes(trusted_keys_from_files([new.public_path]), old.private_path))
    device.disable("dog")
    PROCESSES.set_forkserver_preload([*PRELOADED, "scripts.robustness.kill_loop_replace"])
    random, num_lost = np.random.default_rng(seed), 0
    for _ in counted(num_kills, "kills"):
        version = Device.open(current).version + 1
        prepared = [
            _bundle(folder / f"bundle-{version + step}", old, version=version + step)
            for step in range(1, 1 + NUM_PREPARED)
        ]
        kill_one(replace_forever, ([current, *prepared], new.private_path), float(random.uniform(0.0, 0.08)))
        try:
            current = check_all([current, *prepared])
        except (ICISDeployError, AssertionError) as error:
            say(f"lost: {error}")
            num_lost += 1
        for left in {*folder.glob("bundle-*")} - {current}:
            shutil.rmtree(left)
    return KillReport(
        num_kills=num_kills,
        num_lost=num_lost,
        num_changes_committed=Device.open(current).history()[-1].sequence,
    )


def _bundle(folder: Path, keys: KeyPair, *, version: int) -> Path:
    table = empty_slots(4, FEATURE_DIM)
    if version:
        table = table.apply(make_update(f"class {version}", version=version), seen_names=frozenset())
    write_bundle(folder, head_version=version, table=table)
    trust(folder, keys.public_path)
    return folder


def check_all(folders: list[Path]) -> Path:
    """Check every bundle and return the last one that the device switched to."""
    switched = [folders[0], *(folder for folder in folders[1:] if _journal_exists(folder))]
    assert switched == folders[: len(switched)], "the device switched to a bundle before the one before it"
    for folder in switched:
        _check_switched(folder)
    for folder in folders[len(switched) :]:
        device = Device.open(folder)
        assert device.history() == (), f"{folder.name} has a history, but no journal"
        assert device.classes() == ("cat", "dog", "owl", f"class {device.version}")
    sequences = [Device.open(folder).history()[-1].sequence for folder in switched]
    assert sequences == list(range(sequences[0], sequences[0] + len(switched))), f"changes were lost: {sequences}"
    return switched[-1]


def _journal_exists(folder: Path) -> bool:
    return Store(folder).stamp() is not None


def _check_switched(folder: Path) -> None:
    """Compare a bundle that the device held with what it must remember."""
    device, journal = Device.open(folder), Store(folder).load_journal(load_manifest(folder))
    table = state_of(device).table
    assert table is not None
    assert device.classes() == ("cat", "owl", f"class {device.version}"), f"{folder.name} has {device.classes()}"
    assert np.array_equal(table.rows(), make_update(f"class {device.version}", version=device.version).rows)
    assert (journal.disabled, journal.trust_version) == (("dog",), 1), f"{folder.name} forgot what stands outside"
    assert journal.highest_version == device.version


if __name__ == "__main__":
    raise SystemExit(main(run_replace_kill_loop, description=__doc__, unit="kills", default=200))
