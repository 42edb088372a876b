"""A device's life in one runtime, next to the same in ONNX Runtime on the CPU.

Updates are applied and rolled back, a damaged one is offered, and threads ask while classes change. What is found is
returned as figures; whoever asked judges them.
"""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import icis_deploy
from icis_deploy.errors import ICISDeployError

NUM_IMAGES, NUM_THREADS, NUM_CHANGES = 8, 3, 10
EMPTY = -1e3
"""Below it a logit is an empty slot's."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a device did in a runtime; differences are the greatest of any logit, in standard deviations of logits."""

    difference_before: float
    """From the CPU's, without an update."""

    difference_after: float
    """From the CPU's, with an update."""

    has_same_classes: bool
    """Whether the classes after the update are the CPU's."""

    apply_ms: float
    """Time of the call that applied it, milliseconds."""

    num_answers: int
    """Answers of three threads while updates were applied and rolled back."""

    num_torn: int
    """Those that belong to neither state."""

    refused_by: str | None
    """Error of a damaged update; `None` if it was taken."""

    is_restored: bool
    """Whether the device answers to the last bit as before, once all was rolled back."""


def live(folder: Path, runtime: icis_deploy.Runtime, *, updates: tuple[Path, Path], key: Path, work: Path) -> Life:
    """Live in copies of a bundle, and return what was seen.

    Args:
        folder: An updatable bundle that trusts the key, without updates so far.
        runtime: Where the device runs.
        updates: Signed updates of versions 1 and 2: classes are added, then replaced.
        key: The private key, for later versions of the second one.
        work: A folder for the copies.

    Raises:
        MissingDependencyError: If the runtime, or what it needs, is not there.
        ICISDeployError: If it cannot open the bundle, or refuses an update that the CPU takes.
    """
    for name in ("own", "reference"):
        shutil.rmtree(work / name, ignore_errors=True)
        shutil.copytree(folder, work / name, ignore=shutil.ignore_patterns("state"))
    first, second = updates
    device = icis_deploy.Device.open(work / "own", runtime=runtime)
    reference = icis_deploy.Device.open(work / "reference", num_threads=1)
    described = device.bundle.model_input
    images = np.random.default_rng(0).normal(size=(NUM_IMAGES, *described.shape)).astype(described.dtype)
    before, expected_before = device.logits(images).values, reference.logits(images).values
    start = time.perf_counter()
    device.apply(first, allow_changed_answers=True)
    apply_ms = 1e3 * (time.perf_counter() - start)
    reference.apply(first, allow_changed_answers=True)
    after, expected_after = device.logits(images), reference.logits(images)
    num_answers, num_torn = _answers_while_classes_change(device, images, second, key, work)
    damaged = bytearray(second.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (work / "damaged.icis").write_bytes(damaged)
    refused_by = None
    try:
        device.apply(work / "damaged.icis", allow_changed_answers=True)
    except ICISDeployError as error:
        refused_by = type(error).__name__
    while device.version:
        device.rollback()
    return Life(
        difference_before=difference(before, expected_before),
        difference_after=difference(after.values, expected_after.values),
        has_same_classes=after.class_names == expected_after.class_names,
        apply_ms=apply_ms,
        num_answers=num_answers,
        num_torn=num_torn,
        refused_by=refused_by,
        is_restored=bool(np.array_equal(device.logits(images).values, before)),
    )


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the greatest difference of logits, in standard deviations of the expected ones, without empty slots."""
    used = expected > EMPTY
    return float(np.abs(found - expected)[used].max() / expected[used].std())


def _answers_while_classes_change(
    device: icis_deploy.Device, images: np.ndarray, update: Path, key: Path, work: Path
) -> tuple[int, int]:
    kept = device.logits(images).values
    device.apply(update, allow_changed_answers=True)
    moved = device.logits(images).values
    device.rollback()
    # Both states are far apart, each is computed alike up to the order of sums.
    allowed = np.abs(kept - moved)[kept > EMPTY].max() / 100
    signed = [
        _resigned(update, key, version, work) for version in range(device.version + 2, device.version + 2 + NUM_CHANGES)
    ]
    counts, done, lock = {"answers": 0, "torn": 0}, threading.Event(), threading.Lock()

    def ask() -> None:
        while not done.is_set():
            values = device.logits(images).values
            near = min(float(np.abs(values - state).max()) for state in (kept, moved))
            with lock:
                counts["answers"] += 1
                counts["torn"] += int(near > allowed)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        asking = [pool.submit(ask) for _ in range(NUM_THREADS)]
        try:
            for path in signed:
                device.apply(path, allow_changed_answers=True)
                device.rollback()
        finally:
            done.set()
        for each in asking:
            each.result()
    return counts["answers"], counts["torn"]


def _resigned(update: Path, key: Path, version: int, work: Path) -> Path:
    """Return the update under a later version: a device never takes one twice."""
    out = work / f"version{version}.icis"
    out.unlink(missing_ok=True)
    icis_deploy.sign(update, key=key, version=version, out=out, force=True)
    return out


def two_updates(
    model: Path, *, classes: Path, descriptors: Path, preprocess: Path, unseen: list[str], key: Path, folder: Path
) -> tuple[Path, Path]:
    """Return signed updates of versions 1 and 2: unseen classes' rows by ridge regression, then a tenth shorter."""
    from dataclasses import replace

    paths = (folder / "update1.icis", folder / "update2.icis")
    if not all(path.is_file() for path in paths):
        options: Any = icis_deploy.InjectionOptions(method="ridge", arbiter="off")
        first = icis_deploy.inject(
            model, classes=classes, descriptors=descriptors, unseen=unseen, preprocess=preprocess, options=options
        )
        moved = replace(first, rows=first.rows * np.float32(0.9), added=(), replaced=first.added)
        for version, (path, update) in enumerate(zip(paths, (first, moved), strict=True), start=1):
            path.unlink(missing_ok=True)
            icis_deploy.save_update(update, path)
            icis_deploy.sign(path, key=key, version=version)
    return paths
