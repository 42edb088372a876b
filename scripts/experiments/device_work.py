"""Compare a model that takes pixels and chooses classes with the same work in Python around the plain model.

    python scripts/experiments/device_work.py MODEL --classes FILE --preprocess FILE
        [--top K] [--batch 1,8,32] [--threads N]

Exports MODEL twice, fused: as it is, and with `--input uint8 --top K`. From the same resized and cropped pixels to the
K most probable classes, three ways are measured in turn, round by round:

    in the model        one call: one array of bytes in, two small arrays out
    in Python           scaled, normalised and laid out by numpy as `Preprocessing` does it, softmax, argsort
    in Python, tuned    one multiplication and one addition on arrays that are kept, and argpartition

Each way's classes are compared with the others' before anything is timed. A multiple above 1 means that the way takes
longer than the model does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import icis_deploy
from benchmarks.timing.latency import Plan, measure
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.common.arrays import Float32, Int64, UInt8
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.images.neutral import neutral_images
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.protocol import Session

Way = Callable[[UInt8], tuple[Float32, Int64]]
"""From pixels, `(batch, height, width, channels)`, to probabilities and class ids, `(batch, top)` each."""

IN_MODEL, IN_PYTHON, TUNED = "in the model", "in Python", "in Python, tuned"


def ways(chooser: Session, plain: Session, preprocessing: Preprocessing, top: int) -> dict[str, Way]:
    """Return every way from pixels to probabilities and class ids, `(batch, top)` each, by its name."""

    def in_model(pixels: UInt8) -> tuple[Float32, Int64]:
        chosen = chooser.top(pixels)
        if chosen is None:
            raise RuntimeFailureError("The exported model returns no classes; expected the outputs of --top.")
        return chosen

    def in_python(pixels: UInt8) -> tuple[Float32, Int64]:
        probabilities = softmax(plain.run(preprocessing.from_pixels(pixels)).logits)
        ids = np.argsort(-probabilities, axis=1)[:, :top]
        return np.take_along_axis(probabilities, ids, axis=1), ids

    scale, offset = (np.asarray(part, np.float32).reshape(1, -1, 1, 1) for part in affine(preprocessing))
    kept: dict[int, Float32] = {}

    def tuned(pixels: UInt8) -> tuple[Float32, Int64]:
        images = kept.setdefault(len(pixels), np.empty((len(pixels), *preprocessing.input_shape), np.float32))
        np.multiply(pixels.transpose(0, 3, 1, 2), scale, out=images)
        images += offset
        logits = plain.run(images).logits
        best = np.argpartition(logits, -top, axis=1)[:, -top:]
        ids = np.take_along_axis(best, np.argsort(-np.take_along_axis(logits, best, axis=1), axis=1), axis=1)
        return np.take_along_axis(softmax(logits), ids, axis=1), ids

    found: dict[str, Way] = {IN_MODEL: in_model, IN_PYTHON: in_python}
    if (preprocessing.layout, preprocessing.color) == ("NCHW", "RGB"):
        found[TUNED] = tuned
    return found


def affine(preprocessing: Preprocessing) -> tuple[list[float], list[float]]:
    """Return what bytes are multiplied with and what is added then, by channel."""
    pairs = list(zip(preprocessing.mean, preprocessing.std, strict=True))
    return [preprocessing.rescale / std for _, std in pairs], [-mean / std for mean, std in pairs]


def softmax(logits: Float32) -> Float32:
    """Return probabilities, `(batch, num_classes)`."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def check_agreement(found: dict[str, Way], pixels: UInt8) -> None:
    """Raise `RuntimeFailureError` where two ways choose other classes."""
    probabilities, ids = found[IN_MODEL](pixels)
    for name, way in found.items():
        others, other_ids = way(pixels)
        if not np.array_equal(ids, other_ids) or not np.abs(probabilities - others).max() < 1e-4:
            raise RuntimeFailureError(f"The ways {IN_MODEL!r} and {name!r} choose different classes.")


def main() -> int:
    """Export, check, measure, print."""
    parser = argparse.ArgumentParser(description="Compare device work in the model with the same in Python.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--classes", type=Path, required=True)
    parser.add_argument("--preprocess", type=Path, required=True)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=15.0, help="budget of each batch size")
    given = parser.parse_args()

    preprocessing = load_preprocessing(given.preprocess)
    with tempfile.TemporaryDirectory() as folder:
        sessions: list[Session] = []
        for form in (ModelForm(model_input="uint8", top=given.top), ModelForm(top=0)):
            out = Path(folder) / str(len(sessions))
            icis_deploy.export(
                given.model,
                classes=given.classes,
                options=icis_deploy.ExportOptions(preprocess=preprocessing, form=form),
                out=out,
            )
            sessions.append(session_of(Device.open(out, runtime=given.runtime, num_threads=given.threads)))
        chooser, plain = sessions
        found = ways(chooser, plain, preprocessing, given.top)
        print(f"{given.model.name}, {given.runtime}, {given.threads} threads, top {given.top}")
        print("| batch | way | median ms | multiple of the model's time (99 % interval) | verdict |")
        print("|---|---|---|---|---|")
        for batch in (int(size) for size in given.batch.split(",")):
            print_comparison(found, preprocessing, batch, seconds=given.seconds)
    return 0


def print_comparison(found: dict[str, Way], preprocessing: Preprocessing, batch: int, *, seconds: float) -> None:
    """Measure every way on the same pixels and print a row for each."""
    height, width, channels = preprocessing.pixel_shape
    neutral = neutral_images(batch, height, width, seed=0)[:, :channels]
    pixels = np.ascontiguousarray(np.rint(255 * neutral.transpose(0, 2, 3, 1)).astype(np.uint8))
    check_agreement(found, pixels)
    calls = {name: (lambda way=way: way(pixels)) for name, way in found.items()}
    measurement = measure(calls, against=IN_MODEL, plan=Plan(budget_s=seconds))
    compared = {comparison.label: comparison for comparison in measurement.comparisons}
    for report in measurement.latencies:
        row = f"| {batch} | {report.label} | {report.median_ms.value:.2f} "
        if report.label in compared:
            ratio = compared[report.label].ratio
            row += f"| {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) | {compared[report.label].verdict} |"
        print(row if report.label in compared else f"{row}| 1 | |")


if __name__ == "__main__":
    sys.exit(main())
