"""Measure on labelled images how far injection holds: T, U, S, H, what was predicted, and what the best choice gives.

Splits: the unseen classes given, and hold-outs, which take a fifth of the seen classes out of the head. Harder cases:
fewer seen classes, 20 unseen ones, descriptors with noise and random ones, a head without biases, no
backbone, an accuracy that is not given. Rows are made before an image is read. *Best* is the H of the best
scale and offset chosen with the same images for the same rows: the bar is 93 % of it.

Usage: python scripts/experiments/injection_splits.py FOLDER [--method auto] [--seen-accuracy 0.884] [--hold-outs 5]
           [--only WORDS]
FOLDER holds model.onnx, classes.txt, unseen.txt, descriptors.npz, preprocess.json and images.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.zero_shot.injection_quality import COLUMNS, measure_injection, summary
from icis_deploy.api.compare import LabeledImageFeatures
from icis_deploy.api.inject import neutral_features_of
from icis_deploy.api.models import head_of, inspect
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.inject import inject
from icis_deploy.injection.options import InjectionOptions

SIZES_OF_NOISE = (0.5, 1.0)
"""Length of what is added to unit descriptors; their own differences from the mean one have about length 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is injected into what."""

    name: str
    seen: Sequence[str]
    unseen: Sequence[str]
    described: Descriptors
    is_accuracy_known: bool = True
    has_backbone: bool = True
    has_biases: bool = True


def cases(seen: list[str], unseen: list[str], described: Descriptors, hold_outs: int) -> Iterator[Case]:
    """Yield all cases."""
    given = Case(name=f"{len(unseen)} unseen", seen=seen, unseen=unseen, described=described)
    yield given
    for seed in range(1, hold_outs + 1):
        out = set(np.random.default_rng(seed).permutation(len(seen))[: len(seen) // 5].tolist())
        kept = [name for index, name in enumerate(seen) if index not in out]
        yield replace(given, name=f"hold-out {seed}", seen=kept, unseen=[seen[index] for index in sorted(out)])
    yield replace(given, name="accuracy not given", is_accuracy_known=False)
    random = np.random.default_rng(3)
    for count in (400, 200, 100, 40):
        if count < len(seen):
            chosen = sorted(random.permutation(len(seen))[:count])
            yield replace(given, name=f"{count} seen", seen=[seen[index] for index in chosen])
    shuffled = random.permutation(described.values)
    yield replace(given, name="shuffled descriptors", described=replace(described, values=shuffled))
    drawn = random.normal(size=described.values.shape)
    yield replace(given, name="random descriptors", described=replace(described, values=drawn.astype(np.float32)))
    for size in SIZES_OF_NOISE:
        noisy = described.values + size * drawn / np.sqrt(drawn.shape[1])
        yield replace(given, name=f"noise of {size}", described=replace(described, values=noisy.astype(np.float32)))
    yield replace(
        given, name="20 unseen", unseen=[unseen[index] for index in sorted(random.permutation(len(unseen))[:20])]
    )
    yield replace(given, name="no biases", has_biases=False)
    yield replace(given, name="no backbone", has_backbone=False)
    yield replace(given, name="neither backbone nor accuracy", has_backbone=False, is_accuracy_known=False)


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--seen-accuracy", type=float)
    parser.add_argument("--hold-outs", type=int, default=5)
    parser.add_argument("--only", default="", help="Words in the names of the cases to measure.")
    asked = parser.parse_args()
    preprocessing = load_preprocessing(asked.folder / "preprocess.json")
    opened = inspect(asked.folder / "model.onnx", classes=asked.folder / "classes.txt")
    head, described = head_of(opened), load_descriptors(asked.folder / "descriptors.npz")
    neutral = neutral_features_of(opened, preprocessing=preprocessing, seed=0)
    photos = LabeledImageFeatures.load(asked.folder / "images.csv", opened, preprocessing)
    index_of = {name: index for index, name in enumerate(head.class_names)}
    print(COLUMNS)
    unseen, found = list(load_class_list(asked.folder / "unseen.txt")), []
    for case in cases(list(head.class_names), unseen, described, asked.hold_outs):
        if asked.only not in case.name:
            continue
        rows = head.rows[[index_of[one] for one in case.seen]].copy()
        rows[:, -1] *= case.has_biases
        part = Head(rows=rows, class_names=tuple(case.seen))
        known = asked.seen_accuracy if case.is_accuracy_known else None
        injection = inject(
            part,
            case.described,
            unseen=case.unseen,
            options=InjectionOptions(method=asked.method, balance=0.5, seen_accuracy=known),
            neutral_features=neutral if case.has_backbone else None,
        )
        features, labels = _of_classes(photos, [*case.seen, *case.unseen])
        found.append(measure_injection(part, injection, features, labels))
        print(found[-1].line(case.name), flush=True)
    if found:
        print(summary(found))


def _of_classes(photos: LabeledImageFeatures, names: list[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    index_of = {name: index for index, name in enumerate(names)}
    kept = [index for index, label in enumerate(photos.labels) if label in index_of]
    return photos.features[kept], np.array([index_of[photos.labels[index]] for index in kept], dtype=np.int64)


if __name__ == "__main__":
    main()
