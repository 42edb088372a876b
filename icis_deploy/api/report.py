"""Make a page or a Markdown text of benchmark results, from any number of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.common.files import check_free, path_from, write_file
from icis_deploy.common.given import items
from icis_deploy.errors import UsageError
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from benchmarks.results.result import Result
    from icis_deploy.api.inputs import PathLike


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReport:
    """What a report was made of, and where it was written.

    Example:
        written = icis_deploy.report(["result.json"], out="report.html")
        print(written.devices, sum(written.files.values()))
    """

    files: Mapping[Path, int]
    """Size in bytes of each file that was written."""

    devices: tuple[str, ...]
    """Name of each machine that the results are of."""

    num_results: int
    """Results that were merged."""

    num_rows: int
    """Rows of the table: targets by device and batch size."""


def report(
    results: Sequence[PathLike | Result],
    *,
    out: PathLike | None = None,
    markdown: PathLike | None = None,
    overwrite: bool = False,
) -> WrittenReport:
    """Merge benchmark results of one or several devices into a page, a Markdown text, or both.

    Args:
        results: Results, or the JSON files that hold them.
        out: The page: one HTML file, which needs no other file and no network.
        markdown: The same for a README.
        overwrite: Whether files that are there may be replaced.

    Example:
        icis_deploy.report(["laptop.json", "edge.json"], out="report.html", markdown="report.md")

    Raises:
        UsageError: If there are no results, one is given twice, or nothing is to be written.
        LoadError: If a file is no benchmark result.
        MissingDependencyError: If matplotlib or Jinja is not installed.
        StorageError: If a file cannot be written.
    """
    enable_workbench()
    from benchmarks.report.page import html_page, markdown_text, report_of
    from benchmarks.results.result import Result, load_result

    pages = [
        (path_from(path, name=name), make)
        for name, path, make in (("out", out, html_page), ("markdown", markdown, markdown_text))
        if path is not None
    ]
    given = items(results, "results", name="results")
    if not pages:
        raise UsageError(
            "There is nothing to write: say where the page goes, the Markdown text, or both.",
            hint="Give `out`, `markdown`, or both.",
        )
    if len({path.resolve() for path, _ in pages}) < len(pages):
        raise UsageError(
            f"The page and the Markdown text are both {out}; give each a path of its own.",
            found=str(out),
            expected="two paths",
            where=out,
            hint="Give two paths in `out` and `markdown`.",
        )
    for path, _ in pages:
        check_free(path, overwrite=overwrite)
    merged = report_of(
        [each if isinstance(each, Result) else load_result(path_from(each, name="results")) for each in given]
    )
    # Both are made before one is written, so that an error leaves neither.
    texts = {path: make(merged).encode() for path, make in pages}
    for path, data in texts.items():
        write_file(path, data)
    return WrittenReport(
        files={path: len(data) for path, data in texts.items()},
        devices=tuple(device.label for device in merged.devices),
        num_results=len(given),
        num_rows=len(merged.rows),
    )
