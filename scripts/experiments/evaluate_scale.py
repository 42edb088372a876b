"""How much memory and time an evaluation takes beside the model: a bundle's own classes, with a model that is stubbed.

    scripts/experiments/evaluate_scale.py BUNDLE --images 200000 1000000

Each number of images is evaluated in a fresh process. A tenth of the classes count as unseen, so that all figures are
computed; logits are drawn once and given again.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import icis_deploy
from icis_deploy.evaluation import measuring
from icis_deploy.images.inputs import InputForm
from icis_deploy.images.sources import InputItem, InputSource, InputValue
from icis_deploy.runtime.answers import Logits

BATCH_SIZE = 32
NUM_DRAWN = 4096


class ManyImages:
    """As many images as are asked for, none of which is read."""

    def __init__(self, class_names: tuple[str, ...], count: int) -> None:
        self.labels = tuple(class_names[index % len(class_names)] for index in range(count))
        self.where = "images that are not there"

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[InputItem]:
        value = np.zeros(1, np.float32)
        for index, label in enumerate(self.labels):
            yield InputItem(f"some/folder/of/images/n{index:09}.jpg", label, value)

    def select(self, indices: object) -> InputSource:
        """Never called."""
        raise NotImplementedError


def _measure(bundle: Path, count: int) -> None:
    device = icis_deploy.Device.open(bundle)
    names = device.classes()
    drawn = np.random.default_rng(0).normal(size=(NUM_DRAWN, len(names))).astype(np.float32)
    calls = iter(range(1 << 62))

    def logits(self: icis_deploy.Device, batch: np.ndarray) -> Logits:
        start = 7 * next(calls) % (NUM_DRAWN - BATCH_SIZE)
        return Logits(values=drawn[start : start + len(batch)], class_names=names, version=self.version)

    def prepare(values: list[InputValue], form: InputForm, **_: object) -> np.ndarray:  # noqa: ARG001
        return np.zeros((len(values), 1), np.float32)

    icis_deploy.Device.logits = logits  # type: ignore[method-assign]
    measuring.prepare = prepare  # type: ignore[assignment]
    before, start = _peak_mb(), time.perf_counter()
    icis_deploy.evaluate(
        device,
        images=ManyImages(names, count),
        unseen=names[::10],
        options=icis_deploy.EvaluateOptions(batch_size=BATCH_SIZE),
    )
    print(
        f"{count} images of {len(names)} classes: {_peak_mb():.0f} MB at most, {before:.0f} before; "
        f"{count / (time.perf_counter() - start):.0f} images a second"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run one process for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for count in asked.images:
        if asked.one:
            _measure(asked.bundle, count)
        else:
            command = [sys.executable, __file__, str(asked.bundle), "--images", str(count), "--one"]
            subprocess.run(command, check=True)  # noqa: S603 - our own code


if __name__ == "__main__":
    main()
