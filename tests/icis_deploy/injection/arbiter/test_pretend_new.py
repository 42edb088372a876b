"""Sets of pretend-new classes are disjoint, shown by images, and leak nothing; what they do is plain classification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.injection.arbiter.pretend_new import NUM_SETS, calibrated, plan_sets, play_sets, with_less_training
from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.predictors import Prediction
from tests.icis_deploy.injection.arbiter.worlds import made_up_world


@given(
    num_seen=st.integers(NUM_SETS, 300),
    num_new=st.integers(1, 400),
    num_shown=st.integers(1, 300),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=80)
def test_sets_of_a_partition_are_disjoint_and_share_the_classes_that_have_images(num_seen, num_new, num_shown, seed):
    shown = np.random.default_rng(seed).permutation(num_seen)[:num_shown]
    sets = plan_sets(shown, num_seen=num_seen, num_new=num_new, seed=seed, num_partitions=2)
    assert len(sets) == 2 * NUM_SETS
    for partition in (sets[:NUM_SETS], sets[NUM_SETS:]):
        classes = np.concatenate(partition)
        assert len(set(classes)) == len(classes)
        counts = [np.isin(part, shown).sum() for part in partition]
        assert max(counts) - min(counts) <= 1
        assert max(len(part) for part in partition) <= num_seen / NUM_SETS + 2
        assert min(len(part) for part in partition) >= 1


def test_a_set_has_the_share_of_new_classes_and_a_fifth_at_most():
    labels = np.arange(800)
    sizes = [len(plan_sets(labels, num_seen=800, num_new=count, seed=0)[0]) for count in (1, 42, 200, 2000)]
    assert sizes == [1, 40, 160, 160]


def test_rows_are_predicted_from_the_other_classes_alone():
    world, asked_of = made_up_world(num_new=10), []

    def predict(descriptors, rows, asked):
        asked_of.append((descriptors, rows, asked))
        return world.head.predict_rows(descriptors, rows, asked)

    sets = plan_sets(world.images.labels, num_seen=100, num_new=10, seed=0)
    play_sets(world.images, replace(world.head, predict_rows=predict), sets)
    for (descriptors, rows, asked), held_out in zip(asked_of, sets, strict=True):
        rest = np.setdiff1d(np.arange(100), held_out)
        np.testing.assert_array_equal(rows, world.head.rows[rest])
        np.testing.assert_array_equal(descriptors, world.head.descriptors[rest])
        np.testing.assert_array_equal(asked[: len(held_out)], world.head.descriptors[held_out])


def test_new_classes_complete_a_set_that_has_fewer_classes_than_are_injected():
    world, asked_of = made_up_world(num_new=40), []

    def predict(descriptors, rows, asked):
        asked_of.append(asked)
        return world.head.predict_rows(descriptors, rows, asked)

    sets = plan_sets(world.images.labels, num_seen=100, num_new=40, seed=0)
    played = play_sets(world.images, replace(world.head, predict_rows=predict), sets)
    alone = play_sets(world.images, replace(world.head, new_descriptors=world.head.new_descriptors[:1]), sets)
    for asked, held_out, one, other in zip(asked_of, sets, played, alone, strict=True):
        assert len(held_out) == 20
        np.testing.assert_array_equal(asked[:20], world.head.descriptors[held_out])
        np.testing.assert_array_equal(asked[20:], world.head.new_descriptors[:20])
        assert (one.best_new > other.best_new - 0.05).all()
    assert sum(one.is_hit.sum() for one in played) < sum(one.is_hit.sum() for one in alone)


def test_less_training_leaves_out_as_many_classes_as_a_set_has_and_half_at_most():
    sets = plan_sets(np.arange(100), num_seen=100, num_new=40, seed=0)
    for held_out, training in zip(sets, with_less_training(100, sets, seed=0), strict=True):
        assert len(training) == 60
        assert len(np.union1d(held_out, training)) == 80
    most = (np.arange(70),)
    assert [len(one) for one in with_less_training(100, most, seed=0)] == [15]


def test_what_a_set_does_is_what_a_head_of_both_kinds_of_rows_does():
    world = made_up_world()
    sets = plan_sets(world.images.labels, num_seen=100, num_new=20, seed=0)
    held_out, played = sets[0], play_sets(world.images, world.head, sets)[0]
    rest = np.setdiff1d(np.arange(100), held_out)
    predicted = world.head.predict_rows(
        world.head.descriptors[rest], world.head.rows[rest], world.head.descriptors[held_out]
    )
    rows = np.concatenate([world.head.rows[rest], predicted])
    logits = world.images.features @ rows[:, :-1].T + rows[:, -1]
    classes, labels = np.append(rest, held_out), world.images.labels
    is_new = np.isin(labels, held_out)
    right = classes[logits.argmax(axis=1)] == labels
    np.testing.assert_array_equal(played.is_held_out, is_new)
    np.testing.assert_array_equal(right[is_new], (played.is_hit & (played.leads > 0.0))[is_new])
    np.testing.assert_array_equal(right[~is_new], (played.is_right & (played.leads <= 0.0))[~is_new])
    assert 0 < played.is_hit.sum() < is_new.sum()
    assert not (played.is_hit & played.is_right).any()


def test_a_calibration_goes_around_the_mean_row_of_the_classes_that_rows_came_from():
    rows = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    calibration = DeviationCalibration(
        mean_row=np.zeros(5, np.float32),
        axes=np.eye(5, dtype=np.float32),
        axis_gain=np.zeros(5, np.float32),
        length=2.0,
        offset=0.5,
    )

    def predict(descriptors, rows, asked):
        return Prediction(rows=rows.mean(axis=0) + asked, variance=np.zeros(len(asked)))

    asked = np.eye(5, dtype=np.float32)[:2] * 7.0
    found = calibrated(predict, calibration)(rows[:, :3], rows, asked)
    expected = rows.mean(axis=0) + asked / 7.0 * 2.0
    expected[:, -1] += 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_sets(seed):
    labels = np.arange(100)
    one, again = (plan_sets(labels, num_seen=100, num_new=25, seed=seed) for _ in range(2))
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(again))
    other = plan_sets(labels, num_seen=100, num_new=25, seed=seed + 1)
    assert (np.concatenate(one) != np.concatenate(other)).any()
