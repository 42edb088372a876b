"""The table of a report: cells with what they show, and what they are sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.report.accuracy_intervals import accuracy_interval
from benchmarks.report.merging import Row
from benchmarks.report.numbers import UNKNOWN, milliseconds, percent, percentile, significant
from benchmarks.timing.comparison import MIN_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value of a table."""

    text: str
    """What a reader sees first."""

    note: str = ""
    """What stands under it, smaller: the uncertainty, what it is compared with."""

    sort_key: float | str | None = None
    """What it is sorted by; None for what is not known, which always comes last."""

    tone: str = ""
    """`good`, `bad` or nothing: how the text is set off; never the only sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    """Its name."""

    unit: str
    """Of its numbers; empty where it has none."""

    meaning: str
    """What it says, for a reader who does not know the name."""

    is_number: bool
    """Whether its cells are numbers: they stand at the right and are first sorted in descending order."""

    cell: Callable[[Row], Cell]
    """Makes a cell of a row."""


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns that say something: the device's only where there are several, none that is empty."""
    several = len({row.entry.device.label for row in rows}) > 1
    return tuple(
        column
        for column in COLUMNS
        if (several or column.title != "Device") and any(column.cell(row).text != UNKNOWN for row in rows)
    )


def _target(row: Row) -> Cell:
    target = row.entry.target
    classes = f"{target.num_classes:,} classes" + (f", {target.capacity} slots" if target.capacity else "")
    threads = "" if target.num_threads is None else f", {target.num_threads} thread{'s' * (target.num_threads != 1)}"
    return Cell(text=row.entry.label, note=f"{classes}\n{target.runtime}{threads}", sort_key=row.entry.label.lower())


def _size(row: Row) -> Cell:
    num_bytes = row.entry.target.size_bytes
    return Cell(text=f"{num_bytes / 1e6:,.1f}", sort_key=num_bytes)


def _load(row: Row) -> Cell:
    startup = row.entry.target.startup
    value = None if startup is None else startup.median("load_ms")
    return Cell(text=UNKNOWN) if value is None else Cell(text=f"{value:,.0f}", sort_key=value)


def _median(row: Row) -> Cell:
    median = row.latency.median_ms
    note = f"{milliseconds(median.low)} – {milliseconds(median.high)}"
    return Cell(text=milliseconds(median.value), note=note, sort_key=median.value)


def _percentile(percent_wanted: float) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        for each in row.latency.percentiles:
            if each.percent == percent_wanted:
                return Cell(text=percentile(each), sort_key=each.value_ms)
        return Cell(text=UNKNOWN)

    return cell


def _throughput(row: Row) -> Cell:
    return Cell(text=significant(row.images_per_s), sort_key=row.images_per_s)


def _accuracy(measure: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        accuracy = row.entry.target.accuracy
        value = None if accuracy is None else getattr(accuracy, measure)
        if accuracy is None or value is None:
            return Cell(text=UNKNOWN)
        interval = accuracy_interval(accuracy, measure) if measure in ("U", "S", "H") else None  # type: ignore[arg-type]
        note = "" if interval is None else f"{percent(interval.low)} – {percent(interval.high)}"
        return Cell(text=percent(value), note=note, sort_key=value)

    return cell


def _verdict(row: Row) -> Cell:
    comparison = row.comparison
    if comparison is None:
        alone = len(row.entry.result.targets) < 2
        return Cell(text=UNKNOWN if alone else "reference")
    ratio = comparison.ratio
    few = comparison.num_rounds < MIN_ROUNDS
    interval = f"needs {MIN_ROUNDS} rounds" if few else f"{ratio.low:.3f} – {ratio.high:.3f}"
    return Cell(
        text=comparison.verdict,
        note=f"× {ratio.value:.3f}\n{interval}",
        sort_key=ratio.value,
        tone={"faster": "good", "slower": "bad"}.get(comparison.verdict, ""),
    )


def _column(title: str, unit: str, meaning: str, cell: Callable[[Row], Cell], *, is_number: bool = True) -> Column:
    return Column(title=title, unit=unit, meaning=meaning, is_number=is_number, cell=cell)


COLUMNS = (
    _column("Target", "", "What was measured", _target, is_number=False),
    _column(
        "Device", "", "Where",
        lambda row: Cell(text=row.entry.device.label, sort_key=row.entry.device.label.lower()), is_number=False,
    ),
    _column(
        "Precision", "", "Of the weights",
        lambda row: Cell(text=row.entry.target.precision, sort_key=row.entry.target.precision), is_number=False,
    ),
    _column("Batch", "", "Images in a query", lambda row: Cell(text=str(row.batch_size), sort_key=row.batch_size)),
    _column("Size", "MB", "Of the model's files", _size),
    _column("Load", "ms", "Runtime's imports and the model, in a fresh process, median", _load),
    _column("p50", "ms", "Median latency of a query, with its 99 % interval", _median),
    _column("p90", "ms", "90 % of the queries are at most this slow", _percentile(90.0)),
    _column("p99", "ms", "99 % of the queries are at most this slow", _percentile(99.0)),
    _column("Images/s", "", "One query after the other", _throughput),
    _column("T", "%", "Images of unseen classes, choosing among the unseen classes", _accuracy("T")),
    _column("U", "%", "Images of unseen classes, choosing among all classes, with 99 % interval", _accuracy("U")),
    _column("S", "%", "Images of seen classes, choosing among all classes, with 99 % interval", _accuracy("S")),
    _column("H", "%", "Harmonic mean of U and S, with 99 % interval", _accuracy("H")),
    _column(
        "Verdict", "",
        "Latency over the reference's in interleaved rounds; equal if its whole 99 % interval is within the margin",
        _verdict, is_number=False,
    ),
)  # fmt: skip
"""In the order in which they stand."""
