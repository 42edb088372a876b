"""How long it takes from the file of a class update to the first answer with it, over one inference.

    python scripts/experiments/update_to_answer.py bundle [--updates 300] [--classes 50] [--threads 1]
        [--against FOLDER]

Works on a copy of a bundle with an updatable head. The device has root keys; each update is signed, says what it
follows, replaces the classes of the one before, and passes the bundle's guard, if it has one, whose verdict is allowed.
In each round a bare inference of the device and an update with its first answer take turns in random order, so both
meet the same load. Printed are medians with a 99 % interval: what an update takes over an inference, and its parts.

With `--against`, the code of another checkout is measured as well, in processes that take turns, and the medians of
this one are given as multiples of the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.timing.rounds import garbage_collector_at_rest
from benchmarks.updates.bundle_copy import BundleCopy, bundle_copy, slot_table
from icis_deploy.common.arrays import Float64
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.changes.timings import ApplyTimings
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen, rotate_keys, sign

WARM_UP_ROUNDS = 5
NUM_TURNS = 10
"""Of each checkout, where two are compared: a machine that becomes slower is slower for both."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured, in milliseconds, one value for each update."""

    inference: list[float]
    whole: list[float]
    processor: list[float]
    parts: dict[str, list[float]]

    def named(self) -> dict[str, Float64]:
        """Return each figure under the name that it is printed with."""
        inference, whole = np.array(self.inference), np.array(self.whole)
        return {
            "one inference": inference,
            "from file to first answer": whole,
            "over one inference": whole - inference,
            "processor time of apply": np.array(self.processor),
            **{f"  {name}": np.array(values) for name, values in self.parts.items()},
        }


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--json", action="store_true", help="print the values, for a process that compares")
    given = parser.parse_args()
    if given.against is not None:
        _compare(given)
        return
    figures = _measure(given.bundle, num_updates=given.updates, num_classes=given.classes, threads=given.threads)
    if given.json:
        print(json.dumps(asdict(figures)))
        return
    print(f"{given.updates} updates of {given.classes} classes with roles and `follows`; load {os.getloadavg()[0]:.1f}")
    for name, values in figures.named().items():
        print(f"{name:28}{_with_interval(values)}")


def _compare(given: argparse.Namespace) -> None:
    here = Path(__file__).resolve().parents[2]
    found: dict[Path, list[Figures]] = {given.against.resolve(): [], here: []}
    for turn in range(NUM_TURNS):
        for folder in sorted(found, reverse=bool(turn % 2)):
            command = [sys.executable, __file__, str(given.bundle), "--json", "--threads", str(given.threads)]
            command += ["--updates", str(-(-given.updates // NUM_TURNS)), "--classes", str(given.classes)]
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            done = subprocess.run(  # noqa: S603 - this very script
                command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
            )
            found[folder].append(Figures(**json.loads(done.stdout)))
    before, after = ([each.named() for each in turns] for turns in found.values())
    print(f"{NUM_TURNS} turns of {given.updates // NUM_TURNS} updates each; load {os.getloadavg()[0]:.1f}")
    print(f"{'':28}{'the other':>32}{'this one':>32}   this one / the other")
    for name in before[0]:
        pairs = [(np.median(one[name]), np.median(other[name])) for one, other in zip(before, after, strict=True)]
        ratio = _with_interval([new / old for old, new in pairs], unit="") if all(old for old, _ in pairs) else ""
        texts = [_with_interval(np.concatenate([each[name] for each in turns])) for turns in (before, after)]
        print(f"{name:28}{texts[0]:>32}{texts[1]:>32}   {ratio}")


def _measure(bundle: Path, *, num_updates: int, num_classes: int, threads: int) -> Figures:
    with bundle_copy(bundle) as copy, garbage_collector_at_rest():
        device = Device.open(copy.folder, num_threads=threads)
        _take_root_keys(device, copy)
        rounds = [_round(device, copy, index, num_classes) for index in range(num_updates + WARM_UP_ROUNDS)]
    rounds = rounds[WARM_UP_ROUNDS:]
    names = (*(field.name for field in fields(ApplyTimings)), "work_ms")
    return Figures(
        inference=[each[0] for each in rounds],
        whole=[each[1] for each in rounds],
        processor=[each[3] for each in rounds],
        parts={name: [getattr(each[2], name) for each in rounds] for name in names},
    )


def _take_root_keys(device: Device, copy: BundleCopy) -> None:
    root = keygen(copy.folder.parent / "root-key")
    file = copy.folder.parent / "roots.icis"
    public = copy.private_key.with_name(copy.private_key.name + ".pub")
    # Root keys that come must sign the set that brings them, and so must a key that is trusted now.
    rotate_keys([public], copy.private_key, out=file, version=1, root_key_paths=[root.public_path])
    sign(file, root.private_path)
    device.apply(file)


def _round(device: Device, copy: BundleCopy, index: int, num_classes: int) -> tuple[float, float, ApplyTimings, float]:
    """Return milliseconds of an inference and of an update with its answer, its parts, and its processor time."""
    random, path = np.random.default_rng(index), copy.folder.parent / "update.icis"
    table, images = slot_table(device), self_test_input(device.bundle, index)
    rows = random.normal(scale=device.bundle.feature_dim**-0.5, size=(num_classes, device.bundle.feature_dim + 1))
    update = ClassUpdate(
        base_fingerprint=device.bundle.base_fingerprint,
        rows=rows.astype(np.float32),
        added=tuple(f"update {index} class {number}" for number in range(num_classes)),
        removed=table.filled_names,
        version=device.version + 1,
        expires=datetime(2100, 1, 1, tzinfo=timezone.utc),
        follows=FollowedState(version=device.version, digest=table.digest()),
    )
    path.write_bytes(copy.signed(update))
    inference_ms = 0.0
    is_first = bool(random.integers(2))
    if is_first:
        inference_ms = _inference_ms(device, images)
    start, processor = time.perf_counter(), time.thread_time()
    timings = device.apply(path, allow_changed_answers=True).timings
    processor_ms = 1e3 * (time.thread_time() - processor)
    device.predict(images)
    whole_ms = 1e3 * (time.perf_counter() - start)
    if not is_first:
        inference_ms = _inference_ms(device, images)
    return inference_ms, whole_ms, timings, processor_ms


def _inference_ms(device: Device, images: np.ndarray) -> float:
    start = time.perf_counter()
    device.predict(images)
    return 1e3 * (time.perf_counter() - start)


def _with_interval(values: ArrayLike, *, unit: str = " ms") -> str:
    array, random = np.asarray(values), np.random.default_rng(0)
    medians = [np.median(random.choice(array, array.size)) for _ in range(2000)]
    low, high = np.quantile(medians, [0.005, 0.995])
    return f"{np.median(array):8.3f}{unit} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
