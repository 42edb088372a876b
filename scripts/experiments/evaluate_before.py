"""Evaluations of an earlier commit and of this one in turn, beside the model alone as fast as it can be run here.

    git worktree add ../before COMMIT
    scripts/experiments/evaluate_before.py BUNDLE --images LIST --before ../before

    before, now    `icis_deploy.evaluate(BUNDLE, images=LIST)` of each code, each time in a fresh process, after one of
                   eight images
    model          the bundle's model.onnx on inputs that are ready, a thread a core, in the fastest of some batches

The bundle is one that both can open: exported by the earlier code. Images a second on the clock and milliseconds of
processor time an image, by round; then medians, and ratios with their range. On a machine that does other work too the
system may keep both threads on one core for a whole round: `cores` says how many each had.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from icis_deploy.evaluation.measuring import usable_cores

HERE = Path(__file__).parent.parent.parent
BATCHES = (1, 2, 4, 8, 32)

EVALUATE = """
import json, sys, time, icis_deploy
_, bundle, images, unseen, few = sys.argv
given = {"unseen": unseen} if unseen else {}
icis_deploy.evaluate(bundle, images=few, **given)
clock, processor = time.perf_counter(), time.process_time()
report = icis_deploy.evaluate(bundle, images=images, **given)
seconds = time.perf_counter() - clock, time.process_time() - processor
print(json.dumps([report.num_images, *seconds, [report.T, report.U, report.S]]))
"""

RUN_MODEL = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np, icis_deploy
from icis_deploy.runtime.device import session_of, state_of
_, bundle, count, cores, *batches = sys.argv
device = icis_deploy.Device.open(bundle, num_threads=1)
session, slots = session_of(device), state_of(device).buffers
inputs = np.random.default_rng(0).standard_normal((64, *device.bundle.model_input.shape), dtype=np.float32)
for batch in map(int, batches):
    starts = [start % 64 for start in range(0, int(count), batch)]
    with ThreadPoolExecutor(int(cores)) as pool:
        run = lambda start: session.run(inputs[start : start + batch], slots).logits
        list(pool.map(run, starts[:8]))
        clock, processor = time.perf_counter(), time.process_time()
        list(pool.map(run, starts))
        seconds = time.perf_counter() - clock, time.process_time() - processor
    print(json.dumps([batch, batch * len(starts), *seconds]))
"""


class Timed(NamedTuple):
    """One round of one way."""

    rate: float
    """Images a second."""

    milliseconds: float
    """Of processors, an image."""

    cores: float
    """That were at work, on average."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a CSV with the columns file and class")
    parser.add_argument("--unseen", type=Path, help="classes that count as unseen")
    parser.add_argument("--before", type=Path, required=True, help="folder of the earlier code")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.csv"
        _write_first(given.images, few)
        _measure(given, few)


def _write_first(images: Path, few: Path) -> None:
    with images.open(newline="") as listed, few.open("w", newline="") as written:
        writer = csv.writer(written)
        writer.writerow(["file", "class"])
        for row in islice(csv.DictReader(listed), 8):
            writer.writerow([images.resolve().parent / row["file"], row["class"]])


def _measure(given: argparse.Namespace, few: Path) -> None:
    bundle, images = str(given.bundle.resolve()), str(given.images.resolve())
    unseen = "" if given.unseen is None else str(given.unseen.resolve())
    found: dict[str, list[Timed]] = {}
    for _ in range(given.rounds):
        figures = []
        for name, folder in (("before", given.before), ("now", HERE)):
            ((num_images, clock, processor, accuracy),) = _printed(folder, EVALUATE, bundle, images, unseen, str(few))
            found.setdefault(name, []).append(_timed(num_images, clock, processor))
            figures.append(accuracy)
        if figures[0] != figures[1]:
            raise SystemExit(f"T, U and S were {figures[0]} and are {figures[1]}: other accuracies, no comparison.")
        count, cores = str(num_images // 2), str(usable_cores())
        for batch, num_inputs, clock, processor in _printed(HERE, RUN_MODEL, bundle, count, cores, *map(str, BATCHES)):
            found.setdefault(f"model, batches of {batch}", []).append(_timed(num_inputs, clock, processor))
        last = {name: times[-1] for name, times in found.items()}
        print(
            *(f"{name} {each.rate:.0f}/s {each.milliseconds:.2f} ms" for name, each in last.items()),
            sep="; ",
            flush=True,
        )
    _print_table(found)


def _printed(folder: Path, program: str, *arguments: str) -> list[list[Any]]:
    """Run a program with the code of a folder; return the lines of JSON that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if ended.returncode:
        raise SystemExit(f"The code of {folder} failed:\n{ended.stderr}")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def _timed(num_images: float, clock: float, processor: float) -> Timed:
    return Timed(num_images / clock, 1e3 * processor / num_images, processor / clock)


def _print_table(found: dict[str, list[Timed]]) -> None:
    models = {name: times for name, times in found.items() if name.startswith("model")}
    fastest = min(models, key=lambda name: statistics.median(each.milliseconds for each in models[name]))
    print(f"\n{'':24} images/s  ms an image  cores   times before: images/s      processor time   of {fastest}")
    for name, times in found.items():
        rate, milliseconds, cores = (statistics.median(values) for values in zip(*times, strict=True))
        faster = [each.rate / base.rate for each, base in zip(times, found["before"], strict=True)]
        cheaper = [base.milliseconds / each.milliseconds for each, base in zip(times, found["before"], strict=True)]
        share = [base.milliseconds / each.milliseconds for each, base in zip(times, found[fastest], strict=True)]
        print(
            f"{name:24} {rate:8.1f}  {milliseconds:11.2f}  {cores:5.2f}   {_range(faster):20}   {_range(cheaper):20}   "
            f"{_range(share)}"
        )


def _range(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
