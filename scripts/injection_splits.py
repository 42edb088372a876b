#!/usr/bin/env python3
"""Measure on labelled images how far injection holds: T, U, S, H, what was predicted, and what the best choice gives.

Splits: the unseen classes given, and hold-outs, which take a fifth of the seen classes out of the head. Harder cases:
fewer seen classes, descriptors that say nothing. Rows are made before an image is looked at. *Best* is the H of the
best scale and offset chosen with the same images for the same rows: the bar is 93 % of it.

Usage: scripts/injection_splits.py FOLDER [--method auto] [--seen-accuracy 0.884] [--hold-outs 5]
FOLDER holds model.onnx, classes.txt, unseen.txt, descriptors.npz, preprocess.json and images.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.injection_quality import COLUMNS, measure_injection
from icis_deploy.class_names import load_class_list
from icis_deploy.descriptor_files import load_descriptors
from icis_deploy.descriptors import Descriptors
from icis_deploy.head import Head
from icis_deploy.injection import inject
from icis_deploy.injection_options import InjectionOptions
from icis_deploy.injection_pipeline import run_neutral_pictures
from icis_deploy.method_comparison import Photos
from icis_deploy.pipeline import head_of, inspect
from icis_deploy.preprocessing import load_preprocessing

Case = tuple[str, list[str], list[str], Descriptors]


def cases(seen: list[str], unseen: list[str], described: Descriptors, hold_outs: int) -> Iterator[Case]:
    """Yield name, seen classes, unseen classes and descriptors of every case."""
    yield f"{len(unseen)} unseen", seen, unseen, described
    for seed in range(1, hold_outs + 1):
        out = set(np.random.default_rng(seed).permutation(len(seen))[: len(seen) // 5].tolist())
        kept = [name for index, name in enumerate(seen) if index not in out]
        yield f"hold-out {seed}", kept, [seen[index] for index in sorted(out)], described
    random = np.random.default_rng(3)
    for count in (400, 200, 100, 40):
        if count < len(seen):
            chosen = sorted(random.permutation(len(seen))[:count])
            yield f"{count} seen", [seen[index] for index in chosen], unseen, described
    shuffled = random.permutation(described.values)
    yield "shuffled descriptors", seen, unseen, Descriptors(values=shuffled, class_names=described.class_names)


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--seen-accuracy", type=float)
    parser.add_argument("--hold-outs", type=int, default=5)
    asked = parser.parse_args()
    preprocessing = load_preprocessing(asked.folder / "preprocess.json")
    opened = inspect(asked.folder / "model.onnx", classes=asked.folder / "classes.txt")
    head, described = head_of(opened), load_descriptors(asked.folder / "descriptors.npz")
    neutral = run_neutral_pictures(opened, preprocess=preprocessing, seed=0)
    photos = Photos.load(asked.folder / "images.csv", opened, preprocessing)
    options = InjectionOptions(method=asked.method, seen_accuracy=asked.seen_accuracy)
    place = {name: index for index, name in enumerate(head.class_names)}
    print(COLUMNS)
    unseen = list(load_class_list(asked.folder / "unseen.txt"))
    for name, kept, new, values in cases(list(head.class_names), unseen, described, asked.hold_outs):
        part = Head(rows=head.rows[[place[one] for one in kept]], class_names=tuple(kept))
        injection = inject(part, values, unseen=new, options=options, neutral_features=neutral)
        features, labels = _of_classes(photos, [*kept, *new])
        print(measure_injection(part, injection, features, labels).line(name), flush=True)


def _of_classes(photos: Photos, names: list[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    place = {name: index for index, name in enumerate(names)}
    kept = [index for index, label in enumerate(photos.labels) if label in place]
    return photos.features[kept], np.array([place[photos.labels[index]] for index in kept], dtype=np.int64)


if __name__ == "__main__":
    main()
