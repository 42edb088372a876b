"""The charts of a report: each takes what was measured and returns an SVG; `sentences` says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.report.accuracy_intervals import Choice, Measure, accuracy_interval
from benchmarks.report.canvas import (
    FONT_PT,
    INK,
    MUTED,
    SERIES,
    SURFACE,
    drawing,
    milliseconds_axis,
    plain_number,
)
from benchmarks.report.legend import draw_legend, legend_height_in, number_points
from benchmarks.report.merging import Entry, Row, SharedTarget
from benchmarks.report.numbers import duration
from benchmarks.results.values import Accuracy, ScaleSeries, Timing

MEASURES: tuple[Measure, ...] = ("U", "S", "H")
MAX_LETTERS = 38
"""So much of a machine's name fits next to a time; tables have all of it."""

LINE_STYLES = {"o": "-", "s": (0, (5, 2)), "^": (0, (2, 1.5)), "D": (0, (6, 2, 1, 2))}


def draw_distributions(name: str, rows: Sequence[Row], limit_ms: float) -> str:
    """Draw how the latencies of each row are distributed up to a limit, with median and percentiles."""
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=0.6 + 0.62 * len(rows))
        axes = canvas.axes
        milliseconds_axis(axes, [*(row.latency.min_ms for row in rows), limit_ms])
        for base, row in enumerate(reversed(rows)):
            _draw_distribution(axes, base, row)
        _rows_only(axes, len(rows))
        axes.set_xlabel("milliseconds")
        return str(canvas.svg(name))


def _draw_distribution(axes: Any, base: int, row: Row) -> None:
    color, histogram = SERIES[row.entry.color], row.latency.histogram
    edges, counts = np.array(histogram.edges_ms), np.array(histogram.counts, dtype=float)
    # Queries per step of the logarithm, which is what an area on a logarithmic axis means.
    heights = 0.5 * counts / counts.max()
    axes.stairs(heights + base, edges, baseline=base, fill=True, color=color, alpha=0.3, linewidth=0)
    axes.stairs(heights + base, edges, baseline=base, color=color, linewidth=1.2)
    median = row.latency.median_ms
    axes.fill_betweenx([base, base + 0.5], median.low, median.high, color=color, alpha=0.5, linewidth=0)
    axes.plot([median.value] * 2, [base, base + 0.5], color=color, linewidth=2)
    for percentile in row.latency.percentiles:
        if percentile.value_ms is not None and percentile.percent in (90.0, 99.0):
            axes.plot(percentile.value_ms, base + 0.07, marker="|", markersize=9, color=color, markeredgewidth=2)
    _name(axes, base + 0.55, row.entry.label)
    value = f"{duration(median.value)} ± {100 * median.relative_half_width:.1f} %"
    _value(axes, base + 0.55, value)


def draw_devices(name: str, shared: Sequence[SharedTarget]) -> str:
    """Draw the median of each target on each device that has measured it, one bar below the other, with intervals."""
    num_lines = sum(0.75 + len(each.rows) for each in shared)
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=0.55 + 0.46 * num_lines)
        axes, height = canvas.axes, num_lines
        medians = [row.latency.median_ms for each in shared for row in each.rows]
        low = min(median.low for median in medians) / 3
        milliseconds_axis(axes, [low, *(median.high for median in medians)])
        for each in shared:
            height -= 0.55
            _name(axes, height + 0.05, each.name, weight="bold")
            for row in each.rows:
                height -= 1
                median, color = row.latency.median_ms, SERIES[row.entry.color]
                axes.barh(height, median.value - low, 0.34, left=low, align="edge", color=color, linewidth=0)
                axes.plot([median.low, median.high], [height + 0.17] * 2, color=INK, linewidth=1.2)
                _name(axes, height + 0.4, _cut(row.entry.device.label))
                _value(axes, height + 0.4, duration(median.value))
            height -= 0.2
        _rows_only(axes, num_lines)
        axes.set_xlabel("milliseconds")
        return str(canvas.svg(name))


def draw_latency_against_accuracy(name: str, choices: Sequence[Choice], front: Sequence[Choice], measure: str) -> str:
    """Draw latency against accuracy, the Pareto front as steps, and a number at every point, named below."""
    entries = [each.entry for each in choices]
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=3.2 + legend_height_in(entries))
        axes = canvas.axes
        milliseconds_axis(axes, [end for each in choices for end in (each.latency_ms.low, each.latency_ms.high)])
        steps = sorted((each.latency_ms.value, 100 * each.accuracy.value) for each in front)
        axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        handles = [_draw_choice(axes, each, is_on_front=each in front) for each in choices]
        lows, highs = [100 * each.accuracy.low for each in choices], [100 * each.accuracy.high for each in choices]
        pad = 0.08 * (max(highs) - min(lows)) or 1
        axes.set_ylim(max(min(lows) - pad, -3), max(highs) + pad)
        number_points(axes, [(each.latency_ms.value, 100 * each.accuracy.value) for each in choices])
        draw_legend(axes, entries, handles, numbered=True)
        axes.grid(axis="y")
        axes.set_xlabel("p50, milliseconds: faster is to the left")
        axes.set_ylabel(f"{measure}, percent")
        return str(canvas.svg(name))


