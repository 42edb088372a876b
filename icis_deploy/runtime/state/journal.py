"""The journal: what a device remembers of its head, in one small file that is replaced as a whole.

Rules:

1. The journal names the state the device holds now. Replacing the journal is the commit; there is no other moment.
2. `states` is the stack that `rollback` walks down: the last one is current, at most `MAX_STATES` are kept.
3. `highest_version`, `trust_version`, `last_seen`, the trusted keys and the disabled classes are no part of a state:
   no rollback brings back the permission of an old version, a revoked key, an earlier time, or a class that an
   operator switched off.
4. Who signed the classes of a state is kept with it (`origins.py`), and of every such signer one line of the history.
5. No permission comes from `history`, which is for people. A file that is in effect is known by it when it comes again,
   and `continues` asks it whether one journal came of another.
6. `last_seen` is never earlier than the time at which the bundle was written: a device that starts without a clock
   believes none that says less.
7. A journal belongs to one bundle: it notes the hash of the bundle's manifest. One that was written before journals did
   is taken to belong to the bundle in whose folder it is, and notes it with the next change.

The file is JSON with its own SHA-256, because a flipped bit in a version number would still be JSON.
"""

# Why: docs/decisions/0021 (what no rollback brings back), docs/decisions/0077 (which bundle it belongs to).

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from icis_deploy.bundle.manifest import Bundle, FileEntry
from icis_deploy.common.json_fields import (
    integer_from_json,
    json_from_time,
    list_from_json,
    load_strict,
    names_from_json,
    number_from_json,
    object_from_json,
    text_from_json,
    time_from_json,
)
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import CorruptFileError, IncompatibleError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.class_update import MAX_VERSION
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.origins import Origin

SCHEMA_VERSION = 1
PROJECT_START = datetime(2026, 11, 23, tzinfo=timezone.utc)
"""No bundle and no update is older; bundles of earlier releases do not say when they were written."""

MAX_STATES = 8
MAX_HISTORY = 32
MAX_JOURNAL_BYTES = 1 << 26
_MAX_COLUMN = 1 << 22
"""Of a model's scores: more than the classes of any manifest and the greatest number of slots."""

