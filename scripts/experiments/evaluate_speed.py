"""How near an evaluation comes to the speed of its model alone: `session.run` on ready batches, `evaluate`, in turn.

    scripts/experiments/evaluate_speed.py BUNDLE --images LIST
    scripts/experiments/evaluate_speed.py BUNDLE --images LIST --enlarge 4    # the same photos as larger files

    model      as many threads as cores, each with batches that are ready, through the bundle's own session
    arrays     evaluate() of the same prepared inputs, in memory
    files      evaluate() of the files
    reduced    the same with `reduced_decode`

Images a second, processor time an image, and both as shares of the model's in the same round; of accuracy, what a
reduced decode changes. One process; each way goes over the inputs once before the first round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import icis_deploy
from icis_deploy.common.arrays import Images
from icis_deploy.evaluation.measuring import (
    Worker,
    default_batch_size,
    measure,
    outcome_head,
    piece_size,
    threads,
    usable_cores,
)
from icis_deploy.images.inputs import prepared_batches
from icis_deploy.images.loading import ListedImages, load_image_list
from icis_deploy.images.sources import InputSource, ListedValues
from icis_deploy.metrics.accuracy import accuracy_of
from icis_deploy.metrics.outcomes import Outcomes
from icis_deploy.runtime.device import session_of, state_of
from icis_deploy.runtime.open_bundle import input_form
from icis_deploy.runtime.sessions.choice import Runtime

Timed = tuple[float, float]
"""Seconds on the clock and of processors."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a CSV with the columns file and class")
    parser.add_argument("--count", type=int, default=400, help="images of the list, evenly spaced")
    parser.add_argument("--enlarge", type=int, default=1, help="sides are this many times as long, saved as JPEG")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        listed = load_image_list(given.images)
        chosen = np.unique(np.linspace(0, len(listed) - 1, min(given.count, len(listed))).astype(int)).tolist()
        photos = listed.select(chosen)
        if given.enlarge > 1:
            photos = _enlarged(photos, given.enlarge, Path(folder))
        _measure(given.bundle, photos, given.rounds)


def _measure(bundle: Path, photos: ListedImages, rounds: int) -> None:
    workers = usable_cores()
    device = icis_deploy.Device.open(bundle, runtime=Runtime(num_threads=1))
    size = default_batch_size(device)
    batches = [each.inputs for each in prepared_batches(photos, input_form(device.bundle), batch_size=size)]
    arrays = ListedValues(values=np.concatenate(batches), labels=photos.labels, where="arrays")
    outcomes: dict[str, Outcomes] = {}

    def evaluated(name: str, source: InputSource, *, reduced: bool = False) -> None:
        worker = Worker(device=device, head=outcome_head(device), batch_size=size, reduced_decode=reduced)
        engine = threads(worker, workers=workers)
        outcomes[name], _ = measure(source, engine, piece_size=piece_size(size))

    ways: dict[str, Callable[[], None]] = {
        "model": lambda: _run_model(device, batches, workers),
        "arrays": lambda: evaluated("arrays", arrays),
        "files": lambda: evaluated("files", photos),
        "reduced": lambda: evaluated("reduced", photos, reduced=True),
    }
    for way in ways.values():
        way()
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(_timed(way))
    print(f"{len(photos)} images, {workers} threads, {rounds} rounds; medians, and of shares the range")
    for name, times in found.items():
        clock, processor = (
            [base[index] / each[index] for base, each in zip(found["model"], times, strict=True)] for index in (0, 1)
        )
        print(
            f"{name:8} {len(photos) / statistics.median(each[0] for each in times):7.1f} images/s "
            f"{1e3 * statistics.median(each[1] for each in times) / len(photos):6.2f} ms of processor   "
            f"share {_range(clock)}, of processor time {_range(processor)}"
        )
    whole, reduced = (accuracy_of(outcomes[name]) for name in ("files", "reduced"))
    differ = float((outcomes["files"].column("answer") != outcomes["reduced"].column("answer")).mean())
    print(f"answers that a reduced decode changes: {100 * differ:.2f} %")
    for name in ("T", "U", "S", "H"):
        before, after = getattr(whole, name), getattr(reduced, name)
        if before is not None and after is not None:
            print(f"{name}: {100 * before:.2f} -> {100 * after:.2f} %")


def _run_model(device: icis_deploy.Device, batches: Sequence[Images], workers: int) -> None:
    session, slots = session_of(device), state_of(device).buffers
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda batch: session.run(batch, slots).logits, batches):
            pass


def _timed(way: Callable[[], None]) -> Timed:
    clock, processor = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - clock, time.process_time() - processor


def _range(shares: Sequence[float]) -> str:
    return f"{statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"


def _enlarged(photos: ListedImages, times: int, folder: Path) -> ListedImages:
    """Return the photos as JPEG files with longer sides, as a camera would have saved them."""
    paths = []
    for index, item in enumerate(photos):
        assert isinstance(item.value, Path), "a list of files"
        with Image.open(item.value) as image:
            size = (image.width * times, image.height * times)
            path = folder / f"{index}.jpg"
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=90)
        paths.append(path)
    return replace(photos, paths=tuple(paths))


if __name__ == "__main__":
    main()
