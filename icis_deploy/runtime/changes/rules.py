"""What a device does with an update: the rules, on bytes and values. No file is read or written here.

Rules, in the order in which they are checked:

1. A file larger than any update that fits the device is refused before it is parsed.
2. It must be signed by a trusted key. An unsigned class update passes only where the operator allowed it; a file that
   is signed by somebody else never does. Trusted keys are the journal's, else those of the bundle's `trust/` folder.
3. Only then is the payload parsed.
4. A class update must be made for the device's seen head, for this bundle where it names bundles, and for the state
   that the device is in where it says what it follows. What a device was taught or disabled is no part of that state.
5. Its version must be greater than every version the device ever held, rolled back or not.
6. It must not have expired. The time is the clock's, or the latest time that the device knows of if the clock is behind
   it: when the bundle was written, or when anything was last committed.
7. Its classes must fit: added ones unknown, replaced and removed ones in a slot, enough empty slots; and its rows may
   have an arbiter only where the model takes one.
8. A set of trusted keys must be signed by a key trusted now, whatever the operator allows; where the device has root
   keys, by as many of them as their threshold says and by nobody else. New root keys must sign the set that brings them
   as well. Rules 5 and 6 hold for it with the version of the trusted keys. One that root keys signed may give versions
   back that a stolen key spent; what came with them is taken back.
9. `rollback` goes to the state before the current one. It needs no signature: whoever can run it holds the device. It
   brings back no class by a key that is not trusted any more, unless the operator allows it; classes that are in effect
   are not brought back.
10. At least one class stays enabled.
11. A bundle that replaces another one on a device is of the same head and no older version; what the device
    remembers outside the rollback stack is carried over, so that neither a spent version nor a revoked key comes back.
12. A class update, or a taught class, must not change more answers than the bundle allows, unless the operator does;
    see `guard.py`.
13. A file that is in effect is no news, and no error: when it comes again, nothing changes and the caller learns so.
    It is known by its signed bytes, as the history has them. An older one stays refused.

Each function returns the new journal (and slots); nothing changes until the caller commits them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from icis_deploy.bundle.manifest import Bundle, target_digest
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.json_fields import json_from_time
from icis_deploy.errors import (
    ClassConflictError,
    CorruptFileError,
    ExpiredError,
    IncompatibleError,
    SignatureError,
    UpdateOrderError,
    UsageError,
    VersionRollbackError,
    WrongBaseError,
)
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.class_names import MAX_NAME_BYTES, quoted
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.journal import (
    MAX_STATES,
    HistoryEntry,
    Journal,
    StateEntry,
    initial_journal,
    with_entry,
)
from icis_deploy.runtime.state.origins import brought_back
from icis_deploy.updates.envelope import MAX_SIGNATURE_BYTES, parse_content, parse_envelope, verify_signature
from icis_deploy.updates.trusted_keys import (
    MAX_TRUSTED_KEYS_BYTES,
    TRUSTED_KEYS_TYPE,
    TrustedKeys,
    public_key_from_pem,
)

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

_PROVENANCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedContent:
    """What a file holds, after its signature was checked."""

    content: ClassUpdate | TrustedKeys

    payload: bytes
    """The signed bytes that `content` was read from."""

    signed_by: str | None
    """Id of the trusted key that signed it; `None` if nobody did and the operator allowed it."""

    def payload_sha256(self) -> str:
        """Return the SHA-256 of the payload, for the history, lower-case hexadecimal."""
        return sha256_of(self.payload)


def sha256_of(payload: bytes) -> str:
    """Return the SHA-256 of a payload, lower-case hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


# Why: docs/decisions/0023.
def max_update_bytes(bundle: Bundle) -> int:
    """Return the size above which no file can be an update for this bundle.

    An update has at most a row and two names for each slot; a kilobyte for a name and a megabyte for what is said of
    how the rows were made are generous. Base64 makes four bytes of three.
    """
    rows = bundle.capacity * (4 * (bundle.feature_dim + 1 + len(STATISTICS)) + 2 * MAX_NAME_BYTES)
    return (max(rows, MAX_TRUSTED_KEYS_BYTES) + _PROVENANCE_BYTES) // 3 * 4 + MAX_SIGNATURE_BYTES


