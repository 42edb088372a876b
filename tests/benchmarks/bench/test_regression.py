"""A result and an earlier one: what is worse is named, what noise explains is not, and unlike is not compared."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bench.regression import find_regressions
from benchmarks.results.result import load_result
from benchmarks.results.values import SeenCost
from benchmarks.timing.percentiles import Interval
from icis_deploy.errors import IncompatibleError


@pytest.fixture(scope="module")
def baseline():
    return load_result(Path(__file__).parents[1] / "results" / "bench.json")


def with_target(result, name, **changes):
    """The result with other values of one target."""
    targets = tuple(replace(each, **changes) if each.name == name else each for each in result.targets)
    return replace(result, targets=targets)


def with_median(result, name, batch_size, median):
    """The result with another median of one target and batch size."""

    def changed(run):
        latencies = tuple(
            replace(each, median_ms=median) if (each.label, run.batch_size) == (name, batch_size) else each
            for each in run.measurement.latencies
        )
        return replace(run, measurement=replace(run.measurement, latencies=latencies))

    return replace(result, runs=tuple(changed(run) for run in result.runs))


def interval(value, spread=0.01):
    return Interval(value=value, low=value * (1 - spread), high=value * (1 + spread))


def test_a_result_is_not_worse_than_itself(baseline):
    assert find_regressions(baseline, baseline, max_regression=0.0) == ()


@pytest.mark.parametrize(
    ("factor", "spread", "is_worse"), [(1.2, 0.01, True), (1.2, 0.3, False), (1.04, 0.001, False), (0.5, 0.01, False)]
)
def test_a_latency_is_worse_beyond_the_allowance_and_beyond_the_intervals(baseline, factor, spread, is_worse):
    before = with_median(baseline, "fused", 8, interval(10.0, 0.001))
    after = with_median(before, "fused", 8, interval(10.0 * factor, spread))
    found = find_regressions(after, before, max_regression=0.05)

    assert bool(found) == is_worse
    if is_worse:
        assert found[0].text == ("fused: median latency at batch 8 went from 10.000 ms to 12.000 ms, 20.0 % worse")


def test_accuracy_size_and_memory_can_be_worse(baseline):
    before = baseline.target("fused")
    seen = before.accuracy.S
    accuracy, startup = replace(before.accuracy, S=seen / 2), before.startup
    grown = tuple(replace(start, memory_peak_bytes=2 * start.memory_peak_bytes) for start in startup.starts)
    worse = with_target(
        baseline,
        "fused",
        accuracy=accuracy,
        size_bytes=before.size_bytes * 2,
        startup=replace(startup, starts=grown),
    )
    found = find_regressions(worse, baseline, max_regression=0.05)

    assert [(each.kind, each.what) for each in found] == [
        ("accuracy", "S"),
        ("size", "size of the files"),
        ("memory", "peak memory"),
    ]
    assert [each.change for each in found] == pytest.approx([0.5, 1.0, 1.0])
    assert find_regressions(worse, baseline, max_regression=1.1) == ()
    assert find_regressions(baseline, worse, max_regression=0.05) == ()


def test_memory_that_was_not_read_is_not_compared(baseline):
    assert find_regressions(with_target(baseline, "fused", startup=None), baseline, max_regression=0.05) == ()


def test_another_machine_is_refused_unless_the_user_says_so(baseline):
    sections = {**baseline.environment.sections}
    sections["cpu"] = {**sections["cpu"], "model": "another processor"}
    elsewhere = replace(baseline, environment=replace(baseline.environment, sections=sections))

    with pytest.raises(IncompatibleError, match=r"another machine: .*give `any_machine=True`"):
        find_regressions(baseline, elsewhere, max_regression=0.05)
    assert find_regressions(baseline, elsewhere, max_regression=0.05, any_machine=True) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("runtime", "openvino"), ("provider", "CUDAExecutionProvider"), ("num_threads", 7), ("precision", "int8")],
)
def test_another_way_to_run_is_refused(baseline, name, value):
    with pytest.raises(IncompatibleError, match=f"fused: {name} is {value!r}; in the baseline it was"):
        find_regressions(with_target(baseline, "fused", **{name: value}), baseline, max_regression=0.05)


def test_what_was_not_measured_again_is_refused(baseline):
    without_target = replace(baseline, targets=baseline.targets[:2])
    without_batch = replace(baseline, runs=baseline.runs[:1])
    accuracy = baseline.target("fused").accuracy

    for result, message in (
        (without_target, "has the target 'updatable', which is not measured"),
        (without_batch, "has batch size 8, which is not measured"),
        (with_target(baseline, "fused", accuracy=None), "accuracy is not measured"),
        (
            with_target(baseline, "fused", accuracy=replace(accuracy, source="7 images of others.csv")),
            "measured on 7 images of others.csv; in the baseline it was measured on 46 images of images.csv",
        ),
    ):
        with pytest.raises(IncompatibleError, match=message):
            find_regressions(result, baseline, max_regression=0.05)


def test_a_result_of_another_command_is_no_baseline(baseline):
    """It has no target that could be worse, so it would be kept whatever was measured."""
    scale = load_result(Path(__file__).parents[1] / "results" / "scale.json")

    with pytest.raises(IncompatibleError, match=r"a result of bench-scale, .*Give one of bench\."):
        find_regressions(baseline, scale, max_regression=0.05, any_machine=True)


def test_batch_sizes_that_are_missing_are_named_with_the_option_that_measures_them(baseline):
    without_batch = replace(baseline, runs=baseline.runs[:1])

    with pytest.raises(IncompatibleError, match=r"batch size 8, which is not measured. Give `batch_sizes=\(1, 8\)`\."):
        find_regressions(without_batch, baseline, max_regression=0.05)


@pytest.mark.parametrize(
    ("low", "budget", "was_lost", "is_worse"),
    [(0.03, 0.02, 0.0, True), (0.01, 0.02, 0.0, False), (0.03, None, 0.0, False), (0.03, 0.02, 0.05, False)],
    ids=["over", "not sure", "no budget", "as before"],
)
def test_a_loss_of_seen_accuracy_is_worse_if_it_is_over_its_budget_and_was_not_before(
    baseline, low, budget, was_lost, is_worse
):
    def result_with(lost, low):
        cost = SeenCost(before=0.9, after=0.9 - lost, low=low, high=0.08, num_images=400, max_seen_loss=budget)
        return with_target(baseline, "fused", accuracy=replace(baseline.target("fused").accuracy, seen_cost=cost))

    now, before = result_with(0.05, low), result_with(was_lost, 0.0)
    found = find_regressions(now, before, max_regression=0.05)

    assert bool(found) == is_worse
    # A budget that was asked for is kept or not, whatever was lost before.
    asked = find_regressions(now, before, max_regression=0.05, max_seen_loss=budget)
    assert bool(asked) == (budget is not None and low > budget)
    if is_worse:
        assert found[0].text == (
            "fused: seen accuracy lost to new classes, of which 2 points are allowed, went from 0.0 to 5.0 points"
        )
