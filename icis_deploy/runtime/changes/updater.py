"""The updater: it carries a device from one head state to the next, on the disk and in memory.

Rules:

1. A change holds the bundle's lock from reading the journal to replacing the head state, so that changes of several
   threads and processes come one after the other, each on top of the one before.
2. A change is: verify, load and self-test, write, commit, publish. Slots go to the disk while the self-test and the
   guard look at them, and the journal, which needs the verdict, after that. Where the self-test has to run the model,
   it does so meanwhile, and the commit waits for all of it. Whatever fails before the commit leaves disk and memory as
   they were; publishing is one assignment and cannot fail.
3. What another process committed is taken over by `refresh`, never in the middle of a request.
4. An interruption can come after a commit and before its publication. So journal, stamp and head state are published
   together, and every change begins with taking over what the disk has and memory does not.

What may change is decided in `rules.py`, how it reaches the disk in `state/store.py`. Rules, self-test and stopwatch
are imported with the first change: a device that only answers opens without them.
"""

# Why: docs/decisions/0022 (the order), docs/decisions/0057 (late imports), docs/decisions/0097 (disk and guard).

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.manifest import Bundle, known_names
from icis_deploy.common.arrays import Float32
from icis_deploy.common.files import path_from
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import (
    BundleError,
    CorruptFileError,
    IncompatibleError,
    IntegrityError,
    SelfTestError,
    UsageError,
)
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.limits import Limits
from icis_deploy.runtime.sessions.protocol import Session, SlotBuffers
from icis_deploy.runtime.state.head_state import HeadState, make_head_state
from icis_deploy.runtime.state.journal import HistoryEntry, Journal, StateEntry, check_disabled, initial_journal
from icis_deploy.runtime.state.origins import origins_after_update, origins_without
from icis_deploy.runtime.state.store import PendingChange, Store

if TYPE_CHECKING:
    from icis_deploy.common.background_call import BackgroundCall
    from icis_deploy.head.class_update import ClassUpdate
    from icis_deploy.runtime.changes.self_test import SelfTestResult, Written
    from icis_deploy.runtime.changes.timings import ApplyTimings, Stopwatch
    from icis_deploy.updates.trusted_keys import TrustedKeys

_NUM_READ_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedUpdate:
    """A file that was applied.

    Example:
        applied = icis_deploy.Device.open("bundle").apply("new.icis")
        print(applied.entry.version, applied.timings.total_ms)
    """

    content: ClassUpdate | TrustedKeys

    entry: HistoryEntry
    """Its line in the history."""

    timings: ApplyTimings

    changed: bool = True
    """Whether this call changed anything; false where the file was in effect already, since `entry`."""


@dataclass(frozen=True, slots=True)
class Held:
    """What of the disk is in memory; replaced by one assignment, so that no interruption leaves a part of it."""

    state: HeadState
    """What the next request gets."""

    journal: Journal
    """The journal that it came of."""

    stamp: tuple[int, ...] | None
    """The store's, before that journal was read; `None` where nothing was committed, or nothing was read yet."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A state that requests can have, once it is committed."""

    state: HeadState
    self_test: BackgroundCall[SelfTestResult] | None = None
    """The self-test that its slots must pass before; `None` where they have passed it."""


def switch_class(
    store: Store,
    bundle: Bundle,
    class_name: str,
    *,
    enabled: bool,
    clock: datetime,
    load_table: Callable[[StateEntry], SlotTable | None],
    commit: Callable[[Journal, Journal, SlotTable | None], object],
) -> bool:
    """Enable or disable a class of a bundle; return whether that changed anything. The caller holds the bundle's lock.

    Args:
        store: The bundle's.
        bundle: What its manifest says.
        class_name: The class.
        enabled: Whether to enable or to disable it.
        clock: The time by the device's clock.
        load_table: Returns the slots of a state.
        commit: Takes the journals before and after, and the slots, which are the same in both.

    Raises:
        BundleError, CorruptFileError, IncompatibleError: If journal or slots cannot be read.
        ClassConflictError: If the head does not know the class, or no class would be left.
    """
    from icis_deploy.runtime.changes.rules import after_switch

    before = store.load_journal(bundle)
    table = load_table(before.current)
    names = known_names(bundle, table)
    check_disabled(before, names)
    switched = after_switch(before, class_name, enabled=enabled, known_names=names, clock=clock)
    if switched is None:
        return False
    commit(before, switched[1], table)
    return True


