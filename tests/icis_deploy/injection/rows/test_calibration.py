"""Raw rows become rows that compete, one class at a time; an injector is plain arrays."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.injection.rows.calibration import DeviationCalibration, Injector, LengthFactor, matching_length
from icis_deploy.injection.rows.predictors import (
    AveragePredictor,
    LatentPredictor,
    WeightedPredictor,
    prediction_variance,
)
from icis_deploy.injection.rows.spectrum import principal_axes

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(20, 9)).astype(np.float32)
MEAN = ROWS.mean(axis=0)


def deviation_calibration(**changes) -> DeviationCalibration:
    axes = principal_axes(ROWS).axes
    plain = {"mean_row": MEAN, "axes": axes, "axis_gain": np.zeros(len(axes), np.float32), "length": 2.0, "offset": 0.7}
    return DeviationCalibration(**{**plain, **changes})


def test_a_matching_factor_gives_rows_the_mean_length_of_the_seen_ones():
    rows = np.array([[3.0, 4.0], [6.0, 8.0]], np.float32)
    factor = matching_length(rows, np.array([[0.0, 3.0]], np.float32))
    np.testing.assert_allclose(factor.apply(rows), rows * 0.4, rtol=1e-6)


def test_a_factor_of_one_leaves_rows_as_they_are():
    np.testing.assert_array_equal(LengthFactor(factor=1.0).apply(ROWS), ROWS)


def test_calibrated_deviations_keep_their_direction_and_get_one_length_and_the_offset():
    raw = MEAN + RANDOM.normal(size=(4, 9)).astype(np.float32)
    calibrated = deviation_calibration().apply(raw)
    deviations = calibrated - MEAN
    deviations[:, -1] -= 0.7
    np.testing.assert_allclose(np.linalg.norm(deviations, axis=1), 2.0, rtol=1e-5)
    cosine = (deviations * (raw - MEAN)).sum(axis=1) / 2.0 / np.linalg.norm(raw - MEAN, axis=1)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


def test_a_gain_turns_deviations_towards_the_axes_that_have_it():
    calibration = deviation_calibration()
    gain = np.zeros(len(calibration.axes), np.float32)
    gain[0] = -1.0
    raw = MEAN + RANDOM.normal(size=(4, 9)).astype(np.float32)
    without_axis = deviation_calibration(axis_gain=gain, offset=0.0).apply(raw) - MEAN
    np.testing.assert_allclose(without_axis @ calibration.axes[0], 0.0, atol=1e-5)


def test_the_mean_row_stays_the_mean_row_with_the_offset():
    calibrated = deviation_calibration().apply(MEAN[None])
    np.testing.assert_allclose(calibrated[0, :-1], MEAN[:-1], rtol=1e-6)
    assert calibrated[0, -1] == pytest.approx(MEAN[-1] + 0.7)


def test_an_injector_predicts_and_calibrates_each_class_by_itself():
    descriptors = RANDOM.normal(size=(6, 3)).astype(np.float32)
    predictor = LatentPredictor(
        encoder_weight=RANDOM.normal(size=(5, 3)).astype(np.float32),
        encoder_bias=RANDOM.normal(size=5).astype(np.float32),
        decoder_weight=RANDOM.normal(size=(9, 5)).astype(np.float32),
        decoder_bias=RANDOM.normal(size=9).astype(np.float32),
        origin=MEAN,
    )
    injector = Injector(predictor=predictor, calibration=deviation_calibration())
    rows = injector.rows(descriptors)
    for index in range(6):
        np.testing.assert_allclose(injector.rows(descriptors[index : index + 1])[0], rows[index], rtol=1e-4, atol=1e-6)


def test_a_weighted_predictor_is_the_mean_row_and_a_mix_of_deviations():
    weights = RANDOM.random((3, 20)).astype(np.float32)
    predictor = WeightedPredictor(
        weigh=lambda _unseen, _seen: weights, descriptors=ROWS, mean_row=MEAN, deviations=ROWS - MEAN
    )
    np.testing.assert_allclose(predictor.rows(ROWS[:3]), MEAN + weights @ (ROWS - MEAN), rtol=1e-4)
    assert not prediction_variance(predictor, ROWS[:3]).any()


def test_an_average_is_of_directions_so_that_no_long_prediction_wins():
    short, long = np.zeros((1, 9), np.float32), np.zeros((1, 9), np.float32)
    short[0, 0], long[0, 1] = 0.1, 100.0

    class Fixed:
        def __init__(self, deviation):
            self.deviation = deviation

        def rows(self, descriptors):
            return MEAN + np.repeat(self.deviation, len(descriptors), axis=0)

    average = AveragePredictor(members=(Fixed(short), Fixed(long)), mean_row=MEAN).rows(ROWS[:1]) - MEAN
    np.testing.assert_allclose(average[0, :3], [0.5, 0.5, 0.0], atol=1e-5)