def _draw_choice(axes: Any, each: Choice, *, is_on_front: bool) -> Any:
    color, latency, accuracy = SERIES[each.entry.color], each.latency_ms, each.accuracy
    x, y = latency.value, 100 * accuracy.value
    axes.plot([latency.low, latency.high], [y, y], color=color, linewidth=1.2, alpha=0.6)
    axes.plot([x, x], [100 * accuracy.low, 100 * accuracy.high], color=color, linewidth=1.2, alpha=0.6)
    face = color if is_on_front else SURFACE
    (marker,) = axes.plot(x, y, each.entry.marker, color=color, markerfacecolor=face, markersize=8, markeredgewidth=1.8)
    return marker


def draw_accuracies(name: str, entries: Sequence[Entry]) -> str:
    """Draw U, S and H of each target as bars, those that were measured, with their intervals."""
    bars = [
        (entry, accuracy, [each for each in MEASURES if getattr(accuracy, each) is not None])
        for entry in entries
        if (accuracy := entry.target.accuracy) is not None
    ]
    num_lines = sum(1.35 + len(measures) for _, _, measures in bars)
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=0.5 + 0.235 * num_lines)
        axes, height = canvas.axes, num_lines
        for entry, accuracy, measures in bars:
            height -= 1
            _name(axes, height + 0.06, entry.label)
            for measure in measures:
                height -= 1
                _draw_accuracy(axes, height, accuracy, measure, color=SERIES[entry.color])
            height -= 0.35
        _rows_only(axes, num_lines)
        axes.set_xlim(0, 112)  # so that the figures have room after the longest bars
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="x")
        axes.set_xlabel("percent")
        return str(canvas.svg(name))


def _draw_accuracy(axes: Any, base: float, accuracy: Accuracy, measure: Measure, *, color: str) -> None:
    value, middle = 100 * getattr(accuracy, measure), base + 0.45
    interval = accuracy_interval(accuracy, measure)
    end = value if interval is None else 100 * interval.high
    alpha = 1 if measure == "H" else 0.45
    axes.barh(base + 0.05, value, 0.8, align="edge", color=color, alpha=alpha, linewidth=0)
    if interval is not None:
        axes.plot([100 * interval.low, end], [middle] * 2, color=INK, linewidth=1.2)
    at_left = {"ha": "right", "va": "center_baseline", "color": MUTED, "transform": axes.get_yaxis_transform()}
    axes.text(-0.015, middle, measure, **at_left)
    axes.text(end + 1.5, middle, f"{value:.1f}", va="center_baseline", color=INK)


def draw_trade_off(name: str, entries: Sequence[Entry]) -> str:
    """Draw S against U of each target that has new classes, the point as measured, and what each budget allows."""
    measured = [(entry, each) for entry in entries if (each := entry.target.accuracy) is not None and each.curve]
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=3.2 + legend_height_in([entry for entry, _ in measured]))
        axes, handles = canvas.axes, []
        for entry, accuracy in measured:
            color = SERIES[entry.color]
            u, s = [100 * step.U for step in accuracy.curve], [100 * step.S for step in accuracy.curve]
            axes.plot(u, s, color=color, linewidth=1.8, linestyle=LINE_STYLES[entry.marker], drawstyle="steps-pre")
            for gain in accuracy.budgets:
                axes.plot(100 * gain.U, 100 * gain.S, "o", color=color, markersize=4.5, markerfacecolor=SURFACE)
            point = {"color": color, "markersize": 9, "markeredgewidth": 1.8, "zorder": 5}
            handles += axes.plot(100 * (accuracy.U or 0.0), 100 * (accuracy.S or 0.0), entry.marker, **point)
        before = max(each.S_original or each.curve[0].S for _, each in measured)
        axes.axhline(100 * before, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlim(0, max(1.06 * 100 * max(each.curve[-1].U for _, each in measured), 1))
        axes.set_ylim(0, 1.08 * 100 * before + 1)
        axes.grid(axis="both")
        axes.set_xlabel("U, percent: what the new classes give")
        axes.set_ylabel("S, percent: what the old ones keep")
        draw_legend(axes, [entry for entry, _ in measured], handles, numbered=False)
        return str(canvas.svg(name))


def draw_throughput(name: str, entries: Sequence[Entry]) -> str:
    """Draw images per second against the batch size, the names below, from the fastest on."""
    entries = sorted(entries, key=lambda entry: -list(entry.rows)[-1].images_per_s)
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=2.8 + legend_height_in(entries))
        axes, handles, sizes = canvas.axes, [], set()
        axes.set_xscale("log", base=2)
        for entry in entries:
            batches = [row.batch_size for row in entry.rows]
            speeds = [row.images_per_s for row in entry.rows]
            style = {"linestyle": LINE_STYLES[entry.marker], "color": SERIES[entry.color], "linewidth": 1.6}
            handles += axes.plot(batches, speeds, entry.marker, markersize=6, **style)
            sizes |= set(batches)
        axes.set_xticks(sorted(sizes), [str(each) for each in sorted(sizes)])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(plain_number)
        axes.set_ylim(0, 1.08 * max(row.images_per_s for entry in entries for row in entry.rows))
        axes.grid(axis="y")
        draw_legend(axes, entries, handles, numbered=False)
        axes.set_xlabel("images in a query")
        axes.set_ylabel("images per second")
        return str(canvas.svg(name))


