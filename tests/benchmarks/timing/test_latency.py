import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.machine.monitor import MachineState
from benchmarks.results.json_values import json_from_value, value_from_json
from benchmarks.timing.latency import Measurement, Plan, measure
from icis_deploy.errors import RuntimeFailureError, UsageError

NUM_RUNS = 20  # scripts/experiments/check_harness.py makes 100, in real time
NOISY = {"jitter": 0.03, "wander": 0.01, "interruption_share": 0.01}


def percentile(report, percent):
    return next(each for each in report.percentiles if each.percent == percent)


def compare_on(machine, ratio):
    """Compare two calls of which the second takes `ratio` times as long; 2 % of all calls are 10 times slower."""
    calls = {"first": machine.call(2.0, slow_share=0.02), "second": machine.call(2.0 * ratio, slow_share=0.02)}
    plan = Plan(num_queries=64, budget_s=10.0)
    return measure(calls, plan=plan, instruments=machine.instruments).comparisons[0].verdict


@pytest.mark.parametrize("latency_ms", [1.0, 2.0, 5.0])
def test_median_and_p99_of_a_known_latency_are_found(latency_ms, virtual_machine):
    for seed in range(3):
        machine = virtual_machine(seed=seed, jitter=0.01)
        calls = {"known": machine.call(latency_ms, slow_share=0.02)}
        report = measure(calls, plan=Plan(num_queries=1000), instruments=machine.instruments).latencies[0]

        assert report.median_ms.value == pytest.approx(latency_ms, rel=0.03)
        assert report.median_ms.low <= latency_ms * 1.002
        assert report.median_ms.high >= latency_ms * 0.998
        assert percentile(report, 99.0).value_ms == pytest.approx(10 * latency_ms, rel=0.10)
        assert report.num_queries >= 1000


def test_the_same_thing_under_two_labels_is_equal(virtual_machine):
    verdicts = Counter(compare_on(virtual_machine(seed=seed, **NOISY), 1.0) for seed in range(NUM_RUNS))

    assert verdicts["equal"] >= 0.95 * NUM_RUNS
    assert verdicts["faster"] == verdicts["slower"] == 0


def test_five_percent_are_found(virtual_machine):
    verdicts = Counter(compare_on(virtual_machine(seed=seed, **NOISY), 1.05) for seed in range(NUM_RUNS))

    assert verdicts["slower"] >= 0.90 * NUM_RUNS
    assert verdicts["faster"] == verdicts["equal"] == 0


def test_a_machine_that_becomes_slower_is_noticed_and_does_not_change_the_verdict(virtual_machine):
    machine = virtual_machine(jitter=0.01, slowdown=lambda seconds: 1 + 0.05 * seconds)
    calls = {"first": machine.call(2.0), "second": machine.call(2.0)}
    measurement = measure(calls, plan=Plan(num_queries=500, budget_s=60.0), instruments=machine.instruments)

    assert measurement.comparisons[0].verdict == "equal"
    assert [report.drift.verdict for report in measurement.latencies] == ["rising", "rising"]
    assert re.fullmatch(r"a fixed computation became \d+ % slower during the run", measurement.steadiness.throttling[0])


def test_something_that_becomes_slower_by_itself_is_no_throttling(virtual_machine):
    machine = virtual_machine(jitter=0.01)

    def leaking():
        machine.spend(1e6 * (1 + 0.1 * machine.now_ns / 1e9))

    measurement = measure({"leaking": leaking}, plan=Plan(budget_s=10.0, margin=0.001), instruments=machine.instruments)

    assert measurement.latencies[0].drift.verdict == "rising"
    assert measurement.steadiness.throttling == ()


def test_stops_when_there_are_enough_queries_and_a_verdict(virtual_machine):
    machine = virtual_machine(jitter=0.005)
    calls = {"a": machine.call(1.0), "b": machine.call(1.5)}
    quick = measure(calls, plan=Plan(num_queries=64, budget_s=600.0), instruments=machine.instruments)
    thorough = measure(calls, plan=Plan(num_queries=6636, budget_s=600.0), instruments=machine.instruments)

    assert (quick.stopped_by, thorough.stopped_by) == ("precise", "precise")
    assert quick.duration_s < 2 < thorough.duration_s < 60
    assert all(report.num_queries >= 6636 for report in thorough.latencies)
    assert percentile(thorough.latencies[0], 99.9).value_ms is not None


