import json

import numpy as np
import pytest

from benchmarks.machine.monitor import MachineState
from benchmarks.results.json_values import json_from_value
from benchmarks.timing.drift import Steadiness, find_disturbances, trend


def values_that_change(change, *, seed=0, num_points=120, noise=0.01):
    random = np.random.default_rng(seed)
    times_s = np.linspace(0, 30, num_points)
    return times_s, (1 + change * times_s / 30) * np.exp(noise * random.normal(size=num_points))


@pytest.mark.parametrize(("change", "verdict"), [(0.0, "steady"), (0.01, "steady"), (0.2, "rising"), (-0.2, "falling")])
def test_a_trend_is_reported_when_it_is_beyond_the_margin(change, verdict):
    found = trend(*values_that_change(change))

    assert found.verdict == verdict
    assert found.change.low <= change <= found.change.high


def test_a_machine_without_a_trend_is_not_said_to_have_one():
    verdicts = [trend(*values_that_change(0.0, seed=seed, noise=0.1)).verdict for seed in range(100)]

    assert verdicts.count("steady") >= 98


def test_a_few_interruptions_are_no_trend():
    times_s, values = values_that_change(0.0)
    values[-8:] *= 4

    assert trend(times_s, values).verdict == "steady"


def test_a_trend_can_be_written_down():
    written = json.loads(json.dumps(json_from_value(trend(*values_that_change(0.2))), allow_nan=False))

    assert written["verdict"] == "rising"
    assert written["change"]["low"] < written["change"]["value"] < written["change"]["high"]


@pytest.mark.parametrize(
    ("times_s", "values"),
    [
        (range(5), [1.0] * 5),  # too few
        ([1.0] * 10, [1.0] * 10),  # no time passed
        (range(10), [0.0] * 10),  # a clock that did not move
    ],
)
def test_without_enough_values_there_is_no_trend(times_s, values):
    assert trend(times_s, values) is None


def rising_probe():
    return trend(*values_that_change(0.25))


@pytest.mark.parametrize(
    ("before", "after", "probe", "sign"),
    [
        ({}, {}, rising_probe(), "a fixed computation became 25 % slower during the run"),
        ({"cpu_mhz": 1900.0}, {"cpu_mhz": 1200.0}, None, "the processor clock fell from 1900 to 1200 MHz"),
        ({"gpu_mhz": 1300.0}, {"gpu_mhz": 612.0}, None, "the GPU clock fell from 1300 to 612 MHz"),
        ({"num_throttles": 3}, {"num_throttles": 10}, None, "the processor reports being throttled 7 times"),
        (
            {},
            {"throttle_reasons": ("the GPU is held back by its power limit",)},
            None,
            "the GPU is held back by its power limit at the end of the run",
        ),
    ],
)
def test_every_sign_of_throttling_is_said_in_words(before, after, probe, sign):
    found = find_disturbances(MachineState(**before), MachineState(**after), probe)

    assert found.throttling == (sign,)
    assert found.interference == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({"cpu_mhz": 1900.0}, {"cpu_mhz": 1890.0}),  # a clock is never quite still
        ({"cpu_mhz": 1200.0}, {"cpu_mhz": 1900.0}),  # it woke up
        ({"cpu_mhz": 1900.0}, {}),  # it could be read only once
        ({"num_throttles": 3}, {"num_throttles": 3}),  # throttled long ago
    ],
)
def test_a_quiet_run_shows_no_sign(before, after):
    found = find_disturbances(MachineState(**before), MachineState(**after), trend(*values_that_change(0.0)))

    assert found == Steadiness(throttling=(), interference=())


def test_time_taken_by_others_is_interference():
    before = MachineState(time_s=10.0, steal_s=1.0, busy_and_idle_s=100.0, waited_s=0.0)
    after = MachineState(time_s=20.0, steal_s=3.0, busy_and_idle_s=120.0, waited_s=0.5)

    assert find_disturbances(before, after, None).interference == (
        "the hypervisor gave 10.0 % of the processor time to others",
        "other processes held the processor for 5.0 % of the run",
    )


@pytest.mark.parametrize(
    ("changes", "probe", "sign"),
    [
        (
            (-0.31, -0.22),
            0.0,
            "everything became faster during the run, by 22 % to 31 %, a fixed computation did not",
        ),
        ((0.2, 0.1), 0.0, "everything became slower during the run, by 10 % to 20 %, a fixed computation did not"),
        ((0.2, 0.1), -0.2, "everything became slower during the run"),
        ((0.2, 0.1), 0.2, None),  # the machine as a whole, which is throttling
        ((0.2, -0.1), 0.0, None),
        ((0.2, 0.0), 0.0, None),
        ((0.0, 0.0), 0.2, None),
        ((0.2,), 0.0, None),  # it may be what was measured
        ((0.2, None), 0.0, None),
    ],
)
def test_what_slows_all_models_and_no_computation_is_the_memory(changes, probe, sign):
    drifts = [None if change is None else trend(*values_that_change(change)) for change in changes]
    found = find_disturbances(MachineState(), MachineState(), trend(*values_that_change(probe)), drifts).interference

    assert bool(found) == (sign is not None)
    if sign is not None:
        assert found[0].startswith(sign)
