"""A device of a simulated fleet: the rules that real ones have, in the same order, without disk and model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from securesystemslib.signer import SSlibKey

from icis_deploy.bundle.manifest import Bundle, known_names
from icis_deploy.errors import GuardError, ICISDeployError, IncompatibleError, IntegrityError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime.changes import rules
from icis_deploy.runtime.changes.teaching_rules import state_after_update
from icis_deploy.runtime.state.journal import MAX_STATES, Journal, initial_journal
from icis_deploy.runtime.state.origins import origins_after_update
from icis_deploy.updates.trusted_keys import TrustedKeys, public_key_from_pem


class SimulatedDevice:
    """What a device remembers and does with a file, without disk and model: the same rules in the same order."""

    def __init__(
        self, bundle: Bundle, trusted: Sequence[SSlibKey], *, verify: Callable[..., Any] | None = None
    ) -> None:
        self.bundle = bundle
        self.journal: Journal = initial_journal(bundle)
        self._tables = (empty_slots(bundle.capacity, bundle.feature_dim),)
        self._trusted = tuple(trusted)
        self._verify = rules.verify_bytes if verify is None else verify

    @property
    def table(self) -> SlotTable:
        """What the slots hold."""
        return self._tables[-1]

    @property
    def version(self) -> int:
        """Of the head."""
        return self.journal.current.version

    def take(self, data: bytes, clock: datetime, *, is_refused_by_guard: bool = False) -> bool:
        """Take a file, or find that it is in effect; return whether anything changed.

        Raises:
            ICISDeployError: As `Device.apply`; then nothing changed.
        """
        try:
            self._take(data, clock, is_refused_by_guard=is_refused_by_guard)
        except (IntegrityError, IncompatibleError):
            names = known_names(self.bundle, self.table)
            if rules.update_in_effect(self.journal, data, bundle=self.bundle, known_names=names) is None:
                raise
            return False
        return True

    def _take(self, data: bytes, clock: datetime, *, is_refused_by_guard: bool) -> None:
        before, held = self.journal, self.table
        verified = self._verify(
            data, bundle=self.bundle, trusted_keys=self._keys(), allow_unsigned=False, journal=before
        )
        if isinstance(verified.content, TrustedKeys):
            _, self.journal = rules.after_trusted_keys(
                before, verified, verified.content, bundle=self.bundle, clock=clock
            )
            assert self.journal.current == before.current  # no set here gives versions back
            return
        update: ClassUpdate = verified.content
        table = rules.plan_update(before, update, table=held, bundle=self.bundle, clock=clock)
        if is_refused_by_guard:
            raise GuardError("The change takes answers of known classes. Nothing was changed.")
        entry = rules.entry_of_update(before, verified, update, clock=clock)
        first = len(self.bundle.class_names)
        origins = origins_after_update(
            before.current.origins,
            written=[first + table.slot_of[name] for name in update.class_names],
            after=(*self.bundle.class_names, *table.class_names),
            signed_by=verified.signed_by,
        )
        self.journal = rules.after_update(before, entry, state_after_update(before, update, None, origins=origins))
        self._tables = (*self._tables, table)[-MAX_STATES:]

    def roll_back(self, clock: datetime) -> None:
        """Go back to the state before, as an update module does where a health check fails.

        Raises:
            ICISDeployError: As `Device.rollback`.
        """
        names = known_names(self.bundle, self._tables[-2] if len(self._tables) > 1 else None)
        revoked = rules.signers_brought_back(self.journal) - {key.keyid for key in self._keys()}
        _, self.journal = rules.after_rollback(
            self.journal, known_names=names, clock=clock, revoked=revoked, allow_revoked=True
        )
        self._tables = self._tables[:-1]

    def _keys(self) -> tuple[SSlibKey, ...]:
        if self.journal.trusted_keys is None:
            return self._trusted
        return _keys_of(self.journal.trusted_keys)


@lru_cache(maxsize=16)
def _keys_of(pems: tuple[str, ...]) -> tuple[SSlibKey, ...]:
    return tuple(public_key_from_pem(text) for text in pems)


class CachedVerification:
    """`verify_bytes`, which depends on the bytes and the trusted keys alone, once for each pair of them."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, frozenset[str]], Any] = {}

    def __call__(self, data: bytes, *, trusted_keys: Sequence[SSlibKey], journal: Journal, **same: Any) -> Any:
        """Return or raise what `verify_bytes` does."""
        assert not journal.root_keys
        key = (data, frozenset(each.keyid for each in trusted_keys))
        if key not in self._found:
            try:
                found: Any = rules.verify_bytes(data, trusted_keys=trusted_keys, journal=journal, **same)
            except ICISDeployError as error:
                found = error
            self._found[key] = found
        if isinstance(self._found[key], ICISDeployError):
            raise self._found[key]
        return self._found[key]
