"""Draw what seen classes keep against what new ones give, and where a bundle stands."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from icis_deploy.common.files import write_file
from icis_deploy.common.terminal_text import points_text
from icis_deploy.errors import ImageError, MissingDependencyError
from icis_deploy.metrics.accuracy import AccuracyReport
from icis_deploy.metrics.seen_loss import points_lost

INK, FAINT, CURVE, OWN = "#1e2026", "#6c707a", "#2f5d9b", "#b3401f"


def save_curve_plot(path: Path, report: AccuracyReport) -> None:
    """Draw S against U, with the point as exported and those at losses of 1, 2, 5 and 10 points, and write a PNG.

    Args:
        path: The file; its folder exists.
        report: With images of seen and unseen classes.

    Raises:
        ImageError: If there are none of one side, so that there is no curve.
        MissingDependencyError: If matplotlib is not installed.
        StorageError: If the file cannot be written; what was there before is still there.
    """
    if not report.curve or report.U is None or report.S is None:
        raise ImageError(
            f"There is no curve: {report.num_seen_images} images are of seen and {report.num_unseen_images} of unseen "
            f"classes.",
            found=(report.num_seen_images, report.num_unseen_images),
            expected="at least 1 of each",
            hint="Give images of both.",
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The curve is drawn with matplotlib, which is not installed.",
            hint="Install it: pip install 'icis-deploy[bench]'.",
        ) from error

    figure = Figure(figsize=(7, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    u, s = [100 * point.U for point in report.curve], [100 * point.S for point in report.curve]
    axes.fill_between(u, s, color=CURVE, alpha=0.08, linewidth=0, step="pre")
    axes.plot(u, s, color=CURVE, linewidth=2, drawstyle="steps-pre")
    before = report.curve[0].S if report.S_original is None else report.S_original
    axes.axhline(100 * before, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    right = max(100 * report.curve[-1].U * 1.06, 1.0)
    # On the side where the point as exported is not: its interval would cross the text.
    at, side = (0.995, "right") if 200 * (report.U or 0.0) < right else (0.005, "left")
    axes.text(at, 100 * before + 1, f"before the new classes: S {100 * before:.1f}", color=FAINT, ha=side,
              va="bottom", transform=axes.get_yaxis_transform(), fontsize=9)  # fmt: skip
    for point in report.budget_points:
        axes.plot(100 * point.U, 100 * point.S, "o", color=CURVE, markersize=6, markerfacecolor="white",
                  markeredgewidth=1.6)  # fmt: skip
    _draw_interval(axes, report)
    axes.plot(100 * report.U, 100 * report.S, "D", color=OWN, markersize=9, zorder=5)
    _draw_table(axes, report, before)
    axes.set_xlim(0, right)
    axes.set_ylim(0, min(112.0, 100 * before * 1.16 + 2))
    axes.set_xlabel(f"U: images of the {_num_classes(report, is_seen=False)} new classes that are right, %", color=INK)
    axes.set_ylabel(f"S: images of the {_num_classes(report, is_seen=True)} old classes that are right, %", color=INK)
    area = "" if report.AUSUC is None else f" (area {100 * report.AUSUC:.1f} %)"
    axes.set_title(f"What the old classes keep, and what the new ones give{area}", loc="left", color=INK, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())


def _draw_interval(axes: Any, report: AccuracyReport) -> None:
    """Draw the 95 % intervals of the point as exported, where there are any."""
    if report.U is None or report.S is None:
        return
    style = {"color": OWN, "linewidth": 1.4, "alpha": 0.8, "zorder": 4}
    if "U" in report.intervals:
        interval = report.intervals["U"]
        axes.plot([100 * interval.low, 100 * interval.high], [100 * report.S] * 2, **style)
    if "S" in report.intervals:
        interval = report.intervals["S"]
        axes.plot([100 * report.U] * 2, [100 * interval.low, 100 * interval.high], **style)


def _draw_table(axes: Any, report: AccuracyReport, before: float) -> None:
    """Write below the curve's left end what the points are; next to them names would lie on each other."""
    assert report.S is not None
    assert report.U is not None
    rows = [
        (f"{points_text(point.max_seen_loss)} lost", f"U {100 * point.U:.1f}", CURVE) for point in report.budget_points
    ]
    rows.append((f"as exported: {points_lost(before, report.S)} lost", f"U {100 * report.U:.1f}", OWN))
    for line, (what, gained, color) in enumerate(reversed(rows)):
        height = 0.05 + 0.065 * line
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 1}
        axes.text(0.03, height, what, transform=axes.transAxes, color=color, fontsize=9.5, bbox=ground)
        axes.text(0.40, height, gained, transform=axes.transAxes, color=color, fontsize=9.5, ha="right", bbox=ground)
    if {"U", "S"} & set(report.intervals):
        axes.text(0.42, 0.05, "bars: 95 % intervals", transform=axes.transAxes, color=FAINT, fontsize=8.5)


def _num_classes(report: AccuracyReport, *, is_seen: bool) -> int:
    return sum(
        1
        for accuracy, seen in zip(report.class_accuracy, report.class_is_seen, strict=True)
        if accuracy is not None and seen == is_seen
    )
