"""How much class there is in pseudo-features, and of similar classes: the head is as accurate as its owner says.

What is not class causes a part of the head's errors, and sets the amount of class; similar classes cause the others,
and set the largest blend.
"""

from __future__ import annotations

import numpy as np

from icis_deploy.common.arrays import Float32, Float64, Int64
from icis_deploy.injection.pseudo_features.mixtures import Mixture
from icis_deploy.injection.pseudo_features.threshold_search import Thresholds, first_thresholds, quantile
from icis_deploy.injection.rows.logits import head_logits

LARGEST_BLEND = 4.0
"""Of similar classes; an image that shows four times as much of another class is one of that class."""

STEP_BACK = 0.05
"""Part of a strength or a blend that is taken away to see how much a margin depends on it."""


def recognised_share(seen_accuracy: float, neighbour_share: float) -> float:
    """Return the accuracy of the head where an image shows nothing of a similar class, 0..1."""
    return 1.0 - (1.0 - seen_accuracy) * (1.0 - neighbour_share)


def needed_strengths(rows: Float32, mixture: Mixture) -> Thresholds:
    """Return the strength that the class needs in each feature to win, without blending."""

    def evaluate(which: Int64, strengths: Float64) -> tuple[Float64, Float64]:
        part = _part(mixture, which)
        less = (1.0 - STEP_BACK) * strengths
        margin, before = _margins(rows, part, part.features(strengths, 0.0), part.features(less, 0.0))
        return margin, (margin - before) / (STEP_BACK * strengths)

    return first_thresholds(evaluate, len(mixture.shown.classes), start=mixture.usual_strength)


def amount_of_class(needed: Thresholds, mixture: Mixture, recognised: float) -> float:
    """Return the amount of class at which, without blending, what is not class causes its share of the errors.

    Where rows differ much in length, no amount makes the short ones win; nearly what can be reached is then enough,
    or the amount would grow without end.

    Args:
        needed: Strengths that the features need, from `needed_strengths`.
        mixture: The features; strengths needed do not depend on how an amount becomes strengths.
        recognised: Part of the features that the head classifies correctly, 0..1.
    """
    amount, known = needed.find(recognised, mixture.strengths, mixture.amount_at)
    # Only now, when few features are left that must be evaluated there.
    largest = np.full(len(mixture.shown.classes), mixture.largest_strength)
    known = known.settled(largest)
    reachable = known.share_at(largest)
    if recognised <= 0.99 * reachable:
        return amount
    return known.find(0.99 * reachable, mixture.strengths, mixture.amount_at)[0]


def largest_blend(rows: Float32, mixture: Mixture, amount: float, seen_accuracy: float, *, start: float) -> float:
    """Return the largest blend at which the head is as accurate as its owner says.

    Args:
        rows: `(num_seen, feature_dim + 1)`.
        mixture: The features.
        amount: Of class in them.
        seen_accuracy: Part of the features that the head classifies correctly, 0..1.
        start: Where the search begins; the nearer, the fewer features are evaluated again.
    """
    strengths = mixture.strengths(amount)

    def evaluate(which: Int64, blends: Float64) -> tuple[Float64, Float64]:
        part = _part(mixture, which)
        here, back = (part.features(strengths[which], factor * blends) for factor in (1.0, 1.0 - STEP_BACK))
        margin, before = _margins(rows, part, here, back)
        return -margin, (before - margin) / (STEP_BACK * blends)

    found, _ = first_thresholds(evaluate, len(strengths), start=start).find(
        1.0 - seen_accuracy,
        lambda blend: np.full(len(strengths), blend),
        lambda estimate, share: min(quantile(estimate, share), LARGEST_BLEND),
    )
    return found


def _part(mixture: Mixture, which: Int64) -> Mixture:
    return mixture if len(which) == len(mixture.shown.classes) else mixture.part(which)


def _margins(rows: Float32, mixture: Mixture, features: Float32, others: Float32) -> tuple[Float64, Float64]:
    """Return by how much own classes win over their strongest competitor, and in other features over the same one."""
    classes, index = mixture.shown.classes, np.arange(len(features))
    logits = head_logits(rows, features)
    own = logits[index, classes]
    logits[index, classes] = -np.inf
    competitor = logits.argmax(axis=1)
    difference = rows[classes] - rows[competitor]
    margins = own - logits[index, competitor], np.einsum("ij,ij->i", others, difference[:, :-1]) + difference[:, -1]
    return margins[0].astype(np.float64), margins[1].astype(np.float64)
