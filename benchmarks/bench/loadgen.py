"""Targets under load, as MLPerf LoadGen generates it.

    single-stream   one image, the next when it is answered: p90 counts
    multi-stream    eight images at once, the next eight when they are answered: p99 counts
    server          images at random times (Poisson), at the highest rate with p99 below a bound
    offline         all images at once: throughput counts

Rules:

1. LoadGen needs to be told what to expect, or its run is too short and INVALID: the target is probed first.
2. LoadGen decides whether a run is valid. What it says is reported, and its logs are kept where that is asked for.
3. For `server`, rates are tried from the highest down; the first valid run counts, else the last.

Source: MLCommons, "MLPerf Inference Rules", sections on scenarios; `mlperf_loadgen`, test_settings.h.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.bench.loadgen_logs import read_details, scenario_from_details
from benchmarks.bench.opened import OpenTarget, noise
from benchmarks.results.values import Scenario
from benchmarks.timing.percentiles import num_queries_needed
from benchmarks.timing.rounds import warm_up
from icis_deploy.common.arrays import Images
from icis_deploy.errors import MissingDependencyError, RuntimeFailureError, StorageError

ScenarioName = Literal["single-stream", "multi-stream", "server", "offline"]
SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "server", "offline")

NUM_SAMPLES = 32
MULTI_STREAM_SAMPLES = 8
OFFLINE_BATCH = 8
PROBE_NS = 500_000_000
SERVER_LOADS = (0.9, 0.7, 0.5, 0.3)
"""Rates that are tried, as shares of what the target answers one after the other."""

SERVER_LATENCY_S = 0.015
"""Bound on p99 in the server scenario: MLPerf's for image classification, or 10 times the target's own median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What LoadGen is told."""

    scenario: ScenarioName
    """Kind of load."""

    expected_s: float
    """Seconds that a query is expected to take: one image, or eight of multi-stream, or a batch of offline."""

    min_duration_s: float
    """Seconds that the run lasts at least."""

    server_rate: float
    """Images a second that are sent in the server scenario."""


@dataclass(slots=True)
class _Samples:
    """Prepared images, in batches of one, and the target that answers them."""

    images: list[Images]
    answer: Callable[[Images], object]
    failure: Exception | None = None

    def respond(self, samples: Sequence[Any], loadgen: Any) -> None:
        """Answer samples and say so; after a failure, say so without answering, so that the run can end."""
        if self.failure is None:
            try:
                batch = [self.images[sample.index] for sample in samples]
                self.answer(batch[0] if len(batch) == 1 else np.concatenate(batch))
            except Exception as error:  # it must not cross LoadGen's C++ code, which would end the process
                self.failure = error
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples])


def run_scenario(
    target: OpenTarget, scenario: ScenarioName, *, min_duration_s: float, logs: Path | None = None
) -> Scenario:
    """Run one target under one load.

    Args:
        target: What answers.
        scenario: Kind of load.
        min_duration_s: Seconds that the run lasts at least.
        logs: Folder in which LoadGen's logs are kept, in a folder of their own; None discards them.

    Raises:
        MissingDependencyError: If LoadGen is not installed.
        RuntimeFailureError: If the target fails.
        StorageError: If the logs cannot be written.
    """
    import_loadgen()
    images = [noise(target.model_input, 1, seed=seed) for seed in range(NUM_SAMPLES)]
    expected_s = probe_s(target, images, scenario)
    loads = [
        Load(
            scenario=scenario,
            expected_s=expected_s,
            min_duration_s=min_duration_s,
            server_rate=share / (expected_s + 1e-4),  # handing a query to another thread takes a moment too
        )
        for share in (SERVER_LOADS if scenario == "server" else SERVER_LOADS[:1])
    ]
    for load in loads:
        with log_folder(logs, scenario, target.name) as folder:
            samples = _Samples(images=images, answer=target.answer)
            start_s = time.perf_counter()
            generate_load(samples, load, folder)
            duration_s = time.perf_counter() - start_s
            if samples.failure is not None:
                raise RuntimeFailureError(
                    f"{target.name} failed in the scenario {scenario}: {samples.failure}",
                    found=str(samples.failure),
                    where=target.name,
                ) from samples.failure
            found = scenario_from_details(
                read_details(folder),
                scenario=scenario,
                target=target.name,
                samples_per_query=MULTI_STREAM_SAMPLES if scenario == "multi-stream" else 1,
                duration_s=duration_s,
                logs=None if logs is None else str(folder),
            )
        if found.valid:
            break
    return found


def import_loadgen() -> Any:
    """Return MLPerf LoadGen.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingDependencyError(
            "Scenarios need MLPerf LoadGen (mlcommons-loadgen).",
            hint="Install it: pip install 'icis-deploy[bench]'.",
        ) from error
    return mlperf_loadgen


