"""Time a bundle's whole model and its backbone with the head in numpy, in turn, and an update in both.

    python scripts/experiments/split_session.py MODEL_FOLDER [--rounds 300] [--threads 1]

MODEL_FOLDER holds a model, its classes and descriptors. New classes are injected and exported in 256 slots with the
target `backbone`; the order of the two runtimes is drawn in each round. numpy's BLAS takes its threads from the
environment.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import icis_deploy
from icis_deploy.common.terminal_text import columns
from icis_deploy.runtime.device import Device
from scripts.experiments.head_precision import bootstrap_of_median

RUNTIMES = ("onnxruntime", "split")
BATCHES = (1, 8, 32)


def main() -> None:
    """Print a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    source: Path = arguments.folder
    with tempfile.TemporaryDirectory() as work:
        classes = source / "classes.txt"
        update = icis_deploy.inject(source / "model.onnx", classes=classes, descriptors=source / "descriptors.npz")
        icis_deploy.save_update(update, Path(work) / "update.icis")
        options = icis_deploy.ExportOptions(
            head="updatable", capacity=256, targets=("backbone",), max_changed_answers=None
        )
        bundle = Path(work) / "bundle"
        icis_deploy.export(
            source / "model.onnx", classes=classes, updates=[Path(work) / "update.icis"], options=options, out=bundle
        )
        devices = {name: Device.open(bundle, runtime=name, num_threads=arguments.threads) for name in RUNTIMES}
        lines = [measured(devices, size, arguments.rounds) for size in BATCHES]
        print(columns([("batch", *RUNTIMES, "ratio"), *lines]))


def measured(devices: dict[str, Device], batch: int, rounds: int) -> tuple[str, ...]:
    """Return medians in milliseconds, and the median ratio with a 99 % interval."""
    rng = np.random.default_rng(batch)
    shape = devices[RUNTIMES[0]].bundle.model_input.shape
    images = rng.normal(size=(batch, *shape)).astype(np.float32)
    taken: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    for number in range(rounds + 5):
        for name in rng.permutation(RUNTIMES):
            start = time.perf_counter()
            devices[name].logits(images)
            if number >= 5:
                taken[name].append(time.perf_counter() - start)
    ratio = np.array(taken["split"]) / np.array(taken["onnxruntime"])
    low, high = bootstrap_of_median(ratio, rng)
    times = [f"{1e3 * float(np.median(taken[name])):.2f} ms" for name in RUNTIMES]
    return str(batch), *times, f"{float(np.median(ratio)):.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
