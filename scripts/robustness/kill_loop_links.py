"""Kill, fork and re-point a link in one loop, with one to three processes, and check what each round left.

    python scripts/robustness/kill_loop_links.py --kills 100

Each round starts one to three real processes that opened a link to a bundle. They apply updates, roll back, refresh and
fork children that live on, while this process goes over to a fresh bundle and points the link at it; then all of them
are killed with SIGKILL after a random time, their children not. The bundle behind the link must open with one whole
state, take a change at once although the children live, and have a history that goes on from the round before. The exit
code is 1 if any did not.
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.updates.signing import keygen
from scripts.robustness.kill_loop import PRELOADED, PROCESSES, KillReport
from scripts.robustness.loop import counted, main, say
from testing.bundles import make_update, signed_bytes, trust, write_bundle

MAX_PROCESSES = 3
MAX_CHILDREN = 2
SECONDS_OF_A_CHILD = 8


def change_forever(link: Path, key_path: Path, seed: int, ready: Event) -> None:
    """Change the bundle behind a link in all ways, and fork, until this process is killed."""
    device, random, num_children = Device.open(link, num_threads=1), np.random.default_rng(seed), 0
    ready.set()
    while True:
        try:
            choice = random.integers(4)
            if choice == 0 and num_children < MAX_CHILDREN:
                num_children += 1
                if os.fork() == 0:
                    time.sleep(SECONDS_OF_A_CHILD)
                    os._exit(0)
            elif choice == 1 and len(device.history()) > 2:
                device.rollback()
            else:
                device.refresh()
                version = max(device.version, device._opened.updater.held.journal.highest_version) + 1
                update = make_update(f"class {version}", version=version, removed=device.classes()[3:])
                device.apply(signed_bytes(update, key_path))
        except ICISDeployError:
            # Another process was faster, or the link leads to a bundle that lacks what this one did since.
            device = Device.open(link, num_threads=1)


def run_link_kill_loop(folder: Path, num_kills: int, *, seed: int) -> KillReport:
    """Do `num_kills` rounds; keys and bundles are made in `folder`."""
    keys = keygen(folder / "key")
    bundle = trust_new(folder / "bundle-0", 0, keys.public_path)
    link = folder / "current"
    link.symlink_to(bundle.name)
    PROCESSES.set_forkserver_preload([*PRELOADED, "scripts.robustness.kill_loop_links"])
    random, num_lost = np.random.default_rng(seed), 0
    for number in counted(num_kills, "kills"):
        ready, processes = [], []
        for index in range(random.integers(1, MAX_PROCESSES + 1)):
            ready.append(PROCESSES.Event())
            arguments = (link, keys.private_path, seed + 10 * number + index, ready[-1])
            processes.append(PROCESSES.Process(target=change_forever, args=arguments, daemon=True))
            processes[-1].start()
        for event in ready:
            event.wait(30)
        before = Device.open(link, num_threads=1)
        sequence = before.history()[-1].sequence if before.history() else 0
        if number % 2:
            bundle = trust_new(folder / f"bundle-{number}", number << 20, keys.public_path)
            before.replace(bundle, num_threads=1)
            fresh = folder / "current.new"
            fresh.symlink_to(bundle.name)
            fresh.replace(link)
        time.sleep(float(random.uniform(0.0, 0.1)))
        for process in processes:
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        try:
            check(link, sequence)
        except (ICISDeployError, AssertionError) as error:
            say(f"lost: {error}")
            num_lost += 1
    history = Device.open(link).history()
    return KillReport(num_kills=num_kills, num_lost=num_lost, num_changes_committed=history[-1].sequence)


def trust_new(folder: Path, version: int, public_key: Path) -> Path:
    """Write a bundle that trusts a key."""
    write_bundle(folder, head_version=version)
    trust(folder, public_key)
    return folder


def check(link: Path, sequence: int) -> None:
    """Check that a bundle has one whole state that goes on from change `sequence`, and takes a change at once."""
    device = Device.open(link, num_threads=1)
    table, history = state_of(device).table, device.history()
    assert table is not None
    for name, row in zip(table.filled_names, table.rows()[table.filled], strict=True):
        version = int(name.removeprefix("class "))
        assert np.array_equal(row, make_update(name, version=version).rows[0]), f"the row of {name} is another one's"
    assert not history or history[-1].sequence >= sequence, f"changes after {sequence} were lost"
    start = time.monotonic()
    for enabled in (False, True):
        (device.enable if enabled else device.disable)("cat")
    assert time.monotonic() - start < SECONDS_OF_A_CHILD, "a child that lives kept the lock"


if __name__ == "__main__":
    raise SystemExit(main(run_link_kill_loop, description=__doc__, unit="kills", default=100))
