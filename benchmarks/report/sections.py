"""The content of the page, in order: every chart with its words, and the machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.report.accuracy_intervals import choices_of, pareto_front
from benchmarks.report.charts import (
    draw_accuracies,
    draw_devices,
    draw_distributions,
    draw_latency_against_accuracy,
    draw_scale,
    draw_throughput,
    draw_times,
    draw_trade_off,
)
from benchmarks.report.merging import Device, Entry, Row, shared_targets
from benchmarks.report.sentences import (
    images,
    say_accuracies,
    say_added_classes,
    say_cut_off,
    say_devices,
    say_distributions,
    say_front,
    say_scale,
    say_throughput,
    say_trade_off,
    say_update,
)
from benchmarks.results.result import Result
from benchmarks.results.values import CLASS_UPDATE

UPDATABLE_COLOR, OTHER_COLOR = 2, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart and what it says."""

    name: str
    """Unique on the page; ids begin with it."""

    title: str
    """Heading of the chart."""

    svg: str
    """An `<svg>` element."""

    words: str
    """Caption: sentences computed from the same values as the chart."""


def charts_of(devices: Sequence[Device], entries: Sequence[Entry]) -> Iterator[Chart]:
    """Yield every chart that the results allow: devices side by side if there are several, then device by device."""
    yield from _devices(entries)
    for index, device in enumerate(devices):
        where = f", {device.label}" if len(devices) > 1 else ""
        for number, result in enumerate(device.results):
            own = [entry for entry in entries if entry.device is device and entry.result is result]
            for each in _charts_of_result(f"d{index}r{number}", result, own):
                yield replace(each, title=each.title + where)


def _devices(entries: Sequence[Entry]) -> Iterator[Chart]:
    shared = shared_targets(entries)
    if shared:
        smallest = min(each.batch_size for each in shared)
        shared = [each for each in shared if each.batch_size == smallest]
        yield Chart(
            name="devices",
            title=f"Devices side by side, {images(smallest)} in a query",
            svg=draw_devices("devices", shared),
            words=" ".join(say_devices(shared)),
        )


def _charts_of_result(name: str, result: Result, entries: Sequence[Entry]) -> Iterator[Chart]:
    rows = smallest_batches(entries)
    if rows:
        yield _distributions(f"{name}-latency", rows)
        yield from _latency_against_accuracy(f"{name}-pareto", rows)
    yield from _accuracies(f"{name}-accuracy", entries)
    yield from _trade_off(f"{name}-trade-off", entries)
    if len({row.batch_size for entry in entries for row in entry.rows}) > 1:
        measured = [entry for entry in entries if any(True for _ in entry.rows)]
        yield Chart(
            name=f"{name}-throughput",
            title="Throughput against batch size",
            svg=draw_throughput(f"{name}-throughput", measured),
            words=" ".join(say_throughput(measured)),
        )
    yield from _others(name, result, entries)


def smallest_batches(entries: Sequence[Entry]) -> list[Row]:
    """Return the row of each entry with the smallest batch that any of them has."""
    rows = [row for entry in entries for row in entry.rows]
    smallest = min((row.batch_size for row in rows), default=0)
    return [row for row in rows if row.batch_size == smallest]


def _distributions(name: str, rows: Sequence[Row]) -> Chart:
    limit_ms = drawn_limit_ms(rows)
    words = [
        *say_distributions(rows),
        "The height says how many queries took so long; thick lines are medians, ticks are p90 and p99.",
        *say_cut_off(rows, limit_ms),
    ]
    return Chart(
        name=name,
        title=f"Latency of a query, {images(rows[0].batch_size)}",
        svg=draw_distributions(name, rows, limit_ms),
        words=" ".join(words),
    )


def drawn_limit_ms(rows: Sequence[Row]) -> float:
    """Return up to where distributions are drawn: all that is typical, not a single query that was held up."""
    known = [
        each.value_ms for row in rows for each in row.latency.percentiles if each.percent <= 99.0 and each.value_ms
    ]
    slowest = max(row.latency.max_ms for row in rows)
    return min(slowest, 1.25 * max(known)) if known else slowest


def _latency_against_accuracy(name: str, rows: Sequence[Row]) -> Iterator[Chart]:
    measure = "H" if any(row.entry.target.accuracy and row.entry.target.accuracy.U is not None for row in rows) else "S"
    choices = choices_of(rows, measure)  # type: ignore[arg-type]
    if len(choices) > 1:
        front = pareto_front(choices)
        words = say_front(front, measure)  # type: ignore[arg-type]
        words.append("Filled points are on the Pareto front; points that coincide share a label.")
        yield Chart(
            name=name,
            title=f"Latency against accuracy, {images(rows[0].batch_size)}",
            svg=draw_latency_against_accuracy(name, choices, front, measure),
            words=" ".join(words),
        )


def _accuracies(name: str, entries: Sequence[Entry]) -> Iterator[Chart]:
    measured = [entry for entry in entries if entry.target.accuracy is not None]
    if measured:
        yield Chart(
            name=name,
            title="Accuracy on unseen and seen classes",
            svg=draw_accuracies(name, measured),
            words=" ".join(say_accuracies(measured)),
        )


def _trade_off(name: str, entries: Sequence[Entry]) -> Iterator[Chart]:
    measured = [entry for entry in entries if entry.target.accuracy is not None and entry.target.accuracy.curve]
    if measured:
        yield Chart(
            name=name,
            title="What the old classes keep, and what the new ones give",
            svg=draw_trade_off(name, measured),
            words=" ".join(say_trade_off(measured)),
        )


def _others(name: str, result: Result, entries: Sequence[Entry]) -> Iterator[Chart]:
    if result.scale:
        yield Chart(
            name=f"{name}-scale",
            title="Latency of the head against its number of classes",
            svg=draw_scale(f"{name}-scale", result.scale),
            words=" ".join(say_scale(result.scale)),
        )
    if result.update is not None:
        ways = {
            way: (timing, UPDATABLE_COLOR if way == CLASS_UPDATE else OTHER_COLOR)
            for way, timing in result.update.ways.items()
        }
        yield Chart(
            name=f"{name}-update",
            title=f"Time until a device answers with {result.update.num_new_classes} new classes",
            svg=draw_times(f"{name}-update", ways),
            words=" ".join(say_update(result.update)),
        )
    adding = {entry.label: entry for entry in entries if entry.target.add_classes is not None}
    if adding:
        added = {label: entry.target.add_classes for label, entry in adding.items() if entry.target.add_classes}
        num_classes = max(each.num_classes for each in added.values())
        times = {label: (each.timing, adding[label].color) for label, each in added.items()}
        yield Chart(
            name=f"{name}-adding",
            title=f"Time to add {num_classes} classes",
            svg=draw_times(f"{name}-adding", times),
            words=" ".join(say_added_classes(times, {label: each.how for label, each in added.items()}, num_classes)),
        )
