"""Real LoadGen on targets of known latency: runs are valid, figures are the target's, failures are errors."""

import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.bench import loadgen
from benchmarks.bench.bench import open_targets
from benchmarks.bench.loadgen import SCENARIOS, run_scenario
from benchmarks.bench.loadgen_logs import read_details, scenario_from_details
from icis_deploy.errors import RuntimeFailureError, StorageError


@pytest.fixture(scope="module")
def target(tiny_bundles):
    with open_targets([tiny_bundles.fused], against=None, runtimes=("onnxruntime",), num_threads=1) as targets:
        yield targets[0]


def napping(target, seconds):
    """The target, taking at least so long for every image."""

    def answer(images):
        time.sleep(seconds * len(images))
        return target.answer(images)

    return replace(target, answer=answer)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_is_valid_and_its_figures_are_the_targets(scenario, target, tmp_path):
    found = run_scenario(napping(target, 0.0002), scenario, min_duration_s=0.2, logs=tmp_path)

    assert found.valid, found.reasons
    assert (found.name, found.target) == (scenario, "fused")
    assert 0 < found.samples_per_s <= 5000
    assert (tmp_path / f"{scenario}-fused" / "mlperf_log_summary.txt").is_file()
    assert found.logs == str(tmp_path / f"{scenario}-fused")
    if scenario == "offline":
        assert found.latency is None
    else:
        assert found.latency.median_ms >= 0.2 * found.samples_per_query
        for percentile in found.latency.percentiles:
            assert (percentile.value_ms is None) == (found.num_queries < percentile.num_needed)
    if scenario == "multi-stream":
        assert found.samples_per_query == 8


def test_a_server_that_cannot_keep_up_is_tried_at_lower_rates(target, tmp_path, monkeypatch):
    monkeypatch.setattr(loadgen, "SERVER_LOADS", (0.9, 0.3))
    calls = []

    def answer(images):
        # A stall far above the bound, in one of fifty answers after the probe.
        calls.append(1)
        time.sleep(0.08 if len(calls) > 700 and len(calls) % 50 == 0 else 0.0002)
        return target.answer(images)

    found = run_scenario(replace(target, answer=answer), "server", min_duration_s=0.1, logs=tmp_path)

    assert not found.valid
    assert "its p99 was above the bound at every rate tried" in found.reasons
    assert found.details["result_scheduled_samples_per_sec"] < 5000 * 0.3 * 1.3


def test_a_failing_target_is_an_error_and_not_the_end_of_the_process(target, monkeypatch):
    monkeypatch.setattr(loadgen, "probe_s", lambda *_: 1e-4)
    calls = []

    def answer(images):
        calls.append(1)
        if len(calls) > 100:
            raise ValueError("device lost")
        return target.answer(images)

    with pytest.raises(RuntimeFailureError, match="fused failed in the scenario single-stream: device lost"):
        run_scenario(replace(target, answer=answer), "single-stream", min_duration_s=0.2)


def test_logs_that_cannot_be_written_are_an_error(target, tmp_path):
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(StorageError, match="Choose another folder as `logs`"):
        run_scenario(target, "offline", min_duration_s=0.1, logs=tmp_path / "file")


def test_a_run_without_a_log_is_an_error(tmp_path):
    with pytest.raises(RuntimeFailureError, match="left no detail log"):
        read_details(tmp_path)


def test_what_an_invalid_run_did_not_keep_is_said_in_words():
    details = {
        "result_query_count": 70,
        "result_validity": "INVALID",
        "result_min_duration_met": False,
        "early_stopping_met": True,
        "result_qps_with_loadgen_overhead": 9.0,
        **{f"result_{percent:.2f}_percentile_latency_ns": percent * 1e6 for percent in (50, 90, 95, 99, 99.9)},
    }
    found = scenario_from_details(
        details, scenario="single-stream", target="a", samples_per_query=1, duration_s=1.0, logs=None
    )

    assert found.reasons == ("it was shorter than it had to be",)
    assert [each.value_ms for each in found.latency.percentiles] == [90.0, None, None, None]
    assert np.isclose(found.latency.median_ms, 50.0)
