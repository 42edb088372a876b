"""Is one thing faster than another? A paired comparison of interleaved measurements.

Rules:

1. Both are measured in every round, so that whatever slows the machine in a round slows both; only their ratio within a
   round counts, never times from different rounds.
2. The ratio is the Hodges-Lehmann estimate over rounds, its interval the exact one of Wilcoxon's signed-rank test.
   Neither is moved by a few disturbed rounds.
3. A difference inside the margin does not matter, one outside does: `equal` if the whole interval is inside, `faster`
   or `slower` if the whole interval is outside, else `inconclusive`. Looking again after more rounds is therefore safe:
   two equal things are not called different unless the estimate itself is off by more than the margin.

Source of 2: M. Hollander, D. Wolfe, "Nonparametric Statistical Methods", sections 3.1-3.3.
"""

# Why: docs/decisions/0017.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from benchmarks.timing.percentiles import CONFIDENCE, Interval
from icis_deploy.common.arrays import Float64
from icis_deploy.errors import UsageError

MIN_ROUNDS = 8
"""Rounds below which Wilcoxon's test has no 99 % interval at all."""

MAX_PAIRS = 300
"""More rounds than this are put together before they are compared: the number of averages grows with the square."""

Verdict = Literal["faster", "equal", "slower", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How long `label` takes, as a multiple of what `against` takes."""

    label: str
    """Name of what is compared."""

    against: str
    """Name of what it is compared with."""

    ratio: Interval
    """Latency of `label` over latency of `against`, with its 99 % interval; below 1 means that `label` is faster."""

    margin: float
    """Differences up to this fraction count as none: 0.02 for 2 %."""

    num_rounds: int
    """Rounds in which both were measured."""

    DERIVED: ClassVar = ("verdict",)

    @property
    def verdict(self) -> Verdict:
        """`faster`, `equal` or `slower` if the whole interval says so, else `inconclusive`."""
        lowest_equal, highest_equal = 1 / (1 + self.margin), 1 + self.margin
        if self.ratio.high < lowest_equal:
            return "faster"
        if self.ratio.low > highest_equal:
            return "slower"
        if self.ratio.low >= lowest_equal and self.ratio.high <= highest_equal:
            return "equal"
        return "inconclusive"


def compare(
    latencies: Sequence[float], latencies_against: Sequence[float], *, label: str, against: str, margin: float
) -> Comparison:
    """Compare two things that were measured in the same rounds.

    Args:
        latencies: `(num_rounds,)` positive, one typical latency of `label` per round, any unit.
        latencies_against: `(num_rounds,)`, of `against`, same unit, same rounds.
        label: Name of what is compared.
        against: Name of what it is compared with.
        margin: Differences up to this fraction count as none.

    Raises:
        UsageError: If the numbers of rounds differ or are 0, or a latency is not positive.
    """
    ours, theirs = np.asarray(latencies, dtype=np.float64), np.asarray(latencies_against, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or len(ours) == 0:
        raise UsageError(
            f"{label!r} was measured in rounds of shape {ours.shape} and {against!r} in {theirs.shape}; expected the "
            f"same rounds, at least one.",
            found=ours.shape,
            expected=theirs.shape,
            where=label,
            hint="Measure both in one run.",
        )
    if not (ours > 0).all() or not (theirs > 0).all():
        raise UsageError(
            f"A latency of {label!r} or {against!r} is 0 or less; the clock is too coarse for what it times.",
            found="0 or less",
            expected="a time above 0",
        )
    difference = pseudomedian(np.log(ours) - np.log(theirs))
    with np.errstate(over="ignore"):  # an unbounded interval stays unbounded
        value, low, high = np.exp([difference.value, difference.low, difference.high]).tolist()
    ratio = Interval(value=value, low=low, high=high)
    return Comparison(label=label, against=against, ratio=ratio, margin=margin, num_rounds=len(ours))


def pseudomedian(differences: Float64) -> Interval:
    """Return the Hodges-Lehmann estimate: the median of all averages of two differences, with its 99 % interval.

    Args:
        differences: `(num_rounds,)`, symmetric around the true one if rounds visit both sides in random order.

    Returns:
        The interval is unbounded where there are fewer than `MIN_ROUNDS`.
    """
    groups = np.array_split(differences, min(MAX_PAIRS, len(differences)))
    merged = np.array([np.median(group) for group in groups])
    first, second = np.triu_indices(len(merged))
    averages = np.sort((merged[first] + merged[second]) / 2)
    num_cut = num_averages_outside(len(merged))
    low, high = (averages[num_cut - 1], averages[-num_cut]) if num_cut else (-np.inf, np.inf)
    return Interval(value=float(np.median(averages)), low=float(low), high=float(high))


@lru_cache(maxsize=MAX_PAIRS)
def num_averages_outside(num_pairs: int) -> int:
    """Return which smallest and largest average bound the interval: the C of Hollander and Wolfe, 0 if there is none.

    Wilcoxon's statistic is the sum of those ranks 1 ... n whose sign is positive, each with probability 1/2; its exact
    distribution is built up rank by rank.
    """
    mass = np.ones(1)
    for rank in range(1, num_pairs + 1):
        extended = np.zeros(len(mass) + rank)
        extended[: len(mass)] += mass / 2
        extended[rank:] += mass / 2
        mass = extended
    return int(np.searchsorted(np.cumsum(mass), (1 - CONFIDENCE) / 2, side="right"))
