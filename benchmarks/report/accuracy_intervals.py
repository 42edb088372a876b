"""How sure an accuracy is: bootstrap intervals over classes.

A macro average stands on its classes, so classes are resampled, not images.
Two targets are compared on the same resamples: what is hard for both then cancels, as it does in interleaved rounds.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.results.values import Accuracy
from benchmarks.timing.percentiles import CONFIDENCE, NUM_RESAMPLES, Interval
from icis_deploy.metrics.accuracy import harmonic_mean

Measure = Literal["U", "S", "H"]
MIN_CLASSES = 8
"""Below this, an interval over classes says nothing."""

Float64 = NDArray[np.float64]


def accuracy_interval(accuracy: Accuracy, measure: Measure) -> Interval | None:
    """Return an accuracy with its 99 % interval, fractions of 1; None where there is none or too few classes."""
    value, samples = getattr(accuracy, measure), _resampled(accuracy, measure)
    if value is None or samples is None:
        return None
    low, high = _ends(samples)
    return Interval(value=value, low=min(value, low), high=max(value, high))


def accuracy_difference(accuracy: Accuracy, other: Accuracy, measure: Measure) -> Interval | None:
    """Return how much higher the first is than the second, with the 99 % interval of the paired difference.

    None where one has no value, or they do not stand on the same classes.
    """
    ours, theirs = _resampled(accuracy, measure), _resampled(other, measure)
    values = getattr(accuracy, measure), getattr(other, measure)
    same = [each.name for each in accuracy.classes] == [each.name for each in other.classes]
    if ours is None or theirs is None or None in values or not same:
        return None
    low, high = _ends(ours - theirs)
    return Interval(value=values[0] - values[1], low=low, high=high)


def _resampled(accuracy: Accuracy, measure: Measure) -> Float64 | None:
    seen = _resampled_means(accuracy, is_seen=True) if measure != "U" else None
    unseen = _resampled_means(accuracy, is_seen=False) if measure != "S" else None
    if measure != "H":
        return seen if measure == "S" else unseen
    if seen is None or unseen is None:
        return None
    return np.array([harmonic_mean(u, s) for u, s in zip(unseen, seen, strict=True)])


def _resampled_means(accuracy: Accuracy, *, is_seen: bool) -> Float64 | None:
    values = np.array([each.accuracy for each in accuracy.classes if each.is_seen == is_seen])
    if len(values) < MIN_CLASSES:
        return None
    random = np.random.default_rng(0)  # the same for every target with these classes: that pairs them
    weights = random.multinomial(len(values), np.full(len(values), 1 / len(values)), size=NUM_RESAMPLES)
    return np.asarray(weights @ values / len(values), dtype=np.float64)


def _ends(samples: Float64) -> tuple[float, float]:
    low, high = np.percentile(samples, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    return float(low), float(high)
