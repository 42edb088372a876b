"""Medians with an interval, and percentiles that are not stated from too few queries.

Rules:

1. A percentile exists only from the number of queries that MLPerf's early-stopping rule asks for: the smallest n at
   which one slower query can be left out and still, with 99 % confidence, enough of all queries are as fast as what is
   stated. That is 64 queries for p90, 130 for p95, 662 for p99, 6,636 for p99.9. Below it a report says "needs N".
2. Besides the percentile of the sample, the rule's own estimate is stated: an upper bound on the true percentile.
3. Queries that follow each other are not independent, so intervals resample blocks of them, never single queries.

Source of the rule: MLCommons, "MLPerf Inference Rules", appendix on early stopping, with tolerance 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float64
from icis_deploy.errors import UsageError

CONFIDENCE = 0.99
"""Of every interval and bound in this package; the value in MLPerf's rule."""

NUM_RESAMPLES = 1000
MAX_BLOCKS = 50  # few and long, so that slow noise stays inside a block
MAX_CANDIDATES = 2000
MAX_BINS = 60
MIN_PAIRED_ROUNDS = 8
"""Rounds below which resampling them says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentile:
    """A latency percentile, or how many queries it would take to state it."""

    percent: float
    """Share of queries that are at most this slow, in percent: 99.0 for p99."""

    num_queries: int
    """Number of queries that were measured."""

    num_needed: int
    """Queries from which this percentile exists."""

    value_ms: float | None
    """The sample's percentile, a latency that was really measured; None below `num_needed`."""

    upper_bound_ms: float | None
    """With 99 % confidence the true percentile is at most this (MLPerf's early-stopping estimate); None likewise."""

    @property
    def text(self) -> str:
        """The value with its unit, or "needs N"."""
        return f"needs {self.num_needed:,}" if self.value_ms is None else f"{self.value_ms:.3f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate between the two ends of its 99 % interval."""

    value: float
    """The point estimate, in the unit of what is estimated."""

    low: float
    """Lower end of the 99 % interval, in the same unit."""

    high: float
    """Upper end of the 99 % interval, in the same unit."""

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a fraction of the estimate; infinite where the estimate is 0."""
        return (self.high - self.low) / 2 / self.value if self.value else float("inf")


def percentile_of(latencies_ms: Float64, percent: float) -> Percentile:
    """Return a percentile of latencies, without a value where there are too few of them.

    Args:
        latencies_ms: `(num_queries,)`, in any order.
        percent: Above 0 and below 100.

    Raises:
        UsageError: If `percent` is not between 0 and 100.
    """
    needed = num_queries_needed(percent)
    num_queries = len(latencies_ms)
    value = bound = None
    if num_queries >= needed:
        ordered = np.sort(latencies_ms)
        value = float(np.percentile(ordered, percent, method="inverted_cdf"))
        bound = float(ordered[num_queries - num_slower_tolerated(num_queries, percent)])
    return Percentile(percent=percent, num_queries=num_queries, num_needed=needed, value_ms=value, upper_bound_ms=bound)


@lru_cache(maxsize=64)
def num_queries_needed(percent: float) -> int:
    """Return the smallest number of queries of which MLPerf's rule tolerates one slower one.

    Args:
        percent: Above 0 and below 100.

    Raises:
        UsageError: If it is not.
    """
    if not 0 < percent < 100:
        raise UsageError(
            f"There is no percentile {percent}; expected a number above 0 and below 100.",
            found=percent,
            expected="above 0 and below 100",
        )
    enough = 2
    while num_slower_tolerated(enough, percent) < 1:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if num_slower_tolerated(middle, percent) < 1:
            too_few = middle
        else:
            enough = middle
    return enough


def num_slower_tolerated(num_queries: int, percent: float) -> int:
    """Return t of MLPerf's rule: the t-th slowest query bounds the percentile from above.

    The rule passes t slow queries among n where `I_p(n - t, t + 1) <= 1 - confidence`; this regularised incomplete beta
    function is the probability that at most t of n queries are slower than the true percentile.

    Args:
        num_queries: n, at least 1.
        percent: 100 p.

    Returns:
        The largest such t; 0 or -1 where there is no estimate.
    """
    share_slower = 1 - percent / 100
    # The mean of the distribution is far to the right of its 1 % tail, so counting up to the mean is enough.
    highest = min(num_queries, int(np.ceil(num_queries * share_slower)) + 1)
    probability = binomial_cumulative(highest, num_queries, share_slower)
    return int(np.searchsorted(probability, 1 - CONFIDENCE, side="right")) - 1


def binomial_cumulative(highest: int, num_trials: int, probability: float) -> Float64:
    """Return P(X <= k) for k = 0 ... `highest`, of X binomial; computed in logarithms, so that none underflows early.

    Returns:
        `(highest + 1,)` float64.
    """
    k = np.arange(1, highest + 1)
    steps = np.log((num_trials - k + 1) / k) + np.log(probability) - np.log1p(-probability)
    log_mass = num_trials * np.log1p(-probability) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(np.exp(np.logaddexp.accumulate(log_mass)), dtype=np.float64)


def median_interval(blocks: Sequence[Float64]) -> Interval:
    """Return the median of all values, with a 99 % bootstrap interval that resamples whole blocks.

    Args:
        blocks: Values measured shortly after each other, in the order of time; at least one value in all.
    """
    merged = merge_neighbours(blocks, MAX_BLOCKS)
    medians = _resampled_percentiles(merged, _draws(len(merged)), 50.0)
    low, high = np.percentile(medians, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    value = float(np.median(np.concatenate(merged)))
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _draws(num_blocks: int) -> NDArray[np.int64]:
    """Return how often each resample draws each block, `(NUM_RESAMPLES, num_blocks)`: as many as there are, in all."""
    random = np.random.default_rng(0)  # the same samples always give the same interval
    return random.multinomial(num_blocks, np.full(num_blocks, 1 / num_blocks), size=NUM_RESAMPLES)


def _resampled_percentiles(blocks: Sequence[Float64], drawn: NDArray[np.int64], percent: float) -> Float64:
    """Return the percentile of each resample of blocks, `(num_resamples,)`.

    It needs no more than how many values of each block lie below each candidate, so its cost does not grow with the
    number of values.

    Args:
        blocks: Values, at least one in all.
        drawn: `(num_resamples, num_blocks)`: how often each resample draws each block.
        percent: Above 0 and below 100.
    """
    pooled = np.sort(np.concatenate(blocks))
    positions = np.unique(np.linspace(0, len(pooled) - 1, num=min(len(pooled), MAX_CANDIDATES)).astype(np.int64))
    candidates = pooled[positions]
    num_below = np.stack([np.searchsorted(np.sort(block), candidates, side="right") for block in blocks])
    lengths = np.array([len(block) for block in blocks])
    needed = (drawn @ lengths)[:, None] * (percent / 100)
    return np.asarray(candidates[(drawn.astype(np.float64) @ num_below >= needed).argmax(axis=1)])


def percentile_ratio(rounds: Sequence[Float64], rounds_against: Sequence[Float64], percent: float) -> Interval | None:
    """Return one percentile over another, with a 99 % bootstrap interval that resamples whole rounds.

    Both come from the same rounds, so that what slows the machine for a while slows both. A round may be too short for
    a percentile of its own, so each resample puts the values of the rounds that it draws together.

    Args:
        rounds: Of each round, the values above the line, `(num_queries,)`.
        rounds_against: Of each round, those below it.
        percent: Above 0 and below 100.

    Returns:
        `None` where a percentile does not exist, or there are fewer than `MIN_PAIRED_ROUNDS` rounds.

    Raises:
        UsageError: If `percent` is not between 0 and 100.
    """
    values = [percentile_of(np.concatenate(side), percent).value_ms for side in (rounds, rounds_against)]
    if values[0] is None or values[1] is None or len(rounds) < MIN_PAIRED_ROUNDS:
        return None
    drawn = _draws(len(rounds))
    ratios = _resampled_percentiles(rounds, drawn, percent) / _resampled_percentiles(rounds_against, drawn, percent)
    low, high = np.percentile(ratios, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    value = values[0] / values[1]
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def merge_neighbours(blocks: Sequence[Float64], max_blocks: int) -> list[Float64]:
    """Return at most `max_blocks` blocks, each of neighbouring ones put together."""
    groups = np.array_split(np.arange(len(blocks)), min(max_blocks, len(blocks)))
    return [np.concatenate([blocks[index] for index in group]) for group in groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How latencies are distributed, in bins that are equally wide on a logarithmic axis."""

    edges_ms: tuple[float, ...]
    """`(num_bins + 1,)`, ascending, in milliseconds."""

    counts: tuple[int, ...]
    """`(num_bins,)` queries in each bin."""


def histogram_of(latencies_ms: Float64) -> Histogram:
    """Return a histogram with about as many bins as the square root of the number of queries.

    Args:
        latencies_ms: `(num_queries,)`, at least one.
    """
    shortest = max(float(latencies_ms.min()), 1e-6)  # a clock that did not move between two readings: one nanosecond
    longest = max(float(latencies_ms.max()), shortest)
    num_bins = int(np.clip(np.sqrt(len(latencies_ms)), 1, MAX_BINS)) if longest > shortest else 1
    edges = np.geomspace(shortest * (1 - 1e-9), longest * (1 + 1e-9), num_bins + 1)
    counts, _ = np.histogram(latencies_ms.clip(min=shortest), bins=edges)
    return Histogram(edges_ms=tuple(edges.tolist()), counts=tuple(counts.tolist()))
