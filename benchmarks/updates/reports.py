"""What measurements of class updates found: how it reads, and as parts of a benchmark result."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import ClassVar

from benchmarks.machine.environment import read_environment
from benchmarks.results.json_values import json_from_value
from benchmarks.results.result import Result
from benchmarks.results.values import LatencySummary, Scenario, UpdateLatency
from benchmarks.timing.percentiles import Interval, Percentile
from icis_deploy.common.json_fields import json_from_time


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSwapReport:
    """What one run found."""

    num_threads: int
    """Threads that predicted."""

    num_new_classes: int
    """Classes that each update added; those of the update before were removed."""

    num_rounds: int
    """Rounds, each with two blocks without updates and one with them."""

    seconds: float
    """How long updates were applied, seconds."""

    num_updates: int
    """Updates applied."""

    updates_per_second: float
    """The rate that was achieved, not the one that was asked for."""

    apply_median_ms: float
    """Median time of applying an update while the other threads predict, milliseconds."""

    num_answers: int
    """Requests answered while updates were applied."""

    num_versions_seen: int
    """Different versions among these answers."""

    num_torn: int
    """Answers that are those of no version."""

    num_wrong_labels: int
    """Answers whose first class is not the one of their version."""

    num_dropped: int
    """Requests that ended without an answer."""

    failures: tuple[str, ...]
    """The errors of the first of them, as text."""

    median_ms: float
    """Median latency with updates, milliseconds."""

    median_without_ms: float
    """Median latency without updates, milliseconds."""

    p90: Percentile
    """90th percentile of the latency with updates."""

    p99: Percentile
    """99th percentile of the latency with updates."""

    p99_without: Percentile
    """99th percentile without."""

    p99_ratio: Interval | None
    """How many times as slow p99 is with updates, with its 99 % interval; `None` where there is too little to say."""

    p99_ratio_of_same: Interval | None
    """The same of each round's second block without updates over its first: 1, but for what the measurement adds."""

    others_share: float | None
    """Share of the processors' time that other processes had during the run; `None` where the system does not tell.

    The threads of ClassSwap keep every core busy, so they would have used all of it.
    """

    DERIVED: ClassVar = ("is_clean",)

    @property
    def is_clean(self) -> bool:
        """Whether every request got one answer that belongs to one version."""
        return not (self.num_torn or self.num_wrong_labels or self.num_dropped)

    def to_json(self) -> dict[str, object]:
        """Return this report as values that `json.dumps` takes."""
        values: dict[str, object] = json_from_value(self)
        return values


def text_of(report: ClassSwapReport) -> str:
    """Return a report as text for people."""
    others = "unknown" if report.others_share is None else f"{100 * report.others_share:.1f} %"
    return "\n".join(
        [
            f"{report.num_threads} threads, {report.num_updates} updates of {report.num_new_classes} classes in "
            f"{report.seconds:.1f} s ({report.updates_per_second:.1f} a second)",
            f"median time of an update {report.apply_median_ms:.1f} ms",
            f"{report.num_answers} answers of {report.num_versions_seen} versions: {report.num_torn} torn, "
            f"{report.num_wrong_labels} wrong labels, {report.num_dropped} dropped",
            f"median {report.median_ms:.3f} ms, without updates {report.median_without_ms:.3f} ms",
            f"p99 {report.p99.text}, without updates {report.p99_without.text}: {_ratio_text(report.p99_ratio)}",
            f"p99 without updates, second blocks over first: {_ratio_text(report.p99_ratio_of_same)}",
            f"other processes' share of the processors: {others}",
            *(f"dropped: {failure}" for failure in report.failures),
        ]
    )


def _ratio_text(ratio: Interval | None) -> str:
    return "ratio unknown" if ratio is None else f"x {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def result_from_update(update: UpdateLatency, *, num_threads: int) -> Result:
    """Return the latency of updates with the machine that it was measured on: this one."""
    return Result(
        command="bench-update",
        created=json_from_time(datetime.now(timezone.utc)),
        settings={"num_threads": num_threads},
        environment=read_environment(),
        update=update,
    )


def result_from_swap(report: ClassSwapReport, *, target: str, num_threads: int) -> Result:
    """Return a report of ClassSwap with the machine that it was made on: this one."""
    return Result(
        command="bench-update",
        created=json_from_time(datetime.now(timezone.utc)),
        settings={"num_threads": num_threads},
        environment=read_environment(),
        scenarios=(scenario_from_swap(report, target=target),),
    )


def scenario_from_swap(report: ClassSwapReport, *, target: str) -> Scenario:
    """Return a report of ClassSwap as a scenario: valid if no answer was torn, dropped or wrongly labelled."""
    counts = {"torn": report.num_torn, "wrongly labelled": report.num_wrong_labels, "dropped": report.num_dropped}
    return Scenario(
        name="class-swap",
        target=target,
        valid=report.is_clean,
        reasons=tuple(f"{count} answers were {what}" for what, count in counts.items() if count),
        num_queries=report.num_answers,
        samples_per_query=1,
        duration_s=report.seconds,
        samples_per_s=report.num_answers / report.seconds,
        latency=LatencySummary(median_ms=report.median_ms, percentiles=(report.p90, report.p99)),
        details=report.to_json(),
        logs=None,
    )