def verify_bytes(
    data: bytes,
    *,
    bundle: Bundle,
    trusted_keys: Sequence[SSlibKey],
    allow_unsigned: bool,
    journal: Journal | None = None,
) -> VerifiedContent:
    """Return what a file holds, if it may be believed (rules 1, 2, 3 and 8).

    Args:
        data: The file.
        bundle: The device's.
        trusted_keys: The public keys trusted now.
        allow_unsigned: Whether the operator takes a class update that nobody signed.
        journal: What the device remembers, whose root keys alone may sign trusted keys; `None` if it has none.

    Raises:
        CorruptFileError: If it is too large, or not one of our files.
        SignatureError: If no trusted key signed it.
    """
    return verify_envelope(
        envelope_of_bytes(data, bundle=bundle),
        trusted_keys=trusted_keys,
        allow_unsigned=allow_unsigned,
        journal=journal,
    )


def envelope_of_bytes(data: bytes, *, bundle: Bundle) -> Envelope:
    """Return the envelope that a file holds, of which nothing may be believed yet (rule 1).

    Raises:
        CorruptFileError: If it is too large, or not one of our files.
    """
    if len(data) > (limit := max_update_bytes(bundle)):
        raise CorruptFileError(
            f"The file has more than {limit} bytes, which no update for this bundle ({bundle.capacity} slots) has. "
            f"Not read further.",
            found=f"more than {limit} bytes",
            expected=f"at most {limit} bytes",
            hint="Check that it is a class update for this bundle.",
        )
    return parse_envelope(data)


def verify_envelope(
    envelope: Envelope,
    *,
    trusted_keys: Sequence[SSlibKey],
    allow_unsigned: bool,
    journal: Journal | None = None,
) -> VerifiedContent:
    """Return what an envelope holds, if it may be believed (rules 2, 3 and 8); see `verify_bytes`."""
    signed_by = None
    if envelope.signatures or not allow_unsigned:
        if journal is not None and journal.root_keys and envelope.payload_type == TRUSTED_KEYS_TYPE:
            roots = [public_key_from_pem(text) for text in journal.root_keys]
            signed_by = verify_signature(envelope, roots, threshold=journal.root_threshold)
        else:
            signed_by = verify_signature(envelope, trusted_keys)
    content = parse_content(envelope, is_verified=signed_by is not None)
    if isinstance(content, TrustedKeys) and signed_by is None:
        raise SignatureError(
            "Trusted keys must be signed by a key that is trusted now.",
            found="no signature",
            expected="a signature by a trusted key",
            hint="Sign them with `sign()`; `allow_unsigned` is for updates.",
        )
    if isinstance(content, TrustedKeys) and content.root_keys:
        new_roots = [public_key_from_pem(text) for text in content.root_keys]
        try:
            verify_signature(envelope, new_roots, threshold=content.root_threshold)
        except SignatureError as error:
            raise SignatureError.at("The root keys that the set brings must sign it too", error) from error
    return VerifiedContent(content=content, payload=envelope.payload, signed_by=signed_by)


def update_in_effect(
    journal: Journal, data: bytes, *, bundle: Bundle, known_names: Sequence[str]
) -> tuple[ClassUpdate | TrustedKeys, HistoryEntry] | None:
    """Return what a file holds and its line in the history, if it is in effect now (rule 13); else `None`.

    No signature is asked for: the device verified these bytes when it took them, and the key that signed them may have
    been replaced since, by these very bytes.

    Args:
        journal: What the device remembers.
        data: The file.
        bundle: The device's.
        known_names: All classes of the current state, disabled ones included.
    """
    if len(data) > max_update_bytes(bundle):
        return None
    try:
        envelope = parse_envelope(data)
        sha256 = hashlib.sha256(envelope.payload).hexdigest()
        entry = next((each for each in reversed(journal.history) if each.payload_sha256 == sha256), None)
        if entry is None:
            return None
        content = parse_content(envelope, is_verified=True)
    except CorruptFileError:
        return None
    if isinstance(content, TrustedKeys):
        is_current = (content.version, content.public_keys) == (journal.trust_version, journal.trusted_keys)
        return (content, entry) if is_current else None
    names = set(known_names)
    # The version alone would also be that of a bundle that took this one's place with other classes in it.
    has_effect = names.issuperset(content.class_names) and names.isdisjoint(content.removed)
    return (content, entry) if content.version == journal.current.version and has_effect else None


