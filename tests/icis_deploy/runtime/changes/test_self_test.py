from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.bundle.manifest import ModelInput, load_bundle
from icis_deploy.errors import SelfTestError
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.changes.self_test import TOLERANCE, self_test_input, verify_computed
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.runtime.sessions.protocol import SessionOutput
from testing.bundles import FEATURE_DIM, TAILS, make_update, write_bundle


@pytest.fixture(scope="module", params=TAILS)
def model(request, tmp_path_factory):
    """A session and its bundle, for each kind of output."""
    folder = write_bundle(tmp_path_factory.mktemp("self_test") / "bundle", score_kind=request.param)
    return load_session(folder / "model.onnx", num_threads=1), load_bundle(folder)


def table_with(*names, seed=1, scale=1.0):
    update = make_update(*names, seed=seed)
    return empty_slots(4, FEATURE_DIM).apply(replace(update, rows=update.rows * scale), seen_names=frozenset())


def check(model, table, buffers=None, *, session=None):
    session_of_model, bundle = model
    session = session_of_model if session is None else session
    buffers = session.load_slots(table.weight, table.bias) if buffers is None else buffers
    return verify_computed(session, bundle, table, buffers, seed=0)


@pytest.mark.parametrize("num_classes", [0, 1, 4])
def test_slots_that_hold_their_rows_pass_with_room_to_spare(num_classes, model):
    assert (
        check(model, table_with(*"abcd"[:num_classes]) if num_classes else empty_slots(4, FEATURE_DIM)).max_error < 0.1
    )


@pytest.mark.parametrize("scale", [1e-3, 30.0, -30.0, 1e6, -1e6, 1e29, -1e29])
def test_rows_of_any_length_pass(scale, model):
    assert check(model, table_with("a", "b", scale=scale)).max_error <= 1


