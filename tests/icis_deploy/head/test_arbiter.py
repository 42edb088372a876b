"""An arbiter moves all new logits of an image alike and leaves the seen ones; ONNX gives what numpy gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from icis_deploy.errors import IncompatibleError
from icis_deploy.head.arbiter import (
    STATISTICS,
    Arbiter,
    arbitrate,
    constant_arbiter,
    deviation_lengths,
    seen_statistics,
    statistics_change,
)

RANDOM = np.random.default_rng(0)
NUM_SEEN, NUM_NEW, FEATURE_DIM = 90, 12, 48
ROWS = RANDOM.normal(size=(NUM_SEEN + NUM_NEW, FEATURE_DIM + 1)).astype(np.float32)
SEEN, NEW = ROWS[:NUM_SEEN], ROWS[NUM_SEEN:]
FEATURES = np.maximum(RANDOM.normal(size=(1000, FEATURE_DIM)), 0.0).astype(np.float32)
SEEN_LOGITS = FEATURES @ SEEN[:, :-1].T + SEEN[:, -1]
NEW_LOGITS = FEATURES @ NEW[:, :-1].T + NEW[:, -1]
LENGTHS = deviation_lengths(SEEN)
ARBITER = Arbiter(weights=np.array([0.1, -0.9, -1.3, 1.7, 0.8], np.float32), constant=-3.0)

HEAD_WITH_ARBITER = f"""
<ir_version: 10, opset_import: ["" : 18]>
head (float[batch, {FEATURE_DIM}] features, float[{FEATURE_DIM}, {NUM_SEEN}] seen_weight, float[{NUM_SEEN}] seen_bias,
      float[{FEATURE_DIM}, {NUM_NEW}] new_weight, float[{NUM_NEW}] new_bias, float[{NUM_SEEN}] lengths,
      float[5, 1] weights, float[1] constant) => (float[batch, {NUM_SEEN + NUM_NEW}] logits)
