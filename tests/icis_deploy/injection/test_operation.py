"""Budgets of seen accuracy in a whole injection: with images of seen classes, with few, and without any."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.zero_shot.budget_quality import measure_budget
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.head.head import Head
from icis_deploy.injection.arbiter.seen_images import SeenImages, seen_images
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions
from tests.icis_deploy.injection.arbiter.worlds import World, made_up_world

RIDGE = InjectionOptions(method="ridge", max_seen_loss=0.05)


def parts_of(world: World, *, num_new: int = 20, seed: int = 0) -> tuple[Head, Descriptors]:
    """Return a world's head, and the descriptors of all its classes."""
    rows = world.head.rows
    random = np.random.default_rng(seed)
    num_classes = len(rows) + num_new
    descriptors = random.normal(size=(num_classes, 24)).astype(np.float32)  # as the world draws them first
    np.testing.assert_array_equal(descriptors[: len(rows)], world.head.descriptors)
    names = tuple(f"class{index}" for index in range(num_classes))
    return Head(rows=rows, class_names=names[: len(rows)]), Descriptors(values=descriptors, class_names=names)


def injected(world: World, images: SeenImages | None, *, options: InjectionOptions = RIDGE) -> Injection:
    head, described = parts_of(world)
    return inject(head, described, options=options, images=images)


def measured(world: World, injection: Injection) -> tuple[float, float]:
    """Return U and the loss of seen accuracy on images that nothing was chosen with."""
    head, _ = parts_of(world)
    found = measure_budget(head, injection, world.test_features, world.test_labels)
    return found.U, found.lost


def test_images_keep_the_budget_and_an_arbiter_gives_new_classes_more():
    found, num_arbiters = [], 0
    for seed in range(3):
        world = made_up_world(seed=seed)
        head, described = parts_of(world, seed=seed)
        for arbiter in ("auto", "off"):
            injection = inject(head, described, options=replace(RIDGE, arbiter=arbiter), images=world.images)
            # Where the held-out classes of a world leave the two equal, a constant offset is kept: how sums are
            # rounded, which is another way on each processor, decides that.
            num_arbiters += injection.arbiter is not None
            assert injection.arbiter is None or arbiter == "auto"
            measure = measure_budget(head, injection, world.test_features, world.test_labels)
            found.append((measure.U, measure.lost, injection.estimate.U.value))
    with_arbiter, without = np.array(found[::2]).mean(axis=0), np.array(found[1::2]).mean(axis=0)
    assert num_arbiters >= 2
    assert with_arbiter[0] > without[0]
    assert with_arbiter[1] < 0.06
    assert without[1] < 0.06
    assert abs(with_arbiter[0] - with_arbiter[2]) < 0.08


def test_an_update_says_what_was_promised_on_what_ground_and_what_else_could_be_had():
    world = made_up_world()
    injection = injected(world, world.images)
    provenance = json.loads(json.dumps(injection.provenance))
    assert provenance["budget"]["max_seen_loss"] == 0.05
    assert provenance["budget"]["ground"] == "images"
    assert provenance["budget"]["expected_loss"]["low"] < 0.05 < provenance["budget"]["expected_loss"]["high"]
    assert [point["loss"] for point in provenance["curve"]] == [0.01, 0.02, 0.05, 0.1]
    assert all(point["U"] <= point["U_top5"] for point in provenance["curve"])
    assert provenance["arbiter"]["is_used"]
    assert provenance["selection"]["num_images"] == 600
    assert injection.row_arbiter.shape == (20, 5)
    assert injection.estimate.S.value <= world.images.accuracy


def test_the_injector_makes_the_rows_that_the_images_set():
    world = made_up_world()
    injection = injected(world, world.images)
    _, described = parts_of(world)
    np.testing.assert_allclose(injection.injector.rows(described.values[100:]), injection.rows, rtol=1e-5, atol=1e-5)


