#!/usr/bin/env python3
"""Measure what a budget of seen accuracy buys: U at a loss of 1, 2 and 5 points, by a constant offset and an arbiter.

Rows are made without an image. The owner's images of seen classes fit the arbiter and set the threshold; others measure
what is lost and won. *asked* is at the threshold that the owner's images set, *equal* at the loss itself, on the
images measured with: what the rule can do apart from its threshold. *predicted* is from held-out classes.

Usage: scripts/experiments/seen_budget.py FOLDER --images LIST... (--owner LIST | --per-class 10 [--draws 10])
           [--model model.onnx --classes classes.txt --unseen unseen.txt --descriptors descriptors.npz]
           [--tags tags.tsv] [--unlabelled] [--method auto]
FOLDER holds all files. Without --owner, so many images of each seen class in --images are the owner's, drawn anew each
time, the first ones of each class in the first draw. --tags joins words that describe each class to its descriptor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from icis_deploy.api.compare import Photos
from icis_deploy.api.inject import run_neutral_pictures
from icis_deploy.api.models import head_of, inspect
from icis_deploy.common.arrays import Bool, Float32, Int64
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.head.arbiter import arbitrate, deviation_lengths
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.arbiter.budget import loss
from icis_deploy.injection.arbiter.choice import choose_arbiter
from icis_deploy.injection.arbiter.pretend_new import InjectedHead, calibrated
from icis_deploy.injection.arbiter.seen_images import macro_weights, seen_images
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions

BUDGETS = (0.01, 0.02, 0.05)

Images = tuple[Float32, Int64]
"""Features `(num_images, feature_dim)`, and labels `(num_images,)`: seen classes first, then the injected ones."""


def main() -> None:
    """Print the table of one data set."""
    asked = parsed_arguments()
    folder = asked.folder
    preprocessing = load_preprocessing(folder / "preprocess.json")
    opened = inspect(folder / asked.model, classes=folder / asked.classes)
    head = head_of(opened)
    described = load_descriptors(folder / asked.descriptors)
    if asked.tags:
        described = with_tags(described, folder / asked.tags)
    injection = inject(
        head,
        described,
        unseen=load_class_list(folder / asked.unseen),
        options=InjectionOptions(method=asked.method),
        neutral_features=run_neutral_pictures(opened, preprocess=preprocessing, seed=0),
    )
    index_of = {name: index for index, name in enumerate((*head.class_names, *injection.class_names))}

    def load(lists: list[str]) -> Images:
        photos = [Photos.load(folder / name, opened, preprocessing) for name in lists]
        labels = [index_of[label] for one in photos for label in one.labels]
        return np.concatenate([one.features for one in photos]), np.array(labels, dtype=np.int64)

    images = load(asked.images)
    owner = load([asked.owner]) if asked.owner else None
    splits = [(owner, images)] * asked.draws if owner else list(drawn_splits(images, head, asked))
    found = [
        [measure(head, injection, described, *split, budget, seed, not asked.unlabelled) for budget in BUDGETS]
        for seed, split in enumerate(splits)
    ]
    print_table(np.array(found), f"{head.num_classes} + {len(injection.class_names)} classes, {injection.method}")


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
    parser.add_argument("--tags")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--unlabelled", action="store_true", help="Hide the labels of the owner's images.")
    return parser.parse_args()


def with_tags(described: Descriptors, path: Path) -> Descriptors:
    """Join words as 0/1 columns to descriptors, of equal weight; words used once are dropped."""
    lines = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    words = {name: {word.strip(",") for word in text.split()} for name, text in lines}
    count = Counter(word for some in words.values() for word in some)
    column = {word: index for index, word in enumerate(sorted(word for word in count if count[word] > 1))}
    values = np.zeros((described.num_classes, len(column)), dtype=np.float32)
    for index, name in enumerate(described.class_names):
        values[index, [column[word] for word in words[name] if word in column]] = 1.0
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (described.values, values)]
    return Descriptors(class_names=described.class_names, values=np.concatenate(parts, axis=1) / np.sqrt(2.0))


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


def measure(
    head: Head,
    injection: Injection,
    described: Descriptors,
    owner: Images,
    test: Images,
    budget: float,
    seed: int,
    is_labelled: bool,
) -> list[float]:
    """Return the numbers of `print_table` for one draw and one budget."""
    assert injection.selection is not None, "cross-validation calibrated it"
    chosen = injection.selection.chosen
    injected = InjectedHead(
        rows=head.rows,
        descriptors=described.select(head.class_names).values,
        new_rows=injection.rows,
        predict_rows=calibrated(chosen.prepared.predict, chosen.calibration(injection.selection.trial)),
    )
    images = seen_images(owner[0], head.rows, owner[1] if is_labelled else None)
    start = time.perf_counter()
    with_arbiter = choose_arbiter(images, injected, budget=budget, seed=seed)
    seconds = time.perf_counter() - start
    constant = choose_arbiter(images, injected, budget=budget, seed=seed, is_arbiter_allowed=False)
    features, labels = test
    seen = np.asarray(head.logits(features), dtype=np.float32)
    new = features @ injection.rows[:, :-1].T + injection.rows[:, -1]
    lengths, is_seen = deviation_lengths(head.rows), labels < head.num_classes
    weights = np.zeros(len(labels))
    for side in (is_seen, ~is_seen):
        weights[side] = macro_weights(labels[side])
    is_right, is_hit = seen.argmax(axis=1) == labels, new.argmax(axis=1) + head.num_classes == labels
    numbers = []
    for choice in (constant, with_arbiter):
        logits = arbitrate(choice.arbiter, features, seen, new, lengths)
        leads = logits[:, head.num_classes :].max(axis=1) - seen.max(axis=1)
        lost = loss(leads[is_seen], is_right[is_seen], weights[is_seen], threshold=0.0)
        won = float((weights * (is_hit & (leads > 0.0)))[~is_seen].sum())
        needed = loss_curve(leads, is_right & is_seen, is_hit & ~is_seen, weights)
        at_equal_loss = float(needed[1][np.searchsorted(needed[0], budget + 1e-9, side="right") - 1])
        balanced = best_balance(needed, float((weights * is_right)[is_seen].sum()))
        estimate = choice.estimate
        predicted = (np.nan, np.nan) if estimate is None else (estimate.T, estimate.U)
        numbers += [won, lost, at_equal_loss, *balanced, *predicted]
    return [*numbers, float((weights * is_hit)[~is_seen].sum()), not with_arbiter.arbiter.is_constant, seconds]


def loss_curve(leads: Float32, is_right: Bool, is_hit: Bool, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return loss of S and U at every threshold, the highest first; both start at zero."""
    order = np.argsort(-leads, kind="stable")
    lost, won = (np.append(0.0, np.cumsum((weights * one)[order])) for one in (is_right, is_hit))
    return lost, won