def draw_scale(name: str, series: Sequence[ScaleSeries]) -> str:
    """Draw the latency of heads against their number of classes, with the roofline of the memory."""
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=3.4)
        axes = canvas.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        for each in series:
            color = SERIES[{"original": 0, "fused": 1, "updatable": 2}.get(each.head_kind, 3)]
            classes = [point.num_classes for point in each.points]
            latencies = [point.latency_ms.value for point in each.points]
            low, high = ([getattr(point.latency_ms, end) for point in each.points] for end in ("low", "high"))
            axes.fill_between(classes, low, high, color=color, alpha=0.25, linewidth=0)
            axes.plot(classes, latencies, "o-", color=color, markersize=5, linewidth=1.8, label=_series_label(each))
            axes.plot(classes, [point.roofline_ms for point in each.points], color=color, linewidth=1.2,
                      linestyle=(0, (2, 2)), label=f"{_series_label(each)}, roofline")  # fmt: skip
        ticks = sorted({point.num_classes for each in series for point in each.points})
        axes.set_xticks(ticks, [f"{tick // 1000:,}k" if tick >= 1000 else str(tick) for tick in ticks])
        axes.yaxis.set_major_formatter(plain_number)
        axes.minorticks_off()
        axes.grid(axis="both")
        axes.legend(frameon=False, loc="upper left", labelcolor=INK, handlelength=2.4)
        axes.set_xlabel("classes")
        axes.set_ylabel("head alone, milliseconds")
        return str(canvas.svg(name))


def _series_label(series: ScaleSeries) -> str:
    return f"{series.head_kind}, batch {series.batch_size}"


def draw_times(name: str, times: Mapping[str, tuple[Timing, int]]) -> str:
    """Draw how long ways to do one thing take: median as a bar, p99 as a tick.

    Args:
        name: Of the chart.
        times: Time and colour, by way.
    """
    with drawing() as canvas_of:
        canvas = canvas_of(height_in=0.55 + 0.48 * len(times))
        axes = canvas.axes
        ends = [end for timing, _ in times.values() for end in (timing.median_ms, timing.p99.value_ms) if end]
        low = min(ends) / 3
        milliseconds_axis(axes, [low, *ends])
        for base, (way, (timing, color)) in enumerate(reversed(list(times.items()))):
            axes.barh(base, timing.median_ms - low, 0.34, left=low, align="edge", color=SERIES[color], linewidth=0)
            if timing.p99.value_ms is not None:
                axes.plot(
                    [timing.median_ms, timing.p99.value_ms], [base + 0.17] * 2, color=SERIES[color], linewidth=1.4
                )
                axes.plot(timing.p99.value_ms, base + 0.17, "|", color=SERIES[color], markersize=10, markeredgewidth=2)
            _name(axes, base + 0.4, way)
            _value(axes, base + 0.4, duration(timing.median_ms))
        _rows_only(axes, len(times))
        axes.set_xlabel("milliseconds")
        return str(canvas.svg(name))


def _rows_only(axes: Any, num_rows: float) -> None:
    axes.set_yticks([])
    axes.set_ylim(-0.08, num_rows)


def _name(axes: Any, height: float, name: str, *, weight: str = "normal") -> None:
    place = {"ha": "left", "va": "bottom", "transform": axes.get_yaxis_transform()}
    axes.text(0, height, name, color=INK, fontsize=FONT_PT, fontweight=weight, **place)


def _cut(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def _value(axes: Any, height: float, value: str) -> None:
    ground = {"facecolor": SURFACE, "edgecolor": "none", "pad": 1}
    axes.text(1, height, value, ha="right", va="bottom", color=MUTED, bbox=ground, transform=axes.get_yaxis_transform())