def trusted_time(journal: Journal, clock: datetime) -> datetime:
    """Return the clock's time, or the latest that the device knows of if the clock is behind that (rule 6)."""
    clock = clock.replace(microsecond=0)
    return clock if journal.last_seen is None else max(clock, journal.last_seen)


def plan_update(
    journal: Journal,
    update: ClassUpdate,
    *,
    table: SlotTable | None,
    bundle: Bundle,
    clock: datetime,
    signed_digest: Callable[[], str] | None = None,
) -> SlotTable:
    """Return what a class update makes of the slots (rules 4 to 7).

    Args:
        journal: What the device remembers.
        update: The update.
        table: What the slots hold now; `None` for a fused head.
        bundle: The device's.
        clock: The time by the device's clock.
        signed_digest: Returns the digest that `digest_of_signed` gives of `table`, where it is computed already.

    Raises:
        WrongBaseError: If it was made for another head, or signed for other bundles.
        UpdateOrderError: If it follows a state that the device is not in.
        VersionRollbackError: If it is not newer than every version the device held.
        ExpiredError: If it expired.
        IncompatibleError, ClassConflictError, CapacityError: If its classes do not fit.
    """
    if table is None:
        raise IncompatibleError(
            "The bundle's head is fused: it has no slots for a class update.",
            found="fused",
            expected="updatable",
            hint="Export it with `head='updatable'`.",
        )
    if update.base_fingerprint != bundle.base_fingerprint:
        raise WrongBaseError(
            f"The class update was made for the head {update.base_fingerprint[:16]}…; this device's is "
            f"{bundle.base_fingerprint[:16]}….",
            found=update.base_fingerprint,
            expected=bundle.base_fingerprint,
            hint="Inject again with this device's model and class list.",
        )
    _check_target(update, bundle)
    _check_version(update.version, held=journal.highest_version, what="class update")
    _check_expiry(update.expires, journal=journal, clock=clock, what="class update")
    if update.follows is not None:
        found = digest_of_signed(journal, table) if signed_digest is None else signed_digest()
        _check_follows(update.follows, update.version, journal, found)
    check_arbiter(update, bundle, hint="Export it again with `arbiter='auto'`, or inject with `arbiter='off'`.")
    taught = journal.current.taught
    taken_over = tuple(name for name in taught if name in update.added)
    new_table = table.without(taken_over).apply(update, seen_names=_set_of(bundle.class_names), keeping=taught)
    if journal.disabled:
        check_enabled((*bundle.class_names, *new_table.filled_names), journal.disabled)
    return new_table


def _check_target(update: ClassUpdate, bundle: Bundle) -> None:
    if update.targets and (found := target_digest(bundle)) not in update.targets:
        raise WrongBaseError(
            f"The class update was signed for other bundles ({', '.join(each[:16] for each in update.targets[:4])}); "
            f"this one is {found[:16]}: its model or the preparation of its images is another.",
            found=found,
            expected=update.targets,
            hint="Sign it for this bundle with `sign()` and its `bundle`.",
        )


def digest_of_signed(journal: Journal, table: SlotTable) -> str:
    """Return the digest of the classes that an update can say it follows (rule 4)."""
    return table.digest(leaving_out=journal.current.taught)


