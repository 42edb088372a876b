"""Measure what several sources of descriptors give together: T, U at a loss of 2 points, H, and how much each counts.

Splits: the unseen classes given, and hold-outs, which take a fifth of the seen classes out of the head. Sources: the
descriptors of the folder, tags as `describe --tags` reads them, both, and both beside a source that should do no harm:
random vectors, descriptors of the wrong classes, a hierarchy that is mostly noise, a copy, tags of half of the classes
only. Rows are made, and blocks weighed, before an image of a new class is read. T and H are at a balance of 0.5; U is
where images of seen classes, or assumptions where there are none, let these lose 2 points.

Usage: python scripts/experiments/descriptor_sources.py FOLDER [--tags FILE] [--owner LIST | --per-class 10]
           [--model model.onnx --classes classes.txt] [--unseen unseen.txt] [--descriptors descriptors.npz]
           [--images LIST...] [--hold-outs 3] [--sources NAME...] [--method auto]
FOLDER holds all files but that of --tags. With --per-class, so many images of each seen class in --images are the
owner's, drawn anew for each split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.zero_shot.budget_quality import measure_budget
from icis_deploy.api.compare import LabeledImageFeatures
from icis_deploy.api.inject import neutral_features_of
from icis_deploy.api.models import head_of, inspect
from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.descriptors.tag_answers import load_tag_answers
from icis_deploy.descriptors.tags import describe_with_tags
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.arbiter.seen_images import seen_images
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions

Images = tuple[Float32, Int64]
"""Features `(num_images, feature_dim)`, and labels `(num_images,)`: seen classes first, then the injected ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which classes are in the head, and which are new."""

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def labelled(self, photos: LabeledImageFeatures, *, is_seen_only: bool = False) -> Images:
        """Return the features and labels of photos of these classes, seen ones first."""
        names = self.seen if is_seen_only else (*self.seen, *self.unseen)
        index_of = {name: index for index, name in enumerate(names)}
        kept = [index for index, label in enumerate(photos.labels) if label in index_of]
        return photos.features[kept], np.array([index_of[photos.labels[index]] for index in kept], dtype=np.int64)


def splits(seen: tuple[str, ...], unseen: tuple[str, ...], hold_outs: int) -> Iterator[Split]:
    """Yield the given split and the hold-outs."""
    yield Split(name="given", seen=seen, unseen=unseen)
    for seed in range(1, hold_outs + 1):
        out = set(np.random.default_rng(seed).permutation(len(seen))[: len(seen) // 5].tolist())
        yield Split(
            name=f"hold-out {seed}",
            seen=tuple(name for index, name in enumerate(seen) if index not in out),
            unseen=tuple(seen[index] for index in sorted(out)),
        )


def named(name: str, values: Float32, like: Descriptors) -> Descriptors:
    """Return values of the same classes as one block."""
    values = np.asarray(values, dtype=np.float32)
    return Descriptors(values=values, class_names=like.class_names, blocks=(DescriptorBlock(name, values.shape[1]),))


def noisy_hierarchy(like: Descriptors, random: np.random.Generator) -> Float32:
    """Return paths in a binary tree of 8 levels that splits the classes by random directions of noisy descriptors."""
    centred = like.values - like.values.mean(axis=0)
    noise = random.normal(size=centred.shape) * centred.std() * 2.0
    node = np.zeros(len(centred), dtype=np.int64)
    levels = []
    for depth in range(1, 9):
        side = (centred + noise) @ random.normal(size=centred.shape[1])
        node = 2 * node + (side > 0)
        levels.append(np.eye(2**depth, dtype=np.float32)[node])
    return np.concatenate(levels, axis=1)


def sources(described: Descriptors, tags: Descriptors | None) -> Iterator[tuple[str, Descriptors]]:
    """Yield what rows are predicted from."""
    random = np.random.default_rng(0)
    base = named("given", described.values, described)
    yield "given", base
    parts = [base]
    if tags is not None:
        yield "tags", tags
        parts.append(tags)
        yield "given + tags", Descriptors.merged(parts)
        half = tags.select([name for name in tags.class_names if random.random() < 0.5])
        yield "given + half of tags", Descriptors.merged([base, half])
    all_of = " + ".join(part.blocks[0].name for part in parts)
    bad = {
        "random": random.normal(size=(described.num_classes, 300)),
        "shuffled": random.permutation(described.values),
        "hierarchy": noisy_hierarchy(described, random),
        "copy": 7.0 * described.values,
    }
    for name, values in bad.items():
        yield f"{all_of} + {name}", Descriptors.merged([*parts, named(name, values, described)])


def main() -> None:
    """Print a line for each source and split, and one for the mean over the splits."""
    asked = parsed_arguments()
    folder = asked.folder
    preprocessing = load_preprocessing(folder / "preprocess.json")
    opened = inspect(folder / asked.model, classes=folder / asked.classes)
    head, neutral = head_of(opened), neutral_features_of(opened, preprocessing=preprocessing, seed=0)

    def load(lists: list[str]) -> LabeledImageFeatures:
        read = [LabeledImageFeatures.load(folder / name, opened, preprocessing) for name in lists]
        labels = tuple(label for one in read for label in one.labels)
        return LabeledImageFeatures(
            source=" ".join(lists), features=np.concatenate([one.features for one in read]), labels=labels
        )

    photos = load(asked.images)
    owner = load([asked.owner]) if asked.owner else None
    described = load_descriptors(folder / asked.descriptors)
    tags = None
    if asked.tags is not None:
        tags = describe_with_tags(load_tag_answers(asked.tags, described.class_names).tags).descriptors
    all_splits = list(splits(head.class_names, load_class_list(folder / asked.unseen), asked.hold_outs))
    print(f"{'source':32} {'split':10}    T    U2  lost     H   method        weights")
    for name, source in sources(described, tags):
        if asked.sources and name not in asked.sources:
            continue
        found = []
        for seed, split in enumerate(all_splits):
            part = Head(rows=head.rows[[head.class_names.index(one) for one in split.seen]], class_names=split.seen)
            test = split.labelled(photos)
            images = None if owner is None else split.labelled(owner, is_seen_only=True)
            if asked.per_class:
                images, test = owners(test, num_seen=len(split.seen), per_class=asked.per_class, seed=seed)
            start = f"{name:32} {split.name:10}"
            found.append(measure(part, split, source, images, test, neutral, asked.method, line_start=start))
        values = 100.0 * np.array(found)
        print(f"{name:32} {'mean':10} {line(values.mean(axis=0))}")
        print(f"{name:32} {'spread':10} {line(values.std(axis=0))}", flush=True)


def parsed_arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tags", type=Path)
    parser.add_argument("--owner")
    parser.add_argument("--per-class", type=int, default=0)
    parser.add_argument("--model", default="model.onnx")
    parser.add_argument("--classes", default="classes.txt")
    parser.add_argument("--unseen", default="unseen.txt")
    parser.add_argument("--descriptors", default="descriptors.npz")
    parser.add_argument("--images", nargs="+", default=["images.csv"])
    parser.add_argument("--hold-outs", type=int, default=3)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--sources", nargs="+", default=[], help="Names of the sources to measure; all by default.")
    return parser.parse_args()


def owners(images: Images, *, num_seen: int, per_class: int, seed: int) -> tuple[Images, Images]:
    """Return images of seen classes that are the owner's, and those to measure with."""
    features, labels = images
    is_owner = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(seed)
    for one in np.unique(labels[labels < num_seen]):
        is_owner[random.permutation(np.flatnonzero(labels == one))[:per_class]] = True
    return (features[is_owner], labels[is_owner]), (features[~is_owner], labels[~is_owner])


