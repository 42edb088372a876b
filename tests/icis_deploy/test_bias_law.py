"""Heads whose biases follow from their weights."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.bias_law import bias_law
from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.spectrum import mean_row, principal_axes

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
