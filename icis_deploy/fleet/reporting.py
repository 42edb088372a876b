"""Statuses of many devices as one report, in which those that need attention come first.

Rules:

1. Of a device that reported several times the latest status counts.
2. Devices are compared with those of the same seen head alone, for which updates are the same.
3. What a device needs attention for, the worst first (`ATTENTION`): a status that cannot be read; a damaged bundle;
   another head than most devices of its version have, which means that it missed an update or that somebody changed it;
   a refusal since its last change; an older version than the newest of its kind; a long silence; no free slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from icis_deploy.common.json_fields import json_from_time
from icis_deploy.fleet.statuses import DeviceStatus, UnreadableStatus

ATTENTION: Mapping[str, str] = {
    "unreadable": "status cannot be read",
    "damaged": "bundle damaged",
    "differs": "another head than others of its version",
    "refused": "refused an update",
    "behind": "behind",
    "silent": "silent",
    "full": "no free slot",
}
"""What a device needs attention for, the worst first, and in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A device, or a status that cannot be read."""

    device: str
    """Of an unreadable status: its file."""

    attention: tuple[str, ...]
    """Keys of `ATTENTION`, the worst first."""

    detail: str
    """The worst in words, with what the device said of it; empty where nothing is."""

    status: DeviceStatus | None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        status = self.status
        return {
            "device": self.device,
            "attention": list(self.attention),
            "detail": self.detail,
            "time": None if status is None else json_from_time(status.time),
            "version": None if status is None else status.version,
            "bundle_sha256": None if status is None else status.bundle,
            "head_sha256": None if status is None else status.head,
            "num_classes": None if status is None else status.num_classes,
            "num_free_slots": None if status is None else status.num_free_slots,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A seen head, and the devices that have it."""

    base: str
    """Fingerprint of the seen head; empty where devices could not say it."""

    newest: int | None
    """The greatest version among them."""

    versions: tuple[tuple[int | None, int], ...]
    """Each version with how many devices have it, the newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What the devices of a fleet reported."""

    rows: tuple[Row, ...]
    """Those that need attention first."""

    fleets: tuple[Fleet, ...]
    """By seen head, the one with most devices first."""

    counts: Mapping[str, int]
    """How many rows need attention for what, the worst first."""

    num_superseded: int
    """Older statuses of devices that reported again."""

    newest_time: datetime | None
    """When the latest status was read."""

    @property
    def num_ok(self) -> int:
        """Devices that need no attention."""
        return sum(not row.attention for row in self.rows)


def fleet_report(found: Iterable[DeviceStatus | UnreadableStatus], *, silent_after: timedelta) -> FleetReport:
    """Return a report.

    Args:
        found: What was read.
        silent_after: A device whose status is so much older than the latest one is silent.
    """
    unreadable: list[UnreadableStatus] = []
    latest: dict[str, DeviceStatus] = {}
    num_readable = 0
    for each in found:
        if isinstance(each, UnreadableStatus):
            unreadable.append(each)
            continue
        num_readable += 1
        known = latest.get(each.device)
        if known is None or each.time > known.time:
            latest[each.device] = each
    statuses = list(latest.values())
    newest_time = max((each.time for each in statuses), default=None)
    newest = _newest_versions(statuses)
    usual = _usual_heads(statuses)
    rows = [_unreadable_row(each) for each in unreadable]
    for each in statuses:
        attention = dict(_attention(each, newest, usual, newest_time, silent_after))
        rows.append(
            Row(
                device=each.device,
                attention=tuple(name for name in ATTENTION if name in attention),
                detail=next((attention[name] for name in ATTENTION if name in attention), ""),
                status=each,
            )
        )
    rank = {name: index for index, name in enumerate(ATTENTION)}
    rows.sort(key=lambda row: (min((rank[name] for name in row.attention), default=len(rank)), row.device))
    counted = Counter(name for row in rows for name in row.attention)
    return FleetReport(
        rows=tuple(rows),
        fleets=_fleets(statuses, newest),
        counts={name: counted[name] for name in ATTENTION if counted[name]},
        num_superseded=num_readable - len(statuses),
        newest_time=newest_time,
    )


def _unreadable_row(status: UnreadableStatus) -> Row:
    return Row(device=status.file, attention=("unreadable",), detail=status.reason, status=None)


def _attention(
    status: DeviceStatus,
    newest: Mapping[str, int],
    usual: Mapping[tuple[str | None, int | None], str],
    newest_time: datetime | None,
    silent_after: timedelta,
) -> Iterable[tuple[str, str]]:
    """Yield what a device needs attention for, and why."""
    if status.problems:
        yield "damaged", status.problems[0]
    head = usual.get((status.base, status.version), status.head)
    if head != status.head and status.head is not None and head is not None:
        yield "differs", f"head {status.head[:12]}, where most of version {status.version} have {head[:12]}"
    if status.last_refused is not None and (status.changed is None or status.last_refused > status.changed):
        yield "refused", f"{json_from_time(status.last_refused)}: {status.refusal}"
    greatest = newest.get(status.base or "")
    if status.version is not None and greatest is not None and status.version < greatest:
        yield "behind", f"version {status.version}; the newest is {greatest}"
    if newest_time is not None and newest_time - status.time > silent_after:
        yield "silent", f"since {json_from_time(status.time)}"
    if status.capacity and status.num_free_slots == 0:
        yield "full", f"all {status.capacity} slots are filled"


def _newest_versions(statuses: Sequence[DeviceStatus]) -> dict[str, int]:
    newest: dict[str, int] = {}
    for each in statuses:
        if each.version is not None:
            newest[each.base or ""] = max(each.version, newest.get(each.base or "", each.version))
    return newest


def _usual_heads(statuses: Sequence[DeviceStatus]) -> dict[tuple[str | None, int | None], str]:
    """Return the head that most devices of a seen head and version have; the first in order of two as frequent."""
    counts: dict[tuple[str | None, int | None], Counter[str]] = {}
    for each in statuses:
        if each.head is not None:
            counts.setdefault((each.base, each.version), Counter())[each.head] += 1
    return {key: min(heads, key=lambda head: (-heads[head], head)) for key, heads in counts.items()}


def _fleets(statuses: Sequence[DeviceStatus], newest: Mapping[str, int]) -> tuple[Fleet, ...]:
    by_base: dict[str, Counter[int | None]] = {}
    for each in statuses:
        by_base.setdefault(each.base or "", Counter())[each.version] += 1
    fleets = [
        Fleet(
            base=base,
            newest=newest.get(base),
            versions=tuple(sorted(versions.items(), key=lambda pair: -1 if pair[0] is None else pair[0], reverse=True)),
        )
        for base, versions in by_base.items()
    ]
    return tuple(sorted(fleets, key=lambda fleet: (-sum(count for _, count in fleet.versions), fleet.base)))
