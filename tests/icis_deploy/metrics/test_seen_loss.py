"""What new classes cost, with which certainty, and who loses and takes."""

import json

import numpy as np
import pytest

from icis_deploy.metrics.accuracy import accuracy_report
from icis_deploy.metrics.proportions import clopper_pearson
from icis_deploy.metrics.seen_loss import LosingClass, TakingClass, points_text, stated_budget

NAMES = ("ant", "bee", "okapi", "zebra")


def report_of(labels, predictions, *, was_right, max_seen_loss=None):
    """Two seen and two new classes: what wins, and whether the right seen class came second where it does not."""
    logits = np.zeros((len(labels), 4))
    for row, label, prediction, right in zip(logits, labels, predictions, was_right, strict=True):
        if label < 2:
            row[label if right else 1 - label] = 1
        row[prediction] = 2
    return accuracy_report(
        logits, labels, seen=2, original_logits=logits[:, :2], class_names=NAMES, max_seen_loss=max_seen_loss
    )


def test_an_image_is_lost_if_a_new_class_takes_it_from_the_right_one():
    loss = report_of([0, 0, 0, 1, 1, 1], [2, 0, 2, 3, 3, 1], was_right=[1, 1, 0, 1, 1, 1]).seen_loss

    assert loss.num_lost == 3  # the third was wrong before
    assert loss.before == pytest.approx((2 / 3 + 1) / 2)
    assert loss.after == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert loss.losing == (
        LosingClass(name="bee", num_images=3, num_lost=2, taken_by=(TakingClass(name="zebra", num_taken=2),)),
        LosingClass(name="ant", num_images=3, num_lost=1, taken_by=(TakingClass(name="okapi", num_taken=1),)),
    )
    assert [each.name for each in loss.taking] == ["zebra", "okapi"]


def test_the_interval_is_that_of_clopper_and_pearson_where_classes_have_as_many_images():
    loss = report_of([0] * 50 + [1] * 50, [2] * 7 + [0] * 43 + [1] * 50, was_right=[1] * 100).seen_loss

    assert loss.interval.low == pytest.approx(clopper_pearson(7, 100).low)
    assert loss.interval.high == pytest.approx(clopper_pearson(7, 100).high)


@pytest.mark.parametrize(
    ("num_lost", "budget", "verdict"),
    [(20, 0.02, "over"), (3, 0.02, "cannot tell"), (0, 0.05, "within"), (20, None, None)],
)
def test_a_budget_is_exceeded_if_the_whole_interval_says_so(num_lost, budget, verdict):
    labels = [0] * 50 + [1] * 50
    answers = [2] * num_lost + labels[num_lost:]
    loss = report_of(labels, answers, was_right=[1] * 100, max_seen_loss=budget).seen_loss

    assert loss.verdict == verdict
    assert (loss.failure is not None) == (verdict == "over")
    assert json.loads(json.dumps(loss.to_json(), allow_nan=False))["verdict"] == verdict


def test_a_failure_says_how_much_and_names_the_classes():
    labels = [0] * 50 + [1] * 50
    loss = report_of(labels, [2] * 20 + labels[20:], was_right=[1] * 100, max_seen_loss=0.02).seen_loss

    assert loss.failure == (
        "new classes cost 20.0 points of seen accuracy, 100.0 -> 80.0 % on 100 images (95 % interval 12.7 to 29.2), "
        "over the budget of 2 points; most is lost by 'ant' (20 of 50 images, to 'okapi'); most is taken by "
        "'okapi' (20)"
    )


def test_without_images_of_known_classes_there_is_no_loss_to_measure():
    assert report_of([2, 3], [2, 3], was_right=[0, 0]).seen_loss is None


def update(budget, **changes):
    return {"added": ["okapi"], "replaced": [], "provenance": {"budget": budget}, **changes}


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([], None),
        ([update({"max_seen_loss": 0.02})], 0.02),
        ([update({"max_seen_loss": 0.02}), update({"max_seen_loss": 0.01}, added=["zebra"])], 0.03),
        ([update({"max_seen_loss": 0.02}), update(None)], None),
        (
            [update({"max_seen_loss": 0.02}), {"added": [], "replaced": [], "removed": ["okapi"], "provenance": {}}],
            0.02,
        ),
        ([update({"max_seen_loss": "2"})], None),
        ([update({"max_seen_loss": True})], None),
        ([update({"max_seen_loss": -1})], None),
        ([update({"max_seen_loss": float("nan")})], None),
        ([update("2 points")], None),
        ([{"added": ["okapi"]}], None),
    ],
)
def test_a_stated_budget_is_read_whatever_stands_there(updates, expected):
    assert stated_budget(updates) == (expected if expected is None else pytest.approx(expected))


def test_points_are_written_as_people_do():
    assert [points_text(each) for each in (0.02, 0.01, 0.005)] == ["2 points", "1 point", "0.5 points"]
