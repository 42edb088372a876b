"""Measure how long calls take, one thing alone or several against each other, so that the figures can be trusted.

What is measured is any callable without arguments, under a label; one call is a query. A call must return only when its
work is done: code that starts work on a device has to wait for it.

Rules:

1. Nothing counts before the latency is stable: first everything is warmed up, window after window.
2. Then come rounds. In each round everything is measured in random order and once more in the reverse order, so that a
   steady drift of the machine cancels within the round. The first query after a switch pays for the caches that the
   others have filled and is not counted, of all labels or of none; see `rounds.Blocks`.
3. Rounds go on until there are enough queries for the percentiles wanted and the interval is narrow enough for a
   verdict, or the budget is used up: then the verdict is `inconclusive`, never a guess. How many queries a label has in
   a round follows from what it still lacks and from the time that is left.
4. Nothing is thrown away for being slow. Medians, not trimming, keep disturbances out of the verdict.
5. Python's garbage collector rests while queries are timed; what they leave is collected between rounds.
6. The clock is an argument, so the whole harness is tested in virtual time.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from benchmarks.machine.monitor import MachineState
from benchmarks.timing.comparison import Comparison, compare
from benchmarks.timing.drift import Steadiness, Trend, find_disturbances, trend
from benchmarks.timing.percentiles import (
    Histogram,
    Interval,
    Percentile,
    histogram_of,
    median_interval,
    num_queries_needed,
    percentile_of,
)
from benchmarks.timing.rounds import (
    REAL_INSTRUMENTS,
    Call,
    Instruments,
    Round,
    WarmUp,
    blocks_that_reach,
    first_blocks,
    garbage_collector_at_rest,
    run_round,
    time_queries,
    warm_up,
)
from icis_deploy.common.arrays import Int64
from icis_deploy.errors import UsageError

REPORTED_PERCENTS = (90.0, 95.0, 99.0, 99.9)

WARM_UP_SHARE = 0.2
"""Share of the budget that the warm-up may take."""

FIRST_LOOK = 10
LOOK_GROWTH = 1.25
"""Rounds before it is first asked whether the result is precise enough, and the factor from one time to the next."""

Pair = tuple[str, str]
"""A label, and the one that it is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured, and how small a difference matters.

    Raises:
        UsageError: On construction, if a number is not positive.
    """

    num_queries: int = num_queries_needed(99.0)
    """Queries of each label to measure at least; 662 is the fewest from which p99 exists."""

    budget_s: float = 30.0
    """Seconds after which no further round starts, warm-up included, whatever has been reached."""

    margin: float = 0.02
    """Differences up to this fraction count as none."""

    def __post_init__(self) -> None:
        for name in ("num_queries", "budget_s", "margin"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(
                    f"The plan's {name} is {getattr(self, name)}; expected a positive number.",
                    found=getattr(self, name),
                    expected="a positive number",
                    where=name,
                )


DEFAULT_PLAN = Plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """Latency of one label."""

    label: str
    """Name under which it was measured."""

    num_queries: int
    """Number of queries that count: those of all rounds, without the warm-up."""

    median_ms: Interval
    """Median in milliseconds, with its 99 % interval."""

    mean_ms: float
    """Mean in milliseconds: one query after the other, `1000 / mean_ms` are answered in a second."""

    min_ms: float
    """Fastest query, milliseconds."""

    max_ms: float
    """Slowest query, milliseconds."""

    percentiles: tuple[Percentile, ...]
    """p90, p95, p99 and p99.9; those that the number of queries does not allow say what they need."""

    histogram: Histogram
    """Latencies of all queries that count."""

    warm_up: WarmUp
    """The queries before any counted."""

    drift: Trend | None
    """How the latency changed during the run; None where there are too few rounds to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Everything one run of the harness found."""

    latencies: tuple[LatencyReport, ...]
    """One for each label, in the order given."""

    comparisons: tuple[Comparison, ...]
    """Every other label against one of them, then the further pairs; empty where only one thing was measured."""

    num_rounds: int
    """Rounds, in each of which everything was measured."""

    duration_s: float
    """Duration of the run in seconds, warm-up included."""

    stopped_by: Literal["precise", "budget"]
    """Whether what was asked for was reached, or the budget used up before."""

    clock_overhead_ns: float
    """What timing itself adds to each latency stated here; it is not subtracted."""

    probe: Trend | None
    """How the time of a fixed computation changed during the run."""

    before: MachineState
    """The machine after the warm-up."""

    after: MachineState
    """The machine at the end."""

    steadiness: Steadiness
    """What disturbed the run: throttling, and others on the machine."""


def measure(
    calls: Mapping[str, Call],
    *,
    against: str | None = None,
    further_pairs: Sequence[Pair] = (),
    plan: Plan = DEFAULT_PLAN,
    instruments: Instruments = REAL_INSTRUMENTS,
) -> Measurement:
    """Measure the latency of every callable, and compare them.

    Args:
        calls: What to measure, by label.
        against: The label that all others are compared with; by default the first.
        further_pairs: What else is compared, in the same rounds.
        plan: How much to measure.
        instruments: What measures.

    Raises:
        UsageError: If there is nothing to measure, or `against` is not one of the labels.
        RuntimeFailureError: If a call raises; the message names its label.
    """
    pairs = pairs_to_compare(calls, against, further_pairs)
    clock, start_ns, budget_ns = instruments.clock, instruments.clock(), int(plan.budget_s * 1e9)
    with garbage_collector_at_rest():
        share_ns = int(budget_ns * WARM_UP_SHARE / len(calls))
        warm_ups = {label: warm_up(label, call, share_ns, clock) for label, call in calls.items()}
        before = instruments.read_state()
        rounds, precise = run_rounds(calls, warm_ups, pairs, plan, instruments, deadline_ns=start_ns + budget_ns)
        after = instruments.read_state()
    probe = trend([each.start_s for each in rounds], [each.probe_ns for each in rounds])
    latencies = tuple(report_latency(label, rounds, warm_ups[label]) for label in calls)
    return Measurement(
        latencies=latencies,
        comparisons=compare_all(rounds, pairs, plan.margin),
        num_rounds=len(rounds),
        duration_s=(clock() - start_ns) / 1e9,
        stopped_by="precise" if precise else "budget",
        clock_overhead_ns=float(np.median(time_queries("an empty call", lambda: None, 200, clock))),
        probe=probe,
        before=before,
        after=after,
        steadiness=find_disturbances(before, after, probe, [latency.drift for latency in latencies]),
    )


def pairs_to_compare(calls: Mapping[str, Call], against: str | None, further: Sequence[Pair]) -> list[Pair]:
    """Return what is compared with what: all with one label, by default the first, and then the further pairs.

    Raises:
        UsageError: If there is nothing to measure, or nothing is measured under one of the labels.
    """
    if not calls:
        raise UsageError(
            "There is nothing to measure.",
            hint="Give at least one callable.",
        )
    reference = next(iter(calls)) if against is None else against
    pairs = [(label, reference) for label in calls if label != reference]
    pairs += [pair for pair in further if pair not in pairs]
    for label in (reference, *(label for pair in pairs for label in pair)):
        if label not in calls:
            raise UsageError(
                f"Nothing is measured under the label {label!r}; there are {', '.join(map(repr, calls))}.",
                found=label,
                expected=tuple(calls),
            )
    return pairs


def run_rounds(
    calls: Mapping[str, Call],
    warm_ups: Mapping[str, WarmUp],
    pairs: Sequence[Pair],
    plan: Plan,
    instruments: Instruments,
    *,
    deadline_ns: int,
) -> tuple[list[Round], bool]:
    """Return the rounds, at least one, and whether they are precise enough or the deadline ended them."""
    random = np.random.default_rng(0)
    smallest = blocks = first_blocks({label: warm.last_median_ms * 1e6 for label, warm in warm_ups.items()})
    rounds: list[Round] = []
    next_look = FIRST_LOOK
    while True:
        order = [list(calls)[index] for index in random.permutation(len(calls))]
        rounds.append(run_round(calls, order, blocks, instruments))
        gc.collect(0)
        out_of_time = instruments.clock() >= deadline_ns
        if out_of_time or len(rounds) >= next_look:
            next_look = math.ceil(next_look * LOOK_GROWTH)
            precise = precise_enough(rounds, calls, pairs, plan)
            if precise or out_of_time:
                return rounds, precise
            typical_ns = {label: median_typical_ns(rounds, label) for label in calls}
            missing = {label: plan.num_queries - len(queries_of(rounds, label)) for label in calls}
            blocks = blocks_that_reach(smallest, typical_ns, missing, deadline_ns - instruments.clock())


def precise_enough(rounds: Sequence[Round], calls: Mapping[str, Call], pairs: Sequence[Pair], plan: Plan) -> bool:
    """Say whether every label has its queries, and either every comparison a verdict or the only median is narrow."""
    if any(len(queries_of(rounds, label)) < plan.num_queries for label in calls):
        return False
    if pairs:
        return "inconclusive" not in [comparison.verdict for comparison in compare_all(rounds, pairs, plan.margin)]
    return report_median(rounds, next(iter(calls))).relative_half_width <= plan.margin


def compare_all(rounds: Sequence[Round], pairs: Sequence[Pair], margin: float) -> tuple[Comparison, ...]:
    """Compare the first label of every pair with the second."""
    typical_ns = {label: [each.typical_ns(label) for each in rounds] for label in dict.fromkeys(chain(*pairs))}
    return tuple(
        compare(typical_ns[label], typical_ns[reference], label=label, against=reference, margin=margin)
        for label, reference in pairs
    )


def median_typical_ns(rounds: Sequence[Round], label: str) -> float:
    """Return the median over rounds of a label's typical latency."""
    return float(np.median([each.typical_ns(label) for each in rounds]))


def queries_of(rounds: Sequence[Round], label: str) -> Int64:
    """Return all latencies of a label that count, `(num_queries,)` int64, nanoseconds, in the order of time."""
    return np.concatenate([block for each in rounds for block in each.latencies_ns[label]])


def report_median(rounds: Sequence[Round], label: str) -> Interval:
    """Return the median of a label's latencies in milliseconds, resampled by rounds."""
    return median_interval([np.concatenate(each.latencies_ns[label]) / 1e6 for each in rounds])


def report_latency(label: str, rounds: Sequence[Round], warm: WarmUp) -> LatencyReport:
    """Return what the rounds say of one label."""
    latencies_ms = queries_of(rounds, label) / 1e6
    return LatencyReport(
        label=label,
        num_queries=len(latencies_ms),
        median_ms=report_median(rounds, label),
        mean_ms=float(latencies_ms.mean()),
        min_ms=float(latencies_ms.min()),
        max_ms=float(latencies_ms.max()),
        percentiles=tuple(percentile_of(latencies_ms, percent) for percent in REPORTED_PERCENTS),
        histogram=histogram_of(latencies_ms),
        warm_up=warm,
        drift=trend([each.start_s for each in rounds], [each.typical_ns(label) for each in rounds]),
    )
