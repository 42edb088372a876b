"""Store the rows of a head in fewer bits: size, accuracy and speed, of an int8 backbone and a fused head.

    python scripts/experiments/head_precision.py MODEL_FOLDER [--rounds 300]

MODEL_FOLDER holds a model, its classes, descriptors, `preprocess.json` and `images.csv`. New classes are injected, and
the same fused bundle is exported with rows in each precision, and once in float32 throughout. Calibration is on every
other image of a seen class. Answers at batch 1 and 8 are timed in turn in one thread, the order drawn in each round.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np

import icis_deploy
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.common.terminal_text import columns, percent
from icis_deploy.metrics.accuracy import AccuracyReport
from icis_deploy.runtime.device import Device

FORMS = (("fp32", "fp32"), ("int8", "fp32"), ("int8", "fp16"), ("int8", "int8"))
"""Precision of the backbone, and of the rows."""

MAX_CALIBRATION = 200


def main() -> None:
    """Print a line for each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    source: Path = arguments.folder
    with tempfile.TemporaryDirectory() as work:
        bundles = export_all(source, Path(work))
        reports = {form: icis_deploy.evaluate(folder, images=source / "images.csv") for form, folder in bundles.items()}
        ratios = interleaved_ratios(bundles, arguments.rounds)
        rows = [("backbone", "rows", "model.onnx", "S", "of fp32", "U", "H", "batch 1", "batch 8")]
        whole = reports[FORMS[0]]
        for form, folder in bundles.items():
            size = (folder / "model.onnx").stat().st_size
            rows.append((*form, f"{size / 1e6:.2f} MB", *accuracies(reports[form], whole), *ratios[form]))
    print(columns(rows, right=[2, 3, 4, 5, 6]))


def accuracies(report: AccuracyReport, whole: AccuracyReport) -> tuple[str, ...]:
    """Return S, how much of that in float32 it is, U and H."""
    return percent(report.S), percent(report.S / whole.S), percent(report.U), percent(report.H)


def export_all(source: Path, work: Path) -> dict[tuple[str, str], Path]:
    """Export a bundle in each form; return their folders."""
    model, classes = source / "model.onnx", source / "classes.txt"
    update = icis_deploy.inject(model, classes=classes, descriptors=source / "descriptors.npz")
    icis_deploy.save_update(update, work / "update.icis")
    calibration = calibration_list(source, classes, work)
    folders = {}
    for precision, head_precision in FORMS:
        form = ModelForm(
            precision=precision,
            head_precision=head_precision,
            calibration_images=calibration if precision == "int8" else None,
        )
        options = icis_deploy.ExportOptions(preprocess=source / "preprocess.json", form=form)
        folder = work / f"{precision}-{head_precision}"
        icis_deploy.export(model, classes=classes, updates=[work / "update.icis"], options=options, out=folder)
        folders[precision, head_precision] = folder
    return folders


def calibration_list(source: Path, classes: Path, work: Path) -> Path:
    """Write a list of every other image of a seen class."""
    seen = set(classes.read_text().split())
    with (source / "images.csv").open() as file:
        listed = [row for row in csv.DictReader(file) if row["class"] in seen]
    path = work / "calibration.csv"
    with path.open("w") as file:
        lines = [f"{(source / row['file']).resolve()},{row['class']}" for row in listed[::2][:MAX_CALIBRATION]]
        file.write("\n".join(["file,class", *lines]) + "\n")
    return path


def interleaved_ratios(bundles: dict[tuple[str, str], Path], rounds: int) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return how long each bundle takes over the one with an int8 backbone and rows in float32, medians of ratios."""
    reference = ("int8", "fp32")
    rng = np.random.default_rng(0)
    devices = {form: Device.open(folder, num_threads=1) for form, folder in bundles.items()}
    found: dict[tuple[str, str], tuple[str, ...]] = dict.fromkeys(bundles, ())
    for batch in (1, 8):
        images = rng.normal(size=(batch, *next(iter(devices.values())).bundle.model_input.shape)).astype(np.float32)
        taken: dict[tuple[str, str], list[float]] = {form: [] for form in devices}
        for number in range(rounds + 5):
            for index in rng.permutation(len(devices)):
                form = list(devices)[index]
                start = time.perf_counter()
                devices[form].logits(images)
                if number >= 5:
                    taken[form].append(time.perf_counter() - start)
        for form, times in taken.items():
            ratio = np.array(times) / np.array(taken[reference])
            low, high = bootstrap_of_median(ratio, rng)
            found[form] = (*found[form], f"{np.median(ratio):.3f} ({low:.3f} to {high:.3f})")
    return found


def bootstrap_of_median(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return a 99 % interval of the median, rounds resampled."""
    medians = np.median(rng.choice(values, size=(1000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.005, 0.995])
    return float(low), float(high)


if __name__ == "__main__":
    main()
