"""The key below a chart: points that coincide share a label, and long names get the whole width."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.report.accuracy_intervals import choices_of, pareto_front
from benchmarks.report.charts import draw_latency_against_accuracy
from benchmarks.report.legend import NEAR_PT, groups_of_near, legend_height_in, num_columns
from benchmarks.report.merging import merge

PIXELS = 100 / 72
ACROSS, UP = (PIXELS * near for near in NEAR_PT)


@pytest.mark.parametrize(
    ("points", "groups"),
    [
        ([(0, 0)], [[0]]),
        ([(0, 0), (0.9 * ACROSS, 0.9 * UP)], [[0, 1]]),
        ([(0, 0), (1.1 * ACROSS, 0)], [[0], [1]]),
        ([(0, 0), (0, 1.1 * UP)], [[0], [1]]),
        ([(0, 0), (1.5 * ACROSS, 0), (0.75 * ACROSS, 0)], [[0, 1, 2]]),  # the last one joins the two before
        ([(0, 0), (9 * ACROSS, 0), (1, 1), (9 * ACROSS, 2)], [[0, 2], [1, 3]]),
    ],
)
def test_points_that_are_near_or_joined_by_others_are_a_group(points, groups):
    assert sorted(groups_of_near(np.array(points))) == groups


def test_names_stand_in_two_columns_unless_one_is_long(full):
    _, entries = merge([full])
    long = replace(entries[0], label="a-name-that-is-longer-than-half-a-phone")

    assert (num_columns(entries), num_columns([*entries, long])) == (2, 1)
    assert legend_height_in([*entries, long]) > legend_height_in(entries)


def test_points_in_one_place_share_a_label_and_all_are_named_below(full):
    _, entries = merge([full])
    choices = choices_of([next(entry.rows) for entry in entries], "S")
    apart = draw_latency_against_accuracy("apart", choices, pareto_front(choices), "S")
    same = [replace(each, latency_ms=choices[0].latency_ms, accuracy=choices[0].accuracy) for each in choices[:2]]
    together = draw_latency_against_accuracy("same", [*same, choices[2]], pareto_front(same), "S")

    assert ">1, 2</text>" in together
    assert ">1, 2</text>" not in apart
    for each in (apart, together):
        assert all(f">{index}  {choice.entry.label}</text>" in each for index, choice in enumerate(choices, 1))
