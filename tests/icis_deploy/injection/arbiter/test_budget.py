"""A budget is kept on images that nobody has seen, measured on some, and refused where too few images speak for it."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.injection.arbiter.budget import (
    budget_threshold,
    expected_threshold,
    halves,
    images_needed,
    loss,
    spend_budget,
)
from icis_deploy.injection.arbiter.seen_images import SeenImages, macro_weights


def equal(count: int) -> np.ndarray:
    return np.full(count, 1.0 / count)


def images_of(labels: np.ndarray, is_right: np.ndarray, *, are_labelled: bool = True) -> SeenImages:
    """Return images with these labels, of which some are right."""
    logits = np.zeros((len(labels), labels.max() + 2), np.float32)
    logits[np.arange(len(labels)), np.where(is_right, labels, labels + 1)] = 1.0
    return SeenImages(
        features=np.ones((len(labels), 3), np.float32), logits=logits, labels=labels, are_labelled=are_labelled
    )


@pytest.mark.parametrize(("num_images", "budget"), [(99, 0.01), (100, 0.02), (400, 0.05), (49, 0.02), (1000, 0.013)])
def test_the_threshold_is_the_order_statistic(num_images, budget):
    leads = np.random.default_rng(0).normal(size=num_images).astype(np.float32)
    index = int(np.floor(budget * (num_images + 1) + 1e-9)) - 1
    threshold = budget_threshold(leads, np.ones(num_images, bool), equal(num_images), budget=budget)
    assert threshold == np.sort(leads)[::-1][index]


@pytest.mark.parametrize("accuracy", [1.0, 0.8])
def test_the_loss_on_further_images_is_the_budget_on_average(accuracy):
    random = np.random.default_rng(1)
    lost = []
    for _ in range(3000):
        leads, is_right = random.normal(size=149).astype(np.float32), random.uniform(size=149) < accuracy
        threshold = budget_threshold(leads, is_right, equal(149), budget=0.04)
        further = random.normal(size=200).astype(np.float32)
        lost.append(loss(further, random.uniform(size=200) < accuracy, equal(200), threshold=threshold))
    assert np.mean(lost) == pytest.approx(0.04, abs=0.001)  # 149 + 1 images times 0.04 is a whole number


def test_images_that_are_wrong_anyway_cost_nothing():
    leads = np.arange(100, dtype=np.float32)[::-1]
    is_right = np.arange(100) >= 10  # the ten with the greatest leads are wrong
    assert budget_threshold(leads, is_right, equal(100), budget=0.03) == leads[12]
    assert loss(leads, is_right, equal(100), threshold=float(leads[12])) == pytest.approx(0.02)


def test_a_class_with_many_images_counts_no_more_than_another():
    labels = np.append(np.zeros(90, np.int64), np.arange(1, 11))
    leads = np.append(np.full(90, 2.0), np.linspace(0.0, 1.0, 10)).astype(np.float32)
    weights = macro_weights(labels)
    assert weights[0] == pytest.approx(1 / 11 / 90)
    threshold = budget_threshold(leads, np.ones(100, bool), weights, budget=0.12)
    assert threshold == 1.0, "a whole class is lost: 1 of 11"
    assert loss(leads, np.ones(100, bool), weights, threshold=threshold) == pytest.approx(1 / 11)


def test_too_few_images_are_refused_and_the_message_says_how_many_it_takes():
    assert [images_needed(budget) for budget in (0.01, 0.02, 0.05, 0.5)] == [99, 49, 19, 1]
    leads = np.zeros(48, np.float32)
    with pytest.raises(
        IncompatibleError, match=r"48 images .* at most 2 points of accuracy; it takes 49\. .* of 2\.05 points"
    ):
        budget_threshold(leads, np.ones(48, bool), equal(48), budget=0.02)
    budget_threshold(np.zeros(49, np.float32), np.ones(49, bool), equal(49), budget=0.02)


def test_nothing_can_be_lost_where_nothing_is_right():
    with pytest.raises(IncompatibleError, match="right on no image"):
        budget_threshold(np.zeros(60, np.float32), np.zeros(60, bool), equal(60), budget=0.02)


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, 2.0])
def test_a_budget_is_a_fraction(budget):
    with pytest.raises(UsageError, match=r"expected a fraction between 0 and 1, such as 0\.02 for 2 points"):
        budget_threshold(np.zeros(60, np.float32), np.ones(60, bool), equal(60), budget=budget)


def test_a_budget_that_all_images_fit_in_stops_at_the_least_lead_of_a_right_one():
    leads = np.arange(10, dtype=np.float32)
    assert budget_threshold(leads, leads > 7, equal(10), budget=0.9) == 8.0


def test_halves_share_every_class_evenly_and_depend_on_the_seed():
    labels = np.repeat(np.arange(7), [1, 2, 3, 10, 10, 11, 40])
    one = halves(labels, seed=0)
    assert abs(int(one.sum()) - len(labels) / 2) <= 1
    for label in range(7):
        assert abs(int(one[labels == label].sum()) - (labels == label).sum() / 2) <= 0.5
    assert (one != halves(labels, seed=1)).any()
    np.testing.assert_array_equal(one, halves(labels, seed=0))


def test_what_is_spent_is_measured_on_the_other_half_and_set_with_all():
    random = np.random.default_rng(2)
    labels = np.repeat(np.arange(40), 10)
    images = images_of(labels, random.uniform(size=400) < 0.9)
    leads = random.normal(size=400).astype(np.float32)
    spent = spend_budget(images, leads, budget=0.05, seed=0)
    assert spent.threshold == budget_threshold(leads, images.is_right, images.weights(), budget=0.05)
    assert spent.measured is not None
    assert (spent.num_images, spent.measured.num_images) == (400, 200)
    assert spent.expected.low < 0.05 < spent.expected.high
    assert spent.measured.interval.low <= spent.measured.value <= spent.measured.interval.high
    assert spent.to_json()["measured_loss"]["num_images"] == 200


@pytest.mark.parametrize("sizes", [(10,) * 40, (1, 2, 5, 40) * 8])
def test_the_expected_interval_holds_the_loss_on_further_images_as_often_as_it_says(sizes):
    """With unequal weights it is approximate: what counts is that it does not promise too much."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images, held = images_of(labels, np.ones(len(labels), bool)), []
    for _ in range(400):
        spent = spend_budget(images, random.uniform(size=len(labels)).astype(np.float32), budget=0.05, seed=0)
        held.append(spent.expected.low <= 1.0 - spent.threshold <= spent.expected.high)
    assert np.mean(held) >= 0.92


