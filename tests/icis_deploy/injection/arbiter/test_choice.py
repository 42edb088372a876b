"""A budget is spent by an arbiter where held-out classes speak for it, and is kept either way."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.head.arbiter import arbitrate, deviation_lengths
from icis_deploy.injection.arbiter.choice import ArbiterChoice, choose_arbiter
from icis_deploy.injection.arbiter.seen_images import seen_images
from tests.icis_deploy.injection.arbiter.worlds import World, made_up_world, predict_noise


def measured(world: World, choice: ArbiterChoice) -> tuple[float, float]:
    """Return U and the loss of seen accuracy on images that nothing was chosen with."""
    head = world.head
    seen, new = (world.test_features @ rows[:, :-1].T + rows[:, -1] for rows in (head.rows, head.new_rows))
    return world.shares(arbitrate(choice.arbiter, world.test_features, seen, new, deviation_lengths(head.rows)))


def test_an_arbiter_recognises_more_at_the_same_loss_and_both_keep_the_budget():
    gains, losses = [], []
    for seed in range(6):
        world = made_up_world(seed=seed)
        choices = [
            choose_arbiter(world.images, world.head, budget=0.03, seed=seed, is_arbiter_allowed=allowed)
            for allowed in (False, True)
        ]
        assert [one.arbiter.is_constant for one in choices] == [True, False]
        (constant, *_), (arbiter, *_) = found = [measured(world, one) for one in choices]
        gains.append(arbiter - constant)
        losses.append([lost for _, lost in found])
    assert np.mean(gains) > 0.02
    assert np.all(np.mean(losses, axis=0) < 0.03 + 0.01)


def test_estimates_of_held_out_classes_are_near_what_is_measured():
    differences = []
    for seed in range(6):
        world = made_up_world(seed=seed)
        choice = choose_arbiter(world.images, world.head, budget=0.03, seed=seed)
        assert choice.estimate is not None
        differences.append(choice.estimate.U - measured(world, choice)[0])
        assert world.images.accuracy >= choice.estimate.S
        assert choice.estimate.U <= choice.estimate.T
    assert abs(np.mean(differences)) < 0.08


def test_a_curve_rises_with_the_loss_that_is_allowed():
    world = made_up_world()
    choice = choose_arbiter(world.images, world.head, budget=0.03, seed=0)
    assert sorted(choice.curve) == [0.01, 0.02, 0.03, 0.05, 0.1]
    rates = [choice.curve[asked] for asked in sorted(choice.curve)]
    assert all(one.U <= other.U and one.S >= other.S for one, other in pairwise(rates))
    assert choice.curve[0.03].U > choice.constant_curve[0.03].U


def test_the_choice_says_as_json_what_was_promised_and_on_what_ground():
    world = made_up_world()
    values = json.loads(json.dumps(choose_arbiter(world.images, world.head, budget=0.02, seed=0).to_json()))
    assert values["budget"] == 0.02
    assert values["num_images"] == 600
    assert len(values["arbiter"]["weights"]) == 5
    assert values["expected_loss"]["low"] < 0.02 < values["expected_loss"]["high"]
    assert [point["loss"] for point in values["curve"]] == [0.01, 0.02, 0.05, 0.1]


def test_few_seen_classes_keep_a_constant_offset_that_keeps_the_budget():
    world = made_up_world(num_seen=79)
    choice = choose_arbiter(world.images, world.head, budget=0.05, seed=0)
    assert choice.arbiter.is_constant
    assert choice.reason.startswith("A constant offset: the head has 79 classes, and below 80 held-out classes")
    assert choice.curve == choice.constant_curve
    assert choice.estimate is not None
    assert measured(world, choice)[1] < 0.07


@pytest.mark.parametrize("num_seen", [3, 5])
def test_hardly_any_seen_classes_give_an_offset_and_no_estimate(num_seen):
    world = made_up_world(num_seen=num_seen, num_new=2, per_class=20)
    choice = choose_arbiter(world.images, world.head, budget=0.1, seed=0)
    assert choice.arbiter.is_constant
    assert choice.estimate is None
    assert dict(choice.curve) == {}


def test_rows_that_recognise_nothing_get_a_constant_offset():
    world = made_up_world(predict=predict_noise, per_class=1)
    choice = choose_arbiter(world.images, world.head, budget=0.05, seed=0)
    assert choice.arbiter.is_constant
    assert "images were recognised among them" in choice.reason


def test_an_arbiter_that_gives_no_more_than_an_offset_is_refused():
    world = made_up_world()
    shuffled = replace(world.head, descriptors=world.head.descriptors * 0.0)  # all predictions are the mean row
    choice = choose_arbiter(world.images, shuffled, budget=0.02, seed=0)
    assert choice.arbiter.is_constant
    assert choice.reason.startswith("A constant offset:")


def test_too_few_images_where_classes_are_held_out_give_a_constant_offset_that_is_kept():
    world = made_up_world(per_class=1)
    choice = choose_arbiter(world.images, world.head, budget=0.01, seed=0)  # 100 images of 99 that it takes
    assert choice.arbiter.is_constant
    assert "too few images are left where classes are held out" in choice.reason
    with pytest.raises(IncompatibleError, match=r"100 images of seen classes cannot set a loss of at most 0\.5 points"):
        choose_arbiter(world.images, world.head, budget=0.005, seed=0)


def test_a_budget_that_is_no_fraction_is_refused():
    world = made_up_world()
    with pytest.raises(UsageError, match="The greatest loss of seen accuracy is 2; expected a fraction"):
        choose_arbiter(world.images, world.head, budget=2, seed=0)


def test_unlabelled_images_spend_less_than_the_budget():
    lost = []
    for seed in range(4):
        world = made_up_world(seed=seed)
        unlabelled = seen_images(world.images.features, world.head.rows, None)
        choice = choose_arbiter(unlabelled, world.head, budget=0.03, seed=seed)
        assert not choice.spent.are_labelled
        lost.append(measured(world, choice)[1])
    assert np.mean(lost) < 0.035
