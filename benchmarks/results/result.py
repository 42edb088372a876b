"""What a benchmark found, as one value and as one JSON file, whichever command made it and on whichever machine.

Rules:

1. A result names the machine, the versions and the command it comes from; results of several machines can therefore be
   merged, and those of different machines are not compared by accident.
2. Whatever was not measured is null or an empty list; where something was asked for and could not be had, `missing`
   says why.
3. Latencies come with their number of queries, their interval and their distribution, never as a bare figure.
4. `result.schema.json` is the same format for other languages. Any change of it is a new `SCHEMA_VERSION`; a file of
   another version is refused, never half understood. Older ones are read as if what they lack had not been measured:
   version 1 `head_shares`, and both what accuracies say of the trade between seen and unseen classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.machine.environment import Environment
from benchmarks.results.json_values import json_from_value, value_from_json
from benchmarks.results.values import BatchRun, HeadShare, Phases, ScaleSeries, Scenario, Target, UpdateLatency
from benchmarks.timing.comparison import Comparison
from benchmarks.timing.latency import LatencyReport
from icis_deploy.common.files import path_from, read_capped, write_file
from icis_deploy.common.json_fields import load_strict, object_from_json
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import ICISDeployError, LoadError

SCHEMA_VERSION = 3
_READABLE_VERSIONS = (1, 2, 3)
_ACCURACY_SINCE_3: Mapping[str, object] = {
    "S_top5": None,
    "U_top5": None,
    "AUSUC": None,
    "seen_cost": None,
    "budgets": [],
    "curve": [],
}
MAX_RESULT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything one run of one command found on one machine.

    Example:
        result = icis_deploy.results.load_result("result.json")
        for target in result.targets:
            print(target.name, target.accuracy, [latency.median_ms for _, latency in result.latencies(target.name)])
    """

    command: Literal["bench", "bench-update", "bench-peers", "bench-scale"]
    """The command that made the result."""

    created: str
    """When, as `2026-11-23T09:00:00Z`."""

    settings: Mapping[str, object]
    """What the command was asked for: preset, batch sizes, threads."""

    environment: Environment
    """The machine, its system, and versions."""

    targets: tuple[Target, ...] = ()
    """The models in their runtimes that were measured."""

    runs: tuple[BatchRun, ...] = ()
    """Latencies and comparisons, by batch size."""

    phases: tuple[Phases, ...] = ()
    """Where the time goes on a device with memory of its own."""

    head_shares: tuple[HeadShare, ...] = ()
    """What the added rows of targets cost, compared with reading their bytes."""

    scenarios: tuple[Scenario, ...] = ()
    """Targets under the loads of LoadGen, or while classes change."""

    update: UpdateLatency | None = None
    """How long a class update takes."""

    scale: tuple[ScaleSeries, ...] = ()
    """Latency and memory against the number of classes."""

    def target(self, name: str) -> Target:
        """Return the target of a name.

        Raises:
            KeyError: If there is none.
        """
        return {target.name: target for target in self.targets}[name]

    def latencies(self, target: str) -> Iterator[tuple[int, LatencyReport]]:
        """Yield batch size and latency of a target, by ascending batch size."""
        for run in sorted(self.runs, key=lambda run: run.batch_size):
            for latency in run.measurement.latencies:
                if latency.label == target:
                    yield run.batch_size, latency

    def comparison(self, target: str, batch_size: int) -> Comparison | None:
        """Return how a target compares with the one that all others are compared with, None for that one itself."""
        for run in self.runs:
            for comparison in run.measurement.comparisons:
                if run.batch_size == batch_size and comparison.label == target:
                    return comparison
        return None


def images_per_s(latency: LatencyReport, batch_size: int) -> float:
    """Return the throughput of one query after the other."""
    return 1000 * batch_size / latency.mean_ms


def serialize_result(result: Result) -> bytes:
    """Return the bytes of a result's file."""
    values = {"schema_version": SCHEMA_VERSION, **json_from_value(result)}
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_result(data: bytes) -> Result:
    """Return what a result's file says.

    Raises:
        LoadError: If it is not a result of this schema.
    """
    try:
        values = object_from_json(load_strict(data))
        schema_version = values.pop("schema_version")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(
            f"It is not a benchmark result: no JSON object with a `schema_version` ({reason_of(error)}).",
            found=reason_of(error),
            expected="a JSON object with a schema_version",
            hint="Give files that `bench()` or another benchmark wrote.",
        ) from error
    if type(schema_version) is not int or schema_version not in _READABLE_VERSIONS:  # Python calls `true` equal to 1
        raise LoadError(
            f"It has schema version {shown(schema_version)}; this release reads 1 to {SCHEMA_VERSION}.",
            found=shown(schema_version),
            expected=_READABLE_VERSIONS,
            hint="Measure again, or use the release that made it.",
        )
    if schema_version == 1:
        values.setdefault("head_shares", [])
    if schema_version < 3:
        values["targets"] = _with_trade_off(values.get("targets"))
    try:
        return value_from_json(Result, values)
    except (TypeError, ValueError, OverflowError, ICISDeployError) as error:
        raise LoadError(
            f"It is not a benchmark result: {error}.",
            found=str(error),
            expected="a benchmark result",
            hint="Give files that `bench()` or another benchmark wrote.",
        ) from error


def _with_trade_off(targets: object) -> object:
    """Return the targets of an older result with what their accuracies could not state; others are refused later."""
    if not isinstance(targets, list):
        return targets
    found = []
    for target in targets:
        match target:
            case {"accuracy": {**accuracy}}:
                found.append({**target, "accuracy": {**_ACCURACY_SINCE_3, **accuracy}})
            case _:
                found.append(target)
    return found


def load_result(path: str | Path) -> Result:
    """Read a result's file.

    Example:
        result = icis_deploy.results.load_result("result.json")
        print(result.command, result.environment.name)

    Raises:
        LoadError: If it cannot be read or is not a result of this schema.
    """
    path = path_from(path, name="path")
    data = read_capped(path, max_bytes=MAX_RESULT_BYTES, what="benchmark result", error_type=LoadError)
    try:
        return parse_result(data)
    except LoadError as error:
        raise LoadError(
            f"Cannot use {path}. {error.what}",
            found=error.found,
            expected=error.expected,
            where=path,
            hint=error.hint,
        ) from error


def save_result(result: Result, path: str | Path) -> None:
    """Write a result's file.

    Example:
        result = icis_deploy.bench(["fused", "updatable"])
        icis_deploy.results.save_result(result, "result.json")

    Raises:
        StorageError: If the disk refuses; what was at `path` before is still there.
    """
    write_file(Path(path), serialize_result(result))