class Updater:
    """The head state of one open bundle, and the ways to change it; see `Device` for what each promises and raises."""

    def __init__(
        self,
        *,
        folder: Path,
        bundle: Bundle,
        session: Session,
        state: HeadState,
        store: Store,
        constants: ArbiterConstants,
        clock: Callable[[], datetime],
    ) -> None:
        self.held = Held(state=state, journal=initial_journal(bundle), stamp=None)
        """What the next request gets: at first, the bundle as it was exported."""
        self.limits = Limits(folder, bundle)
        """What the bundle lets a change take, which every change that writes rows is judged by."""
        self._bundle = bundle
        self._session = session
        self._store = store
        self._constants = constants
        self._clock = clock
        self._changing = threading.Lock()

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the last changes committed to the bundle, the oldest first."""
        return self._store.load_journal(self._bundle).history

    def apply(
        self,
        update: str | Path | bytes | bytearray | memoryview | ClassUpdate,
        *,
        allow_unsigned: bool = False,
        allow_changed_answers: bool = False,
    ) -> AppliedUpdate:
        """Take a class update or a set of trusted keys; or find that it is in effect already."""
        from icis_deploy.runtime.changes import rules
        from icis_deploy.runtime.changes.timings import Stopwatch

        watch, limit = Stopwatch(), rules.max_update_bytes(self._bundle)
        if isinstance(update, bytes | bytearray | memoryview):
            data = bytes(update)  # which nobody can change while they are verified
        elif isinstance(update, str | os.PathLike):
            data = self._store.read_update(path_from(update, name="update"), limit)
        else:
            from icis_deploy.head.class_update import ClassUpdate
            from icis_deploy.updates.envelope import envelope_of, serialize_envelope
            from icis_deploy.updates.trusted_keys import TrustedKeys

            if not isinstance(update, ClassUpdate | TrustedKeys):
                raise UsageError(
                    f"The update is of type {shown(type(update).__name__)}.",
                    found=type(update).__name__,
                    expected="a path, bytes or a ClassUpdate",
                    hint="Give the path of an .icis file, its bytes, or what `inject()` returns.",
                )
            data = serialize_envelope(envelope_of(update))  # goes the way of every file, unsigned
        try:
            return self._apply_bytes(
                data, watch, allow_unsigned=allow_unsigned, allow_changed_answers=allow_changed_answers
            )
        except (IntegrityError, IncompatibleError):
            # What is in effect is refused: its version is spent, and its key may be replaced. Only then is it looked
            # for, so an update that is new does not pay for it.
            applied = self._already_there(data, watch)
            if applied is None:
                raise
            return applied

    # Why: docs/decisions/0079.
    def _already_there(self, data: bytes, watch: Stopwatch) -> AppliedUpdate | None:
        """Return what is in effect since an earlier call, if that is what the bytes hold; else `None`."""
        from icis_deploy.runtime.changes import rules

        with self._changing, self._store.locked(self._bundle):
            journal = self._caught_up()  # another process may have committed it
            found = rules.update_in_effect(
                journal, data, bundle=self._bundle, known_names=known_names(self._bundle, self._table_before(journal))
            )
            if found is None:
                return None
        content, entry = found
        watch.lap("verify")
        return AppliedUpdate(content=content, entry=entry, timings=watch.timings(), changed=False)

    def _apply_bytes(
        self, data: bytes, watch: Stopwatch, *, allow_unsigned: bool, allow_changed_answers: bool
    ) -> AppliedUpdate:
        from icis_deploy.runtime.changes import rules
        from icis_deploy.runtime.changes.teaching_rules import state_after_update
        from icis_deploy.updates.trusted_keys import TrustedKeys

        with self._changing, self._store.locked(self._bundle):
            before = self._caught_up()
            held = self._table_before(before)
            envelope = rules.envelope_of_bytes(data, bundle=self._bundle)
            # To verify a signature takes as long as these two, and leaves Python's lock to them.
            begin = self._store.thread.begin
            signed = None if held is None else begin(partial(rules.digest_of_signed, before, held))
            payload_sha256 = begin(partial(rules.sha256_of, envelope.payload))
            verified = rules.verify_envelope(
                envelope,
                trusted_keys=self._store.trusted_keys(before),
                allow_unsigned=allow_unsigned,
                journal=before,
            )
            content = verified.content
            if isinstance(content, TrustedKeys):
                entry, after = rules.after_trusted_keys(
                    before, verified, content, bundle=self._bundle, clock=self._clock()
                )
                watch.lap("verify")
                if after.current == before.current:
                    prepared = self._tested_before(after, held)
                else:  # versions were given back, and what came with them is taken back
                    table = self._store.load_table(self._bundle, after.current)
                    rules.check_enabled(known_names(self._bundle, table), after.disabled)
                    prepared = self._prepared(table, version=after.current.version, disabled=after.disabled)
                self._change(before, _decided(after, prepared), watch=watch)
                return AppliedUpdate(content=content, entry=entry, timings=watch.timings())
            if signed is not None and content.follows is None:
                signed.take()  # nobody will ask for it
            clock = self._clock()
            table = rules.plan_update(
                before,
                content,
                table=held,
                bundle=self._bundle,
                clock=clock,
                signed_digest=None if signed is None else signed.result,
            )
            watch.lap("verify")

            def decide(pending: PendingChange) -> tuple[Journal, _Prepared]:
                prepared = self._prepared(
                    table,
                    version=content.version,
                    disabled=before.disabled,
                    written=_written(held, content.class_names, content.rows, content.arbiter),
                    seed=content.self_test_seed,
                    watch=watch,
                )
                pending.begin_slots()
                entry = self.limits.judged(
                    rules.entry_of_update(
                        before, verified, content, clock=clock, payload_sha256=payload_sha256.result()
                    ),
                    held,
                    table,
                    written=content.class_names,
                    before=before,
                    allowed=allow_changed_answers,
                )
                if prepared.self_test is None:  # else the model runs meanwhile, which is counted as running it
                    watch.lap("verify")
                origins = origins_after_update(
                    before.current.origins,
                    written=self._columns(table, content.class_names),
                    after=prepared.state.score_names,
                    signed_by=verified.signed_by,
                )
                state = state_after_update(before, content, pending.slots_entry(), origins=origins)
                return rules.after_update(before, entry, state), prepared

            after = self._change(before, decide, table=table, watch=watch)
        return AppliedUpdate(content=content, entry=after.history[-1], timings=watch.timings())

    def teach(
        self,
        class_name: str,
        make_row: Callable[[SlotTable | None], Float32],
        *,
        arbiter: Float32 | None = None,
        photos_sha256: tuple[str, ...] = (),
        allow_changed_answers: bool = False,
    ) -> HistoryEntry:
        """Put a class that the device makes itself into a slot.

        Args:
            class_name: The class.
            make_row: Makes its row, given the other classes in slots; a class that is taught again is not among them.
                With photos, without an offset.
            arbiter: `(5,)` float32, the row's coefficients; `None` for a constant offset.
            photos_sha256: Of the photos that it was made of.
            allow_changed_answers: Whether it may take more answers than the bundle allows.
        """
        from icis_deploy.runtime.changes.rules import after_update
        from icis_deploy.runtime.changes.teaching_rules import TaughtRows, plan_teaching, state_after_teaching

        with self._changing, self._store.locked(self._bundle):
            before = self._caught_up()
            current, held = before.current, self._table_before(before)
            known = (class_name,) if class_name in current.taught else ()
            row = make_row(None if held is None else held.without(known))
            if not photos_sha256:
                made = TaughtRows(class_names=(class_name,), rows=row[None], arbiter=arbiter)
            else:
                made = self.limits.with_photo_offset(before, held, class_name, row, photos_sha256)
            entry, table = plan_teaching(before, class_name, made, table=held, bundle=self._bundle, clock=self._clock())
            coefficients = None if arbiter is None else arbiter[None]

            def decide(pending: PendingChange) -> tuple[Journal, _Prepared]:
                prepared = self._prepared(
                    table,
                    version=current.version,
                    disabled=before.disabled,
                    written=_written(held, made.class_names, made.rows, coefficients),
                )
                pending.begin_slots()
                judged = self.limits.judged(
                    entry, held, table, written=made.class_names, before=before, allowed=allow_changed_answers
                )
                origins = origins_without(current.origins, self._columns(table, (class_name,)))
                state = state_after_teaching(before, class_name, made, pending.slots_entry(), origins=origins)
                return after_update(before, judged, state), prepared

            return self._change(before, decide, table=table).history[-1]

    def _columns(self, table: SlotTable, class_names: Collection[str]) -> list[int]:
        """Return the columns of classes in slots, among the model's scores."""
        first = len(self._bundle.class_names)
        return [first + table.slot_of[name] for name in class_names]

    def rollback(self, *, allow_revoked: bool = False) -> HistoryEntry:
        """Go back to the state before."""
        from icis_deploy.runtime.changes.rules import after_rollback, state_before

        with self._changing, self._store.locked(self._bundle):
            before = self._store.load_journal(self._bundle)
            table = self._store.load_table(self._bundle, state_before(before))
            entry, after = after_rollback(
                before,
                known_names=known_names(self._bundle, table),
                clock=self._clock(),
                revoked=self._revoked_brought_back(before, table),
                allow_revoked=allow_revoked,
            )
            prepared = self._prepared(table, version=after.current.version, disabled=after.disabled)
            self._change(before, _decided(after, prepared))
        return entry

    def _revoked_brought_back(self, before: Journal, table: SlotTable | None) -> frozenset[str]:
        """Return the keys that are not trusted any more and signed what the state before, `table`, would bring back."""
        from icis_deploy.runtime.changes.rules import signers_brought_back, state_before

        signers = signers_brought_back(before)
        then = {each.signed_by for each in state_before(before).origins if each.signed_by is not None}
        # Keys are read only where they matter: a rollback must work where most else does not.
        if not signers and (not then or before.trusted_keys is None):
            return frozenset()
        trusted = {key.keyid for key in self._store.trusted_keys(before)}
        if then - trusted - signers and table is not None:
            # Nor is the state that is left read where nothing hangs on it; a damaged one is left as it is.
            with suppress(BundleError, CorruptFileError):
                current = self._table_of(before.current)
                if current is not None:
                    first = len(self._bundle.class_names)
                    signers = signers_brought_back(before, {first + slot for slot in table.differing(current)})
        return signers - trusted

    def switch(self, class_name: str, *, enabled: bool) -> bool:
        """Enable or disable a class; return whether that changed anything."""
        with self._changing, self._store.locked(self._bundle):
            self._caught_up()
            return switch_class(
                self._store,
                self._bundle,
                class_name,
                enabled=enabled,
                clock=self._clock(),
                load_table=self._table_of,
                commit=lambda before, after, table: self._change(
                    before, _decided(after, self._tested_before(after, table))
                ),
            )

    def is_behind(self) -> bool:
        """Return whether the disk may have another state than memory, which takes one `stat`."""
        return self._store.stamp() != self.held.stamp

    def refresh(self) -> bool:
        """Take over what another process committed since; return whether there was anything."""
        if not self.is_behind():
            return False
        with self._changing:
            return self._take_over(self._test)

    @contextmanager
    def locked(self) -> Iterator[Journal]:
        """Keep all other threads and processes from changing the bundle, and give its journal."""
        with self._changing, self._store.locked(self._bundle):
            yield self._store.load_journal(self._bundle)

    def inherit(self, former: Journal) -> HistoryEntry:
        """Commit what a device remembered of another bundle of the same head to this one, and test its slots."""
        from icis_deploy.runtime.changes.rules import after_replacement

        with self._changing, self._store.locked(self._bundle):
            before = self._store.load_journal(self._bundle)
            table = self._table_before(before)
            entry, after = after_replacement(
                before, former, known_names=known_names(self._bundle, table), clock=self._clock()
            )
            prepared = self._tested_before(after, table)
            if prepared.state.slots is not None:
                self._test_computed(*prepared.state.slots)  # this device has not run the model of this bundle yet
            self._change(before, _decided(after, prepared))
        return entry

    def take_over(self, *, self_test: bool = False) -> None:
        """Bring a device that was just opened to the committed state.

        Args:
            self_test: Whether to test its slots: they passed when they were committed, but perhaps in another runtime.
        """
        with self._changing:
            self._take_over(self._test_computed if self_test else None)

    def _caught_up(self) -> Journal:
        """Return the journal, after taking over what it says; the caller holds the lock."""
        if self.is_behind():
            self._take_over(self._test)
        return self._store.load_journal(self._bundle)

    def _take_over(self, test: Callable[[SlotTable, SlotBuffers], object] | None) -> bool:
        num_attempts = 0
        while True:
            num_attempts += 1
            stamp, journal = self._store.stamp(), self._store.load_journal(self._bundle)
            if journal == self.held.journal:
                self._publish(journal, self.held.state, stamp)
                return False
            try:
                table = self._table_of(journal.current)
            except BundleError:
                # Without the lock, another process may have gone on and removed the table: then look again.
                if num_attempts == _NUM_READ_ATTEMPTS or self._store.load_journal(self._bundle) == journal:
                    raise
                continue
            check_disabled(journal, known_names(self._bundle, table))
            state = self._state_with(table, version=journal.current.version, disabled=journal.disabled)
            if test is not None and state.slots is not None:
                test(*state.slots)
            self._publish(journal, state, stamp)
            return True

    def _test(self, table: SlotTable, buffers: SlotBuffers) -> None:
        """Test slots without running the model, where the runtime lets itself be asked."""
        from icis_deploy.runtime.changes.self_test import verify_loaded

        if not verify_loaded(self._session, table, buffers):
            self._test_computed(table, buffers)

    def _test_computed(self, table: SlotTable, buffers: SlotBuffers) -> None:
        from icis_deploy.runtime.changes.self_test import verify_computed

        verify_computed(self._session, self._bundle, table, buffers, seed=0, constants=self._constants)

    def _prepared(
        self,
        table: SlotTable | None,
        *,
        version: int,
        disabled: tuple[str, ...],
        written: Written | None = None,
        seed: int = 0,
        watch: Stopwatch | None = None,
    ) -> _Prepared:
        """Load a new state and test its slots; where that takes an inference, it runs while the change is written."""
        state = self._state_with(table, version=version, disabled=disabled)
        if watch is not None:
            watch.lap("swap")
        if state.slots is None:
            return _Prepared(state=state)
        from icis_deploy.runtime.changes.self_test import verify_computed, verify_loaded

        try:
            compared = verify_loaded(self._session, *state.slots, written=written)
        except SelfTestError as error:
            raise _taken_back(error) from error
        if watch is not None:
            watch.lap("self_test")
        if compared:
            return _Prepared(state=state)
        from icis_deploy.common.background_call import BackgroundCall

        call = partial(verify_computed, self._session, self._bundle, *state.slots, seed=seed, constants=self._constants)
        return _Prepared(state=state, self_test=BackgroundCall(call))

    def _tested_before(self, journal: Journal, table: SlotTable | None) -> _Prepared:
        """Load a state with the slots of the state before, which have passed their self-test."""
        return _Prepared(state=self._state_with(table, version=journal.current.version, disabled=journal.disabled))

    def _change(
        self,
        before: Journal,
        decide: Callable[[PendingChange], tuple[Journal, _Prepared]],
        *,
        table: SlotTable | None = None,
        watch: Stopwatch | None = None,
    ) -> Journal:
        """Write, wait for the self-test, commit and publish; return the journal that was committed.

        Args:
            before: The journal before the change.
            decide: Returns the journal after it and the state that requests get then, or raises what refuses it. It
                calls `begin_slots` where there are slots to write, and goes on while they are being written.
            table: The slots to write; `None` where the journal names none that is new.
            watch: What times the change.
        """
        from icis_deploy.runtime.changes.timings import Stopwatch

        watch, start_sync = Stopwatch() if watch is None else watch, self._store.sync_seconds
        with self._store.change(before, table) as pending:
            after, prepared = decide(pending)
            pending.write_journal(after)
            written = {
                "writing_seconds": watch.lap("journal"),
                "sync_seconds": self._store.sync_seconds - start_sync,
            }
            if prepared.self_test is not None:
                try:
                    inference_seconds = prepared.self_test.result().inference_seconds
                except SelfTestError as error:
                    raise _taken_back(error) from error
                watch.lap("self_test")
                written |= {"self_test_seconds": prepared.self_test.seconds, "inference_seconds": inference_seconds}
            watch.share(**written)
        stamp = self._store.stamp()
        watch.lap("journal")
        watch.move("journal", "sync", self._store.sync_seconds - start_sync - written["sync_seconds"])
        self._publish(after, prepared.state, stamp)
        watch.lap("swap")
        return after

    def _publish(self, journal: Journal, state: HeadState, stamp: tuple[int, ...] | None) -> None:
        self.held = Held(state=state, journal=journal, stamp=stamp)

    def _state_with(self, table: SlotTable | None, *, version: int, disabled: tuple[str, ...]) -> HeadState:
        loaded = self.held.state
        return make_head_state(
            self._bundle,
            self._session,
            table=table,
            version=version,
            disabled=disabled,
            buffers=loaded.buffers if table is loaded.table else None,
            constants=self._constants,
        )

    def _table_of(self, entry: StateEntry) -> SlotTable | None:
        """Return a state's slots, from memory if it is the one that requests get."""
        held = self.held
        if held.journal.current == entry:
            return held.state.table
        return self._store.load_table(self._bundle, entry)

    def _table_before(self, journal: Journal) -> SlotTable | None:
        """Return the slots that a change starts from, of a journal that a device would open."""
        table = self._table_of(journal.current)
        if journal.disabled:
            check_disabled(journal, known_names(self._bundle, table))
        return table


def _written(
    before: SlotTable | None, class_names: tuple[str, ...], rows: Float32, arbiter: Float32 | None
) -> Written | None:
    """Return what a change writes to slots, for the self-test; `None` for a fused head."""
    from icis_deploy.runtime.changes.self_test import Written

    return None if before is None else Written(before, class_names, rows, arbiter)


def _decided(after: Journal, prepared: _Prepared) -> Callable[[PendingChange], tuple[Journal, _Prepared]]:
    """Return the decision of a change for which nothing has to be found out while it is written."""
    return lambda _: (after, prepared)


def _taken_back(error: SelfTestError) -> SelfTestError:
    return SelfTestError(
        f"{error.what} The change was taken back.",
        found=error.found,
        expected=error.expected,
        where=error.where,
        hint=error.hint,
    )
