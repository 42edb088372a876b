"""What measurements of class updates found, as parts of a benchmark result."""

from __future__ import annotations

from datetime import datetime, timezone

from benchmarks.machine.environment import read_environment
from benchmarks.results.result import Result
from benchmarks.results.values import LatencySummary, Scenario, Timing, UpdateLatency
from benchmarks.updates.reports import ClassSwapReport
from benchmarks.updates.update_latency import Distribution, UpdateReport
from icis_deploy.common.json_fields import json_from_time


def result_from_update(report: UpdateReport, *, num_threads: int) -> Result:
    """Return a report with the machine that it was made on: this one."""
    return Result(
        command="bench-update",
        created=json_from_time(datetime.now(timezone.utc)),
        settings={"num_threads": num_threads},
        environment=read_environment(),
        update=UpdateLatency(
            num_new_classes=report.num_new_classes,
            capacity=report.capacity,
            feature_dim=report.feature_dim,
            update_bytes=report.update_bytes,
            ways={name: timing_from(each) for name, each in report.ways.items()},
            parts={name: timing_from(each) for name, each in report.parts.items()},
        ),
    )


def timing_from(distribution: Distribution) -> Timing:
    """Return latencies of one way, or of one part of it."""
    return Timing(num_queries=distribution.num_queries, median_ms=distribution.median_ms, p99=distribution.p99)


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
