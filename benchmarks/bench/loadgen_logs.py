"""What MLPerf LoadGen wrote of a run, as a scenario's result; its own figures, none computed again.

Source: `mlperf_loadgen`, results.cc, which names the entries of mlperf_log_detail.txt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from benchmarks.results.values import LatencySummary, Scenario
from benchmarks.timing.percentiles import Percentile, num_queries_needed
from icis_deploy.errors import RuntimeFailureError

DETAIL_NAME = "mlperf_log_detail.txt"
DETAIL_PREFIX = ":::MLLOG "
PERCENTS = (90.0, 95.0, 99.0, 99.9)
KEPT = ("result_", "effective_", "early_stopping")

CONSTRAINTS = {
    "result_min_duration_met": "it was shorter than it had to be",
    "result_min_queries_met": "it made fewer queries than it had to",
    "result_perf_constraints_met": "its p99 was above the bound at every rate tried",
    "early_stopping_met": "it has too few queries for its percentile",
}
"""Which rules an invalid run broke, in words."""


def read_details(folder: Path) -> dict[str, Any]:
    """Return what LoadGen wrote to its detail log, by its own names; of a name that occurs again, the last.

    Raises:
        RuntimeFailureError: If it wrote none.
    """
    try:
        lines = (folder / DETAIL_NAME).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RuntimeFailureError(
            f"LoadGen left no detail log in {folder}: {error.strerror}.",
            found=error.strerror,
            where=folder,
        ) from error
    entries = [json.loads(line.removeprefix(DETAIL_PREFIX)) for line in lines if line.startswith(DETAIL_PREFIX)]
    return {entry["key"]: entry["value"] for entry in entries}


def scenario_from_details(
    details: Mapping[str, Any],
    *,
    scenario: Literal["single-stream", "multi-stream", "server", "offline"],
    target: str,
    samples_per_query: int,
    duration_s: float,
    logs: str | None,
) -> Scenario:
    """Return what a run found.

    Args:
        details: From `read_details`.
        scenario: Kind of load.
        target: Name of the target.
        samples_per_query: Images in a query.
        duration_s: Seconds that the run took.
        logs: Folder of the logs, where they are kept.
    """
    num_queries = int(details["result_query_count"])
    is_valid = details["result_validity"] == "VALID"
    return Scenario(
        name=scenario,
        target=target,
        valid=is_valid,
        reasons=() if is_valid else reasons_in(details),
        num_queries=num_queries,
        samples_per_query=samples_per_query,
        duration_s=duration_s,
        samples_per_s=samples_per_s(details, scenario, samples_per_query),
        latency=None if scenario == "offline" else latency_in(details, num_queries),
        details={key: value for key, value in details.items() if key.startswith(KEPT)},
        logs=logs,
    )


def reasons_in(details: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which rules an invalid run broke."""
    return tuple(words for key, words in CONSTRAINTS.items() if details.get(key) is False) or ("LoadGen gives none",)


def samples_per_s(details: Mapping[str, Any], scenario: str, samples_per_query: int) -> float:
    """Return the throughput that LoadGen states; for multi-stream, which has none, that of its mean latency."""
    if scenario == "multi-stream":
        return samples_per_query * 1e9 / float(details["result_mean_query_latency_ns"])
    key = {
        "single-stream": "result_qps_with_loadgen_overhead",
        "server": "result_completed_samples_per_sec",
        "offline": "result_samples_per_second",
    }[scenario]
    return float(details[key])


def latency_in(details: Mapping[str, Any], num_queries: int) -> LatencySummary:
    """Return the percentiles that LoadGen states, without those for which there are too few queries."""
    return LatencySummary(
        median_ms=details["result_50.00_percentile_latency_ns"] / 1e6,
        percentiles=tuple(
            Percentile(
                percent=percent,
                num_queries=num_queries,
                num_needed=num_queries_needed(percent),
                value_ms=details[f"result_{percent:.2f}_percentile_latency_ns"] / 1e6
                if num_queries >= num_queries_needed(percent)
                else None,
                upper_bound_ms=None,
            )
            for percent in PERCENTS
        ),
    )
