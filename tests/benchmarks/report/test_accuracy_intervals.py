"""Intervals over classes: as wide as the number of classes allows, and paired where two targets are compared."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.report.accuracy_intervals import accuracy_difference, accuracy_interval
from tests.benchmarks.report.conftest import accuracy


@pytest.mark.parametrize("measure", ["U", "S"])
def test_an_interval_is_that_of_the_mean_over_classes(measure):
    found = accuracy_interval(accuracy(U=0.3, S=0.3, num_seen=400, num_unseen=400), measure)
    half_width = 2.576 * np.sqrt(0.3 * 0.7 / 400)

    assert found.value == 0.3
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.1)


def test_more_classes_make_it_narrower():
    few, many = (accuracy_interval(accuracy(U=0.3, S=0.8, num_unseen=n), "U") for n in (20, 500))

    assert many.high - many.low < (few.high - few.low) / 3


def test_the_interval_of_h_lies_around_h():
    found = accuracy_interval(accuracy(U=0.3, S=0.8), "H")

    assert found.value == pytest.approx(2 * 0.3 * 0.8 / 1.1)
    assert found.low < found.value < found.high


def test_a_difference_of_equal_targets_is_exactly_nothing():
    ours = accuracy(U=0.3, S=0.8)

    found = accuracy_difference(ours, ours, "H")
    assert (found.low, found.value, found.high) == (0, 0, 0)


def test_pairing_sees_a_difference_that_the_two_intervals_hide():
    worse = accuracy(U=0.5, S=0.70, num_seen=200)
    missed = [each.name for each in worse.classes if each.is_seen and not each.accuracy]
    won = set(missed[:20])  # whatever the worse one recognises, the better one does as well
    classes = tuple(replace(each, accuracy=1.0) if each.name in won else each for each in worse.classes)
    better = replace(worse, S=0.80, classes=classes)

    assert accuracy_interval(worse, "S").high > accuracy_interval(better, "S").low
    found = accuracy_difference(better, worse, "S")
    assert found.value == pytest.approx(0.1)
    assert found.low > 0.04


@pytest.mark.parametrize("measure", ["U", "H"])
def test_too_few_classes_give_no_interval(measure):
    assert accuracy_interval(accuracy(U=0.5, S=0.8, num_unseen=7), measure) is None


def test_other_classes_give_no_difference():
    assert accuracy_difference(accuracy(U=0.5, S=0.8), accuracy(U=0.5, S=0.8, num_unseen=49), "S") is None


def test_what_was_not_measured_has_no_interval():
    assert accuracy_interval(replace(accuracy(U=0.5, S=0.8), U=None), "U") is None