def measure(
    head: Head,
    split: Split,
    source: Descriptors,
    owner: Images | None,
    test: Images,
    neutral: Float32 | None,
    method: str,
    *,
    line_start: str,
) -> tuple[float, float, float, float]:
    """Inject at a balance and at a budget, print a line and return T, U at 2 points, what was lost, and H."""
    images = None if owner is None else seen_images(owner[0], head.rows, owner[1])
    balanced = InjectionOptions(method=method, balance=0.5)
    at_balance = inject(head, source, unseen=split.unseen, options=balanced, neutral_features=neutral)
    budget = replace(balanced, balance=None, max_seen_loss=0.02)
    at_budget = inject(head, source, unseen=split.unseen, options=budget, neutral_features=neutral, images=images)
    balance, spent = measure_budget(head, at_balance, *test), measure_budget(head, at_budget, *test)
    values = (balance.T, spent.U, spent.lost, balance.H)
    print(f"{line_start} {line(100.0 * np.array(values))}   {at_balance.method:12}  {weights(at_balance)}", flush=True)
    return values


def line(values: object) -> str:
    """Return T, U at 2 points, what was lost and H."""
    return " ".join(f"{value:5.1f}" for value in np.asarray(values))


def weights(injection: Injection) -> str:
    """Return how much each block counts."""
    return ", ".join(f"{block.name} {100 * block.weight:.0f}" for block in injection.blocks)


if __name__ == "__main__":
    main()