def probe_s(target: OpenTarget, images: Sequence[Images], scenario: ScenarioName) -> float:
    """Return the seconds that one query of a scenario takes, once the target is warm."""
    num_images = {"multi-stream": MULTI_STREAM_SAMPLES, "offline": OFFLINE_BATCH}.get(scenario, 1)
    batch = np.concatenate(images[:num_images])
    warm = warm_up(target.name, lambda: target.answer(batch), PROBE_NS, time.perf_counter_ns)
    return warm.last_median_ms / 1e3


def generate_load(samples: _Samples, load: Load, folder: Path) -> None:
    """Let LoadGen run a scenario and write its logs to a folder."""
    loadgen = import_loadgen()
    settings = settings_of(load, loadgen)
    log_settings = loadgen.LogSettings()
    log_settings.log_output = loadgen.LogOutputSettings()
    log_settings.log_output.outdir = str(folder)
    log_settings.log_output.copy_summary_to_stdout = False
    log_settings.enable_trace = False
    with sut_issue(samples, load, loadgen) as issue:
        system = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(len(samples.images), len(samples.images), lambda _: None, lambda _: None)
        try:
            loadgen.StartTestWithLogSettings(system, library, settings, log_settings)
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)


def settings_of(load: Load, loadgen: Any) -> Any:
    """Return LoadGen's settings for a load."""
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, int(load.min_duration_s * 1000))
    expected_ns = max(1, int(load.expected_s * 1e9))
    if load.scenario == "single-stream":
        settings.scenario = loadgen.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = expected_ns
        settings.min_query_count = num_queries_needed(90.0)
    elif load.scenario == "multi-stream":
        settings.scenario = loadgen.TestScenario.MultiStream
        settings.multi_stream_expected_latency_ns = expected_ns
        settings.multi_stream_samples_per_query = MULTI_STREAM_SAMPLES
        settings.min_query_count = num_queries_needed(99.0)
    elif load.scenario == "server":
        settings.scenario = loadgen.TestScenario.Server
        settings.server_target_qps = load.server_rate
        settings.server_target_latency_ns = int(max(SERVER_LATENCY_S, 10 * load.expected_s) * 1e9)
        settings.server_target_latency_percentile = 0.99
        settings.min_query_count = num_queries_needed(99.0)
    else:
        settings.scenario = loadgen.TestScenario.Offline
        settings.offline_expected_qps = 1.05 * OFFLINE_BATCH / load.expected_s
        settings.min_query_count = 1
    return settings


@contextmanager
def sut_issue(samples: _Samples, load: Load, loadgen: Any) -> Iterator[Callable[[list[Any]], None]]:
    """Give what LoadGen calls with queries; in the server scenario they wait for a thread, else they are answered."""
    if load.scenario == "offline":

        def answer_in_batches(queries: list[Any]) -> None:
            for start in range(0, len(queries), OFFLINE_BATCH):
                samples.respond(queries[start : start + OFFLINE_BATCH], loadgen)

        yield answer_in_batches
        return
    if load.scenario != "server":
        yield lambda queries: samples.respond(queries, loadgen)
        return
    waiting: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()

    def work() -> None:
        while (queries := waiting.get()) is not None:
            samples.respond(queries, loadgen)

    worker = threading.Thread(target=work, name="answers queries")
    worker.start()
    try:
        yield waiting.put
    finally:
        waiting.put(None)
        worker.join()


@contextmanager
def log_folder(logs: Path | None, scenario: str, target: str) -> Iterator[Path]:
    """Give a folder without logs for those of a run: one that is kept, or one that is gone afterwards.

    Raises:
        StorageError: If it cannot be made.
    """
    if logs is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = logs / f"{scenario}-{target.replace('/', '-').replace(' ', '-')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("mlperf_log_*"):  # of an invalid run at a higher rate, or of the run before
            path.unlink()
    except OSError as error:
        raise StorageError(
            f"Could not make {folder} for LoadGen's logs: {error.strerror}.",
            found=error.strerror,
            where=folder,
            hint="Choose another folder as `logs`.",
        ) from error
    yield folder
