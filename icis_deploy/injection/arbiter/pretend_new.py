"""Pretend-new classes: seen classes that play new ones, with their real images.

A set of seen classes leaves the head; rows of them are predicted from the rest as rows of new classes are; images of
them then show what new classes would do, and images of the others what these would do to them. Unlike the games of
`icis_deploy.injection.validation.cross_validation` there are real images, of some of the seen classes.

Rules:

1. A set has the share of new classes among all, at most a fifth: five sets are disjoint.
2. Classes that have images are spread evenly over the sets.
3. As many rows compete as will be injected: where a set has fewer classes, *rivals* complete it, new classes whose rows
   are predicted from the same classes.
4. Rows are predicted from fewer classes than the new ones will be. What that costs an estimate is seen by predicting a
   set from fewer still, `with_less_training` (`icis_deploy.injection.arbiter.held_out`).
5. Partitions are drawn more than once: what is learnt of pretend-new classes depends on which ones they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Int64
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.predictors import Predict
from icis_deploy.injection.rows.spectrum import mean_row
from icis_deploy.injection.validation.cross_validation import less_training, needed_for_top5

NUM_SETS = 5
"""Disjoint sets of a partition."""

NUM_PARTITIONS = 2

PredictRows = Callable[[Float32, Float32, Float32], Float32]
"""From seen descriptors, seen rows and the descriptors of other classes to calibrated rows of these, as an injection
makes them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InjectedHead:
    """A head, the rows injected into it, and what made them."""

    rows: Float32
    """`(num_seen, feature_dim + 1)`."""

    descriptors: Float32
    """`(num_seen, descriptor_dim)`, of the seen classes."""

    new_descriptors: Float32
    """`(num_new, descriptor_dim)`, of the injected classes."""

    new_rows: Float32
    """`(num_new, feature_dim + 1)`, calibrated."""

    predict_rows: PredictRows
    """How the injection makes rows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PretendNew:
    """What one set of pretend-new classes did to the images of seen classes."""

    held_out: Int64
    """`(num_held_out,)`, sorted indices of the classes that played new ones."""

    is_held_out: Bool
    """`(num_images,)`: whether an image is of one of them."""

    best_new: Float32
    """`(num_images,)`, the greatest logit among predicted rows."""

    statistics: Float32
    """`(num_images, 5)`, of the features and the remaining seen logits (`head.arbiter.STATISTICS`)."""

    is_hit: Bool
    """`(num_images,)`: held out, and the first among predicted rows is that of its own class."""

    top5_leads: Float32
    """`(num_images,)`: of held-out images, logit of the own class less the seen logit that it must exceed to be among
    the five first of all; -infinite where five predicted rows come before it, and of other images."""

    is_right: Bool
    """`(num_images,)`: not held out, and right among the remaining seen classes."""

    @property
    def leads(self) -> Float32:
        """`(num_images,)`, greatest new logit less greatest remaining seen one."""
        return self.best_new - self.statistics[:, 0]


def calibrated(predict: Predict, calibration: DeviationCalibration) -> PredictRows:
    """Return what predicts rows and calibrates them around the mean row of whichever classes they came from.

    Args:
        predict: A method with its choices made.
        calibration: That of the injection.
    """

    def predict_rows(descriptors: Float32, rows: Float32, asked: Float32) -> Float32:
        raw = predict(descriptors, rows, asked).rows
        return replace(calibration, mean_row=mean_row(rows)).apply(raw)

    return predict_rows


def plan_sets(
    labels: Int64, *, num_seen: int, num_new: int, seed: int, num_partitions: int = NUM_PARTITIONS
) -> tuple[Int64, ...]:
    """Return the sets of classes that play new ones; within a partition they are disjoint.

    Args:
        labels: `(num_images,)`, classes that the images are of.
        num_seen: Classes of the head, at least `NUM_SETS`.
        num_new: Classes that are injected.
        seed: Of the partitions.
        num_partitions: How many partitions to draw.
    """
    size = max(1, min(round(num_seen * num_new / (num_seen + num_new)), num_seen // NUM_SETS))
    random = np.random.default_rng(seed)
    has_images = np.isin(np.arange(num_seen), labels)
    sets = []
    for _ in range(num_partitions):
        order = random.permutation(num_seen)
        num_parts = num_seen // size
        shown = np.array_split(order[has_images[order]], num_parts)
        others = np.array_split(order[~has_images[order]], num_parts)[::-1]  # so that parts differ by one class at most
        parts = [np.sort(np.concatenate(part)) for part in zip(shown, others, strict=True)]
        sets += parts[:NUM_SETS]
    return tuple(np.asarray(part, dtype=np.int64) for part in sets)


def with_less_training(num_seen: int, sets: Sequence[Int64], *, seed: int) -> tuple[Int64, ...]:
    """Return for each set fewer classes to predict it from: of those that are left, as many less as the set has.

    Args:
        num_seen: Classes of the head.
        sets: From `plan_sets`.
        seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    rest = [np.setdiff1d(np.arange(num_seen, dtype=np.int64), held_out) for held_out in sets]
    return tuple(less_training(left, len(held_out), random) for left, held_out in zip(rest, sets, strict=True))


def play_sets(
    images: SeenImages, head: InjectedHead, sets: Sequence[Int64], *, training: Sequence[Int64] | None = None
) -> tuple[PretendNew, ...]:
    """Take each set of classes out of the head, predict its rows, and see what they do to the images.

    Args:
        images: Of seen classes.
        head: The head and what makes rows for it.
        sets: From `plan_sets`.
        training: Classes that the rows of each set are predicted from; all others than the set's by default.
    """
    every = np.arange(len(head.rows), dtype=np.int64)
    rest = [np.setdiff1d(every, held_out) for held_out in sets]
    known = rest if training is None else training
    return tuple(_play(images, head, *one) for one in zip(sets, rest, known, strict=True))


def _play(images: SeenImages, head: InjectedHead, held_out: Int64, rest: Int64, training: Int64) -> PretendNew:
    """Play one set: `rest` stays in the head, and rows are predicted from `training`, a part of it."""
    rows, descriptors, num_own = head.rows, head.descriptors, len(held_out)
    rivals = head.new_descriptors[: max(0, len(head.new_descriptors) - num_own)]
    asked = np.concatenate([descriptors[held_out], rivals])
    predicted = head.predict_rows(descriptors[training], rows[training], asked)
    seen = images.logits[:, rest]
    new = images.features @ predicted[:, :-1].T + predicted[:, -1]
    is_held_out = np.isin(images.labels, held_out)
    top5_leads = np.full(images.num_images, -np.inf, dtype=np.float32)
    column = np.searchsorted(held_out, images.labels[is_held_out])
    own = new[is_held_out, column]
    top5_leads[is_held_out] = own - needed_for_top5(own, new[is_held_out], seen[is_held_out])
    is_hit = np.zeros(images.num_images, dtype=bool)
    is_hit[is_held_out] = new[is_held_out].argmax(axis=1) == column
    return PretendNew(
        held_out=held_out,
        is_held_out=is_held_out,
        best_new=np.asarray(new.max(axis=1), dtype=np.float32),
        statistics=seen_statistics(images.features, seen, deviation_lengths(rows[rest])),
        is_hit=is_hit,
        top5_leads=top5_leads,
        is_right=~is_held_out & (rest[seen.argmax(axis=1)] == images.labels),
    )