def test_every_label_gets_its_queries_where_they_fit_into_the_budget(virtual_machine):
    machine = virtual_machine(**NOISY)
    latencies_ms = {"a": 4.9, "b": 4.9, "c": 6.2, "d": 6.2, "e": 4.9, "f": 7.2, "g": 2.3}
    calls = {label: machine.call(latency) for label, latency in latencies_ms.items()}
    measurement = measure(calls, plan=Plan(budget_s=8.0 * 7, margin=1e-4), instruments=machine.instruments)

    assert measurement.stopped_by == "budget"
    assert all(percentile(report, 99.0).value_ms is not None for report in measurement.latencies)
    assert measurement.num_rounds >= 100


def test_labels_on_both_sides_of_a_blocks_length_are_compared_alike(virtual_machine):
    """What the caches cost after a switch is left out of both, or else equal things would differ by a tenth here."""
    machine = virtual_machine(jitter=0.01)
    last = []

    def call(label, latency_ms):
        def work():
            machine.spend(1e6 * (latency_ms + (0.7 if last != [label] else 0.0)))
            last[:] = [label]

        return work

    calls = {"two queries": call("two queries", 6.6), "one query": call("one query", 6.7)}
    (comparison,) = measure(calls, plan=Plan(margin=0.03), instruments=machine.instruments).comparisons

    assert comparison.ratio.value == pytest.approx(6.7 / 6.6, rel=0.005)


def test_no_label_is_always_the_first_of_a_round(virtual_machine):
    machine = virtual_machine()
    firsts = []

    def run_probe():
        firsts.append(None)  # a round begins with the probe

    def call(label):
        def work():
            if firsts and firsts[-1] is None:
                firsts[-1] = label
            machine.spend(5e6)

        return work

    instruments = replace(machine.instruments, probe=run_probe)
    measure({"a": call("a"), "b": call("b")}, plan=Plan(budget_s=60.0), instruments=instruments)

    assert 0.3 < firsts.count("a") / len(firsts) < 0.7


def test_what_queries_leave_behind_is_collected_between_rounds(virtual_machine):
    machine = virtual_machine()
    living, most_living = [0], [0]

    class Cycle:
        def __init__(self):
            self.itself = self
            living[0] += 1

        def __del__(self):
            living[0] -= 1

    def littering():
        Cycle()
        most_living[0] = max(most_living[0], living[0])
        machine.spend(10e6)

    report = measure({"a": littering}, instruments=machine.instruments).latencies[0]
    assert report.num_queries >= 662
    assert most_living[0] <= report.warm_up.num_queries + 10  # what came before the first round, and one round


def test_gives_no_verdict_when_the_budget_does_not_reach(virtual_machine):
    machine = virtual_machine(jitter=0.5, wander=0.1)
    calls = {"a": machine.call(5.0), "b": machine.call(5.15)}
    measurement = measure(calls, plan=Plan(budget_s=1.0), instruments=machine.instruments)

    assert measurement.stopped_by == "budget"
    assert measurement.comparisons[0].verdict == "inconclusive"
    assert 1.0 <= measurement.duration_s < 1.5  # a round that has begun is finished
    assert percentile(measurement.latencies[0], 99.0).text == "needs 662"


def test_even_a_call_that_takes_longer_than_the_budget_is_measured_once(virtual_machine):
    machine = virtual_machine()
    measurement = measure({"slow": machine.call(2000.0)}, plan=Plan(budget_s=0.1), instruments=machine.instruments)

    assert measurement.num_rounds == 1
    assert measurement.latencies[0].median_ms.value == pytest.approx(2000.0)
    assert measurement.latencies[0].drift is None