@settings(max_examples=50)
@given(slot=st.integers(0, 3), column=st.integers(0, FEATURE_DIM), factor=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
def test_one_wrong_number_is_noticed_where_the_self_test_sees_it(model_of_logits, slot, column, factor):
    table = table_with(*"abcd")
    weight, bias = table.weight.copy(), table.bias.copy()
    values = bias if column == FEATURE_DIM else weight[:, column]
    values[slot] *= factor
    session, bundle = model_of_logits
    images = self_test_input(bundle, 0)
    features = session.run(images, with_features=True).features[0]
    products = np.append(table.weight[slot] * features, table.bias[slot])
    if abs(products[column] * (factor - 1)) < 2 * TOLERANCE * np.abs(products).sum():
        return  # this feature is zero for this input: no self-test of it could see that number

    with pytest.raises(SelfTestError, match=rf"1 of 4 slots do not hold their rows .*: '{'abcd'[slot]}'\."):
        check(model_of_logits, table, session.load_slots(weight, bias))


@pytest.fixture(scope="module")
def model_of_logits(tmp_path_factory):
    folder = write_bundle(tmp_path_factory.mktemp("self_test") / "bundle")
    return load_session(folder / "model.onnx", num_threads=1), load_bundle(folder)


@pytest.mark.parametrize("wrong", ["the rows before", "swapped", "a blend", "not a number", "an empty slot that wins"])
def test_slots_that_hold_something_else_are_noticed(wrong, model):
    table, before = table_with("a", "b"), table_with("a", "b", seed=2)
    weight, bias = table.weight.copy(), table.bias.copy()
    if wrong == "the rows before":
        weight, bias = before.weight, before.bias
    elif wrong == "swapped":
        weight, bias = weight[[1, 0, 2, 3]], bias[[1, 0, 2, 3]]
    elif wrong == "a blend":
        weight = (weight + before.weight) / 2
    elif wrong == "not a number":
        weight[0] = np.nan
    else:
        bias[3] = 5.0

    with pytest.raises(SelfTestError, match=r"slots do not hold their rows|does not show"):
        check(model, table, model[0].load_slots(weight, bias))


class HalfPrecision:
    """A session that reads rows and features as float16, as an accelerator may."""

    def __init__(self, session, bundle):
        self._session, self._bundle = session, bundle
        self.load_slots = session.load_slots

    def run(self, images, slots=None, *, with_features=False):
        output = self._session.run(images, slots, with_features=True)
        features = output.features.astype(np.float16).astype(np.float32)
        weight, bias = slots.weight.astype(np.float16).astype(np.float32), slots.bias.astype(np.float16)
        num_baked = len(self._bundle.class_names)
        values = np.concatenate([output.logits[:, :num_baked], features @ weight.T + bias], axis=1)
        return SessionOutput(logits=values.astype(np.float32), features=output.features)


def test_float16_passes(model_of_logits):
    session = HalfPrecision(*model_of_logits)

    for seed in range(20):
        assert check(model_of_logits, table_with(*"abcd", seed=seed), session=session).max_error < 1


class Blind:
    """A session whose features are zero for the inputs that it is told to be blind for."""

    def __init__(self, session, num_blind):
        self._session, self._num_blind = session, num_blind
        self.load_slots = session.load_slots

    def run(self, images, slots=None, *, with_features=False):
        self._num_blind -= 1
        return self._session.run(images * (self._num_blind < 0), slots, with_features=with_features)


def test_an_input_without_features_gives_way_to_the_next_seed(model_of_logits):
    table = table_with("a")
    assert check(model_of_logits, table, session=Blind(model_of_logits[0], 3)).max_error < 1

    with pytest.raises(SelfTestError, match=r"features that are all zero for 4 seeded inputs \(from seed 0\)"):
        check(model_of_logits, table, session=Blind(model_of_logits[0], 4))


class Recording:
    """A session that keeps the images that it was given."""

    def __init__(self, session):
        self._session, self.load_slots, self.images = session, session.load_slots, []

    def run(self, images, slots=None, *, with_features=False):
        self.images.append(images)
        return self._session.run(images, slots, with_features=with_features)


@pytest.mark.parametrize("seed", [0, 3, 1 << 40])
def test_the_model_runs_on_the_input_of_the_seed_that_is_given(seed, model_of_logits):
    session, bundle = model_of_logits
    recording, table = Recording(session), table_with("a")
    buffers = session.load_slots(table.weight, table.bias)

    verify_computed(recording, bundle, table, buffers, seed=seed)

    np.testing.assert_array_equal(recording.images, [self_test_input(bundle, seed)])


def test_a_model_without_features_cannot_be_tested(tmp_path):
    folder = write_bundle(tmp_path / "fused", capacity=0)

    with pytest.raises(SelfTestError, match="no output 'features', so its slots cannot be tested"):
        verify_computed(load_session(folder / "model.onnx"), load_bundle(folder), table_with("a"), None, seed=0)


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", -1, 1), ("float16", -1, 1), ("uint8", 0, 255)])
def test_the_input_has_the_type_and_the_range_of_images(dtype, low, high, model):
    bundle = replace(model[1], model_input=ModelInput(name="image", shape=(3, 8, 8), dtype=dtype))
    values = self_test_input(bundle, 1)

    assert (values.shape, values.dtype) == ((1, 3, 8, 8), dtype)
    assert low <= values.min() < low + (high - low) / 4
    assert high - (high - low) / 4 < values.max() <= high
    np.testing.assert_array_equal(values, self_test_input(bundle, 1))
    assert not np.array_equal(values, self_test_input(bundle, 2))


def test_the_input_is_the_same_for_a_seed_in_every_release(model):
    bundle = replace(model[1], model_input=ModelInput(name="image", shape=(3, 5, 7), dtype="uint8"))
    period = np.random.default_rng(0).integers(0, 1 << 64, size=2048, dtype=np.uint64).view(np.uint8)[:16381]
    expected = np.roll(period, -16 * (7 * 401 % 1023))[:105]

    np.testing.assert_array_equal(self_test_input(bundle, 7).reshape(-1), expected)


def test_the_input_of_a_large_image_repeats_its_noise_without_making_rows_or_channels_equal(model):
    bundle = replace(model[1], model_input=ModelInput(name="image", shape=(3, 128, 128), dtype="uint8"))
    values = self_test_input(bundle, 7)[0].astype(np.int64)

    rows = values.reshape(-1, 128)
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (values[0] != values[1]).mean() > 0.9
    assert (values != self_test_input(bundle, 8)[0]).mean() > 0.9


@pytest.mark.parametrize("side", [8, 500])
def test_an_input_cannot_be_written_to_whether_it_is_kept_or_made_anew(side, model):
    bundle = replace(model[1], model_input=ModelInput(name="image", shape=(3, side, side), dtype="uint8"))

    with pytest.raises(ValueError, match="read-only"):
        self_test_input(bundle, 7)[:] = 0


class SigmoidSession:
    """A model of logits with a float32 sigmoid behind it, as a multi-label model gives them."""

    def __init__(self, session):
        self._session, self.load_slots = session, session.load_slots

    def run(self, images, slots=None, *, with_features=False):
        output = self._session.run(images, slots, with_features=with_features)
        return output._replace(logits=1 / (1 + np.exp(-np.maximum(output.logits, -80.0))))


@pytest.mark.parametrize("logit", [-8.0, -7.0, -5.5, 3.0])
def test_a_wrong_slot_of_a_sigmoid_is_noticed_above_its_floor(logit, model_of_logits):
    session, bundle = model_of_logits
    model = SigmoidSession(session), replace(bundle, score_kind="sigmoid")
    filled = table_with("a")
    table = replace(filled, weight=np.zeros_like(filled.weight), bias=np.array([logit, -6e4, -6e4, -6e4]))
    wrong = table.bias + np.array([0.5, 0, 0, 0], dtype=np.float32)

    check(model, table)
    with pytest.raises(SelfTestError, match=r"1 of 4 slots do not hold their rows .*: 'a'\."):
        check(model, table, session.load_slots(table.weight, wrong))
