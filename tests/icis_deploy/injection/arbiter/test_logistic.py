"""Balanced logistic regression: the solution of scikit-learn, and finite where classes are parted."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.errors import IncompatibleError
from icis_deploy.injection.arbiter.logistic import L2, fit_logistic

RANDOM = np.random.default_rng(0)
INPUTS = (RANDOM.normal(size=(500, 4)) * [1.0, 20.0, 0.01, 3.0] + [0.0, 100.0, 5.0, -7.0]).astype(np.float32)
IS_POSITIVE = RANDOM.uniform(size=500) < 1.0 / (1.0 + np.exp(2.0 + 1.5 * INPUTS[:, 0] - 0.1 * (INPUTS[:, 1] - 100.0)))


def test_the_solution_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    wide = INPUTS.astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    reference = LogisticRegression(C=1.0 / (L2 * len(INPUTS)), class_weight="balanced", tol=1e-10, max_iter=10_000)
    reference.fit((wide - mean) / spread, IS_POSITIVE)
    weights, bias = fit_logistic(INPUTS, IS_POSITIVE)
    np.testing.assert_allclose(weights * spread, reference.coef_[0], rtol=1e-4, atol=1e-5)
    expected = reference.decision_function((wide - mean) / spread)
    np.testing.assert_allclose(wide @ weights + bias, expected, atol=1e-4)


def test_units_of_inputs_change_nothing():
    weights, bias = fit_logistic(INPUTS, IS_POSITIVE)
    scaled, scaled_bias = fit_logistic(INPUTS * np.float32(8.0), IS_POSITIVE)
    np.testing.assert_allclose(scaled * 8.0, weights, rtol=1e-5)
    assert scaled_bias == pytest.approx(bias, abs=1e-3)


def test_classes_that_a_plane_parts_have_a_finite_solution():
    inputs = np.concatenate([np.full((20, 1), -1.0), np.full((3, 1), 1.0)]).astype(np.float32)
    weights, bias = fit_logistic(inputs, np.arange(23) >= 20)
    assert 0.0 < weights[0] < 100.0
    assert np.isfinite(bias)


def test_an_input_that_never_changes_gets_no_weight():
    inputs = np.concatenate([INPUTS, np.full((500, 1), 3.0, np.float32)], axis=1)
    weights, _ = fit_logistic(inputs, IS_POSITIVE)
    assert weights[-1] == 0.0
    np.testing.assert_allclose(weights[:-1], fit_logistic(INPUTS, IS_POSITIVE)[0], rtol=1e-6)


@pytest.mark.parametrize("is_positive", [np.ones(500, bool), np.zeros(500, bool)])
def test_one_class_alone_is_refused(is_positive):
    with pytest.raises(IncompatibleError, match="All 500 samples of a logistic regression are of one class"):
        fit_logistic(INPUTS, is_positive)