_TEXT, _NUMBER, _OPTIONAL_TEXT = (str,), (int,), (str, type(None))
_HISTORY_TYPES: Mapping[str, tuple[type, ...]] = {
    "sequence": _NUMBER,
    "time": _TEXT,
    "action": _TEXT,
    "version": _NUMBER,
    "num_added": _NUMBER,
    "num_replaced": _NUMBER,
    "num_removed": _NUMBER,
    "class_name": _OPTIONAL_TEXT,
    "payload_sha256": _OPTIONAL_TEXT,
    "signed_by": _OPTIONAL_TEXT,
}
_OPTIONAL_HISTORY_TYPES: Mapping[str, tuple[type, ...]] = {
    "changed_answers": (float,),
    "allowed_past_guard": (bool,),
    "allowed_revoked": (bool,),
    "photos_sha256": (list,),
}
"""Fields that a line has only where they say something: lines of bundles without a guard stay as releases without them
read them."""
_dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
# The file is one JSON object; the hash is over the exact bytes between these.
_START, _MIDDLE, _END = b'{"journal":', b',"sha256":"', b'"}\n'
ACTIONS = ("apply", "rollback", "enable", "disable", "trust", "replace", "teach")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateEntry:
    """One state of the slots that the device can be in."""

    version: int
    """Version of the last class update in it; the bundle's head version before the first."""

    slots: FileEntry | None
    """The slot table's file; `None` for what the bundle was exported with."""

    taught: tuple[str, ...] = ()
    """Classes in it that were taught on the device, the oldest first; a signed update of the same name replaces one."""

    by_photos: tuple[str, ...] = ()
    """Those of them that were taught by photos: they have one offset, which is set anew with each of them."""

    photo_offset: float = 0.0
    """What is taken off the biases of these, in logits."""

    origins: tuple[Origin, ...] = ()
    """Who signed the classes in it; see `origins.py` for those without one."""

    _text: str | None = field(default=None, init=False, repr=False, compare=False)
    """Its JSON, once it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One committed change, for people to read.

    Example:
        for entry in icis_deploy.Device.open("bundle").history():
            print(entry.sequence, entry.time, entry.action, entry.signed_by)
    """

    sequence: int
    """Number of the change, from 1."""

    time: datetime
    """When, by the device's clock, in UTC with a resolution of a second."""

    action: str
    """One of `ACTIONS`."""

    version: int
    """Version of the head after the change."""

    num_added: int = 0
    """How many classes the change added to slots."""

    num_replaced: int = 0
    """How many classes the change replaced in slots."""

    num_removed: int = 0
    """How many classes the change removed from slots."""

    class_name: str | None = None
    """The class that was enabled, disabled or taught."""

    payload_sha256: str | None = None
    """Of the applied update or set of keys, lower-case hexadecimal; `None` where there was no file."""

    signed_by: str | None = None
    """Id of the key that signed it; `None` where nothing was signed: an unsigned update, or an operator's command."""

    changed_answers: float | None = None
    """Share of the answers on reference images that the change changed, 0..1; `None` where no guard looked."""

    allowed_past_guard: bool = False
    """Whether the guard refused the change and an operator allowed it."""

    allowed_revoked: bool = False
    """Whether a rollback brought back classes of a key that is not trusted any more, and an operator allowed it."""
    photos_sha256: tuple[str, ...] = ()
    """SHA-256 of each photo that the class was taught by, lower-case hexadecimal: of its file, or of its input of the
    model where there was no file."""

    _text: str | None = field(default=None, init=False, repr=False, compare=False)
    """Its JSON, once it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What a device remembers."""

    base_fingerprint: str
    """Fingerprint of the seen head, by which a journal of another bundle is noticed."""

    states: tuple[StateEntry, ...]
    """At least one; the last is current."""

    highest_version: int
    """The greatest version the device ever held; an update must be newer."""

    last_seen: datetime | None = None
    """The latest time that the device knows of: when the bundle was written, or anything was committed. The clock is
    not believed when it is earlier."""

    disabled: tuple[str, ...] = ()
    """Classes that an operator switched off, in the order of switching."""

    trust_version: int = 0
    """Version of the trusted keys; 0 for those of the bundle's `trust/` folder."""

    trusted_keys: tuple[str, ...] | None = None
    """PEM of the keys that replaced those in `trust/`; `None` before the first replacement."""

    root_keys: tuple[str, ...] = ()
    """PEM of the keys that alone may replace the trusted ones; empty where any trusted key may."""

    root_threshold: int = 1
    """How many of them must sign."""

    history: tuple[HistoryEntry, ...] = ()
    """The last `MAX_HISTORY` changes, the oldest first; before them the last one by each signer, or by nobody, of whom
    there are classes in `states` and who has no later line."""

    bundle_sha256: str | None = None
    """SHA-256 of the manifest of the bundle that it belongs to; `None` where the bundle has no manifest yet."""

    @property
    def current(self) -> StateEntry:
        """The state the device holds now."""
        return self.states[-1]

    @property
    def sequence(self) -> int:
        """Number of the last change; 0 before the first."""
        return self.history[-1].sequence if self.history else 0


def earliest_time(bundle: Bundle) -> datetime:
    """Return a time that has passed, whatever a clock says: the bundle was written then, or this project began."""
    return PROJECT_START if bundle.written_at is None else max(PROJECT_START, bundle.written_at)


def initial_journal(bundle: Bundle) -> Journal:
    """Return what a device remembers before anything changed: the bundle as it was exported."""
    return Journal(
        base_fingerprint=bundle.base_fingerprint,
        states=(StateEntry(version=bundle.head_version, slots=None),),
        highest_version=bundle.head_version,
        last_seen=earliest_time(bundle),
        bundle_sha256=bundle.manifest_sha256,
    )


def continues(journal: Journal, former: Journal) -> bool:
    """Return whether a journal remembers what another one does, because changes made it of that one.

    Every change adds a line to the history and keeps those before, also where a bundle replaces another one. So the
    last line of the former journal is among the later one's, or older than all that those keep. A journal with as many
    lines that is of another device may seem to be that, so there nothing may be less that changes only make more.
    """
    if not former.history or former.history[-1] in journal.history:
        return True
    if len(journal.history) < MAX_HISTORY or journal.history[-MAX_HISTORY].sequence <= former.sequence:
        return False
    return not _is_less(journal, former)


