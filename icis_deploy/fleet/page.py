"""A report as one HTML page, which needs no other file and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from icis_deploy.common.json_fields import json_from_time
from icis_deploy.errors import MissingDependencyError
from icis_deploy.fleet.reporting import ATTENTION, Fleet, FleetReport, Row

FOLDER = Path(__file__).parent
MAX_BARS = 12
"""Versions of one fleet that have a bar of their own; the older ones share one."""


def html_page(report: FleetReport) -> str:
    """Return the page.

    Raises:
        MissingDependencyError: If Jinja is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "The page of a fleet needs Jinja.", found=str(error), hint="Install it: pip install 'icis-deploy[bench]'."
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        headline=_headline(report),
        num_ok=report.num_ok,
        num_superseded=report.num_superseded,
        time="" if report.newest_time is None else _time(json_from_time(report.newest_time)),
        counts=[(name, ATTENTION[name], count) for name, count in report.counts.items()],
        fleets=[_bars(fleet) for fleet in report.fleets],
        rows=[_cells(row) for row in report.rows],
    )


def _bars(fleet: Fleet) -> dict[str, Any]:
    total = sum(count for _, count in fleet.versions)
    shown = [(_version(version), count) for version, count in fleet.versions[:MAX_BARS]]
    if rest := fleet.versions[MAX_BARS:]:
        shown.append((f"{len(rest)} older", sum(count for _, count in rest)))
    return {
        "base": fleet.base[:12] or "seen head not known",
        "num_devices": total,
        "bars": [
            {"name": name, "count": count, "share": 100 * count / total, "is_newest": index == 0}
            for index, (name, count) in enumerate(shown)
        ],
    }


def _version(version: int | None) -> str:
    return "not known" if version is None else f"version {version}"


def _cells(row: Row) -> dict[str, Any]:
    status = row.status
    return {
        "device": row.device,
        "attention": [(name, ATTENTION[name]) for name in row.attention],
        "detail": row.detail,
        "version": "–" if status is None or status.version is None else str(status.version),
        "slots": "–" if status is None or not status.capacity else f"{status.num_free_slots} of {status.capacity}",
        "head": "–" if status is None or status.head is None else status.head[:12],
        "time": "–" if status is None else _time(json_from_time(status.time)),
    }


def _time(text: str) -> str:
    return text.replace("T", " ").removesuffix("Z")


def _headline(report: FleetReport) -> str:
    """Return the counts of devices, and of files that may be of any: nobody knows which device they are of."""
    num_devices = sum(row.status is not None for row in report.rows)
    num_unreadable = len(report.rows) - num_devices
    num_attention = num_devices - report.num_ok
    parts = [f"{num_devices:,} device{'s' * (num_devices != 1)}"]
    parts.append(f"{num_attention:,} need{'s' * (num_attention == 1)} attention")
    if num_unreadable:
        parts.append(f"{num_unreadable:,} status{'es' * (num_unreadable != 1)} cannot be read")
    return ", ".join(parts)