def _check_follows(follows: FollowedState, version: int, journal: Journal, found: str) -> None:
    if found == follows.digest:
        return
    held, missing = journal.current.version, follows.version
    if missing > journal.highest_version:
        hint = f"Deliver version {missing} first, or an update that was signed with `complete=True`."
    else:
        hint = (
            f"Sign it for the classes of version {held}, or sign an update with `complete=True`, which any state takes."
        )
    raise UpdateOrderError(
        f"Class update {version} follows version {missing} ({follows.digest[:16]}…); this device is at "
        f"version {held} ({found[:16]}…), whose classes differ.",
        found=(held, found),
        expected=(missing, follows.digest),
        hint=hint,
    )


def check_arbiter(update: ClassUpdate, bundle: Bundle, *, hint: str) -> None:
    """Raise `IncompatibleError` if rows have an arbiter and the bundle's model takes none (rule 7)."""
    if bundle.arbiter or update.arbiter is None or not update.arbiter.any():
        return
    raise IncompatibleError(
        f"The rows of {quoted(update.class_names)} have an arbiter, and this bundle's model takes none.",
        found="rows with an arbiter",
        expected="rows with constant offsets",
        hint=hint,
    )


def entry_of_update(
    journal: Journal,
    verified: VerifiedContent,
    update: ClassUpdate,
    *,
    clock: datetime,
    payload_sha256: str | None = None,
) -> HistoryEntry:
    """Return the line that a class update gets in the history.

    Args:
        journal: The journal before it.
        verified: What was verified.
        update: The class update in it.
        clock: The time by the device's clock.
        payload_sha256: `verified.payload_sha256()`, where it is computed already.
    """
    return HistoryEntry(
        sequence=journal.sequence + 1,
        time=trusted_time(journal, clock),
        action="apply",
        version=update.version,
        num_added=len(update.added),
        num_replaced=len(update.replaced),
        num_removed=len(update.removed),
        payload_sha256=payload_sha256 or verified.payload_sha256(),
        signed_by=verified.signed_by,
    )


@lru_cache(maxsize=2)
def _set_of(class_names: tuple[str, ...]) -> frozenset[str]:
    """Return the classes of a bundle as a set, which a device makes once and not with every update."""
    return frozenset(class_names)


def _check_version(version: int, *, held: int, what: str) -> None:
    if version <= held:
        raise VersionRollbackError(
            f"The {what} has version {version}; this device has held version {held}, so it takes {held + 1} or "
            f"greater.",
            found=version,
            expected=f"at least {held + 1}",
            hint="Sign the change again with a greater `version`; `Device.rollback()` undoes the last update.",
        )


def _check_expiry(expires: datetime | None, *, journal: Journal, clock: datetime, what: str) -> None:
    now = trusted_time(journal, clock)
    if expires is None or now < expires:
        return
    behind = clock.replace(microsecond=0) < now
    last = journal.history[-1].time if journal.history else None
    passed = "the last change it committed" if last == now else "the bundle was written"
    reason = f" (its clock says {json_from_time(clock)}, which is before {passed})" if behind else ""
    raise ExpiredError(
        f"The {what} expired at {json_from_time(expires)}; for this device it is {json_from_time(now)}{reason}.",
        found=json_from_time(expires),
        expected=f"later than {json_from_time(now)}",
        hint="Sign it again with a later `expires`.",
    )


def after_update(journal: Journal, entry: HistoryEntry, state: StateEntry) -> Journal:
    """Return the journal after a class update, or a taught class, whose slots are in `state`."""
    return with_entry(
        replace(
            journal,
            states=(*journal.states, state)[-MAX_STATES:],
            highest_version=max(journal.highest_version, state.version),
        ),
        entry,
    )