def _is_less(journal: Journal, former: Journal) -> bool:
    """Return whether a journal lacks a spent version, a set of trusted keys or a time that another one has."""
    if former.last_seen is not None and (journal.last_seen is None or journal.last_seen < former.last_seen):
        return True
    if journal.trust_version != former.trust_version:
        # A set by root keys may have given versions back, and brought other root keys.
        return journal.trust_version < former.trust_version or bool(former.root_keys and not journal.root_keys)
    return journal.highest_version < former.highest_version or _keys_of(journal) != _keys_of(former)


def _keys_of(journal: Journal) -> tuple[object, ...]:
    return journal.trusted_keys, journal.root_keys, journal.root_threshold


def with_entry(journal: Journal, entry: HistoryEntry) -> Journal:
    """Return the journal with one more line in its history, and without those that are let go (rule 4)."""
    lines = (*journal.history, entry)
    older, recent = lines[:-MAX_HISTORY], lines[-MAX_HISTORY:]
    if older:
        wanted = {origin.signed_by for state in journal.states for origin in state.origins}
        wanted -= {line.signed_by for line in recent if line.action == "apply"}
        last_of = {line.signed_by: line for line in older if line.action == "apply" and line.signed_by in wanted}
        recent = (*sorted(last_of.values(), key=lambda line: line.sequence), *recent)
    return replace(journal, history=recent, last_seen=entry.time)


