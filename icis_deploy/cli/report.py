"""`icis-deploy report`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.options import EXISTING_FILE, NEW_PATH
from icis_deploy.cli.output import format_option, print_result


@click.command(short_help="Make one page of benchmark results, from any number of devices.")
@click.argument("results", nargs=-1, required=True, type=EXISTING_FILE, metavar="RESULT...")
@click.option("--out", type=NEW_PATH, help="The page: report.html. It needs no other file and no network.")
@click.option("--markdown", type=NEW_PATH, help="The same for a README: report.md.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@format_option
def report(results: tuple[Path, ...], out: Path | None, markdown: Path | None, overwrite: bool) -> None:
    """Merge the benchmark RESULTs of one or several devices into a page, a Markdown text, or both."""
    from icis_deploy.common.files import check_free, write_file
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.report.page import html_page, markdown_text, report_of
    from benchmarks.results.result import load_result

    if out is None and markdown is None:
        raise click.UsageError("Nothing to write: give --out report.html, --markdown report.md, or both.")
    if out is not None and markdown is not None and out.resolve() == markdown.resolve():
        raise click.UsageError(f"--out and --markdown are both {out}; give each a place of its own.")
    for path in (out, markdown):
        if path is not None:
            check_free(path, overwrite=overwrite)
    merged = report_of([load_result(path) for path in results])
    # Both are made before one is written, so that an error leaves neither.
    texts = {path: make(merged) for path, make in ((out, html_page), (markdown, markdown_text)) if path is not None}
    for path, text in texts.items():
        write_file(path, text.encode())
    written = {str(path): path.stat().st_size for path in texts}
    lines = [f"{path}: {size / 1e3:,.0f} kB" for path, size in written.items()]
    devices = [device.label for device in merged.devices]
    counts = ((len(results), "result"), (len(devices), "device"), (len(merged.rows), "row"))
    counted = [f"{number} {what}{'s' * (number != 1)}" for number, what in counts]
    lines.append(f"{counted[0]} of {counted[1]}, {counted[2]}.")
    print_result(
        {"files": written, "devices": devices, "num_results": len(results), "num_rows": len(merged.rows)},
        text="\n".join(lines),
    )