def test_without_images_a_budget_is_kept_on_average_and_predicted_accuracy_is_never_more_than_today():
    for seed in range(3):
        world = made_up_world(seed=seed)
        head, described = parts_of(world, seed=seed)
        neutral = world.test_features[:: len(world.test_features) // 100]
        options = replace(RIDGE, seen_accuracy=world.images.accuracy)
        injection = inject(head, described, options=options, neutral_features=neutral)
        assert injection.promise.ground == "assumptions"
        assert injection.estimate.S.value <= world.images.accuracy
        assert injection.estimate.S.high <= world.images.accuracy
        assert [point.loss for point in injection.curve] == [0.01, 0.02, 0.05, 0.1]
        assert injection.curve[0].U <= injection.curve[-1].U


def test_a_small_head_without_images_takes_the_safest_point_and_names_the_cure():
    world = made_up_world(num_seen=40)
    injection = injected(world, None)
    assert injection.promise.ground == "none"
    [warning] = [message for message in injection.warnings if "no loss of seen accuracy can be promised" in message]
    assert "`seen_images`" in warning
    assert measured(world, injection)[1] <= 0.05


def test_few_images_set_the_offset_and_leave_the_choice_to_drawn_features():
    world = made_up_world()
    chosen = world.images.labels < 8
    few = seen_images(world.images.features[chosen], world.head.rows, world.images.labels[chosen])
    injection = injected(world, few)
    assert injection.provenance["selection"]["num_images"] == 0
    assert injection.promise.details["num_classes"] == 8
    assert any("92 of 100 seen classes have no image" in message for message in injection.warnings)


def test_one_class_without_an_image_is_named():
    world = made_up_world()
    chosen = world.images.labels != 7
    images = seen_images(world.images.features[chosen], world.head.rows, world.images.labels[chosen])
    assert any(
        message.startswith("1 of 100 seen classes have no image, such as 'class7'")
        for message in injected(world, images).warnings
    )


def test_a_budget_that_the_images_cannot_set_says_what_they_can_and_which_accuracy_is_left():
    world = made_up_world()
    with pytest.raises(
        IncompatibleError,
        match=r"600 images .* cannot set .* 0\.1 points of accuracy; it takes 999\. At a loss of 1 point, U",
    ):
        injected(world, world.images, options=replace(RIDGE, max_seen_loss=0.001))


def test_images_that_the_network_was_trained_on_are_suspected():
    world = made_up_world()
    right = world.images.is_right
    images = seen_images(world.images.features[right], world.head.rows, world.images.labels[right])
    assert any("look like images that it was trained on" in message for message in injected(world, images).warnings)
    stated = replace(RIDGE, seen_accuracy=0.5)
    assert any("stated accuracy is 50.0 %" in message for message in injected(world, images, options=stated).warnings)
    assert not any("trained on" in message for message in injected(world, world.images).warnings)


def test_labels_that_the_model_hardly_ever_agrees_with_are_suspected():
    world = made_up_world()
    labels = world.images.labels.copy()
    labels[60:] = (labels[60:] + 1) % len(world.head.rows)
    images = seen_images(world.images.features, world.head.rows, labels)
    warned = [message for message in injected(world, images).warnings if "is right on only" in message]
    assert len(warned) == 1
    assert f"of {world.images.num_images} images" in warned[0]
    assert "labels" in warned[0]
    assert not any("is right on only" in message for message in injected(world, world.images).warnings)


def test_unlabelled_images_promise_changed_answers():
    world = made_up_world()
    unlabelled = seen_images(world.images.features, world.head.rows, None)
    injection = injected(world, unlabelled)
    assert injection.promise.ground == "unlabelled images"
    assert "every change of an answer counts as a loss" in injection.promise.message
    assert measured(world, injection)[1] < 0.06


def test_a_balance_is_chosen_on_images_too_and_promises_nothing():
    world = made_up_world()
    injection = injected(world, world.images, options=InjectionOptions(method="ridge", balance=0.5))
    assert injection.promise is None
    assert injection.arbiter is None
    assert injection.provenance["budget"] is None
    U, lost = measured(world, injection)
    assert measured(world, injected(world, world.images))[0] - 0.02 < U
    assert lost > 0.0


def test_hardly_any_seen_classes_still_get_an_offset_by_images():
    world = made_up_world(num_seen=5, num_new=2, per_class=40)
    head, described = parts_of(world, num_new=2)
    injection = inject(head, described, options=InjectionOptions(max_seen_loss=0.05), images=world.images)
    assert injection.estimate is None
    assert injection.promise.ground == "images"
    assert measure_budget(head, injection, world.test_features, world.test_labels).lost < 0.12


@pytest.mark.parametrize("calibration", ["length", "none"])
def test_images_that_would_do_nothing_are_refused(calibration: str):
    world = made_up_world()
    with pytest.raises(UsageError, match="would do nothing: calibration"):
        injected(world, world.images, options=InjectionOptions(method="ridge", calibration=calibration))


def test_a_budget_and_a_balance_exclude_each_other():
    assert InjectionOptions().max_seen_loss == 0.02
    assert InjectionOptions(balance=0.5).max_seen_loss is None
    with pytest.raises(UsageError, match=r"loss of seen accuracy is 0\.02 and the balance 0\.5; expected one of them"):
        InjectionOptions(max_seen_loss=0.02, balance=0.5)
    with pytest.raises(UsageError, match=r"is 2; expected a fraction between 0 and 1, such as 0\.02 for 2"):
        InjectionOptions(max_seen_loss=2)
    with pytest.raises(UsageError, match="no arbiter 'on'; choose among auto, off"):
        InjectionOptions(arbiter="on")
