"""The statuses that devices reported: files that anybody may have written, read with limits.

A status is what `icis-deploy status --format json` prints. One that cannot be read is a line of the report and not the
end of it: the device that wrote it needs attention most of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from icis_deploy.common.files import read_plain
from icis_deploy.common.json_fields import (
    integer_from_json,
    list_from_json,
    load_strict,
    object_from_json,
    text_from_json,
    time_from_json,
)
from icis_deploy.common.terminal_text import MAX_REASON, MAX_SHOWN, printable, reason_of, shown
from icis_deploy.errors import LoadError

MAX_STATUS_BYTES = 1 << 20
MAX_STATUSES = 1 << 20
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """What a report needs of one status; `None` where the device could not say it."""

    device: str
    time: datetime
    bundle: str | None
    base: str | None
    head: str | None
    version: int | None
    changed: datetime | None
    num_free_slots: int | None
    capacity: int | None
    num_classes: int | None
    num_disabled: int
    last_refused: datetime | None
    refusal: str | None
    """Why the last file was refused."""

    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableStatus:
    """A file that holds no status."""

    file: str
    reason: str


def status_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files among these paths, and the `.json` files in those that are folders, each once, in order.

    Raises:
        LoadError: If a folder cannot be read, or there are none, or too many.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - pathlib raises for a name that is too long
            found[path] = None
            continue
        try:
            found |= {each: None for each in sorted(path.iterdir()) if each.suffix == ".json"}
        except OSError as error:
            reason = error.strerror or str(error)
            raise LoadError(
                f"The folder {path} cannot be read: {reason}.",
                found=reason,
                where=path,
                hint="Check the path and its permissions.",
            ) from error
    if not 0 < len(found) <= MAX_STATUSES:
        raise LoadError(
            f"There are {len(found)} statuses; expected 1 to {MAX_STATUSES}.",
            found=len(found),
            expected=f"1 to {MAX_STATUSES}",
            hint="Give files that `status()` printed as JSON, or folders with such .json files.",
        )
    return list(found)


def load_status(path: Path) -> DeviceStatus | UnreadableStatus:
    """Read a status; say why where it is none."""
    try:
        data = read_plain(path, max_bytes=MAX_STATUS_BYTES, what="status", error_type=LoadError)
        return _status(object_from_json(load_strict(data, max_values=MAX_STATUS_BYTES >> 4)))
    except (LoadError, TypeError, ValueError, OverflowError, RecursionError, KeyError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else reason_of(error)
        return UnreadableStatus(file=str(path), reason=printable(reason, max_length=MAX_REASON))


def _status(fields: dict[str, Any]) -> DeviceStatus:
    if (fields.get("schema_version"), fields.get("command")) != (SCHEMA_VERSION, "status"):
        raise ValueError(
            f"it is {shown(fields.get('command'))} of schema version {shown(fields.get('schema_version'))}, not "
            f"'status' of {SCHEMA_VERSION}"
        )
    refusals = [object_from_json(each) for each in list_from_json(fields["refusals"])]
    changed = fields["changed"]
    return DeviceStatus(
        device=printable(text_from_json(fields["device"]), max_length=MAX_SHOWN),
        time=time_from_json(fields["time"]),
        bundle=_text(fields["bundle_sha256"]),
        base=_text(fields["base_fingerprint"]),
        head=_text(fields["head_sha256"]),
        version=_integer(fields["version"]),
        changed=None if changed is None else time_from_json(changed),
        num_free_slots=_integer(fields["num_free_slots"]),
        capacity=_integer(fields["capacity"]),
        num_classes=_integer(fields["num_classes"]),
        num_disabled=len(list_from_json(fields["disabled"])),
        last_refused=time_from_json(refusals[0]["time"]) if refusals else None,
        refusal=printable(text_from_json(refusals[0]["reason"]), max_length=MAX_REASON) if refusals else None,
        problems=tuple(_problems(fields["problems"])),
    )


def _problems(value: object) -> Iterator[str]:
    for each in list_from_json(value):
        yield printable(text_from_json(each), max_length=MAX_REASON)


def _text(value: object) -> str | None:
    return None if value is None else printable(text_from_json(value), max_length=MAX_SHOWN)


def _integer(value: object) -> int | None:
    return None if value is None else integer_from_json(value)
