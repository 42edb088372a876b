"""What the guard of a device costs an update: applied in turn with and without it, and the guard's own work.

    python scripts/experiments/guard_cost.py bundle

The bundle is one with an updatable head and a guard; it is copied. Updates of 50 classes replace those of the update
before them, and are allowed whatever answers they change.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import MANIFEST_NAME, load_manifest, serialize_manifest
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.changes.guard import load_guard
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import envelope_of, serialize_envelope

NUM_CLASSES = 50


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.bundle.resolve().parent) as name:
        devices = {
            is_guarded: _open_copy(arguments.bundle, Path(name) / str(is_guarded), arguments.threads, is_guarded)
            for is_guarded in (True, False)
        }
        _apply_in_turn(devices, arguments.updates)
    _time_guard(arguments.bundle, arguments.updates)


def _open_copy(bundle: Path, copy: Path, num_threads: int, is_guarded: bool) -> Device:
    shutil.copytree(bundle, copy)
    if not is_guarded:
        described = replace(load_manifest(copy), max_changed_answers=None)
        (copy / MANIFEST_NAME).write_bytes(serialize_manifest(described))
    return Device.open(copy, num_threads=num_threads)


def _updates(bundle_folder: Path, count: int) -> list[ClassUpdate]:
    bundle, random, updates = load_manifest(bundle_folder), np.random.default_rng(0), []
    for version in range(bundle.head_version + 1, bundle.head_version + 1 + count):
        rows = random.normal(scale=bundle.feature_dim**-0.5, size=(NUM_CLASSES, bundle.feature_dim + 1))
        updates.append(
            ClassUpdate(
                base_fingerprint=bundle.base_fingerprint,
                rows=rows.astype(np.float32),
                added=tuple(f"version {version} class {index}" for index in range(NUM_CLASSES)),
                removed=updates[-1].added if updates else (),
                version=version,
                self_test_seed=version,
            )
        )
    return updates


def _apply_in_turn(devices: dict[bool, Device], count: int) -> None:
    random = np.random.default_rng(1)
    folder = next(iter(devices.values()))._opened.folder
    verify_ms: dict[bool, list[float]] = {True: [], False: []}
    total_ms: dict[bool, list[float]] = {True: [], False: []}
    for update in _updates(folder, count):
        data = serialize_envelope(envelope_of(update))
        for is_guarded in random.permutation([True, False]).tolist():
            applied = devices[is_guarded].apply(data, allow_unsigned=True, allow_changed_answers=True)
            verify_ms[is_guarded].append(applied.timings.verify_ms)
            total_ms[is_guarded].append(applied.timings.work_ms)
    for name, values in (("verify_ms", verify_ms), ("work_ms", total_ms)):
        with_guard, without = np.array(values[True][2:]), np.array(values[False][2:])
        more = with_guard - without
        low, high = np.quantile([np.median(random.choice(more, more.size)) for _ in range(2000)], [0.005, 0.995])
        print(
            f"{name}: {np.median(with_guard):.3f} ms with the guard, {np.median(without):.3f} without; "
            f"{np.median(more):.3f} ({low:.3f} to {high:.3f}) more, {more.size} pairs"
        )


def _time_guard(folder: Path, count: int) -> None:
    bundle = load_manifest(folder)
    start = time.perf_counter()
    guard = load_guard(folder, bundle)
    print(f"reference loaded: {1e3 * (time.perf_counter() - start):.1f} ms, once")
    from icis_deploy.head.slots import empty_slots

    table, seconds = empty_slots(bundle.capacity, bundle.feature_dim), []
    for update in _updates(folder, count):
        after = table.apply(update, seen_names=frozenset(bundle.class_names))
        start = time.perf_counter()
        guard.changed_answers(table, after, written=update.class_names)
        seconds.append(time.perf_counter() - start)
        table = after
    print(f"its work for {NUM_CLASSES} classes: median {1e3 * np.median(seconds[1:]):.3f} ms, {count} updates")


if __name__ == "__main__":
    main()
