"""Intervals of predicted accuracies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from icis_deploy.injection.estimate.intervals import WARNED_ERROR_FACTOR, Range, accuracy_ranges
from icis_deploy.injection.validation.operating_point import Rates

EXPECTED = Rates(T=0.5, U=0.4, S=0.97)


def ranges(others: tuple[Rates, ...] = (), **changes) -> dict[str, Range]:
    asked = {"num_unseen": 200, "num_seen": 800, "num_held_out": 800, "error_factor": 1.0, **changes}
    asked = {"error_factor_below": asked["error_factor"], **asked}
    return accuracy_ranges(EXPECTED, others, **asked)


def width(one: Range) -> float:
    return one.high - one.low


def test_an_interval_holds_the_prediction_and_stays_within_0_and_1() -> None:
    for name, one in ranges(num_unseen=3, num_held_out=6, error_factor=WARNED_ERROR_FACTOR).items():
        assert 0.0 <= one.low < one.value == getattr(EXPECTED, name) < one.high <= 1.0


@pytest.mark.parametrize("changes", [{"num_unseen": 20}, {"num_held_out": 40}, {"error_factor": WARNED_ERROR_FACTOR}])
def test_fewer_classes_and_a_warning_widen_it(changes: dict[str, object]) -> None:
    for name in ("T", "U", "H"):
        assert width(ranges(**changes)[name]) > 1.1 * width(ranges()[name])


def test_other_assumptions_widen_the_side_on_which_they_lie() -> None:
    usual, moved = ranges()["U"], ranges((Rates(T=0.5, U=0.2, S=0.97),))["U"]
    assert moved.low < usual.low - 0.05
    assert moved.high == usual.high


def test_where_nothing_is_known_it_holds_everything() -> None:
    assert all((one.low, one.high) == (0.0, 1.0) for one in ranges(error_factor=math.inf).values())


def test_near_perfection_it_reaches_further_down_than_up() -> None:
    one = ranges()["S"]
    assert one.value - one.low > one.high - one.value


def test_of_many_classes_and_no_error_of_the_model_it_is_what_a_draw_of_classes_gives(monkeypatch) -> None:
    monkeypatch.setattr("icis_deploy.injection.estimate.intervals.MODEL_ERROR", dict.fromkeys("TUSH", 0.0))
    one = ranges(num_unseen=1000, num_held_out=10**9)["T"]
    drawn = np.random.default_rng(0).binomial(1000, 0.5, size=20000) / 1000
    assert np.mean((one.low <= drawn) & (drawn <= one.high)) == pytest.approx(0.9, abs=0.01)


def test_new_classes_may_be_harder_than_those_held_out():
    usual, harder = ranges(error_factor=0.5), ranges(error_factor=0.5, error_factor_below=1.0)
    for name in ("T", "U", "H"):
        assert harder[name].low < usual[name].low
        assert harder[name].high == usual[name].high
    assert harder["S"] == usual["S"]
