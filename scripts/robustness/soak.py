"""Apply thousands of updates to one device, and check that memory, descriptors, threads and files stay what they were.

    python scripts/robustness/soak.py --updates 10000

One process keeps one device open: each update is signed, applied, and answered with; every seventh change is rolled
back, a second device takes each change over, and now and then a third one is opened, asked and dropped. After a tenth
of the updates what the process holds is noted, and again at the end: the exit code is 1 if it has grown, by more than
two megabytes of memory, or by one descriptor, thread or file of state.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen
from scripts.robustness.loop import counted, main, say
from testing.bundles import images, make_update, signed_bytes, trust, write_bundle

MAX_MORE_BYTES = 2 << 20
PERIOD = 7
REOPENED_EACH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a process holds."""

    resident_bytes: int
    num_descriptors: int
    num_threads: int
    num_files: int
    """In the bundle's state folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakReport:
    """What a process held early and at the end."""

    num_updates: int
    num_wrong: int
    """Answers that did not name the class of their version."""

    early: Holding
    late: Holding

    @property
    def is_clean(self) -> bool:
        """Whether nothing grew and no answer was wrong."""
        more = self.late.resident_bytes - self.early.resident_bytes
        names = ("num_descriptors", "num_threads", "num_files")
        return (
            not self.num_wrong
            and more <= MAX_MORE_BYTES
            and all(getattr(self.late, name) <= getattr(self.early, name) for name in names)
        )

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        early, late = self.early, self.late
        return (
            f"{self.num_updates} updates, {self.num_wrong} wrong answers; after a tenth and at the end: "
            f"{early.resident_bytes / 1e6:.1f} and {late.resident_bytes / 1e6:.1f} MB, "
            f"{early.num_descriptors} and {late.num_descriptors} descriptors, "
            f"{early.num_threads} and {late.num_threads} threads, {early.num_files} and {late.num_files} files"
        )


def held(bundle_folder: Path) -> Holding:
    """Return what this process holds now, garbage not counted."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Holding(
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        num_descriptors=len(list(Path("/proc/self/fd").iterdir())),
        num_threads=threading.active_count(),
        num_files=len(list((bundle_folder / "state").iterdir())),
    )


def run_soak(folder: Path, num_updates: int, *, seed: int) -> SoakReport:
    """Apply `num_updates` updates; keys and bundle are made in `folder`."""
    keys = keygen(folder / "key")
    bundle = write_bundle(folder / "bundle")
    trust(bundle, keys.public_path)
    device, follower = (Device.open(bundle, num_threads=1) for _ in range(2))
    batch, num_wrong, early = images(2), 0, None
    for index in counted(num_updates, "updates"):
        version = index + 1
        update = make_update(f"class {version}", version=version, seed=seed + version, removed=device.classes()[3:])
        device.apply(signed_bytes(update, keys.private_path))
        if version % PERIOD == 0:
            device.rollback()
        follower.refresh()
        answers = [each.logits(batch) for each in (device, follower)]
        if version % REOPENED_EACH == 0:
            answers.append(Device.open(bundle, num_threads=1).logits(batch))
        expected = version if version % PERIOD else version - 1
        for answer in answers:
            is_right = (answer.version, answer.class_names[3:]) == (expected, (f"class {expected}",))
            if not (is_right and np.array_equal(answer.values, answers[0].values)):
                num_wrong += 1
                say(f"wrong: version {answer.version} with {answer.class_names[3:]}, expected {expected}")
        # At the same place of a period as the end: a rollback leaves one kept state less.
        if early is None and version >= max(PERIOD * 4, num_updates // 10) and version % PERIOD == num_updates % PERIOD:
            early = held(bundle)
    late = held(bundle)
    return SoakReport(num_updates=num_updates, num_wrong=num_wrong, early=early or late, late=late)


if __name__ == "__main__":
    raise SystemExit(main(run_soak, description=__doc__, unit="updates", default=10_000))
