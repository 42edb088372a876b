"""Intervals of proportions: those of scipy, and as often right as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betainc, betaincinv

from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.proportions import (
    Interval,
    beta_cdf,
    beta_quantile,
    clopper_pearson,
    order_statistic_interval,
)

SHAPES = [(1.0, 1.0), (0.5, 400.0), (8.0, 393.0), (3.7, 211.9), (412.0, 3.0), (2000.0, 98000.0)]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_the_beta_distribution_is_that_of_scipy(a, b):
    for x in (0.0, 1e-6, 0.003, 0.02, 0.3, 0.5, 0.97, 1.0):
        assert beta_cdf(x, a, b) == pytest.approx(betainc(a, b, x), abs=1e-10)
    for probability in (0.025, 0.5, 0.975):
        assert beta_quantile(probability, a, b) == pytest.approx(betaincinv(a, b, probability), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 400), (400, 400), (8, 400), (37, 41)])
def test_clopper_pearson_is_that_of_scipy(successes, trials):
    from scipy.stats import binomtest

    exact = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    found = clopper_pearson(successes, trials)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_fractions_of_a_success_lie_between_whole_ones():
    one, more, two = (clopper_pearson(count, 100) for count in (1, 1.5, 2))
    assert one.low < more.low < two.low
    assert one.high < more.high < two.high


def test_the_share_beyond_an_order_statistic_lies_in_its_interval_as_often_as_promised():
    draws = np.sort(np.random.default_rng(0).uniform(size=(4000, 100)), axis=1)[:, ::-1]
    interval = order_statistic_interval(5, 100, confidence=0.9)
    beyond = 1.0 - draws[:, 4]  # of a uniform population
    assert beyond.mean() == pytest.approx(5 / 101, abs=2e-3)
    assert np.mean((beyond >= interval.low) & (beyond <= interval.high)) == pytest.approx(0.9, abs=0.015)


def test_an_interval_that_ends_before_it_begins_is_refused():
    with pytest.raises(IncompatibleError, match=r"0\.3 to 0\.2; expected 0 <= low <= high <= 1"):
        Interval(low=0.3, high=0.2)
