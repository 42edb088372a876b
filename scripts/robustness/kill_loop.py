"""Kill a process that applies updates and rolls back, again and again, and check what each kill left.

    python scripts/robustness/kill_loop.py --kills 200

Each round starts a real process that changes a real bundle as fast as it can, kills it after a random time with
SIGKILL, and opens the bundle: it must hold one whole state, and know which. The exit code is 1 if any was lost.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.updates.signing import keygen
from scripts.robustness.loop import counted, main, say
from testing.bundles import make_update, signed_bytes, trust, write_bundle

# A child of a server that has imported all of this starts at once. It is a process of its own all the same: SIGKILL
# ends it between two of its instructions, and nothing of it is left.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["icis_deploy.runtime.device", "onnxruntime", "securesystemslib.signer", "scripts.robustness.kill_loop"]


def change_forever(bundle_folder: Path, key_path: Path, first_version: int, ready: Event) -> None:
    """Apply updates without end, and roll every third back, until this process is killed."""
    device = Device.open(bundle_folder, num_threads=1)
    for version in range(first_version, 1 << 30):
        known = device.classes()[3:]
        update = make_update(f"class {version}", version=version, removed=known)
        device.apply(signed_bytes(update, key_path))
        if version == first_version:
            ready.set()  # killed before its first change, a process would hardly ever be writing
        if version % 3 == 0:
            device.rollback()


@dataclass(frozen=True, slots=True, kw_only=True)
class KillReport:
    """What the kills left."""

    num_kills: int
    """How many processes were killed."""

    num_lost: int
    """How many times the bundle could not be opened, or its slots were not those of its version."""

    num_changes_committed: int
    """How many changes the killed processes had committed before."""

    @property
    def is_clean(self) -> bool:
        """Whether no state was lost."""
        return not self.num_lost

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        committed, lost = self.num_changes_committed, self.num_lost
        return f"{self.num_kills} kills, {committed} changes committed, {lost} states lost or mixed"


def run_kill_loop(folder: Path, num_kills: int, *, seed: int) -> KillReport:
    """Kill `num_kills` processes at random moments; keys and bundle are made in `folder`."""
    keys = keygen(folder / "kill-loop-key")
    bundle_folder = write_bundle(folder / "kill-loop-bundle")
    trust(bundle_folder, keys.public_path)
    Device.open(bundle_folder).apply(signed_bytes(make_update("class 1", version=1), keys.private_path))
    PROCESSES.set_forkserver_preload(PRELOADED)
    random, num_lost = np.random.default_rng(seed), 0
    next_version = 2
    for _ in counted(num_kills, "kills"):
        arguments = (bundle_folder, keys.private_path, next_version)
        kill_one(change_forever, arguments, float(random.uniform(0.0, 0.06)))
        try:
            device = Device.open(bundle_folder)
            _check_whole(device)
            next_version = 1 + max(entry.version for entry in device.history())
        except (ICISDeployError, AssertionError) as error:
            say(f"lost: {error}")
            num_lost += 1
    return KillReport(
        num_kills=num_kills,
        num_lost=num_lost,
        num_changes_committed=Device.open(bundle_folder).history()[-1].sequence,
    )


def kill_one(target: Callable[..., None], arguments: Sequence[object], delay_seconds: float) -> None:
    """Start `target` in a process of its own and kill it `delay_seconds` after it said that it is ready.

    Args:
        target: What to run; it sets the event that is its last argument when it is ready.
        arguments: The arguments before the event.
        delay_seconds: How long it may run after that.

    Raises:
        RuntimeError: If the process does not get ready, or ends before it is killed.
    """
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=target, args=(*arguments, ready), daemon=True)
    process.start()
    if not ready.wait(timeout=60):
        process.kill()
        raise RuntimeError("the process that was to be killed did not start")
    time.sleep(delay_seconds)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process ended by itself, with {process.exitcode}")


def _check_whole(device: Device) -> None:
    """Compare the slots with what the version that the device states must hold."""
    table = state_of(device).table
    assert table is not None
    assert device.classes()[3:] == (f"class {device.version}",), f"version {device.version} has {device.classes()}"
    update = make_update(f"class {device.version}", version=device.version)
    (slot,) = table.filled
    assert np.array_equal(table.weight[slot], update.rows[0, :-1]), f"version {device.version} has other rows"
    assert table.bias[slot] == update.rows[0, -1], f"version {device.version} has another bias"
    assert device.history()[-1].version == device.version, "the history does not end with the state"


if __name__ == "__main__":
    raise SystemExit(main(run_kill_loop, description=__doc__, unit="kills", default=200))
