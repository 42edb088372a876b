"""Principal axes and what is restored along them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.spectrum import (
    amplify,
    at_length,
    bias_law,
    mean_deviation_length,
    mean_row,
    principal_axes,
    restoring_exponent,
    restoring_gain,
)


def rows_with_spectrum(num_rows: int, spread: np.ndarray, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(len(spread), len(spread))))[0]
    return ((random.normal(size=(num_rows, len(spread))) * spread) @ basis + 5.0).astype(np.float32)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_axes_are_the_right_singular_vectors_of_centred_rows(shape):
    rows = rows_with_spectrum(shape[0], np.geomspace(5, 0.5, shape[1]))
    spectrum = principal_axes(rows)
    _, values, vectors = np.linalg.svd(rows - rows.mean(axis=0, dtype=np.float64), full_matrices=False)
    count = len(spectrum.variance)
    assert count >= min(shape) - 1
    np.testing.assert_allclose(spectrum.variance, values[:count] ** 2 / len(rows), rtol=1e-4)
    np.testing.assert_allclose(np.abs((spectrum.axes * vectors[:count]).sum(axis=1)), 1.0, atol=1e-3)


def test_identical_rows_have_no_axes_and_nothing_is_restored():
    spectrum = principal_axes(np.ones((10, 4), np.float32))
    assert len(spectrum.variance) == 0
    deviations = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(amplify(deviations, spectrum.axes, restoring_gain(spectrum, 0.25)), deviations)


def test_predictions_with_the_rows_own_spread_need_nothing_restored():
    rows = rows_with_spectrum(300, np.geomspace(5, 0.5, 20))
    assert restoring_exponent(rows - mean_row(rows), principal_axes(rows)) == pytest.approx(0.0, abs=0.01)


def test_half_of_what_predictions_overweight_is_taken_back():
    rows = rows_with_spectrum(300, np.geomspace(5, 0.5, 20))
    spectrum = principal_axes(rows)
    along = (rows - mean_row(rows)) @ spectrum.axes.T
    overweighted = (along * np.sqrt(spectrum.variance + spectrum.variance.mean())) @ spectrum.axes
    exponent = restoring_exponent(overweighted.astype(np.float32), spectrum)
    assert exponent == pytest.approx(0.25, abs=0.02)
    restored = amplify(overweighted.astype(np.float32), spectrum.axes, restoring_gain(spectrum, exponent))
    ratio = [((each @ spectrum.axes.T) ** 2).mean(axis=0) for each in (overweighted, restored)]
    assert ratio[1][0] / ratio[1][-1] < ratio[0][0] / ratio[0][-1]
    assert restoring_exponent(restored, spectrum) == pytest.approx(exponent / 2, abs=0.03)


@given(exponent=st.floats(0, 0.25), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_amplifying_scales_each_axis_by_its_gain_and_leaves_the_rest(exponent: float, seed: int):
    rows = rows_with_spectrum(8, np.geomspace(5, 0.5, 20), seed=seed)
    spectrum = principal_axes(rows)
    gain = restoring_gain(spectrum, exponent)
    deviations = np.random.default_rng(seed).normal(size=(3, 20)).astype(np.float32)
    changed = amplify(deviations, spectrum.axes, gain)
    along = [each @ spectrum.axes.T for each in (deviations, changed)]
    np.testing.assert_allclose(along[1], along[0] * (1 + gain), rtol=1e-3, atol=1e-4)
    outside = [each - part @ spectrum.axes for each, part in zip((deviations, changed), along, strict=True)]
    np.testing.assert_allclose(outside[1], outside[0], atol=1e-4)


def test_lengths_become_equal_and_rounding_errors_become_zero():
    deviations = np.array([[3.0, 4.0], [0.3, 0.4], [1e-9, 0.0], [0.0, 0.0]], np.float32)
    expected = [[6.0, 8.0], [6.0, 8.0], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(at_length(deviations, 10.0), expected, rtol=1e-6)
    assert mean_deviation_length(np.array([[0.0, 0.0], [6.0, 8.0]], np.float32)) == pytest.approx(5.0)


NUM_CLASSES, FEATURE_DIM = 60, 12


def nearest_means() -> np.ndarray:
    means = (3.0 + np.random.default_rng(0).normal(size=(NUM_CLASSES, FEATURE_DIM))).astype(np.float32)
    return np.concatenate([means, -0.5 * (means**2).sum(axis=1, keepdims=True)], axis=1)


def test_of_nearest_means_it_is_the_mean_weights_with_another_sign() -> None:
    rows = nearest_means()
    np.testing.assert_allclose(bias_law(rows), -rows[:, :-1].mean(axis=0), rtol=1e-3)


def test_rows_that_obey_it_compare_features_by_distance() -> None:
    """With weights of one length, the class whose mean is nearest wins, whatever the raw biases were."""
    rows = nearest_means()
    spectrum = principal_axes(rows)
    calibration = DeviationCalibration(
        mean_row=mean_row(rows),
        axes=spectrum.axes,
        axis_gain=np.zeros(len(spectrum.axes), np.float32),
        length=2.0,
        offset=0.0,
        bias_law=bias_law(rows),
    )
    raw = nearest_means()[:20]
    raw[:, -1] += 40 * np.random.default_rng(1).normal(size=20).astype(np.float32)
    injected = calibration.apply(raw)
    features = 3.0 + 2.0 * np.random.default_rng(2).normal(size=(500, FEATURE_DIM))
    logits = features @ injected[:, :-1].T + injected[:, -1]
    distances = ((features[:, None] - injected[None, :, :-1]) ** 2).sum(axis=2)
    assert (logits.argmax(axis=1) == distances.argmin(axis=1)).mean() > 0.99


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_it_is_found_while_it_explains_most_of_the_biases(noise: float) -> None:
    rows = nearest_means()
    bias = rows[:, -1]
    rows[:, -1] += noise * bias.std() * np.random.default_rng(3).normal(size=NUM_CLASSES).astype(np.float32)
    assert (bias_law(rows) is not None) == (noise < 1.0)


def test_no_biases_independent_ones_and_those_that_grow_with_the_weights_have_none() -> None:
    rows = nearest_means()
    for bias in (np.zeros(NUM_CLASSES), np.random.default_rng(4).normal(size=NUM_CLASSES), -rows[:, -1]):
        rows[:, -1] = bias
        assert bias_law(rows) is None
