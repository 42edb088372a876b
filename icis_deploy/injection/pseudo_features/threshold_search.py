"""Where features turn from wrong to right, or back, as a number grows; evaluated as rarely as possible.

An evaluation is expensive: the logits of all classes. What it finds of a feature is more than its side: against the
strongest other class found there, a step back gives the margin's slope at hardly any cost, and both give an estimate of
where the margin vanishes. Features whose estimate lies far from the level of the search, measured by how far it is from
where they were last evaluated, are not evaluated again.

What was found is a value (`Thresholds`): a search returns what it learnt and changes nothing, so that it finds the same
whatever was searched before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float64, Int64

SHORTEST_UP, SHORTEST_DOWN, LONGEST = 0.5, 0.1, 3.0
"""How far the way to a threshold may well be, from where the feature was last evaluated, in units of its estimate: on
the way up, on the way down, and at most. Margins grow ever more slowly, as stronger and stronger competitors come, so
that a straight line says too little on the way up, and too much on the way down."""

NEAREST_TO_ZERO = 0.1
"""Part of a level below which no estimate goes that was made there."""

MAX_EVALUATIONS = 8
"""A search ends after so many; nearly all need three, the last two of them of a few features."""

NEGLIGIBLE = 1e-4
"""Part of a value by which it may still move."""

Evaluate = Callable[[Int64, Float64], tuple[Float64, Float64]]
"""From features, by index, and a level for each to their margins there, positive where they have turned, and the slopes
of these margins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thresholds:
    """The levels at which some features turn, as far as they were evaluated. Levels are positive."""

    evaluate: Evaluate
    """What an evaluation finds."""

    estimate: Float64
    """`(num_features,)`: the level at which each turns; `inf` where it does not."""

    evaluated: Float64
    """`(num_features,)`: the level at which each was last evaluated."""

    below: Float64
    """`(num_features,)`: the largest level at which each had not turned; 0 where there is none."""

    above: Float64
    """`(num_features,)`: the smallest level at which each had turned; `inf` where there is none."""

    def settled(self, levels: Float64) -> Thresholds:
        """Return the thresholds after an evaluation of the features that may or may not have turned at their levels.

        Args:
            levels: `(num_features,)`.

        Returns:
            These thresholds themselves where there are no such features.
        """
        is_open = (self.below < levels) & (levels < self.above)
        way, step = levels - self.evaluated, self.estimate - self.evaluated
        shortest = np.where(np.isinf(step), 0.0, np.where(step > 0.0, SHORTEST_UP * step, -SHORTEST_DOWN * step))
        is_near = ((way > 0.0) == (step > 0.0)) & (np.abs(way) >= shortest) & (np.abs(way) <= LONGEST * np.abs(step))
        which = np.flatnonzero(is_open & is_near).astype(np.int64)
        return _evaluated_at(self, which, levels[which]) if len(which) else self

    def share_at(self, levels: Float64) -> float:
        """Return the part of the features that have turned at their levels, as far as is known.

        Args:
            levels: `(num_features,)`.
        """
        return float(np.mean(self.estimate <= levels))

    def find(
        self, share: float, levels: Callable[[float], Float64], value: Callable[[Float64, float], float]
    ) -> tuple[float, Thresholds]:
        """Return the value at which a share of the features has turned, and the thresholds as the search left them.

        Args:
            share: Part of the features, 0..1.
            levels: From a value to the level of each feature.
            value: From estimates and a share to the value at which so many features have reached them.
        """
        found, thresholds = value(self.estimate, share), self
        for _ in range(MAX_EVALUATIONS):
            settled = thresholds.settled(levels(found))
            if settled is thresholds:
                break
            thresholds = settled
            before, found = found, value(thresholds.estimate, share)
            if abs(found - before) <= NEGLIGIBLE * before:
                break
        return found, thresholds


def first_thresholds(evaluate: Evaluate, count: int, *, start: float) -> Thresholds:
    """Evaluate every feature once.

    Args:
        evaluate: What an evaluation finds.
        count: Number of features, at least one.
        start: The level at which all are evaluated.
    """
    unknown = Thresholds(
        evaluate=evaluate,
        estimate=np.full(count, np.nan),
        evaluated=np.full(count, np.nan),
        below=np.zeros(count),
        above=np.full(count, np.inf),
    )
    return _evaluated_at(unknown, np.arange(count, dtype=np.int64), np.full(count, start))


def _evaluated_at(thresholds: Thresholds, which: Int64, levels: Float64) -> Thresholds:
    """Return the thresholds after an evaluation of some features, by index, at a level for each."""
    margin, slope = thresholds.evaluate(which, levels)
    has_turned = margin > 0.0
    above = np.where(has_turned, np.minimum(levels, thresholds.above[which]), thresholds.above[which])
    below = np.where(has_turned, thresholds.below[which], np.maximum(levels, thresholds.below[which]))
    step = -margin / np.where(slope > 0.0, slope, np.nan)
    straight = np.where(np.isnan(step), np.where(has_turned, 0.0, np.inf), levels + step)
    # What was seen comes before what is guessed; of a feature that turns twice, the last evaluation.
    lowest = np.maximum(below, NEAREST_TO_ZERO * levels)
    lowest = np.where(has_turned, lowest, np.nextafter(levels, np.inf))
    highest = np.where(has_turned, levels, np.maximum(above, lowest))
    return replace(
        thresholds,
        estimate=_with(thresholds.estimate, which, np.clip(straight, lowest, highest)),
        evaluated=_with(thresholds.evaluated, which, levels),
        below=_with(thresholds.below, which, below),
        above=_with(thresholds.above, which, above),
    )


def _with(values: Float64, which: Int64, new: Float64) -> Float64:
    """Return values of which some, by index, are new."""
    changed: Float64 = values.copy()
    changed[which] = new
    return changed


def quantile(estimate: Float64, share: float) -> float:
    """Return the smallest level at which a share of the features has turned, where all have the same level.

    Args:
        estimate: `(num_features,)`, where each turns.
        share: Part of the features, 0..1.
    """
    needed = min(max(int(np.ceil(share * len(estimate))), 1), len(estimate))
    return float(np.partition(estimate, needed - 1)[needed - 1])
