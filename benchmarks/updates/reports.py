"""What a run of ClassSwap found, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.results.json_values import json_from_value
from benchmarks.timing.percentiles import Interval, Percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSwapReport:
    """What one run found."""

    num_threads: int
    """Threads that asked."""

    num_new_classes: int
    """Classes that each update added; those of the update before were removed."""

    num_rounds: int
    """Rounds, each with two blocks without updates and one with them."""

    seconds: float
    """How long updates were applied."""

    num_updates: int
    """Updates applied."""

    updates_per_second: float
    """What was achieved, not what was asked for."""

    apply_median_ms: float
    """Median time of applying an update beside the threads that ask."""

    num_answers: int
    """Requests answered while updates were applied."""

    num_versions_seen: int
    """Different versions among these answers."""

    num_torn: int
    """Answers that fit no version."""

    num_wrong_labels: int
    """Answers whose first class is not the one of their version."""

    num_dropped: int
    """Requests that ended without an answer."""

    failures: tuple[str, ...]
    """What the first of them said instead."""

    median_ms: float
    """Median latency with updates."""

    median_without_ms: float
    """Median latency without."""

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

    Whatever they had, the threads of ClassSwap would have used: they keep every core busy.
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
    others = "unknown" if report.others_share is None else f"{report.others_share:.1%}"
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