def best_balance(curve: tuple[np.ndarray, np.ndarray], seen_accuracy: float) -> tuple[float, float]:
    """Return the greatest H and the area under S against U."""
    seen, unseen = seen_accuracy - curve[0], curve[1]
    best = float(np.max(2.0 * seen * unseen / np.maximum(seen + unseen, 1e-12)))
    return best, float(np.sum(np.diff(unseen) * (seen[1:] + seen[:-1]) / 2.0))


def print_table(found: np.ndarray, title: str) -> None:
    """Print one line for each budget and rule; `found` is `(num_draws, num_budgets, 17)`."""
    T, used, seconds = found[..., -3].mean(), found[..., -2].mean(), found[..., -1].mean()  # noqa: N806
    print(f"{title}; T {100 * T:.1f}; {len(found)} draws; arbiter chosen in {used:.0%}, {seconds:.1f} s each")
    print(" asked rule          U  lost (sd; greatest) U equal  best H  AUSUC   predicted T, U")
    for index, budget in enumerate(BUDGETS):
        for rule, first in (("constant", 0), ("arbiter", 7)):
            values = 100.0 * found[:, index, first : first + 7]
            won, lost, *others = values.mean(axis=0)
            spread = f"{lost:.1f} ({values[:, 1].std():.1f}; {values[:, 1].max():.1f})"
            line = " ".join(f"{value:7.1f}" for value in others)
            print(f"{100 * budget:6.0f} {rule:9} {won:5.1f} {spread:>18} {line}")


if __name__ == "__main__":
    main()
