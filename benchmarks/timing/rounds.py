"""The measuring loop: call, read the clock, go on; and nothing else that could cost time.

`benchmarks.timing.latency` decides what to measure and what it means; here it is done.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from benchmarks.machine.monitor import MachineState, read_machine_state
from icis_deploy.common.arrays import Int64
from icis_deploy.errors import ICISDeployError, RuntimeFailureError, UsageError

WARM_UP_WINDOW_NS = 100_000_000
MAX_WINDOW_QUERIES = 10_000
NUM_STABLE_WINDOWS = 3
STABLE_SPREAD = 1.05
"""Stable: the slowest of the last three windows' medians is at most this multiple of the fastest."""

BLOCK_NS = 10_000_000
MAX_BLOCK_QUERIES = 500
MIN_WINDOW_QUERIES = 3
MIN_PLANNED_ROUNDS = 10
"""Blocks never become so large that fewer rounds than this are left."""

PROBE_STEPS = 2000

Call = Callable[[], object]
Input = TypeVar("Input")


def fixed_computation() -> object:
    """Do the same small piece of work every time: about 0.1 ms that depend on the machine alone."""
    total = 0
    for step in range(PROBE_STEPS):
        total ^= step
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What measures: real by default, virtual in tests."""

    clock: Callable[[], int] = time.perf_counter_ns
    """Nanoseconds since an arbitrary start."""

    probe: Call = fixed_computation
    """Work that no model has a part in; if its time rises, the machine has become slower."""

    read_state: Callable[[], MachineState] = read_machine_state
    """The machine's own account of itself."""


REAL_INSTRUMENTS = Instruments()


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """What happened before anything counted."""

    num_queries: int
    """Number of queries before any counted."""

    duration_s: float
    """Duration of the warm-up in seconds."""

    first_query_ms: float
    """Latency of the very first query in this process, in which runtimes allocate and tune, milliseconds."""

    last_median_ms: float
    """Median latency of the last window of queries, milliseconds."""

    stable: bool
    """False: the warm-up's share of the budget ran out first, and the figures may still hold some of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """What is measured of each label when its turn comes."""

    num_queries: Mapping[str, int]
    """For each label, how many queries count."""

    lead: bool
    """Whether one query that does not count goes before every block, for the caches that other labels have filled.

    Either every label has it or none: a label without it, compared with one with it, would seem slower than it is.
    Where even the fastest query fills a block by itself there is none: it would double the time for little.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass over everything and back."""

    start_s: float
    probe_ns: int
    latencies_ns: Mapping[str, tuple[Int64, Int64]]
    """For each label `(num_block_queries,)` on the way there, and as many on the way back."""

    def typical_ns(self, label: str) -> float:
        """Return the geometric mean of the medians there and back; both are as far from the round's middle."""
        there, back = (max(1.0, float(np.median(block))) for block in self.latencies_ns[label])
        return math.sqrt(there * back)


def calls_over(run: Callable[[Input], object], inputs: Sequence[Input]) -> Call:
    """Return a callable that gives `run` one prepared input after the other, and starts again after the last.

    Raises:
        UsageError: If there is no input.
    """
    if not inputs:
        raise UsageError(
            "There is no input to measure with.",
            found=0,
            expected="at least 1",
            hint="Give at least one.",
        )
    following = itertools.cycle(inputs).__next__
    return lambda: run(following())


@contextmanager
def garbage_collector_at_rest() -> Iterator[None]:
    """Collect now, and then not until the end; collecting the little that is new in between stays cheap."""
    was_enabled, freeze = gc.isenabled(), gc.get_freeze_count() == 0
    gc.collect()
    gc.disable()
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def time_queries(label: str, call: Call, num_queries: int, clock: Callable[[], int]) -> Int64:
    """Return the latency of each of `num_queries` calls.

    Returns:
        `(num_queries,)` int64, nanoseconds.

    Raises:
        RuntimeFailureError: If a call raises something that is not an error of icis-deploy.
    """
    latencies_ns = [0] * num_queries
    try:
        for index in range(num_queries):
            start_ns = clock()
            call()
            latencies_ns[index] = clock() - start_ns
    except ICISDeployError:
        raise
    except Exception as error:
        raise RuntimeFailureError(
            f"{label!r} failed while it was measured: {type(error).__name__}: {error}",
            found=str(error),
            where=label,
        ) from error
    return np.array(latencies_ns, dtype=np.int64)


