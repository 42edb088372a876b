"""`icis-deploy fleet-report`: what the devices of a fleet reported."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.options import EXISTING_PATH, NEW_PATH
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.cli.parameter_types import Number
from icis_deploy.common.terminal_text import columns, percent
from icis_deploy.errors import LoadError

if TYPE_CHECKING:
    from icis_deploy.fleet.reporting import FleetReport

MAX_ROWS = 50
"""Devices that the text names; JSON and the page have all."""


@click.command(short_help="Make one table and page of what devices reported.")
@click.argument("statuses", nargs=-1, required=True, type=EXISTING_PATH, metavar="STATUS...")
@click.option("--out", type=NEW_PATH, help="The page: fleet.html. It needs no other file and no network.")
@click.option(
    "--silent-hours",
    type=Number(min=0, min_open=True, max=876_000),
    default=24.0,
    show_default=True,
    help="A device whose status is so much older than the latest one needs attention.",
)
@click.option("--overwrite", is_flag=True, help="Replace a page that is there.")
@format_option
def fleet_report(statuses: tuple[Path, ...], out: Path | None, silent_hours: float, overwrite: bool) -> None:
    """Merge what `icis-deploy status --format json` printed on any number of devices, those that need attention first.

    A STATUS is a file, or a folder of .json files. One that cannot be read is a line of the report; where none can, the
    exit code is 3.
    """
    from icis_deploy.common.files import check_free, write_file
    from icis_deploy.fleet.page import html_page
    from icis_deploy.fleet.reporting import fleet_report as report_of
    from icis_deploy.fleet.statuses import load_status, status_files

    if out is not None:
        check_free(out, overwrite=overwrite)
    read = (load_status(path) for path in status_files(statuses))
    report = report_of(read, silent_after=timedelta(hours=silent_hours))
    result: dict[str, Any] = {
        "page": None,
        "num_devices": sum(row.status is not None for row in report.rows),
        "num_ok": report.num_ok,
        "num_superseded": report.num_superseded,
        "attention": dict(report.counts),
        "fleets": [
            {
                "base_fingerprint": fleet.base or None,
                "newest_version": fleet.newest,
                "versions": [{"version": version, "num_devices": count} for version, count in fleet.versions],
            }
            for fleet in report.fleets
        ],
        "devices": [row.to_dict() for row in report.rows],
    }
    text = _text(report)
    if out is not None:
        page = html_page(report).encode()
        write_file(out, page)
        result["page"] = str(out)
        text += f"\n\n{out}: {len(page) / 1e3:,.0f} kB"
    num_read = result["num_devices"] + report.num_superseded
    print_result(result, text=text, status="ok" if num_read else "error", after_change=out is not None)
    if not num_read:
        # Nobody reported: a wrong folder, most often, which a timer would otherwise take for a fleet without faults.
        note(f"Error: No status could be read of {len(report.rows):,} files. Give what `status --format json` prints.")
        raise click.exceptions.Exit(LoadError.exit_code)


def _text(report: FleetReport) -> str:
    from icis_deploy.fleet.reporting import ATTENTION

    num_devices = sum(row.status is not None for row in report.rows)
    parts = [f"{num_devices:,} device{'s' * (num_devices != 1)}, {report.num_ok:,} ok"]
    if left_out := report.num_superseded:
        many = left_out != 1
        parts[0] += (
            f"; {left_out:,} older {'statuses' if many else 'status'} of {'these' if many else 'the same'} device"
        )
        parts[0] += f"{'s are' if many else ' is'} left out"
    counts = [(f"{count:,}", ATTENTION[name]) for name, count in report.counts.items()]
    if counts:
        parts.append(columns(counts, right=[0]))
    for fleet in report.fleets:
        total = sum(count for _, count in fleet.versions)
        rows = [
            ("not known" if version is None else f"version {version}", f"{count:,}", percent(count / total))
            for version, count in fleet.versions
        ]
        parts.append(f"seen head {fleet.base[:12] or 'not known'}\n{columns(rows, right=[1, 2])}")
    needy = [row for row in report.rows if row.attention]
    if needy:
        shown = [(row.device, ", ".join(ATTENTION[name] for name in row.attention), row.detail) for row in needy]
        more = f"\n… and {len(needy) - MAX_ROWS:,} more" if len(needy) > MAX_ROWS else ""
        parts.append(columns(shown[:MAX_ROWS]) + more)
    return "\n\n".join(parts)
