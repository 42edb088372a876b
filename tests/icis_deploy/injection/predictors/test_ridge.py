"""Kernel ridge against scikit-learn, leave-one-out against leaving one out, and the switch to landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.injection.predictors import ridge
from icis_deploy.injection.predictors.ridge import RidgeSettings, choose_ridge, fit_ridge

SETTINGS = RidgeSettings(inverse_width=1.0, noise=0.3)


def world(num_classes: int, *, descriptor_dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    descriptors = random.normal(size=(num_classes, descriptor_dim)) + 1.0
    rows = np.tanh(descriptors) @ random.normal(size=(descriptor_dim, 15)) + 3.0
    return descriptors.astype(np.float32), rows.astype(np.float32)


def standardised(descriptors: np.ndarray, seen: np.ndarray) -> np.ndarray:
    centred = descriptors - seen.mean(axis=0, dtype=np.float64)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def test_rows_are_those_of_kernel_ridge_on_centred_unit_descriptors_and_deviations():
    from sklearn.kernel_ridge import KernelRidge

    descriptors, rows = world(60)
    seen, unseen = descriptors[:50], descriptors[50:]
    mean = rows[:50].mean(axis=0, dtype=np.float64)
    reference = KernelRidge(alpha=0.3, kernel="rbf", gamma=1.0)
    reference.fit(standardised(seen, seen), rows[:50] - mean)
    expected = reference.predict(standardised(unseen, seen)) + mean
    predictor = fit_ridge(seen, rows[:50], settings=SETTINGS)
    np.testing.assert_allclose(predictor.rows(unseen), expected, rtol=1e-5)


def test_the_variance_is_that_of_a_gaussian_process():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    descriptors, rows = world(60)
    seen, unseen = descriptors[:50], descriptors[50:]
    process = GaussianProcessRegressor(kernel=RBF(length_scale=0.5**0.5), alpha=0.3, optimizer=None)
    process.fit(standardised(seen, seen), rows[:50])
    _, deviation = process.predict(standardised(unseen, seen), return_std=True)
    predictor = fit_ridge(seen, rows[:50], settings=SETTINGS)
    np.testing.assert_allclose(predictor.variance(unseen), deviation[:, 0] ** 2, rtol=1e-6)


def test_a_class_far_from_all_seen_ones_has_more_variance_than_a_copy_of_one():
    descriptors, rows = world(50)
    mean = descriptors.mean(axis=0)
    opposite = mean - (descriptors[:1] - mean)
    variance = fit_ridge(descriptors, rows, settings=SETTINGS).variance(np.concatenate([descriptors[:1], opposite]))
    assert 0 <= variance[0] < variance[1] <= 1


def test_settings_are_chosen_by_the_cosine_of_rows_that_were_left_out(monkeypatch: pytest.MonkeyPatch):
    from sklearn.kernel_ridge import KernelRidge

    descriptors, rows = world(30)
    monkeypatch.setattr(ridge, "INVERSE_WIDTHS", (0.5, 4.0))
    monkeypatch.setattr(ridge, "NOISES", (0.03, 1.0))
    mean, points = rows.mean(axis=0, dtype=np.float64), standardised(descriptors, descriptors)
    scores = {}
    for width in (0.5, 4.0):
        for noise in (0.03, 1.0):
            cosines = []
            for left in range(30):
                rest = np.arange(30) != left
                model = KernelRidge(alpha=noise, kernel="rbf", gamma=width).fit(points[rest], (rows - mean)[rest])
                predicted, true = model.predict(points[[left]])[0], rows[left] - mean
                cosines.append(predicted @ true / np.linalg.norm(predicted) / np.linalg.norm(true))
            scores[width, noise] = np.mean(cosines)
    chosen = choose_ridge(descriptors, rows, seed=0)
    assert (chosen.inverse_width, chosen.noise) == max(scores, key=scores.get)


def test_landmarks_give_nearly_the_exact_rows_and_no_less_variance(monkeypatch: pytest.MonkeyPatch):
    descriptors, rows = world(220, descriptor_dim=3)
    seen, unseen = descriptors[:200], descriptors[200:]
    exact = fit_ridge(seen, rows[:200], settings=SETTINGS)
    monkeypatch.setattr(ridge, "EXACT_LIMIT", 100)
    approximate = fit_ridge(seen, rows[:200], settings=SETTINGS)
    assert len(approximate.landmarks) == 100
    deviations = exact.rows(unseen) - exact.mean_row
    error = np.linalg.norm(approximate.rows(unseen) - exact.rows(unseen)) / np.linalg.norm(deviations)
    assert error < 0.02
    assert (approximate.variance(unseen) >= exact.variance(unseen) - 1e-4).all()


def test_a_row_does_not_depend_on_the_classes_predicted_with_it():
    descriptors, rows = world(40)
    predictor = fit_ridge(descriptors[:30], rows[:30], settings=SETTINGS)
    together = predictor.rows(descriptors[30:])
    np.testing.assert_allclose(predictor.rows(descriptors[34:35])[0], together[4], rtol=1e-6)


@pytest.mark.parametrize("num_seen", [1, 2, 3])
def test_the_fewest_classes_give_finite_rows(num_seen: int):
    descriptors, rows = world(num_seen + 2)
    settings = choose_ridge(descriptors[:num_seen], rows[:num_seen], seed=0)
    predictor = fit_ridge(descriptors[:num_seen], rows[:num_seen], settings=settings)
    assert np.isfinite(predictor.rows(descriptors)).all()
    assert ((predictor.variance(descriptors) >= 0) & (predictor.variance(descriptors) <= 1)).all()


def test_equal_descriptors_are_no_obstacle():
    descriptors, rows = world(40)
    descriptors[10:20] = descriptors[10]
    predictor = fit_ridge(descriptors, rows, settings=choose_ridge(descriptors, rows, seed=0))
    predicted = predictor.rows(descriptors)
    np.testing.assert_allclose(predicted[10:20], np.broadcast_to(predicted[10], (10, predicted.shape[1])), rtol=1e-4)
    # Those that are alike get their mean row, as far as the other classes leave it.
    others = np.delete(np.arange(len(rows)), np.arange(10, 20))
    distance = np.linalg.norm(rows[others] - predicted[10], axis=1)
    assert np.linalg.norm(rows[10:20].mean(axis=0) - predicted[10]) < np.median(distance)
