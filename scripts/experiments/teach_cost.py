"""What teaching a class by a photo costs a device beyond running its model on the photo.

    python scripts/experiments/teach_cost.py bundle photo.jpg [photo.jpg ...] --others other.jpg [other.jpg ...]

`Device.embed` of the photos, which reads and runs them, and `Device.teach` with them, in random order in each round, on
a copy of the bundle where other classes were taught by photos before. Each class is rolled back again. What waits for
the disk is given apart. Processor time is of all threads, and tells what other work on the machine hides.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from icis_deploy.errors import ICISDeployWarning
from icis_deploy.runtime.device import Device


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="A photo of each class taught before.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ICISDeployWarning)
    with tempfile.TemporaryDirectory(dir=asked.bundle.resolve().parent) as name:
        copy = Path(name) / "bundle"
        shutil.copytree(asked.bundle, copy)
        device = Device.open(copy, num_threads=asked.threads)
        random = np.random.default_rng(0)
        for index, photo in enumerate(asked.others):
            device.teach(f"other {index}", images=[photo])
        store = device._opened.updater._store
        measured: dict[str, list[float]] = {name: [] for name in ("embed", "teach", "sync", "embed cpu", "teach cpu")}
        for _ in range(asked.rounds):
            for way in random.permutation(["embed", "teach"]).tolist():
                start, used, synced = time.perf_counter(), time.process_time(), store.sync_seconds
                if way == "embed":
                    device.embed(asked.photos)
                else:
                    device.teach("new", images=asked.photos)
                    measured["sync"].append(store.sync_seconds - synced)
                measured[way].append(time.perf_counter() - start)
                measured[f"{way} cpu"].append(time.process_time() - used)
                if way == "teach":
                    device.rollback()
    times = {way: 1e3 * np.array(values) for way, values in measured.items()}
    print(f"{len(asked.photos)} photos, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    for way, values in times.items():
        print(f"{way:9} {np.median(values):7.2f} ms")
    own = {
        "teach less embed and sync": times["teach"] - times["embed"] - times["sync"],
        "the same, processor time": times["teach cpu"] - times["embed cpu"],
    }
    for what, values in own.items():
        middles = [float(np.median(random.choice(values, len(values)))) for _ in range(2000)]
        low, high = np.quantile(middles, [0.005, 0.995])
        print(f"{what}: {np.median(values):.2f} ms (99 % interval {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
