"""The self-test of slots that have an arbiter: whatever else than their coefficients the runtime has is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import BundleError, SelfTestError
from icis_deploy.head.head import Head
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.changes import softmax_scale
from icis_deploy.runtime.changes.self_test import self_test_input, verify_computed
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.runtime.sessions.protocol import SessionOutput
from testing.bundles import FEATURE_DIM, SEEN_NAMES, TAILS, features_of, make_update, seen_head, write_bundle

CAPACITY = 4


class Opened:
    """A session of a bundle with an arbiter, and what its self-test needs."""

    def __init__(self, folder):
        self.session = load_session(folder / "model.onnx", num_threads=1)
        self.bundle, self.folder = load_bundle(folder), folder

    def load(self, table):
        return self.session.load_slots(table.weight, table.bias, table.arbiter)

    def check(self, table, buffers=None, *, session=None, seed=0):
        return verify_computed(
            self.session if session is None else session,
            self.bundle,
            table,
            self.load(table) if buffers is None else buffers,
            seed=seed,
            constants=ArbiterConstants(self.folder, self.bundle),
        )


@pytest.fixture(scope="module", params=TAILS)
def opened(request, tmp_path_factory):
    """For each kind of output."""
    folder = tmp_path_factory.mktemp("self_test") / "bundle"
    return Opened(write_bundle(folder, score_kind=request.param, arbiter=True))


def table_with(*names, seed=1, arbiter=None):
    rng = np.random.default_rng(seed + 50)
    coefficients = rng.normal(size=(len(names), 5)) if arbiter is None else arbiter
    return empty_slots(CAPACITY, FEATURE_DIM).apply(
        make_update(*names, seed=seed, arbiter=coefficients), seen_names=frozenset()
    )


@pytest.mark.parametrize("num_classes", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_slots_that_hold_their_rows_pass_with_room_to_spare(num_classes, seed, opened):
    assert opened.check(table_with(*"abcd"[:num_classes], seed=seed), seed=seed).max_error < 0.1


@pytest.mark.parametrize("scale", [1e-3, -30.0, 30.0, -1e4, 1e4, 1e20])
def test_coefficients_of_any_size_pass(scale, opened):
    table = table_with("a", "b")
    assert opened.check(replace(table, arbiter=table.arbiter * np.float32(scale))).max_error <= 1


def test_slots_with_an_arbiter_pass_next_to_slots_without(opened):
    arbiter = np.random.default_rng(0).normal(size=(4, 5))
    arbiter[[1, 3]] = 0
    assert opened.check(table_with(*"abcd", arbiter=arbiter)).max_error < 0.1


FAULTS = {
    "zeroed": lambda arbiter, _: np.zeros_like(arbiter),
    "stale": lambda _, before: before,
    "exchanged": lambda arbiter, _: arbiter[[1, 0, 2, 3]],
    "one zeroed": lambda arbiter, _: arbiter * np.array([[1], [0], [1], [1]]),
    "a blend": lambda arbiter, before: (arbiter + before) / 2,
    "statistics in another order": lambda arbiter, _: arbiter[:, [1, 0, 2, 3, 4]],
    "the sign": lambda arbiter, _: -arbiter,
    "not a number": lambda arbiter, _: arbiter * np.nan,
    "a slot that should have none": lambda arbiter, _: np.vstack([arbiter[:2], arbiter[:1], arbiter[3:]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_coefficients_other_than_the_slots_own_are_found(fault, opened):
    arbiter = np.random.default_rng(3).normal(size=(3, 5)).astype(np.float32)
    arbiter[2] = 0
    table, before = table_with("a", "b", "c", arbiter=arbiter), table_with("a", "b", seed=2)
    wrong = FAULTS[fault](table.arbiter.copy(), before.arbiter).astype(np.float32)
    buffers = opened.session.load_slots(table.weight, table.bias, wrong)

    with pytest.raises(SelfTestError, match=r"slots do not hold their rows"):
        opened.check(table, buffers)


@pytest.mark.parametrize("statistic", range(5))
@pytest.mark.parametrize("slot", range(2))
def test_one_wrong_coefficient_is_found_and_its_slot_is_named(statistic, slot, opened):
    table = table_with("a", "b", arbiter=np.full((2, 5), 0.7))
    wrong = table.arbiter.copy()
    wrong[slot, statistic] += 0.5
    buffers = opened.session.load_slots(table.weight, table.bias, wrong)

    with pytest.raises(SelfTestError, match=rf"1 of 4 slots do not hold their rows .*: '{'ab'[slot]}'\."):
        opened.check(table, buffers)


def test_coefficients_that_stayed_where_no_slot_should_have_any_are_found(opened):
    table, before = table_with("a", "b", arbiter=np.zeros((2, 5))), table_with("a", "b")
    assert table.arbiter is None
    buffers = opened.session.load_slots(table.weight, table.bias, before.arbiter)

    with pytest.raises(SelfTestError, match=r"2 of 4 slots do not hold their rows"):
        opened.check(table, buffers)


@pytest.mark.parametrize("wrong", ["the rows before", "swapped", "an empty slot that wins"])
def test_wrong_rows_are_found_next_to_right_coefficients(wrong, opened):
    table, before = table_with("a", "b"), table_with("a", "b", seed=2)
    weight, bias = table.weight.copy(), table.bias.copy()
    if wrong == "the rows before":
        weight, bias = before.weight, before.bias
    elif wrong == "swapped":
        weight, bias = weight[[1, 0, 2, 3]], bias[[1, 0, 2, 3]]
    else:
        bias[3] = 5.0

    with pytest.raises(SelfTestError, match=r"slots do not hold their rows"):
        opened.check(table, opened.session.load_slots(weight, bias, table.arbiter))


class Stale:
    """A session that answers with the slots that it had first."""

    def __init__(self, session, buffers):
        self._session, self._buffers = session, buffers
        self.load_slots = session.load_slots

    def run(self, images, slots=None, *, with_features=False):
        return self._session.run(images, self._buffers, with_features=with_features)


def test_a_runtime_that_does_not_read_its_slots_is_found(opened):
    empty = empty_slots(CAPACITY, FEATURE_DIM)
    for before in (empty, table_with("a", "b", seed=2)):
        stale = Stale(opened.session, opened.load(before))
        with pytest.raises(SelfTestError, match=r"do not hold their rows|does not show in what the model gives"):
            opened.check(table_with("a", "b"), session=stale)


class HalfPrecision:
    """A session that computes statistics, rows and features in float16, as an accelerator may."""

    def __init__(self, opened):
        self._opened, self.load_slots = opened, opened.session.load_slots

    def run(self, images, slots=None, *, with_features=False):
        half = {
            name: getattr(slots, name).astype(np.float16).astype(np.float32) for name in ("weight", "bias", "arbiter")
        }
        return self._opened.session.run(images, self.load_slots(**half), with_features=with_features)


def test_float16_passes(opened):
    for seed in range(10):
        table = table_with(*"abcd", seed=seed)
        assert opened.check(table, session=HalfPrecision(opened)).max_error < 1


def test_of_classes_that_are_tied_for_the_greatest_logit_either_may_give_the_deviation(tmp_path):
    first = Opened(write_bundle(tmp_path / "first", arbiter=True))
    zero = int(np.argmin(features_of(self_test_input(first.bundle, 0))[0]))
    assert features_of(self_test_input(first.bundle, 0))[0, zero] == 0
    rows = np.full((3, 5), 1.0, np.float32)
    rows[1, zero], rows[2] = 7.0, -9.0  # rows 0 and 1 differ in a feature alone that this input does not have
    ways = [
        Opened(write_bundle(tmp_path / name, head=Head(rows=rows[order], class_names=SEEN_NAMES), arbiter=True))
        for name, order in (("one way", [0, 1, 2]), ("the other way", [1, 0, 2]))
    ]
    table = table_with("a", arbiter=[[0, 0, 0, 0, 5.0]])

    assert np.ptp(ArbiterConstants(ways[0].folder, ways[0].bundle).row_lengths()[:2]) > 1
    for session in (way.session for way in ways):
        assert ways[0].check(table, session=session).max_error <= 1


def far_head(shift, spread=1.0):
    rows = seen_head().rows * np.float32(spread)
    rows = rows.copy()
    rows[:, -1] += np.float32(shift)
    return Head(rows=rows, class_names=SEEN_NAMES)


@pytest.mark.parametrize("score_kind", ["probabilities", "log-probabilities"])
@pytest.mark.parametrize("shift", [-5e3, -700, -90, 90, 700, 5e3])
def test_seen_logits_far_from_zero_are_found_where_they_are(shift, score_kind, tmp_path):
    opened = Opened(write_bundle(tmp_path / "bundle", head=far_head(shift), score_kind=score_kind, arbiter=True))
    table = table_with("a", "b", arbiter=np.array([[1, 0, 0.5, 1, 1], [0.5, 0.5, 0, 0, 0]]))

    assert opened.check(table).max_error < 1
    wrong = table.arbiter.copy()
    wrong[0, 2] += 1.0 + abs(shift) / 100
    with pytest.raises(SelfTestError, match="slots do not hold their rows"):
        opened.check(table, opened.session.load_slots(table.weight, table.bias, wrong))


def test_slots_far_above_all_seen_classes_are_compared_among_themselves(tmp_path):
    opened = Opened(write_bundle(tmp_path / "bundle", score_kind="probabilities", arbiter=True))
    table = table_with("a", "b", arbiter=np.array([[300, 0, 0, 0, 0], [299, 0, 0, 0, 0]]))
    assert opened.check(table).max_error < 1


@pytest.mark.parametrize("coefficients", [[1, 0.5, 1, 0, 0], [1, 0.01, 0, 0, 0]])
def test_slots_whose_statistics_cannot_be_known_are_not_compared_and_others_are(coefficients, tmp_path):
    folder = write_bundle(tmp_path / "bundle", head=far_head(0, spread=500), score_kind="probabilities", arbiter=True)
    opened = Opened(folder)
    table = table_with("a", "b", arbiter=np.array([coefficients, [0, 0, 0, 0, 0]]))
    images = self_test_input(opened.bundle, 0)
    baked, all_show = softmax_scale.baked_logits(opened.session, opened.bundle, table, images)
    assert (len(baked), all_show) == (3, False)
    weight, bias = table.weight.copy(), table.bias.copy()
    weight[1], bias[1] = 0, baked.max()  # next to the one seen class that shows
    table = replace(table, weight=weight, bias=bias)

    assert opened.check(table).max_error < 1
    wrong = table.bias + np.array([0, 1, 0, 0], dtype=np.float32)
    with pytest.raises(SelfTestError, match=r"1 of 4 slots do not hold their rows .*: 'b'\."):
        opened.check(table, opened.session.load_slots(table.weight, wrong, table.arbiter))


def test_constants_that_are_missing_are_named(opened, tmp_path):
    table = table_with("a")
    with pytest.raises(SelfTestError, match=r"cannot be tested without the constants of the model"):
        verify_computed(opened.session, opened.bundle, table, opened.load(table), seed=0)
    with pytest.raises(BundleError, match="Cannot read the constants of the arbiter"):
        verify_computed(
            opened.session,
            opened.bundle,
            table,
            opened.load(table),
            seed=0,
            constants=ArbiterConstants(tmp_path, opened.bundle),
        )


def test_constants_are_not_read_where_no_slot_has_an_arbiter(opened, tmp_path):
    table = table_with("a", arbiter=np.zeros((1, 5)))
    nowhere = ArbiterConstants(tmp_path, opened.bundle)

    verify_computed(opened.session, opened.bundle, table, opened.load(table), seed=0, constants=nowhere)


def test_the_known_slot_never_shows_in_a_runtime_that_gives_it_no_probability(opened):
    if opened.bundle.score_kind == "logits":
        pytest.skip("there is no scale to look for")
    table = table_with("a")

    class Deaf(Stale):
        def run(self, images, slots=None, *, with_features=False):
            output = super().run(images, slots, with_features=with_features)
            logits = output.logits.copy()
            logits[:, 3:] = 0 if opened.bundle.score_kind == "probabilities" else -1e5
            return SessionOutput(logits=logits, features=output.features)

    with pytest.raises(SelfTestError, match="the runtime does not read the slots that it is given"):
        opened.check(table, session=Deaf(opened.session, opened.load(table)))
