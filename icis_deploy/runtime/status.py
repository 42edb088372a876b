"""What a carrier reports of a device: its bundle and head, the keys that it trusts, what it refused, and what is wrong.

Nothing is loaded into a runtime and nothing is changed, so it works beside a process that answers, and on a bundle that
is damaged: what cannot be read is left out, and `problems` says why.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from icis_deploy.bundle.manifest import Bundle, check_files, known_names, load_manifest
from icis_deploy.common.files import read_plain
from icis_deploy.common.json_fields import json_from_time
from icis_deploy.common.terminal_text import MAX_REASON, MAX_SHOWN, printable
from icis_deploy.errors import ICISDeployError, LoadError
from icis_deploy.runtime.inbox import REFUSED, SUFFIX
from icis_deploy.runtime.state.journal import Journal
from icis_deploy.runtime.state.store import Store

MAX_REFUSALS = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LAST_SECOND = 253402300799.0
"""Of the year 9999, the last that a time can be in; a carrier may give a file any."""
_REASON_SUFFIX = f"{SUFFIX}.reason"
_MAX_REASON_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A file that an inbox refused."""

    file: str
    time: str
    """When, in UTC, as `2026-11-23T09:00:00Z`."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleStatus:
    """What is known of a device; `None` where it could not be read."""

    device: str
    """What the fleet calls it."""

    time: str
    """When this was read, by the device's clock, in UTC, as `2026-11-23T09:00:00Z`."""

    release: str
    """Version of icis-deploy."""

    bundle_sha256: str | None = None
    """SHA-256 of the bundle's manifest, which names the hash of every other file."""

    base_fingerprint: str | None = None
    """Fingerprint of the seen head: updates are made for it."""

    head_sha256: str | None = None
    """`SlotTable.digest` of the classes that came with the bundle or by updates; `None` for a fused head, too. Equal
    ones are equal classes with equal rows."""

    version: int | None = None
    """Version of the head."""

    highest_version: int | None = None
    """The greatest version it ever held; greater than `version` after a rollback."""

    sequence: int | None = None
    """Number of the last change."""

    changed: str | None = None
    """Time of the last change; `None` before the first, too."""

    num_classes: int | None = None
    """Classes that it knows, disabled ones included."""

    disabled: tuple[str, ...] = ()
    taught: tuple[str, ...] = ()
    """Classes that were taught on the device."""

    capacity: int | None = None
    num_free_slots: int | None = None

    trust_version: int | None = None
    """Version of the trusted keys; 0 for those of the bundle."""

    key_ids: tuple[str, ...] = ()
    """Of the keys that may sign updates."""

    root_key_ids: tuple[str, ...] = ()
    """Of the keys that alone may replace them; empty where any of them may."""

    num_refused: int | None = None
    """Files in the inbox's `refused/`; `None` where no inbox was named."""

    refusals: tuple[Refusal, ...] = ()
    """The last `MAX_REFUSALS` of them, the latest first."""

    problems: tuple[str, ...] = ()
    """What is wrong with the bundle; empty for one that is whole."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: every field by its name."""
        return asdict(self)


def status(
    folder: Path,
    *,
    device: str,
    release: str,
    inbox: Path | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> BundleStatus:
    """Return what a carrier reports of a bundle; what is wrong with the bundle is part of it and raises nothing.

    Args:
        folder: The bundle.
        device: What the fleet calls the device.
        release: Version of icis-deploy.
        inbox: Where carriers put updates, to say what was refused.
        clock: Says what time it is.

    Raises:
        LoadError: If the inbox cannot be read.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    with _noted(problems):
        bundle = load_manifest(folder)
        found |= {
            "bundle_sha256": bundle.manifest_sha256,
            "base_fingerprint": bundle.base_fingerprint,
            "capacity": bundle.capacity,
        }
        with _noted(problems):
            check_files(folder, bundle)
        with _noted(problems):
            store = Store(folder)
            journal = store.load_journal(bundle)
            found |= _of_journal(journal)
            with _noted(problems):
                found |= _of_table(store, bundle, journal)
            with _noted(problems):
                found |= _of_keys(store, journal)
    if inbox is not None:
        found |= _of_inbox(inbox)
    return BundleStatus(
        device=device, time=json_from_time(clock()), release=release, problems=tuple(dict.fromkeys(problems)), **found
    )


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except ICISDeployError as error:
        problems.append(printable(" ".join(str(error).split()), max_length=MAX_REASON))


def _of_journal(journal: Journal) -> dict[str, Any]:
    return {
        "version": journal.current.version,
        "highest_version": journal.highest_version,
        "sequence": journal.sequence,
        "changed": json_from_time(journal.history[-1].time) if journal.history else None,
        "disabled": journal.disabled,
        "taught": journal.current.taught,
        "trust_version": journal.trust_version,
    }


def _of_table(store: Store, bundle: Bundle, journal: Journal) -> dict[str, Any]:
    table = store.load_table(bundle, journal.current)
    return {
        "num_classes": len(known_names(bundle, table)),
        "num_free_slots": 0 if table is None else bundle.capacity - len(table.filled_names),
        "head_sha256": None if table is None else table.digest(leaving_out=journal.current.taught),
    }


def _of_keys(store: Store, journal: Journal) -> dict[str, Any]:
    from icis_deploy.updates.trusted_keys import key_ids

    return {
        "key_ids": tuple(key.keyid for key in store.trusted_keys(journal)),
        "root_key_ids": key_ids(journal.root_keys),
    }


def _of_inbox(inbox: Path) -> dict[str, Any]:
    folder = inbox / REFUSED
    try:
        with os.scandir(folder) as entries:
            found = [(entry.stat(follow_symlinks=False), entry.name) for entry in entries]
    except FileNotFoundError:
        if not os.path.isdir(inbox):  # noqa: PTH112 - pathlib raises for a name that is too long
            raise LoadError(
                f"There is no inbox at {inbox}.",
                expected="a folder",
                where=inbox,
                hint="Create the folder, or leave `inbox` out.",
            ) from None
        return {"num_refused": 0}
    except OSError as error:
        reason = error.strerror or str(error)
        raise LoadError(
            f"The inbox {inbox} cannot be read: {reason}.", found=reason, where=inbox, hint="Check its permissions."
        ) from error
    files = [(each.st_mtime, name) for each, name in found if stat.S_ISREG(each.st_mode)]
    reasons = sorted((pair for pair in files if pair[1].endswith(_REASON_SUFFIX)), reverse=True)
    return {"num_refused": len(reasons), "refusals": tuple(_refusals(folder, reasons[:MAX_REFUSALS]))}


def _refusals(folder: Path, reasons: list[tuple[float, str]]) -> Iterator[Refusal]:
    for seconds, name in reasons:
        with suppress(LoadError):  # `refused/` is pruned meanwhile
            data = read_plain(folder / name, max_bytes=_MAX_REASON_BYTES, what="reason", error_type=LoadError)
            said = data.decode(errors="replace").strip().removeprefix("Error: ")
            yield Refusal(
                file=printable(name.removesuffix(".reason"), max_length=MAX_SHOWN),
                time=json_from_time(_EPOCH + timedelta(seconds=min(max(seconds, 0.0), _LAST_SECOND))),
                reason=printable(said, max_length=MAX_REASON),
            )
