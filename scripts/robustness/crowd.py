"""Ask one bundle from four processes with four threads each, while all of them change it, and check every answer.

    python scripts/robustness/crowd.py --seconds 60

Each thread asks for logits without a pause, and now and then applies an update, rolls back, or takes over what others
committed. Each answer is compared with what its own classes must give, computed from their rows in numpy: one of two
states mixed, or of a class under another's name, is wrong. So is a version that goes with other classes. The exit code
is 1 if an answer is wrong, or a thread ends with an error that is no refusal.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.answers import Logits
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen
from scripts.robustness.loop import main, say
from testing.bundles import features_of, images, make_update, seen_head, signed_bytes, trust, write_bundle

NUM_PROCESSES, NUM_THREADS = 4, 4
PROCESSES = multiprocessing.get_context("spawn")
PERIOD = 100
"""Of so many turns of a thread about one is a change, and some more take over those of others."""


@dataclass(slots=True, kw_only=True)
class CrowdReport:
    """What threads saw; each has its own, and they are added up."""

    num_answers: int = 0
    num_changes: int = 0
    num_refused: int = 0
    """Changes that another process was faster than."""

    num_wrong: int = 0

    def add(self, other: CrowdReport) -> None:
        """Add what another one saw."""
        self.num_answers += other.num_answers
        self.num_changes += other.num_changes
        self.num_refused += other.num_refused
        self.num_wrong += other.num_wrong

    @property
    def is_clean(self) -> bool:
        """Whether there were answers and changes, and none was wrong."""
        return self.num_answers > 0 and self.num_changes > 0 and not self.num_wrong

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        return (
            f"{NUM_PROCESSES} processes of {NUM_THREADS} threads: {self.num_answers} answers beside "
            f"{self.num_changes} changes ({self.num_refused} refused: another one was faster), {self.num_wrong} wrong"
        )


def is_right(answer: Logits, batch: Float32) -> bool:
    """Return whether an answer is that of one state: the classes of its version, each with its own logit."""
    new = answer.class_names[3:]
    if len(new) > 1 or any(name != f"class {answer.version}" for name in new) or (answer.version > 0) != bool(new):
        return False
    rows = [seen_head().rows, *(make_update(name, version=answer.version).rows for name in new)]
    expected = features_of(batch) @ np.concatenate(rows)[:, :-1].T + np.concatenate(rows)[:, -1]
    return answer.values.shape == expected.shape and bool(np.allclose(answer.values, expected, rtol=1e-4, atol=1e-4))


def work(device: Device, key_path: Path, until: float, seed: int, report: CrowdReport) -> None:
    """Ask and change until the time comes."""
    random, batch = np.random.default_rng(seed), images(2, seed=seed)
    while time.time() < until:
        turn = int(random.integers(PERIOD))
        try:
            if turn == 0:
                version = max(device.version, device._opened.updater.held.journal.highest_version) + 1
                update = make_update(f"class {version}", version=version, complete=True)
                device.apply(signed_bytes(update, key_path))
                report.num_changes += 1
            elif turn == 1 and device.history() and random.integers(3) == 0:
                device.rollback()
                report.num_changes += 1
            elif turn < PERIOD // 10:
                device.refresh()
        except ICISDeployError:
            report.num_refused += 1
        answer = device.logits(batch)
        report.num_answers += 1
        if not is_right(answer, batch):
            report.num_wrong += 1
            say(f"wrong: version {answer.version} with {answer.class_names[3:]}")


def run_process(
    bundle: Path, key_path: Path, num_seconds: int, seed: int, opened: Barrier, results: Queue[CrowdReport]
) -> None:
    """Open the bundle once, and let threads work with it from when all processes have."""
    device = Device.open(bundle, num_threads=1)
    opened.wait(120)
    until = time.time() + num_seconds
    reports = [CrowdReport() for _ in range(NUM_THREADS)]

    def guarded(number: int) -> None:
        try:
            work(device, key_path, until, seed + number, reports[number])
        except BaseException as error:
            reports[number].num_wrong += 1
            say(f"a thread ended: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = CrowdReport()
    for report in reports:
        total.add(report)
    results.put(total)


def run_crowd(folder: Path, num_seconds: int, *, seed: int) -> CrowdReport:
    """Let all processes work for `num_seconds`; keys and bundle are made in `folder`."""
    keys = keygen(folder / "key")
    bundle = write_bundle(folder / "bundle")
    trust(bundle, keys.public_path)
    results: Queue[CrowdReport] = PROCESSES.Queue()
    opened, processes = PROCESSES.Barrier(NUM_PROCESSES), []
    for number in range(NUM_PROCESSES):
        arguments = (bundle, keys.private_path, num_seconds, seed + 100 * number, opened, results)
        processes.append(PROCESSES.Process(target=run_process, args=arguments))
        processes[-1].start()
    total = CrowdReport()
    for _ in processes:
        total.add(results.get(timeout=num_seconds + 240))
    for process in processes:
        process.join()
        if process.exitcode:
            say(f"a process ended with {process.exitcode}")
            total.num_wrong += 1
    if not is_right(Device.open(bundle).logits(images(2)), images(2)):
        say("the bundle is left with a state that is wrong")
        total.num_wrong += 1
    return total


if __name__ == "__main__":
    raise SystemExit(main(run_crowd, description=__doc__, unit="seconds", default=60))
