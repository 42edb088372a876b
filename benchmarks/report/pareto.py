"""Which targets are worth having: those that no other one beats in latency and in accuracy at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.accuracy_intervals import Measure, accuracy_interval
from benchmarks.report.merging import Entry, Row
from benchmarks.timing.percentiles import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A target as a point: how fast, how right."""

    entry: Entry
    """The target."""

    latency_ms: Interval
    """Median latency."""

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
