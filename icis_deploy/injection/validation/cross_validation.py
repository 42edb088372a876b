"""Class-level cross-validation: inject classes whose rows and features are known.

In a fold some seen classes are held out and treated as unseen ones: their rows are predicted from the other classes,
and features of all classes are classified by the other classes' true rows and the predicted ones. An *evaluation* is
one feature among the seen rows and those of one group of held-out classes; what is recorded of it is enough to know its
outcome for every scale and offset that calibration may choose.

Rules:

1. The share of held-out classes is that of unseen classes among all, within 1/10..1/3, so that a fold is like the
   injection that it stands for.
2. Held-out classes compete in groups of the number of unseen classes: a single new class competes with no other new
   one. Where there are not enough of them, *competitors* complete the group: unseen classes' rows, predicted from the
   same training classes.
3. Whoever calls `evaluate_folds` has brought deviations to the length that calibration scales: methods differ in
   direction only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64, Int64
from icis_deploy.injection.rows.class_features import ClassFeatures
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.injection.rows.predictors import Predict
from icis_deploy.injection.rows.spectrum import mean_row

MIN_SEEN = 6
"""Least number of seen classes for cross-validation."""

ENOUGH_HELD_OUT = 800
"""Folds are evaluated until this many classes were held out; the rest would sharpen little and cost a fit each."""

MAX_GROUPS = 24
"""Groups of held-out classes that features of a fold's other classes are evaluated with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Which seen classes are held out, and which their rows are predicted from."""

    held_out: Int64
    """`(num_held_out,)`, sorted indices of seen classes."""

    training: Int64
    """`(num_training,)`, sorted indices of the classes that their rows are predicted from; none of them is held out."""

    groups: tuple[Int64, ...]
    """`(group_size,)` each, sorted indices of seen classes: the held-out classes in groups that compete among
    themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """Predictions of one fold."""

    fold: Fold
    """The fold that was predicted."""

    deviations: Float32
    """`(num_held_out, feature_dim + 1)`: predicted row less the mean row of the training classes."""

    competitors: Float32
    """`(num_competitors, feature_dim + 1)`: such deviations of unseen classes, which complete every group."""

    variance: Float64
    """`(num_held_out,)`: of the prediction, 0..1, where the method has one, else zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What calibration needs to know of every evaluation of one or more folds.

    The logit of an injected row is `mean + scale * deviation + offset`, *mean* being the logit of the mean row.
    """

    seen_margin: Float32
    """`(num_seen_evaluations,)`: a seen feature's own logit less the mean row's; -inf where the head is wrong."""

    seen_deviation: Float32
    """`(num_seen_evaluations,)`: the largest deviation logit among the injected rows of the group."""

    unseen_margin: Float32
    """`(num_unseen_evaluations,)`: largest seen logit less the mean row's, of a held-out feature."""

    unseen_deviation: Float32
    """`(num_unseen_evaluations,)`: the largest deviation logit among injected rows; its own class's where `is_hit`."""

    is_hit: Bool
    """`(num_unseen_evaluations,)`: whether its own class is the first among the injected rows."""

    unseen_class: Int64
    """`(num_unseen_evaluations,)`: the held-out class of the feature, an index of seen classes."""

    group_sizes: Int64
    """`(num_groups,)`: how many injected classes compete in each group, competitors included."""

    top5_margin: Float32 = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    """`(num_unseen_evaluations,)`: the seen logit that its own class must exceed to be among the five first, less the
    mean row's; infinite where five injected classes come before it. Empty unless it was asked for."""

    top5_deviation: Float32 = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    """`(num_unseen_evaluations,)`: its own class's deviation logit. Empty unless it was asked for."""

    @property
    def chance(self) -> float:
        """Part of hits that guessing among the injected classes would give, 0..1."""
        return len(self.group_sizes) / int(self.group_sizes.sum())


