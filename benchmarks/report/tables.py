"""The tables of a report: the sortable one, smaller ones, and the facts of each machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.accuracy_intervals import accuracy_interval
from benchmarks.report.merging import Device, Entry, Row, shared_targets
from benchmarks.report.numbers import UNKNOWN, enumeration, milliseconds, percent, percentile, significant
from benchmarks.timing.comparison import MIN_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value of a table."""

    text: str
    """The value as the table shows it."""

    note: str = ""
    """A second, smaller line: the uncertainty, what it is compared with."""

    sort_key: float | str | None = None
    """What it is sorted by; None for what is not known, which always comes last."""

    tone: str = ""
    """`good`, `bad` or nothing: how the text is set off; never the only sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    """Heading of the column, without the unit."""

    unit: str
    """Of its numbers; empty where it has none."""

    meaning: str
    """What it says, for a reader who does not know the name."""

    is_number: bool
    """Whether its cells are numbers: they are aligned to the right and are first sorted in descending order."""

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
"""In the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleTable:
    """A table of texts."""

    title: str
    """Heading of the table."""

    words: str
    """How to read it, in a sentence."""

    titles: tuple[str, ...]
    """`(num_columns,)` headings."""

    num_texts: int
    """So many columns from the left are texts; the others are numbers, aligned to the right."""

    rows: tuple[tuple[str, ...], ...]
    """`(num_rows, num_columns)` cells, as they are shown."""


def extra_tables(devices: Sequence[Device], entries: Sequence[Entry]) -> list[SimpleTable]:
    """Return the tables for which there is anything to show."""
    where = ["Device"] * (len(devices) > 1)
    tables = (
        SimpleTable(
            title="Devices side by side",
            words="Median of a query in milliseconds; in brackets, as a multiple of the first device's.",
            titles=("Target", "Batch", *(device.label for device in devices)),
            num_texts=1,
            rows=tuple(_device_rows(devices, entries)),
        ),
        SimpleTable(
            title="Under load",
            words="Scenarios of MLPerf LoadGen, and class updates between requests. An invalid run says nothing: it "
            "broke a rule.",
            titles=("Scenario", "Target", "Device", "Valid", "Queries", "Images/s", "p50 ms", "p90 ms", "p99 ms"),
            num_texts=4,
            rows=tuple(_scenario_rows(devices)),
        ),
        SimpleTable(
            title="Parity",
            words=_parity_words(entries),
            titles=("Target", *where, "Against", "Inputs", "Classes", "Same top-1 %", "Greatest error", "p99.9 error"),
            num_texts=2 + len(where),
            rows=tuple(_parity_rows(entries, several=bool(where))),
        ),
        SimpleTable(
            title="Where the time goes",
            words="Medians, on devices with memory of their own.",
            titles=("Target", "Device", "Batch", "To the device ms", "Compute ms", "Back ms"),
            num_texts=2,
            rows=tuple(_phase_rows(devices)),
        ),
    )
    return [table for table in tables if table.rows]


def _device_rows(devices: Sequence[Device], entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    for each in shared_targets(entries):
        medians = {row.entry.device.label: row.latency.median_ms.value for row in each.rows}
        first = next(iter(medians.values()))
        texts = [milliseconds(median) for median in medians.values()]
        texts[1:] = [
            f"{text} (× {significant(median / first)})"
            for text, median in zip(texts[1:], list(medians.values())[1:], strict=True)
        ]
        found = dict(zip(medians, texts, strict=True))
        yield (each.name, str(each.batch_size), *(found.get(device.label, UNKNOWN) for device in devices))


def _scenario_rows(devices: Sequence[Device]) -> Iterator[tuple[str, ...]]:
    for device in devices:
        for each in (scenario for result in device.results for scenario in result.scenarios):
            latency = each.latency
            median = UNKNOWN if latency is None else milliseconds(latency.median_ms)
            found = {} if latency is None else {p.percent: percentile(p) for p in latency.percentiles}
            tails = (found.get(percent, UNKNOWN) for percent in (90.0, 99.0))
            valid = "yes" if each.valid else f"no: {'; '.join(each.reasons)}"
            figures = (f"{each.num_queries:,}", significant(each.samples_per_s), median, *tails)
            yield (each.name, each.target, device.label, valid, *figures)


def _parity_words(entries: Sequence[Entry]) -> str:
    sources = sorted({each.source for entry in entries for each in entry.target.parity})
    on = f"the same inputs ({enumeration(sources)})" if sources else "the same inputs"
    return f"How close logits are to another target's on {on}, in standard deviations of theirs."


def _parity_rows(entries: Sequence[Entry], *, several: bool) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        for each in entry.target.parity:
            counts = (f"{each.num_images:,}", f"{each.num_classes:,}", f"{100 * each.agreement:.2f}")
            yield (
                entry.label,
                *[entry.device.label] * several,
                each.against,
                *counts,
                *(f"{error:.1e}" if error else "0" for error in (each.max_scaled_error, each.p999_scaled_error)),
            )


def _phase_rows(devices: Sequence[Device]) -> Iterator[tuple[str, ...]]:
    for device in devices:
        for each in (phases for result in device.results for phases in result.phases):
            times = (each.host_to_device_ms, each.compute_ms, each.device_to_host_ms)
            yield (each.target, device.label, str(each.batch_size), *(milliseconds(time.value) for time in times))


def facts_of(device: Device) -> list[tuple[str, str]]:
    """Return names and values; what could not be read is left out, and counted in the last one."""
    environment = device.environment
    facts = [*_facts_of_sections(environment.sections), ("Measured", _runs(device))]
    facts = [("Fingerprint", environment.fingerprint), *facts]
    if environment.missing:
        facts.append(("Not readable", ", ".join(sorted(name.replace("_", " ") for name in environment.missing))))
    return facts


def _facts_of_sections(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    cpu, board, system = sections["cpu"], sections["board"], sections["system"]
    yield "Processor", f"{board['model'] or ''} {cpu['model'] or ''} ({cpu['architecture']})".strip()
    quota = f", limited to {cpu['quota_cores']:g}" if cpu.get("quota_cores") else ""
    yield "Cores", f"{cpu['num_usable_cores']} of {cpu['num_cores']}{quota}"
    clocks = [f"{cpu[name]}" for name in ("governor",) if cpu.get(name)]
    clocks += [f"up to {cpu[name]:,.0f} MHz" for name in ("max_mhz",) if cpu.get(name)]
    if clocks:
        yield "Clock", ", ".join(clocks)
    total = sections["memory"]["total_bytes"]
    if isinstance(total, int):
        yield "Memory", f"{total / 2**30:.1f} GiB"
    for gpu in sections["gpu"]["gpus"] or ():
        yield "GPU", ", ".join(str(value) for key, value in gpu.items() if key in ("name", "driver") and value)
    inside = [str(board[kind]) for kind in ("virtualization", "container") if board[kind] not in (None, "none")]
    if inside:
        yield "Runs in", f"{enumeration(inside)}: others may share it"
    yield "System", ", ".join(str(value) for value in system.values() if isinstance(value, str))
    versions = {name: version for name, version in sections["versions"].items() if version}
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    threads = {name: value for name, value in sections["threads"].items() if value}
    if threads:
        yield "Threads", ", ".join(f"{name}={value}" for name, value in threads.items())


def _runs(device: Device) -> str:
    return "; ".join(
        f"{result.command} {result.created.replace('T', ' ').removesuffix('Z')} UTC" for result in device.results
    )