def after_trusted_keys(
    journal: Journal, verified: VerifiedContent, keys: TrustedKeys, *, bundle: Bundle, clock: datetime
) -> tuple[HistoryEntry, Journal]:
    """Return the journal after a new set of trusted keys (rule 8), and its line in the history.

    Raises:
        VersionRollbackError: If the set is not newer than the one the device has.
        ExpiredError: If it expired.
        IncompatibleError: If one of its keys is a root key of the device, which it keeps.
        SignatureError: If it gives versions back, and the device has no root keys.
    """
    _check_version(keys.version, held=journal.trust_version, what="set of trusted keys")
    _check_expiry(keys.expires, journal=journal, clock=clock, what="set of trusted keys")
    if not keys.root_keys and (both := set(journal.root_keys) & set(keys.public_keys)):
        raise IncompatibleError(
            f"{len(both)} keys of the set are root keys of this device: whoever steals one would have both roles.",
            found=len(both),
            expected="other keys than its root keys",
            hint="Let another key sign updates, or bring new root keys with the set.",
        )
    entry = HistoryEntry(
        sequence=journal.sequence + 1,
        time=trusted_time(journal, clock),
        action="trust",
        version=journal.current.version,
        payload_sha256=verified.payload_sha256(),
        signed_by=verified.signed_by,
    )
    changed = replace(journal, trust_version=keys.version, trusted_keys=keys.public_keys)
    if keys.root_keys:
        changed = replace(changed, root_keys=keys.root_keys, root_threshold=keys.root_threshold)
    if keys.highest_version is not None:
        changed = _with_versions_back(changed, keys.highest_version, journal=journal, bundle=bundle)
        entry = replace(entry, version=changed.current.version)
    return entry, with_entry(changed, entry)


def _with_versions_back(changed: Journal, highest: int, *, journal: Journal, bundle: Bundle) -> Journal:
    if not journal.root_keys:
        raise SignatureError(
            "The set of trusted keys gives versions back, and this device has no root keys, which alone may do that.",
            found="no root keys",
            expected="root keys",
            hint="Install the bundle again; `rotate_keys()` with `root` gives devices root keys.",
        )
    kept = tuple(state for state in changed.states if state.version <= highest)
    kept = kept or initial_journal(bundle).states
    # `_check_version` lets a set of trusted keys in once, so what it gives back cannot be given back again.
    return replace(changed, states=kept, highest_version=max(highest, *(state.version for state in kept)))


def state_before(journal: Journal) -> StateEntry:
    """Return the state that `rollback` goes to (rule 9).

    Raises:
        UsageError: If there is none before the current one.
    """
    if len(journal.states) < 2:
        raise UsageError(
            f"There is nothing to roll back to: version {journal.current.version} is the oldest state that this "
            f"device keeps (at most {MAX_STATES}).",
            found=journal.current.version,
            hint="Classes that came with the export go by an update that removes or replaces them.",
        )
    return journal.states[-2]


def signers_brought_back(journal: Journal, rewritten: Collection[int] = ()) -> frozenset[str]:
    """Return the ids of the keys whose classes `rollback` would bring back (rule 9).

    Args:
        journal: What the device remembers.
        rewritten: Columns that have another class or another row in the state before than now.
    """
    return brought_back(journal.current.origins, state_before(journal).origins, rewritten)


def after_rollback(
    journal: Journal,
    *,
    known_names: Sequence[str],
    clock: datetime,
    revoked: Collection[str] = (),
    allow_revoked: bool = False,
) -> tuple[HistoryEntry, Journal]:
    """Return the journal after going back to the state before, and its line in the history.

    Args:
        journal: What the device remembers.
        known_names: All classes of the state before, disabled ones included.
        clock: The time by the device's clock.
        revoked: Those of `signers_brought_back` that are not trusted any more.
        allow_revoked: Whether the operator takes their classes back knowingly.

    Raises:
        UsageError: If there is no state before the current one.
        SignatureError: If it has classes by keys that are not trusted any more, and the operator does not allow it.
        ClassConflictError: If all its classes are disabled.
    """
    if revoked and not allow_revoked:
        raise SignatureError(
            f"The state before, version {state_before(journal).version}, would bring back classes signed by "
            f"{', '.join(f'{each[:16]}…' for each in sorted(revoked)[:4])}, which this device does not trust any more. "
            f"Nothing was changed.",
            found=tuple(sorted(revoked)),
            expected="classes by keys that are trusted now",
            hint=(
                "Apply an update with the classes that are wanted; where this state is meant, give "
                "`allow_revoked=True`, and the history says so."
            ),
        )
    check_enabled(known_names, journal.disabled)
    entry = HistoryEntry(
        sequence=journal.sequence + 1,
        time=trusted_time(journal, clock),
        action="rollback",
        version=state_before(journal).version,
        allowed_revoked=bool(revoked),
    )
    return entry, with_entry(replace(journal, states=journal.states[:-1]), entry)