def test_a_half_that_is_too_small_measures_nothing():
    images = images_of(np.arange(60) % 6, np.ones(60, bool))
    spent = spend_budget(images, np.linspace(0, 1, 60).astype(np.float32), budget=0.02, seed=0)
    assert spent.measured is None
    assert spent.to_json()["measured_loss"] is None


def test_of_unlabelled_images_every_change_counts_and_so_less_is_lost_of_accuracy():
    random = np.random.default_rng(4)
    labels, is_right = np.repeat(np.arange(40), 10), random.uniform(size=400) < 0.8
    leads = random.normal(size=400).astype(np.float32) + 2.0 * ~is_right  # wrong answers change first
    labelled = spend_budget(images_of(labels, is_right), leads, budget=0.05, seed=0)
    unlabelled = spend_budget(
        images_of(np.where(is_right, labels, labels + 1), np.ones(400, bool), are_labelled=False),
        leads,
        budget=0.05,
        seed=0,
    )
    assert unlabelled.threshold > labelled.threshold
    assert np.mean(leads > unlabelled.threshold) <= 0.05
    assert not unlabelled.are_labelled


def test_the_expected_threshold_spends_the_budget_between_two_ranks():
    random = np.random.default_rng(0)
    lost = []
    for _ in range(400):
        leads = random.normal(size=130).astype(np.float32)
        is_right = random.random(130) < 0.8
        threshold = expected_threshold(leads, is_right, np.full(130, 1 / 130), budget=0.02)
        further = random.normal(size=2000)
        lost.append(0.8 * np.mean(further > threshold))
    assert np.mean(lost) == pytest.approx(0.02, abs=0.0015)
