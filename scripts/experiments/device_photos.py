"""Measure what a few photos teach a device, next to what `inject` makes of the same photos.

In each draw the owner's images make a bundle (`export --seen-images`) with a generator, and a device is taught each new
class in turn by its photos, alone and with its descriptor. Photos, owner's images and test are those of
`few_photos.py`, and so is what is measured.

Usage: python scripts/experiments/device_photos.py FOLDER --cache FILE [--model model.onnx --classes classes.txt]
           [--images LIST...] [--descriptors descriptors.npz] [--photos 1 2 5] [--draws 5] [--precision fp32]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

import icis_deploy
from icis_deploy.api.generator import GeneratorOptions
from icis_deploy.common.arrays import Float32
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.images.loading import load_image_list
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.runtime.device import Device, state_of
from scripts.experiments.few_photos import Problem, drawn, parser_of_data, read

WAYS = ("photos", "both")
CAPACITY = 64


def main() -> None:
    """Print the table of one data set."""
    parser = parser_of_data(__doc__ or "")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    asked = parser.parse_args()
    rows, names, features, labels, neutral = read(asked)
    listed = [load_image_list(asked.folder / name) for name in asked.images]
    paths = [path for one in listed for path in one.paths]
    if tuple(label for one in listed for label in one.labels) != labels:
        parser.error("the cache is of other images")
    described = load_descriptors(asked.folder / asked.descriptors)
    found: dict[tuple[int, str, str], list[tuple[float, ...]]] = {}
    for seed in range(asked.draws):
        with tempfile.TemporaryDirectory() as name:
            bundle, seen = None, None
            for num_photos in asked.photos:
                problem = drawn(rows, names, features, labels, neutral, described, asked, num_photos, seed)
                if bundle is None:  # the owner's images of a draw do not depend on the number of photos
                    bundle = exported(problem, paths, asked, Path(name))
                    seen = None if asked.precision == "fp32" else embedded(bundle, problem, paths)
                for way in WAYS:
                    made = problem.inject(way).rows
                    found.setdefault((num_photos, way, "inject"), []).append(problem.measure(made, features=seen))
                    made = taught(bundle, problem, paths, way, Path(name) / f"{num_photos} {way}")
                    found.setdefault((num_photos, way, "device"), []).append(problem.measure(made, features=seen))
        print(f"draw {seed} done", flush=True)
    print("photos  way     by       T (sd)        U at 2 (sd)   own point: U  lost")
    for (num_photos, way, by), figures in sorted(found.items()):
        mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0)
        print(
            f"{num_photos:6}  {way:6}  {by:6}  {mean[0]:5.1f} ({spread[0]:3.1f})   {mean[1]:5.1f} ({spread[1]:3.1f})"
            f"      {mean[2]:5.1f}  {mean[3]:4.1f}"
        )


def exported(problem: Problem, paths: list[Path], asked: argparse.Namespace, folder: Path) -> Path:
    """Return a bundle of the head, made with the owner's images."""
    images = folder / "owner.csv"
    chosen = np.flatnonzero(problem.is_owner)
    lines = [
        f"{paths[problem.images[index]].resolve()},{problem.head.class_names[problem.labels[index]]}"
        for index in chosen
    ]
    images.write_text("\n".join(["file,class", *lines]) + "\n")
    known = problem.features[chosen], [problem.head.class_names[index] for index in problem.labels[chosen]]
    source = {"model": asked.folder / asked.model, "classes": asked.folder / asked.classes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", icis_deploy.ICISDeployWarning)
        icis_deploy.export_generator(
            **source,
            descriptors=problem.described,
            unseen=problem.new,
            out=folder / "generator.onnx",
            options=GeneratorOptions(
                injection=InjectionOptions(method="ridge", arbiter="off", seed=problem.seed, seen_images=known)
            ),
        )
        icis_deploy.export(
            **source,
            out=folder / "bundle",
            options=icis_deploy.ExportOptions(
                head="updatable",
                capacity=CAPACITY,
                preprocess=asked.folder / "preprocess.json",
                seen_images=images,
                generator=folder / "generator.onnx",
                form=icis_deploy.ModelForm(
                    precision=asked.precision, calibration_images=images if asked.precision == "int8" else None
                ),
            ),
        )
    return folder / "bundle"


def taught(bundle: Path, problem: Problem, paths: list[Path], way: str, copy: Path) -> Float32:
    """Return the rows that a device has once it was taught every new class, `(num_new, feature_dim + 1)`."""
    shutil.copytree(bundle, copy)
    device = Device.open(copy, num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", icis_deploy.ICISDeployWarning)
        for index, name in enumerate(problem.new):
            is_shown = problem.is_photo & (problem.labels == problem.head.num_classes + index)
            device.teach(
                name,
                problem.described.select((name,)).values[0] if way == "both" else None,
                images=[paths[image] for image in problem.images[is_shown]],
            )
    table = state_of(device).table
    assert table is not None
    return np.stack([table.rows()[table.filled_names.index(name)] for name in problem.new])


def embedded(bundle: Path, problem: Problem, paths: list[Path]) -> Float32:
    """Return the features of all images, as the bundle's own model makes them, `(num_images, feature_dim)`."""
    device = Device.open(bundle)
    return np.concatenate([device.embed([paths[image]]) for image in problem.images])


if __name__ == "__main__":
    main()