def after_replacement(
    journal: Journal, former: Journal, *, known_names: Sequence[str], clock: datetime
) -> tuple[HistoryEntry, Journal]:
    """Return the journal of a bundle that replaces another one on a device, and its line in the history (rule 11).

    Args:
        journal: What the new bundle brings.
        former: What the device remembers of the bundle it had.
        known_names: All classes of the new bundle, disabled ones included.
        clock: The time by the device's clock.

    Raises:
        VersionRollbackError: If the new bundle holds an older version than the device.
        ClassConflictError: If all its classes are disabled, or it lacks one that the device was taught.
    """
    version, held = journal.current.version, former.current.version
    if version < held:
        raise VersionRollbackError(
            f"The bundle holds version {version}; this device holds version {held}.",
            found=version,
            expected=held,
            hint="Compact a bundle that has all the updates, or apply the missing ones to the new bundle first.",
        )
    lost = tuple(name for name in former.current.taught if name not in known_names)
    if lost:
        raise ClassConflictError(
            f"The bundle lacks {quoted(lost)}, which this device was taught.",
            expected=tuple(lost),
            hint="Publish them in a class update and apply it to the new bundle first, or roll the teaching back.",
        )
    disabled = tuple(dict.fromkeys(name for name in (*former.disabled, *journal.disabled) if name in known_names))
    check_enabled(known_names, disabled)
    keys = max(former, journal, key=lambda each: each.trust_version)
    last_seen = max((each.last_seen for each in (former, journal) if each.last_seen is not None), default=None)
    entry = HistoryEntry(
        sequence=former.sequence + 1,
        time=trusted_time(replace(former, last_seen=last_seen), clock),
        action="replace",
        version=version,
    )
    merged = replace(
        journal,
        highest_version=max(former.highest_version, journal.highest_version),
        disabled=disabled,
        trust_version=keys.trust_version,
        trusted_keys=keys.trusted_keys,
        root_keys=keys.root_keys,
        root_threshold=keys.root_threshold,
        history=former.history,
    )
    return entry, with_entry(merged, entry)


def after_switch(
    journal: Journal, class_name: str, *, enabled: bool, known_names: Sequence[str], clock: datetime
) -> tuple[HistoryEntry, Journal] | None:
    """Return the journal after a class was enabled or disabled, and its line; `None` if it already is as asked.

    Args:
        journal: What the device remembers.
        class_name: The class.
        enabled: Whether to enable or to disable it.
        known_names: All classes of the head, disabled ones included.
        clock: The time by the device's clock.

    Raises:
        ClassConflictError: If the head does not know the class, or no class would be left.
    """
    if class_name not in known_names:
        raise ClassConflictError(
            f"The head knows no class {class_name!r}.",
            found=class_name,
            expected=tuple(known_names),
            hint=f"{did_you_mean([class_name], known_names)}`Device.classes()` lists the {len(known_names)} it knows.",
        )
    if (class_name not in journal.disabled) == enabled:
        return None
    others = tuple(name for name in journal.disabled if name != class_name)
    disabled = others if enabled else (*others, class_name)
    check_enabled(known_names, disabled)
    entry = HistoryEntry(
        sequence=journal.sequence + 1,
        time=trusted_time(journal, clock),
        action="enable" if enabled else "disable",
        version=journal.current.version,
        class_name=class_name,
    )
    return entry, with_entry(replace(journal, disabled=disabled), entry)


def check_enabled(known_names: Sequence[str], disabled: Sequence[str]) -> None:
    """Raise `ClassConflictError` if no class is left to choose (rule 10)."""
    if disabled and set(known_names) <= set(disabled):
        raise ClassConflictError(
            f"No class would be left to choose: {quoted(tuple(disabled))} are disabled.",
            found=tuple(disabled),
            expected="at least one enabled class",
            hint="Enable one of them first.",
        )
