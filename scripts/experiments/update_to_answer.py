"""How long it takes from the file of a class update to the first answer with it, over one inference.

    python scripts/experiments/update_to_answer.py bundle [--updates 300] [--classes 50] [--threads 1]

Works on a copy of a bundle with an updatable head. The device has root keys; each update is signed, says what it
follows, replaces the classes of the one before, and passes the bundle's guard, if it has one, whose verdict is allowed.
In each round a bare inference of the device and an update with its first answer take turns in random order, so both
meet the same load. Printed are medians with a 99 % interval: what an update takes over an inference, and its parts.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.timing.rounds import garbage_collector_at_rest
from benchmarks.updates.bundle_copy import BundleCopy, bundle_copy, slot_table
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.changes.timings import ApplyTimings
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen, rotate_keys, sign

WARM_UP_ROUNDS = 5


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with bundle_copy(given.bundle) as copy, garbage_collector_at_rest():
        device = Device.open(copy.folder, num_threads=given.threads)
        _take_root_keys(device, copy)
        rounds = [_round(device, copy, index, given.classes) for index in range(given.updates + WARM_UP_ROUNDS)]
    rounds = rounds[WARM_UP_ROUNDS:]
    inference = np.array([each[0] for each in rounds])
    whole = np.array([each[1] for each in rounds])
    timings = [each[2] for each in rounds]
    processor = [each[3] for each in rounds]
    print(f"{given.updates} updates of {given.classes} classes with roles and `follows`; load {os.getloadavg()[0]:.1f}")
    print(f"{'one inference':28}{_with_interval(inference)}")
    print(f"{'from file to first answer':28}{_with_interval(whole)}")
    print(f"{'over one inference':28}{_with_interval(whole - inference)}")
    print(f"{'processor time of apply':28}{_with_interval(processor)}, in the thread that calls it")
    for name in (*(field.name for field in fields(ApplyTimings)), "work_ms"):
        print(f"  {name:26}{_with_interval([getattr(each, name) for each in timings])}")


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


def _with_interval(values: ArrayLike) -> str:
    array, random = np.asarray(values), np.random.default_rng(0)
    medians = [np.median(random.choice(array, array.size)) for _ in range(2000)]
    low, high = np.quantile(medians, [0.005, 0.995])
    return f"{np.median(array):8.3f} ms ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
