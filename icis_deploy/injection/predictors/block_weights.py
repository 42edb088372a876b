"""How much each block of descriptors counts, by leave-one-out on the seen rows.

What is compared is the cosine of each seen class's deviation with the one that ridge regression predicts from the other
classes, in closed form: it orders sources of descriptors as accuracy on unseen classes does, and needs no image. Two
sets of weights are compared class by class: the mean difference of the cosines against its standard error.

1. All blocks start with equal weights.
2. As long as there are several, the one that helps least is dropped if the cosines without it are not worse by
   `ENOUGH_TO_STAY` standard errors. Without a block of noise they are better, and without the copy of a block they
   are as they were.
3. The weight of a block that stays is doubled or halved only where that is better by `ENOUGH_TO_DIFFER` standard
   errors: with few classes weights stay equal.
"""

# Why: docs/decisions/0071.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.injection.predictors.block_space import concatenated
from icis_deploy.injection.predictors.ridge import tune_ridge

ENOUGH_TO_STAY = 1.0
"""Standard errors by which a block must help to be kept."""

ENOUGH_TO_DIFFER = 2.0
"""Standard errors by which unequal weights must be better than equal ones."""

WEIGHING_LIMIT = 800
"""Seen classes that blocks are weighed on, drawn at random where there are more."""

FEWEST_TO_WEIGH = 6
"""Seen classes below which all blocks count alike."""

ROUNDING = 1e-4
"""Least standard error of a difference of mean cosines: between two copies of a block there is rounding alone."""

MAX_STEPS = 3
"""Times that a weight is doubled or halved at most: differences of more than 8 to 1 are a block that hardly helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What one block adds to the others that were there when it was judged."""

    with_it: float
    """Mean cosine with it, -1..1."""

    without_it: float
    """Mean cosine without it."""

    standard_error: float
    """Of the mean difference over classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighedBlocks:
    """How much each block counts, and what it adds."""

    weights: tuple[float, ...]
    """`(num_blocks,)`; 0 of those that were dropped; their sum is 1."""

    gains: tuple[Gain | None, ...]
    """`(num_blocks,)`; `None` of a block that there was nothing to compare with."""


def weigh_blocks(points: Sequence[Float64], rows: Float32, *, seed: int) -> WeighedBlocks:
    """Choose the weights of blocks.

    Args:
        points: `(num_seen, width)` of each block, standardised; at least one of them is not all zero.
        rows: `(num_seen, feature_dim + 1)`.
        seed: Of the draw of classes, where there are more than `WEIGHING_LIMIT`.
    """
    gains: list[Gain | None] = [None] * len(points)
    weights = np.array([float(part.any()) for part in points])
    if len(rows) >= FEWEST_TO_WEIGH and np.count_nonzero(weights) > 1:
        if len(rows) > WEIGHING_LIMIT:
            drawn = np.sort(np.random.default_rng(seed).choice(len(rows), WEIGHING_LIMIT, replace=False))
            points, rows = [part[drawn] for part in points], rows[drawn]
        scores = _Scores(points, rows)
        weights = _without_useless(weights, scores, gains)
        weights = _told_apart(weights, scores)
    weights /= weights.sum()
    return WeighedBlocks(weights=tuple(float(one) for one in weights), gains=tuple(gains))


class _Scores:
    """Leave-one-out cosines by weights, each computed once."""

    def __init__(self, points: Sequence[Float64], rows: Float32) -> None:
        self._points, self._rows = points, rows
        self._cosines: dict[tuple[float, ...], Float64] = {}

    def of(self, weights: Float64) -> Float64:
        """Return the cosine of each class, `(num_seen,)`, with the bandwidth and noise that suit the weights best."""
        key = tuple(float(one) for one in weights / weights.sum())
        if key not in self._cosines:
            self._cosines[key] = tune_ridge(concatenated(self._points, key), self._rows)[1]
        return self._cosines[key]


def _without_useless(weights: Float64, scores: _Scores, gains: list[Gain | None]) -> Float64:
    """Return equal weights of the blocks that help; writes down what each block adds."""
    while np.count_nonzero(weights) > 1:
        whole, kept = scores.of(weights), np.flatnonzero(weights)
        standard_errors = {}
        for block in kept:
            without = scores.of(np.where(np.arange(len(weights)) == block, 0.0, weights))
            gains[block] = Gain(
                with_it=float(whole.mean()),
                without_it=float(without.mean()),
                standard_error=_standard_error(whole - without),
            )
            standard_errors[block] = _in_standard_errors(whole - without)
        # Of two that help alike, such as copies, the last one goes.
        least = min(kept, key=lambda block: (round(standard_errors[block], 1), -block))
        if standard_errors[least] >= ENOUGH_TO_STAY:
            break
        weights = np.where(np.arange(len(weights)) == least, 0.0, weights)
    return weights


def _told_apart(weights: Float64, scores: _Scores) -> Float64:
    """Return weights doubled and halved where that is better beyond doubt."""
    kept = np.flatnonzero(weights)
    if len(kept) < 2:
        return weights
    # Of two blocks, to halve one is to double the other.
    factors = (2.0,) if len(kept) == 2 else (2.0, 0.5)
    for _ in range(MAX_STEPS):
        found = scores.of(weights)
        others = [
            np.where(np.arange(len(weights)) == block, factor * weights, weights)
            for block in kept
            for factor in factors
        ]
        best = max(others, key=lambda each: float(scores.of(each).mean()))
        if _in_standard_errors(scores.of(best) - found) < ENOUGH_TO_DIFFER:
            break
        weights = best
    return weights


def _standard_error(differences: Float64) -> float:
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def _in_standard_errors(differences: Float64) -> float:
    """Return the mean of paired differences in units of its standard error, which is never less than rounding."""
    return float(differences.mean()) / max(_standard_error(differences), ROUNDING)
