"""The report as one HTML page that needs nothing else, and as Markdown for a README.

The page's policy forbids every request (`default-src 'none'`), so it cannot depend on anything outside of it. All that
comes from a result is text to the template, which escapes it: results come from devices that others run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.merging import Device, Entry, Row, merge
from benchmarks.report.numbers import enumeration
from benchmarks.report.sections import charts_of, smallest_batches
from benchmarks.report.sentences import say_accuracies, say_distributions, say_disturbed
from benchmarks.report.tables import Cell, Column, columns_of, extra_tables, facts_of
from benchmarks.results.result import Result
from benchmarks.results.text import NO_LABELLED_IMAGES
from icis_deploy._version import __version__
from icis_deploy.errors import MissingDependencyError

FOLDER = Path(__file__).resolve().parent
TEMPLATE_NAME = "page.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a page or a Markdown text says."""

    devices: tuple[Device, ...]
    """The machines of all results, in the order of the results."""

    entries: tuple[Entry, ...]
    """Every target of every machine, in the order of measurement."""

    @property
    def rows(self) -> list[Row]:
        """Rows of the table: by device, batch size, and the order of measurement."""
        rows = [row for entry in self.entries for row in entry.rows]
        order = {device.label: index for index, device in enumerate(self.devices)}
        return sorted(rows, key=lambda row: (order[row.entry.device.label], row.batch_size))

    @property
    def cells(self) -> tuple[tuple[Column, ...], list[list[Cell]]]:
        """Columns of the table, and its rows."""
        rows = self.rows
        columns = columns_of(rows)
        return columns, [[column.cell(row) for column in columns] for row in rows]

    @property
    def caution(self) -> str:
        """What a reader must know before any figure; empty where every machine was quiet."""
        return " ".join(say_disturbed(self.devices))

    @property
    def headlines(self) -> list[str]:
        """What a reader needs first, a paragraph for each device: of its `bench` with most targets.

        Targets of different runs were not measured in turn, so that none of them is the fastest of all.
        """
        said = []
        for device in self.devices:
            runs = [[entry for entry in self.entries if entry.result is result] for result in device.results]
            runs = [[entry for entry in run if entry.rows] for run in reversed(runs)]
            own = max(runs, key=lambda run: (bool(run) and run[0].result.command == "bench", len(run)))
            rows = smallest_batches(own)
            measured = [entry for entry in own if entry.target.accuracy is not None]
            sentences = say_distributions(rows)[:2] if rows else []
            sentences += say_accuracies(measured)[:1] if measured else []
            if not sentences:
                continue
            names = [device.label] if len(self.devices) > 1 else []
            if sum(map(bool, runs)) > 1:
                result = own[0].result
                names.append(f"{result.command} of {result.created[:16].replace('T', ' ')} UTC")
            said.append(": ".join([", ".join(names)] * bool(names) + [" ".join(sentences)]))
        return said


def report_of(results: Sequence[Result]) -> Report:
    """Return the report of any number of results.

    Raises:
        UsageError: If there are none, or one is given twice.
    """
    devices, entries = merge(results)
    return Report(devices=devices, entries=entries)


def html_page(report: Report) -> str:
    """Return the page.

    Raises:
        MissingDependencyError: If matplotlib or Jinja is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "A report needs Jinja.",
            hint="Install it: pip install 'icis-deploy[bench]'.",
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = tight
    columns, rows = report.cells
    return environment.get_template(TEMPLATE_NAME).render(
        title=title_of(report),
        caution=report.caution,
        headlines=report.headlines,
        devices=[(device, facts_of(device)) for device in report.devices],
        columns=columns,
        rows=rows,
        batches=sorted({row.batch_size for row in report.rows}),
        row_batches=[row.batch_size for row in report.rows],
        charts=list(charts_of(report.devices, report.entries)),
        tables=extra_tables(report.devices, report.entries),
        missing=missing_of(report.entries),
        version=__version__,
    )


def markdown_text(report: Report) -> str:
    """Return the report for a README: the tables, what the charts say, the machines.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    columns, rows = report.cells
    lines = [f"### {title_of(report)}", ""]
    if report.caution:
        lines += [f"> {escape_markdown(report.caution)}", ""]
    if rows:
        titles = [f"{column.title} ({column.unit})" if column.unit else column.title for column in columns]
        texts = [[cell.text for cell in row] for row in rows]
        lines += _markdown_table(titles, texts, are_numbers=[column.is_number for column in columns])
    for chart in charts_of(report.devices, report.entries):
        lines += [f"**{escape_markdown(chart.title)}.** {escape_markdown(chart.words)}", ""]
    for table in extra_tables(report.devices, report.entries):
        lines += [f"**{table.title}.** {escape_markdown(table.words)}", ""]
        are_numbers = [index >= table.num_texts for index in range(len(table.titles))]
        lines += _markdown_table(table.titles, table.rows, are_numbers=are_numbers)
    for device in report.devices:
        facts = "; ".join(f"{name.lower()} {value}" for name, value in facts_of(device) if name != "Not readable")
        lines += [f"**{escape_markdown(device.label)}.** {escape_markdown(facts)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def title_of(report: Report) -> str:
    """Return the report's title."""
    return f"Benchmark on {enumeration([device.label for device in report.devices])}"


def missing_of(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """Return target, what was asked for or what a reader looks for, and why it is not here."""
    missing = [(entry.label, name, reason) for entry in entries for name, reason in entry.target.missing.items()]
    measured = [entry for entry in entries if entry.result.command == "bench"]
    if measured and all(entry.target.accuracy is None for entry in measured):
        missing.append(("All", "accuracy", NO_LABELLED_IMAGES))
    return missing


def tight(text: str) -> str:
    """Return a text in which no line breaks between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|µs|s|MB|kB|GiB|points?|times)(?:\W|$))", "\u00a0", text)


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line and in a cell."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _markdown_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, are_numbers: Sequence[bool]
) -> Iterator[str]:
    yield _markdown_row(titles)
    yield _markdown_row(["---:" if is_number else "---" for is_number in are_numbers])
    for row in rows:
        yield _markdown_row([escape_markdown(text) for text in row])
    yield ""


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