def plan_folds(num_seen: int, num_unseen: int, *, seed: int, max_folds: int | None = None) -> tuple[Fold, ...]:
    """Return the folds to evaluate.

    Args:
        num_seen: At least `MIN_SEEN`.
        num_unseen: Classes that will be injected.
        seed: Of the partition.
        max_folds: How many folds to return at most, where a fit is expensive.
    """
    num_parts = int(np.clip(round((num_seen + num_unseen) / num_unseen), 3, 10))
    num_folds = min(num_parts, -(-ENOUGH_HELD_OUT * num_parts // num_seen), max_folds or num_parts)
    order = np.random.default_rng(seed).permutation(num_seen)
    folds = []
    for part in np.array_split(order, num_parts)[:num_folds]:
        num_groups = max(1, round(len(part) / num_unseen))
        held_out = np.sort(part).astype(np.int64)
        training = np.setdiff1d(np.arange(num_seen, dtype=np.int64), held_out)
        groups = tuple(np.sort(group).astype(np.int64) for group in np.array_split(part, num_groups))
        folds.append(Fold(held_out=held_out, training=training, groups=groups))
    return tuple(folds)


def with_less_training(folds: tuple[Fold, ...], *, seed: int) -> tuple[Fold, ...]:
    """Return the same folds, each with as many training classes fewer as it holds out, drawn at random."""
    random = np.random.default_rng(seed)
    thinned = []
    for fold in folds:
        thinned.append(replace(fold, training=less_training(fold.training, len(fold.held_out), random)))
    return tuple(thinned)


def less_training(training: Int64, num_held_out: int, random: np.random.Generator) -> Int64:
    """Return fewer of these classes, as many less as are held out and at most half, in their order."""
    kept = random.permutation(len(training))[min(num_held_out, len(training) // 2) :]
    return training[np.sort(kept)]


def learning_step(num_seen: int, num_training: float, num_less: float) -> float:
    """Return how far it is on a learning curve from a number of training classes to all seen ones, 0..1.

    Accuracies are extrapolated linearly in the logarithm of the number of classes that are learnt from, over a step
    that is never longer than the one observed. The unit is that one: from less training to more.

    Args:
        num_seen: Classes that the injection learns from.
        num_training: Classes that were learnt from, on average.
        num_less: Classes that were learnt from when they were fewer, on average.
    """
    return min(1.0, math.log(num_seen / num_training) / max(math.log(num_training / num_less), 1e-9))


def hold_out(
    predict: Predict, descriptors: Float32, rows: Float32, unseen_descriptors: Float32, folds: tuple[Fold, ...]
) -> tuple[HeldOutRows, ...]:
    """Predict the held-out rows of every fold, and those of its competitors, from its training classes.

    Args:
        predict: A method.
        descriptors: `(num_seen, descriptor_dim)`.
        rows: `(num_seen, feature_dim + 1)`.
        unseen_descriptors: `(num_unseen, descriptor_dim)`; as many of them as a group lacks become its competitors.
        folds: What to hold out.

    Returns:
        A prediction for each fold; deviations keep the lengths predicted.
    """
    held_out = []
    for fold in folds:
        training, own = rows[fold.training], descriptors[fold.held_out]
        smallest_group = min(len(group) for group in fold.groups)
        others = unseen_descriptors[: max(0, len(unseen_descriptors) - smallest_group)]
        predicted = predict(descriptors[fold.training], training, np.concatenate([own, others]))
        deviations = predicted.rows - mean_row(training)
        held_out.append(
            HeldOutRows(
                fold=fold,
                deviations=deviations[: len(own)],
                competitors=deviations[len(own) :],
                variance=predicted.variance[: len(own)],
            )
        )
    return tuple(held_out)


def evaluate_folds(
    held_out: tuple[HeldOutRows, ...], rows: Float32, sample: ClassFeatures, *, seed: int, with_top5: bool = False
) -> Outcomes:
    """Classify features in every fold and return the outcomes of all folds together.

    Args:
        held_out: Predictions of the folds.
        rows: `(num_seen, feature_dim + 1)`, the true rows.
        sample: Features of seen classes, and their logits under those rows.
        seed: Of the draw of groups, where there are more than `MAX_GROUPS`.
        with_top5: Whether to find out when a class is among the five first, which takes as long as all else.
    """
    random = np.random.default_rng(seed)
    mean = mean_row(rows)
    base = sample.features @ mean[:-1] + mean[-1]  # (num_features,)
    first = sample.logits.argmax(axis=1)  # (num_features,)
    injected = [rows for part in held_out for rows in (part.deviations, part.competitors)]
    logits = head_logits(np.concatenate(injected), sample.features)  # one product for all folds is fastest
    parts = np.split(logits, np.cumsum([len(rows) for rows in injected])[:-1], axis=1)
    return _joined(
        [
            _evaluate_fold(one.fold, deviations, competitors, base, first, sample, random, with_top5)
            for one, deviations, competitors in zip(held_out, parts[::2], parts[1::2], strict=True)
        ]
    )


def _joined(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return the outcomes of several folds as those of one."""
    names = [one.name for one in fields(Outcomes)]
    return Outcomes(**{name: np.concatenate([getattr(one, name) for one in outcomes]) for name in names})


def _evaluate_fold(
    fold: Fold,
    deviations: Float32,
    competitors: Float32,
    base: Float32,
    first: Int64,
    sample: ClassFeatures,
    random: np.random.Generator,
    with_top5: bool,
) -> Outcomes:
    """Return the outcomes of one fold.

    Args:
        fold: Which classes are held out.
        deviations: `(num_features, num_held_out)`, deviation logits.
        competitors: `(num_features, num_competitors)`, likewise.
        base: `(num_features,)`, logits of the mean row.
        first: `(num_features,)`, of all seen classes the one with the largest logit.
        sample: The features.
        random: To draw groups with.
        with_top5: Whether to find out when a class is among the five first.
    """
    is_held_out = np.zeros(sample.logits.shape[1], dtype=bool)
    is_held_out[fold.held_out] = True
    seen, unseen = np.flatnonzero(~is_held_out[sample.classes]), np.flatnonzero(is_held_out[sample.classes])
    top_seen = _top_logits(sample.logits, first, is_held_out) - base
    own = sample.logits[np.arange(len(first)), sample.classes] - base
    seen_margin = np.where(own[seen] >= top_seen[seen], own[seen], -np.inf)
    competitor = competitors.max(axis=1, initial=-np.inf)  # (num_features,)
    groups = [np.searchsorted(fold.held_out, group) for group in fold.groups]
    drawn = random.permutation(len(groups))[:MAX_GROUPS]
    logits_by_group = [deviations[:, groups[g]] if len(groups) > 1 else deviations for g in drawn]
    seen_deviation = [np.maximum(logits.max(axis=1), competitor)[seen] for logits in logits_by_group]
    group_of = np.empty(len(fold.held_out), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[group] = number
    column = np.searchsorted(fold.held_out, sample.classes[unseen])  # of each unseen feature's own class
    competes = group_of[column][:, None] == group_of[None, :]  # (num unseen features, num_held_out)
    competing = np.where(competes, deviations[unseen], -np.inf)
    best = competing.max(axis=1)
    top5_margin, own_deviation = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32)
    if with_top5:
        own_deviation = deviations[unseen, column]
        rivals = np.concatenate([competing, competitors[unseen]], axis=1)
        seen_logits = sample.logits[np.ix_(unseen, np.flatnonzero(~is_held_out))]
        top5_margin = needed_for_top5(own_deviation, rivals, seen_logits) - base[unseen]
    return Outcomes(
        seen_margin=np.tile(seen_margin, len(drawn)),
        seen_deviation=np.concatenate(seen_deviation),
        unseen_margin=top_seen[unseen],
        unseen_deviation=np.maximum(best, competitor[unseen]),
        is_hit=(competing.argmax(axis=1) == column) & (best > competitor[unseen]),
        unseen_class=sample.classes[unseen],
        top5_margin=top5_margin,
        top5_deviation=own_deviation,
        group_sizes=np.array([len(group) + competitors.shape[1] for group in groups], dtype=np.int64),
    )


def needed_for_top5(own: Float32, rivals: Float32, seen: Float32) -> Float32:
    """Return the seen logit that a class must exceed to be among the five first, `(num_features,)`.

    Args:
        own: `(num_features,)`: the class's own logit among the injected ones.
        rivals: `(num_features, num_injected)`: logits of all injected classes, which share its offset.
        seen: `(num_features, num_seen)`.

    Returns:
        Infinite where five injected classes come before it, -infinite where there are too few seen ones to matter.
    """
    ahead = (rivals > own[:, None]).sum(axis=1)
    depth = min(5, seen.shape[1])
    best = -np.sort(-np.partition(seen, seen.shape[1] - depth, axis=1)[:, -depth:], axis=1)
    padded = np.pad(best, ((0, 0), (0, 5 - depth)), constant_values=-np.inf)  # (num_features, 5), descending
    needed = padded[np.arange(len(own)), np.maximum(4 - ahead, 0)]
    return np.asarray(np.where(ahead < 5, needed, np.inf), dtype=np.float32)


def _top_logits(logits: Float32, first: Int64, is_held_out: Bool) -> Float32:
    """Return the largest logit of each feature among the classes that are not held out, `(num_features,)`.

    Args:
        logits: `(num_features, num_seen)`.
        first: `(num_features,)`, of all seen classes the one with the largest logit.
        is_held_out: `(num_seen,)`.
    """
    top = logits[np.arange(len(logits)), first]
    others = np.flatnonzero(is_held_out[first])
    top[others] = logits[np.ix_(others, np.flatnonzero(~is_held_out))].max(axis=1)
    return top
