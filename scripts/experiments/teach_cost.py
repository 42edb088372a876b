"""What teaching a class by a photo costs a device beyond running its model on the photo.

    python scripts/experiments/teach_cost.py bundle photo.jpg [photo.jpg ...]

`Device.embed` of the photos, which reads and runs them, and `Device.teach` with them, in random order in each round, on
a copy of the bundle where other classes were taught by photos before. A class is taught anew each time. What waits for
the disk is given apart.
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

NUM_OTHERS = 10


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ICISDeployWarning)
    with tempfile.TemporaryDirectory(dir=asked.bundle.resolve().parent) as name:
        copy = Path(name) / "bundle"
        shutil.copytree(asked.bundle, copy)
        device = Device.open(copy, num_threads=asked.threads)
        random = np.random.default_rng(0)
        shape, dtype = device.bundle.model_input.shape, device.bundle.model_input.dtype
        for index in range(NUM_OTHERS):
            noise = random.integers(0, 256, (1, *shape)) if dtype == "uint8" else random.normal(size=(1, *shape))
            device.teach(f"other {index}", images=noise.astype(dtype))
        store = device._opened.updater._store
        measured: dict[str, list[float]] = {"embed": [], "teach": [], "sync": []}
        for _ in range(asked.rounds):
            for way in random.permutation(["embed", "teach"]).tolist():
                start, synced = time.perf_counter(), store.sync_seconds
                if way == "embed":
                    device.embed(asked.photos)
                else:
                    device.teach("taught anew", images=asked.photos)
                    measured["sync"].append(store.sync_seconds - synced)
                measured[way].append(time.perf_counter() - start)
    times = {way: 1e3 * np.array(values) for way, values in measured.items()}
    own = times["teach"] - times["embed"] - times["sync"]
    middles = [float(np.median(random.choice(own, len(own)))) for _ in range(2000)]
    low, high = np.quantile(middles, [0.005, 0.995])
    print(f"{len(asked.photos)} photos, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    for way, values in times.items():
        print(f"{way:6} {np.median(values):7.2f} ms")
    print(f"own    {np.median(own):7.2f} ms (99 % interval {low:.2f} to {high:.2f}): teach less embed and sync")


if __name__ == "__main__":
    main()
