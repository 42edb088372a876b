"""The legend below a chart: what its markers stand for, over its whole width, and numbers that refer points to it.

Names next to the points would take half of the width on a phone, and overlap where points do, as they often do: heads
of one model differ by a hundredth of its latency. A number is short, and points that coincide share a label.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.report.canvas import FONT_PT, INK, SURFACE
from benchmarks.report.merging import Entry

LINE_IN = 0.235
"""Height of a line of the legend, inches."""

MAX_NAME_IN_COLUMN = 21
"""Length of a name, in characters, for which two columns have room."""

NEAR_PT = (30.0, 13.0)
"""Points closer than this, `(horizontal, vertical)` in points of 1/72 inch, share one label."""


def legend_height_in(entries: Sequence[Entry]) -> float:
    """Return how much higher a chart has to be for its legend, inches."""
    return 0.1 + LINE_IN * -(-len(entries) // num_columns(entries))


def num_columns(entries: Sequence[Entry]) -> int:
    """Return the number of columns of names: two where the longest is short enough."""
    return 2 if max(len(entry.label) for entry in entries) <= MAX_NAME_IN_COLUMN else 1


def draw_legend(axes: Any, entries: Sequence[Entry], handles: Sequence[Any], *, numbered: bool) -> None:
    """Write below a chart what its markers stand for.

    Args:
        axes: Of a figure that is `legend_height_in` higher than it would be without.
        entries: In the order in which they are listed.
        handles: What was drawn of each.
        numbered: Whether the names are numbered from 1 on.
    """
    names = [f"{number}  {entry.label}" if numbered else entry.label for number, entry in enumerate(entries, 1)]
    axes.figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=num_columns(entries),
        frameon=False,
        labelcolor=INK,
        fontsize=FONT_PT,
        handlelength=0.8 if numbered else 2.6,
        handletextpad=0.6,
        borderpad=0.2,
        borderaxespad=0.0,  # the layout reserves no room for it
        labelspacing=0.35,
    )


def number_points(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Write numbers from 1 on next to points, one label for those that coincide.

    Args:
        axes: Whose limits are set.
        points: `(num_points, 2)`, across and up.
    """
    for group in groups_of_near(axes.transData.transform(points)):
        last = max(group, key=lambda index: points[index][0])
        height = sum(points[index][1] for index in group) / len(group)
        axes.annotate(
            ", ".join(str(index + 1) for index in group),
            xy=(points[last][0], height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=FONT_PT,
            bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )


def groups_of_near(points: Any) -> list[list[int]]:
    """Return the indices of points in groups: each is near to another one of its group, and to none of another group.

    Args:
        points: `(num_points, 2)`, in pixels of matplotlib's 100 an inch.
    """
    points_per_pixel = 72 / 100
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(points):
        near = [
            group
            for group in groups
            if any(
                abs(points[other][0] - x) * points_per_pixel < NEAR_PT[0]
                and abs(points[other][1] - y) * points_per_pixel < NEAR_PT[1]
                for other in group
            )
        ]
        groups = [group for group in groups if group not in near] + [[*itertools.chain(*near), index]]
    return [sorted(group) for group in groups]
