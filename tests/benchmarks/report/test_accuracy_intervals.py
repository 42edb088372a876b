"""Intervals over classes: as wide as the number of classes allows, and paired where two targets are compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from benchmarks.report.accuracy_intervals import (
    Choice,
    accuracy_difference,
    accuracy_interval,
    choices_of,
    pareto_front,
)
from benchmarks.report.merging import merge
from benchmarks.timing.percentiles import Interval
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


def choice(latency_ms, accuracy):
    def exactly(value):
        return Interval(value=value, low=value, high=value)

    return Choice(entry=None, latency_ms=exactly(latency_ms), accuracy=exactly(accuracy))


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 0.5)], [0]),
        ([(1, 0.5), (2, 0.6)], [0, 1]),
        ([(1, 0.6), (2, 0.5)], [0]),
        ([(1, 0.5), (2, 0.5)], [0]),
        ([(1, 0.5), (1, 0.5)], [0, 1]),
        ([(1, 0.5), (1, 0.6), (3, 0.6)], [1]),
        ([(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.9), (5, 0.9)], [0, 1, 3]),
    ],
)
def test_the_front_is_what_no_other_beats(points, front):
    choices = [choice(*point) for point in points]

    assert pareto_front(choices) == [choices[index] for index in front]


def test_along_the_front_what_is_slower_is_more_accurate():
    points = sorted((7 * index % 31, 11 * index % 37 / 37) for index in range(1, 30))
    front = pareto_front([choice(*point) for point in points])

    assert len(front) > 2
    for faster, slower in combinations(front, 2):
        assert faster.latency_ms.value < slower.latency_ms.value
        assert faster.accuracy.value < slower.accuracy.value


def test_only_what_was_measured_is_a_choice(full):
    _, entries = merge([full])
    rows = [next(entry.rows) for entry in entries]

    assert {each.entry.label for each in choices_of(rows, "H")} == {"fused", "updatable"}
    assert {each.entry.label for each in choices_of(rows, "S")} == {"original", "fused", "updatable"}
    assert choices_of(rows[:1], "U") == []