<float tiny = {{1e-12}}, int64[1] last = {{1}}> {{
    seen = Gemm(features, seen_weight, seen_bias)
    new = Gemm(features, new_weight, new_bias)
    top = ReduceMax(seen, last)
    mean = ReduceMean(seen, last)
    centred = Sub(seen, mean)
    squares = Mul(centred, centred)
    variance = ReduceMean(squares, last)
    safe_variance = Max(variance, tiny)
    log_variance = Log(safe_variance)
    length = ReduceSumSquare(features, last)
    safe_length = Max(length, tiny)
    log_length = Log(safe_length)
    best = ArgMax <axis = 1, keepdims = 1> (seen)
    deviation = Gather(lengths, best)
    statistics = Concat <axis = 1> (top, mean, log_variance, log_length, deviation)
    offset = Gemm(statistics, weights, constant)
    favoured = Add(new, offset)
    logits = Concat <axis = 1> (seen, favoured)
}}
"""


def run_onnx(arbiter: Arbiter) -> np.ndarray:
    model = onnx.parser.parse_model(HEAD_WITH_ARBITER)
    onnx.checker.check_model(model, full_check=True)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {
        "features": FEATURES,
        "seen_weight": np.ascontiguousarray(SEEN[:, :-1].T),
        "seen_bias": SEEN[:, -1],
        "new_weight": np.ascontiguousarray(NEW[:, :-1].T),
        "new_bias": NEW[:, -1],
        "lengths": LENGTHS,
        "weights": arbiter.values()[:-1, None],
        "constant": arbiter.values()[-1:],
    }
    return session.run(None, inputs)[0]


def test_standard_onnx_nodes_decide_as_numpy_does_on_all_of_a_thousand_images():
    logits = arbitrate(ARBITER, FEATURES, SEEN_LOGITS, NEW_LOGITS, LENGTHS)
    found = run_onnx(ARBITER)
    new_wins = logits.argmax(axis=1) >= NUM_SEEN
    assert 100 < new_wins.sum() < 900, "both sides are tested"
    np.testing.assert_array_equal(found.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(found, logits, atol=2e-4)
    np.testing.assert_array_equal(found[:, :NUM_SEEN], run_onnx(constant_arbiter(0.0))[:, :NUM_SEEN])


def test_seen_logits_keep_their_bits_and_new_ones_their_order():
    logits = arbitrate(ARBITER, FEATURES, SEEN_LOGITS, NEW_LOGITS, LENGTHS)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[:, :NUM_SEEN], SEEN_LOGITS)
    np.testing.assert_array_equal(logits[:, NUM_SEEN:].argmax(axis=1), NEW_LOGITS.argmax(axis=1))


def test_a_new_class_that_comes_or_goes_changes_no_other_logit():
    logits = arbitrate(ARBITER, FEATURES, SEEN_LOGITS, NEW_LOGITS, LENGTHS)
    fewer = NEW_LOGITS.copy()
    fewer[:, 3], fewer[:, 7] = -6e4, -np.inf  # an empty slot, and a disabled class
    with_fewer = arbitrate(ARBITER, FEATURES, SEEN_LOGITS, fewer, LENGTHS)
    others = [index for index in range(NUM_SEEN + NUM_NEW) if index not in {NUM_SEEN + 3, NUM_SEEN + 7}]
    np.testing.assert_array_equal(with_fewer[:, others], logits[:, others])
    assert not np.isin(with_fewer.argmax(axis=1), [NUM_SEEN + 3, NUM_SEEN + 7]).any()


def test_statistics_are_what_their_names_say():
    found = dict(zip(STATISTICS, seen_statistics(FEATURES, SEEN_LOGITS, LENGTHS).T, strict=True))
    wide = SEEN_LOGITS.astype(np.float64)
    np.testing.assert_array_equal(found["top_logit"], SEEN_LOGITS.max(axis=1))
    np.testing.assert_allclose(found["mean_logit"], wide.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(found["log_variance"], np.log(wide.var(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(found["log_squared_length"], 2.0 * np.log(np.linalg.norm(FEATURES, axis=1)), rtol=1e-5)
    deviations = SEEN - SEEN.mean(axis=0)
    np.testing.assert_allclose(
        found["top_deviation"], np.linalg.norm(deviations[SEEN_LOGITS.argmax(axis=1)], axis=1), rtol=1e-5
    )


def test_an_arbiter_without_weights_is_a_constant_offset_and_one_of_zero_is_none():
    logits = arbitrate(constant_arbiter(1.5), FEATURES, SEEN_LOGITS, NEW_LOGITS, LENGTHS)
    np.testing.assert_array_equal(logits[:, NUM_SEEN:], NEW_LOGITS + np.float32(1.5))
    plain = arbitrate(constant_arbiter(0.0), FEATURES, SEEN_LOGITS, NEW_LOGITS, LENGTHS)
    np.testing.assert_array_equal(plain, np.concatenate([SEEN_LOGITS, NEW_LOGITS], axis=1))
    assert constant_arbiter(0.0).is_constant
    assert not ARBITER.is_constant


def test_a_threshold_favours_new_classes_less_by_as_much_on_every_image():
    statistics = seen_statistics(FEATURES, SEEN_LOGITS, LENGTHS)
    np.testing.assert_allclose(
        ARBITER.lowered_by(2.0).offsets(statistics), ARBITER.offsets(statistics) - 2.0, rtol=0.0, atol=1e-5
    )


def test_features_of_zero_and_equal_logits_give_finite_offsets():
    statistics = seen_statistics(np.zeros((2, 4), np.float32), np.ones((2, NUM_SEEN), np.float32), LENGTHS)
    assert np.isfinite(ARBITER.offsets(statistics)).all()


def test_statistics_are_finite_where_seen_logits_are():
    logits = np.array([[3e38, -3e38, 0.0], [1.0, 1.0, 1.0]], np.float32)
    features = np.array([[3e38, 3e38], [0.0, 0.0]], np.float32)
    statistics = seen_statistics(features, logits, LENGTHS[:3])
    assert np.isfinite(statistics[:, [0, 2, 3, 4]]).all()
    assert deviation_lengths(np.array([[3e38, 3e38], [-3e38, -3e38]], np.float32)).max() == np.finfo(np.float32).max


def test_without_disabled_classes_the_statistics_are_those_of_the_others():
    enabled = np.setdiff1d(np.arange(NUM_SEEN), SEEN_LOGITS[0].argsort()[-3:])
    expected = seen_statistics(FEATURES, SEEN_LOGITS[:, enabled], LENGTHS[enabled])
    found = seen_statistics(FEATURES, SEEN_LOGITS, LENGTHS) + statistics_change(SEEN_LOGITS, LENGTHS, enabled)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(statistics_change(SEEN_LOGITS, LENGTHS, enabled)[0, [0, 1, 2, 4]]).min() > 1e-3


def test_the_change_is_the_same_under_any_shift_of_an_images_logits():
    """So it can be computed of the logarithms of a softmax's probabilities."""
    enabled, shifts = np.arange(0, NUM_SEEN, 2), RANDOM.normal(scale=30, size=(len(FEATURES), 1)).astype(np.float32)
    np.testing.assert_allclose(
        statistics_change(SEEN_LOGITS + shifts, LENGTHS, enabled),
        statistics_change(SEEN_LOGITS, LENGTHS, enabled),
        atol=1e-4,
    )


def test_one_class_has_no_variance_and_no_class_changes_nothing():
    change = dict(zip(STATISTICS, statistics_change(SEEN_LOGITS, LENGTHS, np.array([4])).T, strict=True))
    np.testing.assert_array_equal(change["top_logit"], SEEN_LOGITS[:, 4] - SEEN_LOGITS.max(axis=1))
    assert not change["log_variance"].any()
    assert not change["log_squared_length"].any()
    assert not statistics_change(SEEN_LOGITS, LENGTHS, np.array([], np.intp)).any()
    assert not statistics_change(SEEN_LOGITS, LENGTHS, np.arange(NUM_SEEN)).any()


def test_json_keeps_the_bits():
    values = ARBITER.to_json()
    again = Arbiter(weights=np.array(values["weights"], np.float32), constant=values["constant"])
    assert again.values().tobytes() == ARBITER.values().tobytes()


@pytest.mark.parametrize(
    ("weights", "constant", "message"),
    [
        (np.zeros(4), 0.0, r"has 4 weights; expected 5\."),
        (np.full(5, np.nan), 0.0, r"The arbiter's weights hold nan at \(0,\)"),
        (np.zeros(5), np.inf, r"The arbiter's constant hold inf at \(0,\)"),
        (np.zeros((5, 1)), 0.0, r"have shape \(5, 1\); expected 1 dimensions"),
    ],
)
def test_numbers_that_are_no_arbiter_are_refused(weights, constant, message):
    with pytest.raises(IncompatibleError, match=message):
        Arbiter(weights=weights, constant=constant)
