"""The Pareto front: exactly those that no other one beats."""

from itertools import combinations

import pytest

from benchmarks.report.merging import merge
from benchmarks.report.pareto import Choice, choices_of, pareto_front
from benchmarks.timing.percentiles import Interval


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

    assert pareto_front(choices) == [choices[place] for place in front]


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