def warm_up(label: str, call: Call, budget_ns: int, clock: Callable[[], int]) -> WarmUp:
    """Call until the medians of three windows in a row agree, or the budget is used up; at least one window."""
    start_ns = clock()
    first_ns = last_ns = float(time_queries(label, call, 1, clock)[0])
    num_queries, medians = 1, []
    while True:
        window = max(MIN_WINDOW_QUERIES, queries_in(WARM_UP_WINDOW_NS, last_ns, MAX_WINDOW_QUERIES))
        last_ns = float(np.median(time_queries(label, call, window, clock)))
        num_queries += window
        medians.append(max(last_ns, 1.0))
        recent = medians[-NUM_STABLE_WINDOWS:]
        stable = len(recent) == NUM_STABLE_WINDOWS and max(recent) <= STABLE_SPREAD * min(recent)
        if stable or clock() - start_ns >= budget_ns:
            return WarmUp(
                num_queries=num_queries,
                duration_s=(clock() - start_ns) / 1e9,
                first_query_ms=first_ns / 1e6,
                last_median_ms=last_ns / 1e6,
                stable=stable,
            )


def queries_in(duration_ns: float, latency_ns: float, highest: int) -> int:
    """Return how many queries fill a duration, but at least 1 and at most `highest`."""
    return int(np.clip(round(duration_ns / max(latency_ns, 1.0)), 1, highest))


def first_blocks(latencies_ns: Mapping[str, float]) -> Blocks:
    """Return blocks of 10 ms for queries of these latencies, or of one query where that takes longer."""
    queries = {label: queries_in(BLOCK_NS, latency, MAX_BLOCK_QUERIES) for label, latency in latencies_ns.items()}
    return Blocks(num_queries=queries, lead=len(queries) > 1 and max(queries.values()) > 1)


def blocks_that_reach(
    blocks: Blocks, latencies_ns: Mapping[str, float], missing: Mapping[str, int], time_left_ns: float
) -> Blocks:
    """Return the smallest blocks with which every label gets the queries that it misses in the time that is left.

    Small blocks are many rounds, which comparisons need; large ones waste less on queries that do not count. Where no
    blocks reach it, they stay what they are: more rounds are then the better use of the time.

    Args:
        blocks: The smallest that are wanted.
        latencies_ns: Of a query of each label.
        missing: Queries that each label still needs; 0 or less where it has them.
        time_left_ns: Until the deadline; a tenth of it is kept in reserve.
    """
    for least in range(1, max(missing.values()) // (2 * MIN_PLANNED_ROUNDS) + 1):
        queries = {label: max(least, number) for label, number in blocks.num_queries.items()}
        round_ns = sum(2 * (number + blocks.lead) * latencies_ns[label] for label, number in queries.items())
        num_rounds = int(0.9 * time_left_ns / round_ns)
        if all(2 * num_rounds * queries[label] >= missing[label] for label in queries):
            return Blocks(num_queries=queries, lead=blocks.lead)
    return blocks


def run_round(calls: Mapping[str, Call], order: Sequence[str], blocks: Blocks, instruments: Instruments) -> Round:
    """Measure a block of each label in this order, and another in the reverse order."""
    clock = instruments.clock
    start_ns = clock()
    instruments.probe()
    probe_ns = clock() - start_ns
    latencies_ns: dict[str, list[Int64]] = {label: [] for label in calls}
    for label in (*order, *reversed(order)):
        if blocks.lead:
            time_queries(label, calls[label], 1, clock)
        latencies_ns[label].append(time_queries(label, calls[label], blocks.num_queries[label], clock))
    return Round(
        start_s=start_ns / 1e9,
        probe_ns=probe_ns,
        latencies_ns={label: (there, back) for label, (there, back) in latencies_ns.items()},
    )