def serialize_journal(journal: Journal) -> bytes:
    """Return the bytes of a journal; equal journals give equal bytes."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "base_fingerprint": journal.base_fingerprint,
        "states": [],
        "highest_version": journal.highest_version,
        "last_seen": None if journal.last_seen is None else json_from_time(journal.last_seen),
        "disabled": journal.disabled,
        "trust_version": journal.trust_version,
        "trusted_keys": journal.trusted_keys,
        "history": [],
    }
    if journal.root_keys:  # journals without roles stay as they ever were
        fields |= {"root_keys": journal.root_keys, "root_threshold": journal.root_threshold}
    if journal.bundle_sha256 is not None:
        fields["bundle_sha256"] = journal.bundle_sha256
    # All states and lines of the history but one are those of the journal before, so their JSON is cached. Quotes in a
    # text are escaped, so each empty list is found exactly once.
    text = _dumps(fields)
    for name, entries in (("states", journal.states), ("history", journal.history)):
        text = text.replace(f'"{name}":[]', f'"{name}":[{",".join([_text_of(entry) for entry in entries])}]', 1)
    data = text.encode()
    return b"%s%s%s%s%s" % (_START, data, _MIDDLE, hashlib.sha256(data).hexdigest().encode(), _END)


def _text_of(entry: StateEntry | HistoryEntry) -> str:
    text = entry._text
    if text is None:
        text = _dumps(_state_to_json(entry) if isinstance(entry, StateEntry) else history_to_json(entry))
        object.__setattr__(entry, "_text", text)
    return text


def parse_journal(data: bytes) -> Journal:
    """Return the journal that these bytes hold.

    Raises:
        CorruptFileError: If they are damaged, or of another schema.
    """
    try:
        text, _, sha256 = data.removeprefix(_START).removesuffix(_END).rpartition(_MIDDLE)
        if hashlib.sha256(text).hexdigest().encode() != sha256:
            raise ValueError("its SHA-256 is not the one it states")
        fields = load_strict(text)
        version = integer_from_json(fields["schema_version"])
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version}, this release reads {SCHEMA_VERSION}")
        return _journal_from_json(fields)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CorruptFileError(
            f"The journal of the device is damaged: {reason_of(error)}.",
            found=reason_of(error),
            hint=(
                "Delete the bundle's state/ folder to start again from the classes it was exported with, or fetch the "
                "bundle again; either forgets spent versions and replaced keys."
            ),
        ) from error


def _state_to_json(state: StateEntry) -> dict[str, Any]:
    slots = None if state.slots is None else {"sha256": state.slots.sha256, "size_bytes": state.slots.size_bytes}
    taught = {"taught": state.taught} if state.taught else {}  # journals without taught classes stay as they ever were
    origins = [{"signed_by": each.signed_by, "columns": each.ranges} for each in state.origins]
    photos = {"by_photos": state.by_photos, "photo_offset": state.photo_offset} if state.by_photos else {}
    signed = {"origins": origins} if origins else {}
    return {"version": state.version, "slots": slots, **taught, **photos, **signed}


def history_to_json(entry: HistoryEntry) -> dict[str, Any]:
    """Return a change as JSON values."""
    return {
        "sequence": entry.sequence,
        "time": json_from_time(entry.time),
        "action": entry.action,
        "version": entry.version,
        "num_added": entry.num_added,
        "num_replaced": entry.num_replaced,
        "num_removed": entry.num_removed,
        "class_name": entry.class_name,
        "payload_sha256": entry.payload_sha256,
        "signed_by": entry.signed_by,
        **({} if entry.changed_answers is None else {"changed_answers": entry.changed_answers}),
        **({"allowed_past_guard": True} if entry.allowed_past_guard else {}),
        **({"allowed_revoked": True} if entry.allowed_revoked else {}),
        **({"photos_sha256": list(entry.photos_sha256)} if entry.photos_sha256 else {}),
    }


def _journal_from_json(fields: Mapping[str, Any]) -> Journal:
    states = tuple(_state_from_json(object_from_json(state)) for state in list_from_json(fields["states"]))
    highest, trust_version = integer_from_json(fields["highest_version"]), integer_from_json(fields["trust_version"])
    if not states:
        raise ValueError("it names no state")
    if len(states) > MAX_STATES:
        raise ValueError(f"it names {len(states)} states; at most {MAX_STATES} are kept")
    if (
        not 0 <= max(state.version for state in states) <= highest <= MAX_VERSION
        or not 0 <= trust_version <= MAX_VERSION
    ):
        raise ValueError("its versions contradict each other, or are out of range")
    keys, last_seen = fields["trusted_keys"], fields["last_seen"]
    root_keys, threshold = names_from_json(fields.get("root_keys", [])), fields.get("root_threshold", 1)
    if not 1 <= integer_from_json(threshold) <= max(1, len(root_keys)):
        raise ValueError(f"{shown(threshold)} of its {len(root_keys)} root keys must sign")
    return Journal(
        base_fingerprint=text_from_json(fields["base_fingerprint"]),
        states=states,
        highest_version=highest,
        last_seen=None if last_seen is None else time_from_json(last_seen),
        disabled=names_from_json(fields["disabled"]),
        trust_version=trust_version,
        trusted_keys=None if keys is None else names_from_json(keys),
        root_keys=root_keys,
        root_threshold=threshold,
        history=tuple(_history_from_json(object_from_json(entry)) for entry in list_from_json(fields["history"])),
        bundle_sha256=_sha256(fields["bundle_sha256"]) if "bundle_sha256" in fields else None,
    )


def _state_from_json(fields: Mapping[str, Any]) -> StateEntry:
    slots = fields["slots"]
    version = integer_from_json(fields["version"])
    if version < 0:
        raise ValueError(f"a state has version {version}")
    taught, by_photos = names_from_json(fields.get("taught", [])), names_from_json(fields.get("by_photos", []))
    if not set(by_photos) <= set(taught):
        raise ValueError("a state has classes that were taught by photos, and were not taught")
    return StateEntry(
        version=version,
        slots=None
        if slots is None
        else FileEntry(sha256=_sha256(slots["sha256"]), size_bytes=integer_from_json(slots["size_bytes"])),
        taught=taught,
        by_photos=by_photos,
        photo_offset=number_from_json(fields.get("photo_offset", 0.0)),
        origins=tuple(_origin_from_json(object_from_json(each)) for each in list_from_json(fields.get("origins", []))),
    )


def _origin_from_json(fields: dict[str, Any]) -> Origin:
    ranges = tuple(tuple(map(integer_from_json, list_from_json(each))) for each in list_from_json(fields["columns"]))
    bounds = [bound for each in ranges for bound in each]
    if (
        not ranges
        or any(len(each) != 2 for each in ranges)
        or bounds != sorted(set(bounds))
        or not 0 <= bounds[0] < bounds[-1] <= _MAX_COLUMN
    ):
        raise ValueError("the columns of an origin are no ranges in ascending order")
    signed_by = fields["signed_by"]
    return Origin(
        None if signed_by is None else text_from_json(signed_by), tuple((first, end) for first, end in ranges)
    )


def _history_from_json(fields: dict[str, Any]) -> HistoryEntry:
    types = {**_HISTORY_TYPES, **_OPTIONAL_HISTORY_TYPES}
    if not _HISTORY_TYPES.keys() <= fields.keys() <= types.keys():
        raise ValueError(f"a line of its history has the fields {sorted(fields)}")
    for name, value in fields.items():
        if type(value) not in types[name]:
            raise TypeError(f"{name} of a line of its history is {shown(value)}")
    photos = tuple(_sha256(one) for one in fields.get("photos_sha256", []))
    return HistoryEntry(**fields | {"time": time_from_json(fields["time"]), "photos_sha256": photos})


def _sha256(value: object) -> str:
    # It becomes part of a file's name, so it must be nothing but digits.
    text = text_from_json(value)
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError(f"{shown(text)} is no SHA-256")
    return text


def journal_of(bundle: Bundle, journal: Journal) -> Journal:
    """Return the journal in a bundle's folder, bound to the bundle (rules 6 and 7).

    Raises:
        IncompatibleError: If it is of another bundle.
    """
    if journal.base_fingerprint != bundle.base_fingerprint:
        raise IncompatibleError(
            f"The bundle's state/ folder is of another head ({journal.base_fingerprint[:16]}…; this bundle's is "
            f"{bundle.base_fingerprint[:16]}…).",
            found=journal.base_fingerprint,
            expected=bundle.base_fingerprint,
            hint="Delete it if the bundle was replaced.",
        )
    floor = earliest_time(bundle)
    journal = replace(journal, last_seen=floor if journal.last_seen is None else max(floor, journal.last_seen))
    if journal.bundle_sha256 is None or bundle.manifest_sha256 is None:
        return replace(journal, bundle_sha256=bundle.manifest_sha256)
    if journal.bundle_sha256 != bundle.manifest_sha256:
        raise IncompatibleError(
            f"The bundle's state/ folder is of another bundle of the same head (manifest "
            f"{journal.bundle_sha256[:16]}…; this bundle's is {bundle.manifest_sha256[:16]}…): its versions and slots "
            f"do not go with this model.",
            found=journal.bundle_sha256,
            expected=bundle.manifest_sha256,
            hint=(
                "Put the new bundle into a folder of its own, to which a running device goes over by Device.replace, "
                "or fetch the bundle again. To delete state/ forgets spent versions and replaced keys."
            ),
        )
    return journal


def check_table(bundle: Bundle, state: StateEntry, table: SlotTable | None) -> None:
    """Raise `CorruptFileError` if the slots of a state do not go with the head, or with what the journal says."""
    filled = () if table is None else table.filled_names
    twice, absent = set(filled) & set(bundle.class_names), set(state.taught) - set(filled)
    if twice or absent:
        problem = "hold baked classes" if twice else "lack taught classes"
        raise CorruptFileError(
            f"The slots of the device {problem} ({quoted(sorted(twice or absent))}): its journal was not written by "
            f"icis-deploy.",
            found=tuple(sorted(twice or absent)),
            hint="`Device.rollback()` goes to the state before, or fetch the bundle again.",
        )


def check_disabled(journal: Journal, known_names: Sequence[str]) -> None:
    """Raise `CorruptFileError` if a journal leaves no class to choose, which rule 10 never lets happen."""
    if journal.disabled and set(known_names) <= set(journal.disabled):
        raise CorruptFileError(
            f"The journal of the device disables every class of it ({quoted(journal.disabled)}), so it was not "
            f"written by icis-deploy.",
            found=tuple(journal.disabled),
            expected="at least one enabled class",
            hint=(
                "Delete the bundle's state/ folder to start again from the classes it was exported with, or fetch the "
                "bundle again."
            ),
        )
