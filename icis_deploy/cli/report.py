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
    from icis_deploy.api.report import report as write_report

    if out is None and markdown is None:
        raise click.UsageError("Nothing to write: give --out report.html, --markdown report.md, or both.")
    written = write_report(results, out=out, markdown=markdown, overwrite=overwrite)
    lines = [f"{path}: {size / 1e3:,.0f} kB" for path, size in written.files.items()]
    counts = ((written.num_results, "result"), (len(written.devices), "device"), (written.num_rows, "row"))
    counted = [f"{number} {what}{'s' * (number != 1)}" for number, what in counts]
    lines.append(f"{counted[0]} of {counted[1]}, {counted[2]}.")
    print_result(
        {
            "files": {str(path): size for path, size in written.files.items()},
            "devices": list(written.devices),
            "num_results": written.num_results,
            "num_rows": written.num_rows,
        },
        text="\n".join(lines),
        after_change=True,
    )
