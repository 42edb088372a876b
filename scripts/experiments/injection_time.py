"""How long an injection takes without an image of a known class, with their features, and with the images.

    python scripts/experiments/injection_time.py MODEL_FOLDER [--methods ridge auto] [--images 1000] [--rounds 2]

MODEL_FOLDER holds a model, its classes, descriptors, `preprocess.json` and lists of images. The images of classes that
the model knows come from `owner-images.csv`, where it is there, and `images.csv`. With `--images 0` only injections
without images are timed, so that the script also runs beside an older release (`PYTHONPATH`) to compare with. Each
round opens the model anew; the first is for what a process does once, and is not printed.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import icis_deploy


def main() -> None:
    """Print a line for each injection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=["ridge", "auto"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    with tempfile.TemporaryDirectory() as work:
        sources: dict[str, Path | None] = {"no image": None}
        if given.images:
            sources |= images_and_features(given.folder, Path(work), given.images)
        for method in given.methods:
            for number in range(given.rounds + 1):
                for name, source in sources.items():
                    wall, processor = injection_seconds(given.folder, method, source)
                    if number:
                        print(f"{method:10} {name:10} {wall:6.2f} s, processor {processor:6.2f} s", flush=True)


def images_and_features(folder: Path, work: Path, num_images: int) -> dict[str, Path | None]:
    """Write a list of images of known classes and a file of their features; print how long those take alone."""
    known = set((folder / "classes.txt").read_text().split())
    listed = []
    for name in ("owner-images.csv", "images.csv"):
        if (folder / name).is_file():
            with (folder / name).open() as file:
                rows = [(folder / row["file"], row["class"]) for row in csv.DictReader(file)]
            listed += [row for row in rows if row[1] in known]
    listed = listed[:num_images]
    with (work / "known.csv").open("w") as file:
        csv.writer(file).writerows([("file", "class"), *listed])
    model = icis_deploy.inspect(folder / "model.onnx", classes=folder / "classes.txt")
    options = icis_deploy.ExportOptions(preprocess=folder / "preprocess.json", head="updatable", capacity=16)
    icis_deploy.export(model, out=work / "bundle", options=options)
    device = icis_deploy.Device.open(work / "bundle")
    start = time.perf_counter()
    features = device.embed([path for path, _ in listed])
    print(f"features of {len(listed)} images on a device {time.perf_counter() - start:.2f} s", flush=True)
    np.savez(work / "known.npz", features=features, labels=np.array([name for _, name in listed]))
    return {"features": work / "known.npz", "images": work / "known.csv"}


def injection_seconds(folder: Path, method: str, seen_images: Path | None) -> tuple[float, float]:
    """Return how long one injection takes by the clock and in processor time."""
    options = icis_deploy.InjectionOptions(
        method=method, **({} if seen_images is None else {"seen_images": seen_images})
    )
    model = icis_deploy.inspect(folder / "model.onnx", classes=folder / "classes.txt")
    start, processor = time.perf_counter(), time.process_time()
    icis_deploy.inject(
        model, descriptors=folder / "descriptors.npz", preprocess=folder / "preprocess.json", options=options
    )
    return time.perf_counter() - start, time.process_time() - processor


if __name__ == "__main__":
    main()