def test_compares_everything_with_the_first_label_or_the_one_that_is_named(virtual_machine):
    machine = virtual_machine(jitter=0.005)
    calls = {"original": machine.call(1.0), "fused": machine.call(1.2), "int8": machine.call(0.6)}

    def verdicts(against):
        measured = measure(
            calls, against=against, plan=Plan(num_queries=64, budget_s=60.0), instruments=machine.instruments
        )
        return {(each.label, each.against): each.verdict for each in measured.comparisons}

    assert verdicts(None) == {("fused", "original"): "slower", ("int8", "original"): "faster"}
    assert verdicts("int8") == {("original", "int8"): "slower", ("fused", "int8"): "slower"}


def test_compares_further_pairs_in_the_same_rounds_and_goes_on_until_they_have_a_verdict_too(virtual_machine):
    def measured(*pairs):
        machine = virtual_machine(jitter=0.05)
        calls = {"original": machine.call(1.0), "fused": machine.call(2.0), "updatable": machine.call(2.0)}
        plan = Plan(num_queries=64, budget_s=600.0)
        return measure(calls, further_pairs=pairs, plan=plan, instruments=machine.instruments)

    alone, both = measured(), measured(("updatable", "fused"), ("updatable", "original"))
    assert [(each.label, each.against, each.verdict) for each in both.comparisons] == [
        ("fused", "original", "slower"),
        ("updatable", "original", "slower"),
        ("updatable", "fused", "equal"),
    ]
    assert {each.num_rounds for each in both.comparisons} == {both.num_rounds}
    assert both.num_rounds > alone.num_rounds

    with pytest.raises(UsageError, match=r"^Nothing is measured under the label 'baked'; there are 'original'"):
        measured(("updatable", "baked"))


def test_says_what_the_machine_said_of_itself_after_the_warm_up_and_at_the_end(virtual_machine):
    machine = virtual_machine()
    machine.state = MachineState(cpu_mhz=2000.0, missing={"power_w": "no sensor"})
    calls_so_far = []

    def heating():
        calls_so_far.append(1)
        if len(calls_so_far) > 500:
            machine.state = MachineState(cpu_mhz=1000.0, temperature_c=91.0)
        machine.spend(1e6)

    measurement = measure({"a": heating}, instruments=machine.instruments)
    assert (measurement.before.cpu_mhz, measurement.after.temperature_c) == (2000.0, 91.0)
    assert measurement.steadiness.throttling == ("the processor clock fell from 2000 to 1000 MHz",)
    assert measurement.before.missing == {"power_w": "no sensor"}


def test_a_measurement_in_real_time_can_be_written_down_and_read_back():
    values = np.random.default_rng(0).normal(size=2000)
    measurement = measure({"sort": lambda: np.sort(values), "sum": values.sum}, plan=Plan(num_queries=64, budget_s=1.0))
    written = json.loads(json.dumps(json_from_value(measurement), allow_nan=False))

    assert [report["label"] for report in written["latencies"]] == ["sort", "sum"]
    sort = written["latencies"][0]
    median = sort["median_ms"]
    assert 0 < sort["min_ms"] <= median["low"] <= median["value"] <= median["high"] <= sort["max_ms"]
    assert sum(sort["histogram"]["counts"]) == sort["num_queries"]
    assert [(each["label"], each["against"]) for each in written["comparisons"]] == [("sum", "sort")]
    assert written["clock_overhead_ns"] >= 0
    assert value_from_json(Measurement, written) == measurement


def test_a_failing_call_is_named(virtual_machine):
    machine = virtual_machine()

    def fails():
        raise OSError("device lost")

    with pytest.raises(RuntimeFailureError, match="'b' failed while it was measured: OSError: device lost"):
        measure({"a": machine.call(1.0), "b": fails}, instruments=machine.instruments)


def test_refuses_to_measure_nothing():
    with pytest.raises(UsageError, match=r"There is nothing to measure\. Give at least one callable"):
        measure({})


def test_refuses_to_compare_with_what_is_not_measured(virtual_machine):
    with pytest.raises(UsageError, match="Nothing is measured under the label 'c'; there are 'a', 'b'"):
        measure({"a": print, "b": print}, against="c", instruments=virtual_machine().instruments)


@pytest.mark.parametrize("field", ["num_queries", "budget_s", "margin"])
def test_refuses_a_plan_that_cannot_be_kept(field):
    with pytest.raises(UsageError, match=f"The plan's {field} is 0; expected a positive number"):
        Plan(**{field: 0})
