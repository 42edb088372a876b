"""How certain an accuracy is, by bootstrap intervals over classes, and which targets no other one beats.

A macro average is a mean over classes, so classes are resampled, not images.
Two targets are compared on the same resamples: what is hard for both then cancels, as it does in interleaved rounds.
"""

# Why: docs/decisions/0030.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.report.merging import Entry, Row
from benchmarks.results.values import Accuracy
from benchmarks.timing.percentiles import CONFIDENCE, NUM_RESAMPLES, Interval
from icis_deploy.common.arrays import Float64
from icis_deploy.metrics.averages import harmonic_mean

Measure = Literal["U", "S", "H"]
MIN_CLASSES = 8
"""Below this, an interval over classes says nothing."""


def accuracy_interval(accuracy: Accuracy, measure: Measure) -> Interval | None:
    """Return an accuracy with its 99 % interval, fractions of 1; None where there is none or too few classes."""
    value, samples = getattr(accuracy, measure), _resampled(accuracy, measure)
    if value is None or samples is None:
        return None
    low, high = _ends(samples)
    return Interval(value=value, low=min(value, low), high=max(value, high))


def accuracy_difference(accuracy: Accuracy | None, other: Accuracy | None, measure: Measure) -> Interval | None:
    """Return how much higher the first is than the second, with the 99 % interval of the paired difference.

    None where one is missing or has no value, or they are not averages over the same classes.
    """
    if accuracy is None or other is None:
        return None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A target as a point: how fast and how accurate."""

    entry: Entry
    """The target and the run that measured it."""

    latency_ms: Interval
    """Median latency in milliseconds, with its 99 % interval."""

    accuracy: Interval
    """Its accuracy, a fraction of 1; without width where nothing is known of it."""


def choices_of(rows: Sequence[Row], measure: Measure) -> list[Choice]:
    """Return the rows that have this accuracy, fastest first."""
    found = []
    for row in rows:
        accuracy = row.entry.target.accuracy
        value = None if accuracy is None else getattr(accuracy, measure)
        if accuracy is not None and value is not None:
            interval = accuracy_interval(accuracy, measure) or Interval(value=value, low=value, high=value)
            found.append(Choice(entry=row.entry, latency_ms=row.latency.median_ms, accuracy=interval))
    return sorted(found, key=lambda each: each.latency_ms.value)


def pareto_front(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices that no other one equals in both and beats in one, fastest first."""

    def beats(one: Choice, other: Choice) -> bool:
        ours, theirs = ((-each.latency_ms.value, each.accuracy.value) for each in (one, other))
        return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]

    return [each for each in choices if not any(beats(other, each) for other in choices)]
