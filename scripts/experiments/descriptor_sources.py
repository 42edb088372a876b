"""Measure what several sources of descriptors give together: T, U at a loss of 2 points, H, and how much each counts.

Splits: the unseen classes given, and hold-outs, which take a fifth of the seen classes out of the head. Sources: the
descriptors of the folder, the tags of its `tags.tsv` where there is one, both, and both beside a source that should do
no harm: random vectors, descriptors of the wrong classes, a hierarchy that is mostly noise, a copy, tags of half of the
classes only. Rows are made, and blocks weighed, before an image of a new class is read. T and H are at a balance of
0.5; U is where images of seen classes, or assumptions where there are none, let these lose 2 points.

Usage: python scripts/experiments/descriptor_sources.py FOLDER [--hold-outs 3] [--only WORDS]
FOLDER holds model.onnx, classes.txt, unseen.txt, descriptors.npz, preprocess.json and images.csv, and maybe tags.tsv
and owner-images.csv.
"""

from __future__ import annotations

import argparse
from collections import Counter
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
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.arbiter.seen_images import seen_images
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which classes are in the head, and which are new."""

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def labelled(self, photos: LabeledImageFeatures, *, is_seen_only: bool = False) -> tuple[Float32, Int64]:
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


def load_tags(path: Path) -> Descriptors:
    """Return tags as columns of 0 and 1, without words of one class alone."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    words_of = {name: set(words.split()) for name, words in lines}
    count = Counter(word for words in words_of.values() for word in words)
    vocabulary = sorted(word for word in count if count[word] > 1)
    values = np.array([[word in words for word in vocabulary] for words in words_of.values()], dtype=np.float32)
    return Descriptors(values=values, class_names=tuple(words_of), blocks=(DescriptorBlock("tags", len(vocabulary)),))


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hold-outs", type=int, default=3)
    parser.add_argument("--only", default="", help="Words in the names of the sources to measure.")
    asked = parser.parse_args()
    folder = asked.folder
    preprocessing = load_preprocessing(folder / "preprocess.json")
    opened = inspect(folder / "model.onnx", classes=folder / "classes.txt")
    head, neutral = head_of(opened), neutral_features_of(opened, preprocessing=preprocessing, seed=0)
    photos = LabeledImageFeatures.load(folder / "images.csv", opened, preprocessing)
    owner = folder / "owner-images.csv"
    owned = LabeledImageFeatures.load(owner, opened, preprocessing) if owner.exists() else None
    tags = load_tags(folder / "tags.tsv") if (folder / "tags.tsv").exists() else None
    described = load_descriptors(folder / "descriptors.npz")
    all_splits = list(splits(head.class_names, load_class_list(folder / "unseen.txt"), asked.hold_outs))
    print(f"{'source':32} {'split':10}    T    U2  lost     H   method        weights")
    for name, source in sources(described, tags):
        if asked.only not in name:
            continue
        found = []
        for split in all_splits:
            part = Head(rows=head.rows[[head.class_names.index(one) for one in split.seen]], class_names=split.seen)
            found.append(measure(part, split, source, photos, owned, neutral, line_start=f"{name:32} {split.name:10}"))
        values = 100.0 * np.array(found)
        print(f"{name:32} {'mean':10} {line(values.mean(axis=0))}")
        print(f"{name:32} {'spread':10} {line(values.std(axis=0))}", flush=True)


def measure(
    head: Head,
    split: Split,
    source: Descriptors,
    photos: LabeledImageFeatures,
    owned: LabeledImageFeatures | None,
    neutral: Float32 | None,
    *,
    line_start: str,
) -> tuple[float, float, float, float]:
    """Inject at a balance and at a budget, print a line and return T, U at 2 points, what was lost, and H."""
    images = None
    if owned is not None:
        features, labels = split.labelled(owned, is_seen_only=True)
        images = seen_images(features, head.rows, labels)
    balanced = InjectionOptions(balance=0.5)
    at_balance = inject(head, source, unseen=split.unseen, options=balanced, neutral_features=neutral)
    budget = replace(balanced, balance=None, max_seen_loss=0.02)
    at_budget = inject(head, source, unseen=split.unseen, options=budget, neutral_features=neutral, images=images)
    test = split.labelled(photos)
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
