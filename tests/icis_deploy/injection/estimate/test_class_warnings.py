"""Tests of `icis_deploy.injection.estimate.class_warnings`; collisions are tested with the methods."""

import numpy as np
import pytest

from icis_deploy.injection.estimate.class_warnings import fit_logistic


@pytest.mark.parametrize("num_examples", [12, 400])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_logistic_regression_is_that_of_scikit_learn(num_examples, scale):
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(num_examples)
    inputs = scale * np.column_stack([random.random((num_examples, 3)), np.zeros(num_examples)])
    is_positive = random.random(num_examples) < 1.0 / (1.0 + np.exp(-(4.0 * inputs[:, 0] / scale - 1.5)))
    weight, intercept = fit_logistic(inputs, is_positive)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(inputs, is_positive)
    found = inputs @ weight + intercept
    np.testing.assert_allclose(found, reference.decision_function(inputs), atol=2e-3)
    assert np.std(found) > 0.0


def test_examples_that_are_told_apart_perfectly_have_finite_weights():
    inputs = np.linspace(-500.0, 500.0, 20)[:, None]
    weight, intercept = fit_logistic(inputs, inputs[:, 0] > 0.0)
    assert np.isfinite([*weight, intercept]).all()
    assert weight[0] > 0.0
