"""Each control against what it says it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from icis_deploy.injection.predictors.mixtures import (
    AVERAGE_NEIGHBOURS,
    AVERAGE_SHARPNESS,
    MIXTURE_RIDGE,
    average_weights,
    costa_weights,
    equal_weights,
    mixture_weights,
    nearest_weights,
)

SEEN = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32) + 0.5
UNSEEN = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32) + 0.5


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left = left / np.linalg.norm(left, axis=1, keepdims=True)
    return left @ (right / np.linalg.norm(right, axis=1, keepdims=True)).T


@pytest.mark.parametrize(
    "weigh", [nearest_weights, equal_weights, costa_weights, average_weights, mixture_weights], ids=lambda f: f.__name__
)
def test_weights_are_finite_and_never_negative(weigh):
    weights = weigh(UNSEEN, SEEN)
    assert weights.shape == (5, 30)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    if weigh is not mixture_weights:
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)


def test_the_nearest_class_is_that_of_the_most_similar_centred_descriptor():
    mean = SEEN.mean(axis=0)
    expected = cosines(UNSEEN - mean, SEEN - mean).argmax(axis=1)
    np.testing.assert_array_equal(nearest_weights(UNSEEN, SEEN).argmax(axis=1), expected)
    assert np.count_nonzero(nearest_weights(UNSEEN, SEEN)) == 5


def test_a_described_class_that_is_seen_is_its_own_nearest():
    np.testing.assert_array_equal(nearest_weights(SEEN, SEEN), np.eye(30))


def test_costa_weighs_by_positive_cosine():
    similarity = np.maximum(cosines(UNSEEN, SEEN), 0)
    expected = similarity / similarity.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(costa_weights(UNSEEN, SEEN), expected, rtol=1e-4, atol=1e-6)


def test_the_average_is_over_the_nearest_classes_with_exponential_weights():
    mean = SEEN.mean(axis=0)
    similarity = cosines(UNSEEN - mean, SEEN - mean)
    weights = average_weights(UNSEEN, SEEN)
    for index in range(5):
        nearest = np.argsort(-similarity[index])[:AVERAGE_NEIGHBOURS]
        assert set(np.flatnonzero(weights[index])) == set(nearest)
        expected = np.exp(AVERAGE_SHARPNESS * similarity[index, nearest])
        np.testing.assert_allclose(weights[index, nearest], expected / expected.sum(), rtol=1e-4)


def test_a_mixture_is_the_best_non_negative_reconstruction():
    mean = SEEN.mean(axis=0)
    unit = [(each - mean) / np.linalg.norm(each - mean, axis=1, keepdims=True) for each in (SEEN, UNSEEN)]

    def loss(weights: np.ndarray) -> float:
        return float(((unit[1][0] - weights @ unit[0]) ** 2).sum() + MIXTURE_RIDGE * (weights**2).sum())

    found = mixture_weights(UNSEEN, SEEN)[0]
    best = minimize(loss, np.full(30, 0.01), bounds=[(0, None)] * 30, method="L-BFGS-B", options={"maxiter": 1000})
    assert loss(found) <= 1.001 * best.fun
    assert np.count_nonzero(found) < 30


def test_fewer_seen_classes_than_neighbours_are_all_used():
    assert (average_weights(UNSEEN, SEEN[:3]) > 0).all()
    assert mixture_weights(UNSEEN, SEEN[:3]).shape == (5, 3)
