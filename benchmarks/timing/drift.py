"""Did the machine stay the same while it was measured?

Two kinds of evidence: a trend in what was timed (the queries, and a fixed computation timed between them, which has
nothing to do with any model), and what the machine reports of itself before and after (clocks, counters of throttling,
time given to others). The fixed computation needs no memory: where all models became faster or slower and it did not,
others had a part of the memory's bandwidth or of the last cache, which nothing else shows in a virtual machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np

from benchmarks.machine.monitor import MachineState
from benchmarks.timing.percentiles import CONFIDENCE, Interval

DRIFT_MARGIN = 0.03
"""A trend of less than this over a whole run is no drift."""

MAX_POINTS = 100
MIN_POINTS = 6
CLOCK_LOSS = 0.05
"""A clock that lost more than this fraction during a run was throttled."""

INTERFERENCE_SHARE = 0.01
"""Others are reported where they took more than this share of the processor time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How much something changed from the beginning of a run to its end."""

    change: Interval
    """As a fraction of the beginning: 0.1 for 10 % slower at the end; with its 99 % interval."""

    DERIVED: ClassVar = ("verdict",)

    @property
    def verdict(self) -> Literal["steady", "rising", "falling"]:
        """`rising` or `falling` if the whole interval is beyond the margin of 3 %, else `steady`."""
        if self.change.low > DRIFT_MARGIN:
            return "rising"
        return "falling" if self.change.high < -DRIFT_MARGIN else "steady"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steadiness:
    """What disturbed a run, in words; empty where nothing that could be read did."""

    throttling: tuple[str, ...]
    """Signs that the machine slowed itself down: heat, power, clocks."""

    interference: tuple[str, ...]
    """Signs that others used the machine."""


def trend(times_s: Sequence[float], values: Sequence[float]) -> Trend | None:
    """Return the trend of positive values over time: Theil-Sen's slope, with Sen's interval.

    Neither is moved by a few disturbed values.

    Args:
        times_s: `(num_points,)` ascending, in seconds.
        values: `(num_points,)`; those that are not positive, which no clock should give, are left out.

    Returns:
        None where fewer than 6 values are left, or no time passed.
    """
    seconds, positive = np.asarray(times_s, dtype=np.float64), np.asarray(values, dtype=np.float64)
    seconds, positive = seconds[positive > 0], positive[positive > 0]
    if len(positive) < MIN_POINTS or seconds[-1] <= seconds[0]:
        return None
    groups = np.array_split(np.arange(len(positive)), min(MAX_POINTS, len(positive)))
    x = np.array([seconds[group].mean() for group in groups])
    y = np.array([np.median(np.log(positive[group])) for group in groups])
    first, second = np.triu_indices(len(x), k=1)
    apart = x[second] > x[first]
    slopes = np.sort((y[second] - y[first])[apart] / (x[second] - x[first])[apart])
    num_points = len(x)
    spread = np.sqrt(num_points * (num_points - 1) * (2 * num_points + 5) / 18)  # of Kendall's statistic, no trend
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread
    last = len(slopes) - 1
    positions = np.clip([(len(slopes) - half) / 2, last / 2, (len(slopes) + half) / 2], 0, last)
    duration = x[-1] - x[0]
    low, value, high = np.expm1(np.interp(positions, np.arange(len(slopes)), slopes) * duration).tolist()
    return Trend(change=Interval(value=value, low=low, high=high))


def find_disturbances(
    before: MachineState, after: MachineState, probe: Trend | None, drifts: Sequence[Trend | None] = ()
) -> Steadiness:
    """Return what disturbed a run.

    Args:
        before: The machine after the warm-up.
        after: The machine at the end.
        probe: Trend of a fixed computation's time during the run, None where there is none.
        drifts: Trends of everything that was measured in turn.
    """
    return Steadiness(
        throttling=tuple(signs_of_throttling(before, after, probe)),
        interference=(*signs_of_interference(before, after), *signs_of_shared_memory(probe, drifts)),
    )


def signs_of_throttling(before: MachineState, after: MachineState, probe: Trend | None) -> list[str]:
    """Return, in words, each sign that the machine slowed itself down."""
    signs = []
    if probe is not None and probe.verdict == "rising":
        signs.append(f"a fixed computation became {100 * probe.change.value:.0f} % slower during the run")
    for what, clock_before, clock_after in (
        ("processor", before.cpu_mhz, after.cpu_mhz),
        ("GPU", before.gpu_mhz, after.gpu_mhz),
    ):
        if clock_before and clock_after and clock_after < clock_before * (1 - CLOCK_LOSS):
            signs.append(f"the {what} clock fell from {clock_before:.0f} to {clock_after:.0f} MHz")
    if before.num_throttles is not None and after.num_throttles is not None:
        num_throttles = after.num_throttles - before.num_throttles
        if num_throttles > 0:
            signs.append(f"the processor reports being throttled {num_throttles} times")
    signs += [f"{reason} at the end of the run" for reason in after.throttle_reasons]
    return signs


def signs_of_interference(before: MachineState, after: MachineState) -> list[str]:
    """Return, in words, each sign that others used the machine."""
    signs = []
    stolen = share_between(before.steal_s, after.steal_s, before.busy_and_idle_s, after.busy_and_idle_s)
    if stolen > INTERFERENCE_SHARE:
        signs.append(f"the hypervisor gave {100 * stolen:.1f} % of the processor time to others")
    waited = share_between(before.waited_s, after.waited_s, before.time_s, after.time_s)
    if waited > INTERFERENCE_SHARE:
        signs.append(f"other processes held the processor for {100 * waited:.1f} % of the run")
    return signs


def signs_of_shared_memory(probe: Trend | None, drifts: Sequence[Trend | None]) -> list[str]:
    """Return, in words, that all things measured in turn drifted the same way and a fixed computation did not."""
    known = [drift for drift in drifts if drift is not None]
    verdicts = {drift.verdict for drift in known}
    if len(known) < max(2, len(drifts)) or len(verdicts) > 1 or probe is None or verdicts <= {"steady", probe.verdict}:
        return []
    how = "slower" if known[0].verdict == "rising" else "faster"
    least, most = (end(abs(drift.change.value) for drift in known) for end in (min, max))
    return [
        f"everything became {how} during the run, by {100 * least:.0f} % to {100 * most:.0f} %, a fixed computation "
        f"did not: others share the memory or its caches"
    ]


def share_between(
    part_before: float | None, part_after: float | None, whole_before: float | None, whole_after: float | None
) -> float:
    """Return how much of the whole's growth is the part's; 0 where something is unknown or nothing grew."""
    if part_before is None or part_after is None or whole_before is None or whole_after is None:
        return 0.0
    grown = whole_after - whole_before
    return (part_after - part_before) / grown if grown > 0 else 0.0
