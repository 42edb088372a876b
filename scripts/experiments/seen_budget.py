"""Measure what a budget of seen accuracy buys: U at a loss of 1, 2 and 5 points, with images of seen classes or none.

Rows are made without an image of a new class. The owner's images of seen classes set the threshold and fit the arbiter;
others measure what is lost and won. Rules: *arbiter* and *offset* have the owner's images, *no image* has none, and
*balance* is what papers report. *predicted* is from held-out classes.

Usage: python scripts/experiments/seen_budget.py FOLDER --images LIST... (--owner LIST | --per-class 10 [--draws 10])
           [--model model.onnx --classes classes.txt --unseen unseen.txt --descriptors descriptors.npz]
           [--rules arbiter offset "no image" balance] [--unlabelled] [--method auto]
FOLDER holds all files. Without --owner, so many images of each seen class in --images are the owner's, drawn anew each
time, the first ones of each class in the first draw. Images of classes that are neither seen nor injected are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.zero_shot.budget_quality import SpentAccuracy, measure_budget
from icis_deploy.api.compare import LabeledImageFeatures
from icis_deploy.api.inject import neutral_features_of
from icis_deploy.api.models import head_of, inspect
from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.arbiter.seen_images import seen_images
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions

BUDGETS = (0.01, 0.02, 0.05)
RULES = ("arbiter", "offset", "no image", "balance")

Images = tuple[Float32, Int64]
"""Features `(num_images, feature_dim)`, and labels `(num_images,)`: seen classes first, then the injected ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is injected into, and how."""

    head: Head
    described: Descriptors
    unseen: tuple[str, ...]
    neutral: Float32 | None
    method: str

    def inject(self, rule: str, budget: float, owner: Images, seed: int, *, is_labelled: bool) -> Injection:
        """Inject by a rule."""
        has_images = rule in {"arbiter", "offset"}
        options = InjectionOptions(
            method=self.method,
            max_seen_loss=None if rule == "balance" else budget,
            balance=0.5 if rule == "balance" else None,
            arbiter="auto" if rule == "arbiter" else "off",
            seed=seed,
        )
        features, labels = owner
        images = seen_images(features, self.head.rows, labels if is_labelled else None) if has_images else None
        return inject(
            self.head,
            self.described,
            unseen=self.unseen,
            options=options,
            neutral_features=self.neutral,
            images=images,
        )


def main() -> None:
    """Print the table of one data set."""
    asked = parsed_arguments()
    folder = asked.folder
    preprocessing = load_preprocessing(folder / "preprocess.json")
    opened = inspect(folder / asked.model, classes=folder / asked.classes)
    head, unseen = head_of(opened), load_class_list(folder / asked.unseen)
    problem = Problem(
        head=head,
        described=load_descriptors(folder / asked.descriptors),
        unseen=unseen,
        neutral=neutral_features_of(opened, preprocessing=preprocessing, seed=0),
        method=asked.method,
    )
    index_of = {name: index for index, name in enumerate((*head.class_names, *unseen))}

    def load(lists: list[str]) -> Images:
        photos = [LabeledImageFeatures.load(folder / name, opened, preprocessing) for name in lists]
        features = np.concatenate([one.features for one in photos])
        labels = np.array([index_of.get(label, -1) for one in photos for label in one.labels], dtype=np.int64)
        return features[labels >= 0], labels[labels >= 0]

    images = load(asked.images)
    owner = load([asked.owner]) if asked.owner else None
    splits = [(owner, images)] if owner else list(drawn_splits(images, head, asked))
    print(f"{head.num_classes} + {len(unseen)} classes, {len(splits)} draws, {len(splits[0][0][1])} owner's images")
    print("points  rule      U (sd)       five   lost (sd; most)    S      H     best H  AUSUC | predicted T    U")
    for rule in asked.rules:
        for budget in BUDGETS if rule != "balance" else (0.0,):
            found = []
            for seed, (known, test) in enumerate(splits):
                injection = problem.inject(rule, budget, known, seed, is_labelled=not asked.unlabelled)
                found.append((injection, measure_budget(head, injection, *test)))
            print(line(rule, budget, found), flush=True)


def line(rule: str, budget: float, found: list[tuple[Injection, SpentAccuracy]]) -> str:
    """Return a line of the table, in percent and points."""
    names = ("U", "U_top5", "lost", "S", "H", "best_balance", "AUSUC", "T")
    values = {name: 100.0 * np.array([getattr(one, name) for _, one in found]) for name in names}
    estimates = [injection.estimate for injection, _ in found]
    predicted = [100.0 * float(np.mean([getattr(one, name).value for one in estimates if one])) for name in ("T", "U")]
    asked = f"{100 * budget:.0f}" if budget else "-"
    lost = values["lost"]
    return (
        f"{asked:>6}  {rule:9} {values['U'].mean():4.1f} ({values['U'].std():3.1f})  {values['U_top5'].mean():6.1f}   "
        f"{lost.mean():4.1f} ({lost.std():3.1f}; {lost.max():4.1f})  "
        + " ".join(f"{values[name].mean():6.1f}" for name in ("S", "H", "best_balance", "AUSUC"))
        + f" | {predicted[0]:6.1f} {predicted[1]:6.1f}   (T {values['T'].mean():.1f})"
    )


def parsed_arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", nargs="+", default=["images.csv"])
    parser.add_argument("--owner")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--model", default="model.onnx")
    parser.add_argument("--classes", default="classes.txt")
    parser.add_argument("--unseen", default="unseen.txt")
    parser.add_argument("--descriptors", default="descriptors.npz")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--unlabelled", action="store_true", help="Hide the labels of the owner's images.")
    return parser.parse_args()


def drawn_splits(images: Images, head: Head, asked: argparse.Namespace) -> Iterator[tuple[Images, Images]]:
    """Yield the owner's images and those to measure with."""
    features, labels = images
    for seed in range(asked.draws):
        is_owner = np.zeros(len(labels), dtype=bool)
        random = np.random.default_rng(seed)
        for one in np.unique(labels[labels < head.num_classes]):
            of_class = np.flatnonzero(labels == one)
            chosen = of_class if seed == 0 else random.permutation(of_class)
            is_owner[chosen[: asked.per_class]] = True
        yield (features[is_owner], labels[is_owner]), (features[~is_owner], labels[~is_owner])


if __name__ == "__main__":
    main()
