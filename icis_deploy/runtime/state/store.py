"""The store: the `state/` folder of a bundle. It reads and writes; what may be written is decided in `rules.py`.

    state/journal.json               the journal; replacing it is the commit
    state/slots-<sha256>.safetensors a slot table; written before the journal that names it, never changed

Rules:

1. A new journal is written next to the old one. Its bytes, those of the slot table that it names, and the names of
   both are on the disk, in whichever order, before it is renamed over the old one.
2. Then the folder is synced again, and the change is committed. Whoever opens the bundle finds the old journal or the
   new one, and behind either its slot table: there is nothing to recover.
3. What a change wrote is removed again if it does not commit. After a power cut such files may stay; the next change
   removes those that no journal names, and nothing else in the folder. One that cannot be removed refuses no change.
   A process that is forked in the middle of a change writes and removes nothing of it: its parent goes on.
4. Reading takes no lock and writes nothing, so a bundle on a read-only disk works. Changes take the folder's lock.
5. What the disk says is never believed without its SHA-256; a slot table that a change needs and an earlier one left
   is compared byte for byte, and replaced where it is damaged.
"""

# Why: docs/decisions/0019 (the journal), docs/decisions/0020 (the lock), docs/decisions/0050 (what is removed),
# docs/decisions/0097 (what waits for the disk).

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SLOTS_BYTES,
    Bundle,
    FileEntry,
)
from icis_deploy.bundle.slot_files import check_capacity, exported_slots, parse_slots, serialize_slots
from icis_deploy.common.background_thread import BackgroundThread, BegunCall, Promise
from icis_deploy.errors import (
    BundleError,
    CorruptFileError,
    ICISDeployWarning,
    IncompatibleError,
    LoadError,
    SignatureError,
    StorageError,
)
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.filesystem import FileSystem, leads_nowhere, system_files
from icis_deploy.runtime.state.journal import (
    MAX_JOURNAL_BYTES,
    Journal,
    StateEntry,
    check_table,
    initial_journal,
    journal_of,
    parse_journal,
    serialize_journal,
)

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

STATE_FOLDER = "state"
TRUST_FOLDER = "trust"
JOURNAL_NAME = "journal.json"
LOCK_TIMEOUT_SECONDS = 30.0
_PUBLIC_SUFFIX = ".pub"
_OUR_NAMES = re.compile(r"journal\.json\.new|slots-[0-9a-f]{64}\.safetensors(\.new)?")


class PendingChange:
    """A change that is being written, whose caller has not decided yet; see `Store.change`."""

    def __init__(self, store: Store, before: Journal, table: SlotTable | None, written: list[Path]) -> None:
        """Prepare to write `table`, if there is one; files that are new get into `written`."""
        self.journal: Journal | None = None
        """What `write_journal` was called with."""
        self._store = store
        self._before, self._table, self._written = before, table, written
        self._process = os.getpid()
        self._is_written: BegunCall[None] | None = None

    def begin_slots(self) -> None:
        """Begin to write the slot table in the store's thread, if there is one; the caller must not have done so."""
        if self._table is None:
            return
        self.require_process()
        self._entry: Promise[FileEntry] = Promise()
        # Without a reference to this object, which would keep the slots until the garbage collector comes.
        call = partial(self._store._write_and_sync, self._before, self._table, self._written, self._entry)
        self._is_written = self._store.thread.begin(call)

    def slots_entry(self) -> FileEntry | None:
        """Return what the journal must say of the slot table, which the system has by then; `None` without one.

        Raises:
            OSError: If it could not be written.
        """
        if self._table is None:
            return None
        self.require_process()
        if self._is_written is not None and not self._is_written.take():
            return self._entry.result()
        # Nobody waits for the disk while there is a journal to write.
        entry, sync = self._store._write_slots(self._before, self._table, self._written)
        self._is_written = self._store.thread.begin(sync)
        return entry

    def write_journal(self, journal: Journal) -> None:
        """Write the journal to commit, and wait until the disk has it and the slot table.

        Raises:
            OSError: If the disk refuses.
        """
        self.require_process()
        self.journal = journal
        self._store._write_new_journal(journal)
        if self._is_written is not None:
            self._store._sync(self._is_written.result)

    def require_process(self) -> None:
        """Raise `StorageError` in a process that was forked since the change began."""
        if os.getpid() != self._process:
            raise StorageError(
                f"This process was forked while {self._store._folder} was being changed, and does not hold its lock. "
                f"It changed nothing.",
                found="a process that was forked during a change",
                expected="the process that began it",
                where=self._store._folder,
                hint="Leave the change to the parent, or begin one anew.",
            )


def _slots_of(journal: Journal) -> list[FileEntry]:
    return [state.slots for state in journal.states if state.slots is not None]


def _slots_name(entry: FileEntry) -> str:
    return f"slots-{entry.sha256}.safetensors"


class Store:
    """The `state/` and `trust/` folders of one bundle."""

    def __init__(self, folder: Path, files: FileSystem | None = None) -> None:
        self._bundle_folder = folder
        self._folder = folder / STATE_FOLDER
        self._journal_path = self._folder / JOURNAL_NAME
        self._new_journal_path = self._folder / f"{JOURNAL_NAME}.new"
        self._files: FileSystem = system_files() if files is None else files
        self._last_journal: tuple[bytes, Journal] | None = None
        self._lock: AbstractContextManager[None] | None = None
        self._required: tuple[Bundle, tuple[int, ...] | None] | None = None
        self._is_exchanged = False
        self.thread = BackgroundThread()
        """Writes slots; whoever holds the lock may give it other work, which ends before the change does."""
        self.sync_seconds = 0.0
        """How long all syncs together took: the disk's share of a change, which the rest is measured without."""

    def stamp(self) -> tuple[int, ...] | None:
        """Return numbers that change with every commit, cheap enough to ask for with every request."""
        return self._files.stamp(self._journal_path)

    def load_journal(self, bundle: Bundle) -> Journal:
        """Return the journal, or the initial one if nothing was committed yet.

        Raises:
            BundleError: If it cannot be read.
            CorruptFileError: If it is damaged.
            IncompatibleError: If it belongs to another bundle.
        """
        try:
            data = self._files.read(self._journal_path, MAX_JOURNAL_BYTES + 1)
        except FileNotFoundError as error:
            for path in (self._folder, self._journal_path):
                if leads_nowhere(path):  # what the device remembers is elsewhere, and not forgotten
                    raise self._unreadable_journal(f"{path} is a link that leads nowhere") from error
            return initial_journal(bundle)
        except OSError as error:
            raise self._unreadable_journal(error.strerror or str(error)) from error
        last = self._last_journal
        if last is not None and last[0] == data:  # equal bytes are an equal journal, and parsing is most of reading it
            return last[1]
        try:
            journal = journal_of(bundle, parse_journal(data))
        except CorruptFileError as error:
            raise CorruptFileError.at(self._journal_path, error) from error
        self._last_journal = data, journal
        return journal

    def _unreadable_journal(self, reason: str) -> BundleError:
        return BundleError(
            f"Cannot read {self._journal_path}: {reason}.",
            found=reason,
            expected="the journal of this device, or nothing in its place",
            where=self._journal_path,
            hint=f"Check {self._folder}, its permissions, and that the disk it is on is mounted.",
        )

    def load_table(self, bundle: Bundle, state: StateEntry) -> SlotTable | None:
        """Return the slots of a state; `None` for a fused head.

        Raises:
            BundleError, CorruptFileError: If they cannot be read, or are not the ones that journal or manifest name.
        """
        if bundle.capacity == 0:
            return None
        check_capacity(self._bundle_folder, bundle)
        table = (
            exported_slots(self._bundle_folder, bundle)
            if state.slots is None
            else self._load_slots(bundle, state.slots)
        )
        check_table(bundle, state, table)
        return table

    def _load_slots(self, bundle: Bundle, entry: FileEntry) -> SlotTable:
        """Return a slot table that a journal names.

        Raises:
            BundleError: If it cannot be read.
            CorruptFileError: If it is not the one that the journal names.
        """
        path = self._slots_path(entry)
        try:
            data = self._files.read(path, MAX_SLOTS_BYTES + 1)
        except OSError as error:
            raise BundleError(
                f"The journal names {path}, which cannot be read: {error.strerror or error}.",
                found=error.strerror or str(error),
                where=path,
                # What another user may read is not lost, and to roll back would lose it.
                hint=_GIVE_ACCESS if error.errno in _NO_ACCESS else "`Device.rollback()` goes to the state before.",
            ) from error
        if FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)) != entry:
            raise CorruptFileError(
                f"{path} is damaged: it does not have the SHA-256 that the journal states.",
                found=hashlib.sha256(data).hexdigest(),
                expected=entry.sha256,
                where=path,
                hint="`Device.rollback()` goes to the state before.",
            )
        return parse_slots(data, capacity=bundle.capacity, feature_dim=bundle.feature_dim)

    def read_update(self, path: Path, max_bytes: int) -> bytes:
        """Return the bytes of an update file, at most one more than `max_bytes`, so that too many can be noticed.

        Raises:
            LoadError: If it cannot be read.
        """
        try:
            return self._files.read(path, max_bytes + 1)
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            reason = getattr(error, "strerror", None) or error
            raise LoadError(
                f"Cannot read the class update {path}: {reason}.",
                found=str(reason),
                where=path,
                hint="Check the path and its permissions.",
            ) from error

    def trusted_keys(self, journal: Journal) -> tuple[SSlibKey, ...]:
        """Return the public keys trusted now: the journal's, else those in `trust/`.

        Raises:
            SignatureError: If a key file cannot be read or is no Ed25519 public key, or there are too many.
        """
        from icis_deploy.updates.trusted_keys import MAX_TRUSTED_KEYS, public_key_from_pem

        if journal.trusted_keys is not None:
            return tuple(public_key_from_pem(text) for text in journal.trusted_keys)
        folder = self._bundle_folder / TRUST_FOLDER
        try:
            names = [name for name in self._files.names(folder) if name.endswith(_PUBLIC_SUFFIX)]
        except OSError as error:
            raise SignatureError(
                f"Cannot read the trusted keys in {folder}: {error.strerror or error}.",
                found=error.strerror or str(error),
                where=folder,
                hint="Check the permissions of the bundle's folder trust.",
            ) from error
        if len(names) > MAX_TRUSTED_KEYS:
            # Leaving some out would trust whichever come first in the alphabet.
            raise SignatureError(
                f"{folder} holds {len(names)} public keys; at most {MAX_TRUSTED_KEYS} are trusted.",
                found=len(names),
                expected=MAX_TRUSTED_KEYS,
                where=folder,
                hint="Remove those that sign nothing any more.",
            )
        return tuple([self._trusted_key(folder / name) for name in names])

    def _trusted_key(self, path: Path) -> SSlibKey:
        from icis_deploy.updates.trusted_keys import MAX_KEY_BYTES, public_key_from_pem

        try:
            text = self._files.read(path, MAX_KEY_BYTES).decode("ascii", errors="replace")
        except OSError as error:
            raise SignatureError(
                f"Cannot read the trusted key {path}: {error.strerror or error}.",
                found=error.strerror or str(error),
                where=path,
                hint=(
                    _GIVE_ACCESS
                    if error.errno in _NO_ACCESS
                    else "Put a key that `keygen()` wrote in its place, or remove it."
                ),
            ) from error
        try:
            return public_key_from_pem(text)
        except SignatureError as error:
            raise SignatureError.at(path, error) from error

    @contextmanager
    def locked(self, bundle: Bundle) -> Iterator[None]:
        """Hold the bundle's lock against other processes, and other stores of this one.

        One thread at a time may ask a store for it.

        Args:
            bundle: The bundle that the caller means.

        Raises:
            IncompatibleError: If the folder holds another bundle by now.
            StorageError: If another one holds it for too long, or the folder cannot be opened.
        """
        # An interruption can come before the block that would leave the lock, and a kept traceback keeps it then.
        self._unlock()
        self._lock = lock = self._files.locked(self._bundle_folder, LOCK_TIMEOUT_SECONDS)
        try:
            lock.__enter__()
        except TimeoutError as error:
            raise StorageError(
                f"Another process is changing {self._bundle_folder} and has not finished in "
                f"{LOCK_TIMEOUT_SECONDS:.0f} seconds. Nothing was changed.",
                where=self._bundle_folder,
                hint="Try again.",
            ) from error
        except OSError as error:
            raise StorageError(
                f"Cannot lock {self._bundle_folder}: {error.strerror or error}.",
                found=error.strerror or str(error),
                where=self._bundle_folder,
                hint="Check that the bundle's folder can be written, and lies on a disk that knows locks.",
            ) from error
        try:
            place = self._place()
            self._require(bundle)
            self._required, self._is_exchanged = (bundle, place), False
            yield
        finally:
            try:
                self._unlock()
            except BaseException:  # interrupted: others wait for it
                self._unlock()
                raise

    def _require(self, bundle: Bundle) -> None:
        """Raise `IncompatibleError` if the folder does not hold this bundle any more."""
        if bundle.manifest_sha256 is None:
            return
        path = self._bundle_folder / MANIFEST_NAME
        try:
            found = hashlib.sha256(self._files.read(path, MAX_MANIFEST_BYTES + 1)).hexdigest()
        except OSError as error:
            found = error.strerror or str(error)
        if found != bundle.manifest_sha256:
            raise IncompatibleError(
                f"{self._bundle_folder} holds another bundle than when it was opened. Nothing was changed.",
                found=found,
                expected=bundle.manifest_sha256,
                where=path,
                hint="Open it again; a running device goes over to it by Device.refresh.",
            )

    def _place(self) -> tuple[int, ...] | None:
        """Return numbers that change when another bundle takes this one's place, by a rename or file by file."""
        folder, manifest = (
            self._files.stamp(self._bundle_folder),
            self._files.stamp(self._bundle_folder / MANIFEST_NAME),
        )
        return None if folder is None or manifest is None else (folder[0], *manifest)

    def _require_still(self, before: Journal) -> None:
        """Raise `IncompatibleError` if another bundle took this one's place while a change was decided."""
        if self._required is None or self._place() == self._required[1]:
            return
        self._is_exchanged = True  # what has our names now may be the other bundle's
        self._require(self._required[0])
        # Some file systems number a folder anew; but in a copy of hard links the manifest is the same one as well.
        if self.load_journal(self._required[0]) != before:
            raise IncompatibleError(
                f"{self._bundle_folder} holds another copy of its bundle than when the change began. Nothing was "
                f"changed.",
                found="another journal",
                expected="the journal that the change began with",
                where=self._journal_path,
                hint="Try again; a running device goes over to the copy by Device.refresh.",
            )
        self._is_exchanged = False

    def _unlock(self) -> None:
        self._required = None
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    @contextmanager
    def change(self, before: Journal, table: SlotTable | None = None) -> Iterator[PendingChange]:
        """Write what the caller says in the block, and commit when the block ends without an error.

        The caller holds the lock. In the block it may call `PendingChange.begin_slots`, so that the slots are written
        while it decides, and calls `write_journal` once. All that is left to do after the block is to rename the
        journal.

        Args:
            before: The journal as it is on the disk.
            table: A slot table that the new journal names and `before` perhaps does not.

        Raises:
            StorageError: If the disk refuses. The old state is still there, or there again; if the disk refuses that as
                well, the next open finds the old state or the new one, whole.
        """
        pending: PendingChange | None = None
        written: list[Path] = []
        made_folder, process = False, os.getpid()
        self._require_still(before)
        try:
            names = self._files.names(self._folder)
            if not names:  # no folder, or an empty one, whose own name a killed process may not have synced
                made_folder = self._files.make_folder(self._folder)
                self._sync(self._files.sync_folder, self._bundle_folder)
            if stale := self._leftovers(before, names):
                # After a crash between rename and sync, the journal before this one could come back and need them.
                self._sync(self._files.sync_folder, self._folder)
                self._sweep(stale)
            pending = PendingChange(self, before, table, written)
            yield pending
            after = pending.journal
            pending.require_process()
            if after is None:
                raise RuntimeError("a change ended without a journal")
            self._require_still(before)
            self._commit(before, written, had_journal=JOURNAL_NAME in names)
        except BaseException as error:
            if os.getpid() != process:  # what was written is its parent's, also where this one is told to exit
                raise
            self.thread.wait()  # also where the interruption came between its start and the knowledge of it
            if not self._is_exchanged:
                self._take_back(written, remove_folder=made_folder)
            if isinstance(error, OSError):
                after = None if pending is None else pending.journal
                raise StorageError(
                    f"Could not write to {self._folder}: {error.strerror or error}. {self._outcome(before, after)}",
                    found=error.strerror or str(error),
                    where=self._folder,
                    hint=_GIVE_ACCESS if error.errno in _NO_ACCESS else "Free some space, or make the disk writable.",
                ) from error
            raise
        with suppress(OSError):  # the change is committed; the next one removes them
            # Under the lock the folder held what `before` names and nothing else, so it need not be listed again.
            needed = _slots_of(after)
            self._remove([self._slots_path(entry) for entry in _slots_of(before) if entry not in needed])

    def _outcome(self, before: Journal, after: Journal | None) -> str:
        """Return which state a failed change left, as a sentence; `after` is `None` where it had no journal yet."""
        if after is None:
            return "The device keeps the state it had."
        data: bytes | None
        try:
            data = self._files.read(self._journal_path, MAX_JOURNAL_BYTES + 1)
        except FileNotFoundError:
            data = b"" if not before.history else None
        except OSError:
            data = None
        if data == serialize_journal(after):
            return (
                "The disk has the new state, and refused to take it back: the next start, refresh or change finds it, "
                "or after a power cut the state before."
            )
        if data is None:
            return "Which state is on the disk cannot be read; the next start finds the one before or the new one."
        return "The device keeps the state it had."

    def _write_and_sync(
        self, before: Journal, table: SlotTable, written: list[Path], entry: Promise[FileEntry]
    ) -> None:
        try:
            found, sync = self._write_slots(before, table, written)
        except BaseException as error:
            entry.set_exception(error)
            raise
        entry.set_result(found)
        sync()

    def _write_slots(
        self, before: Journal, table: SlotTable, written: list[Path]
    ) -> tuple[FileEntry, Callable[[], None]]:
        """Write a slot table and name it in `written`, unless one of the states before has the same one.

        Returns:
            What a journal says of it, and what waits until the disk has its bytes and its name.
        """
        data = serialize_slots(table)
        entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        path = self._slots_path(entry)
        if entry not in _slots_of(before):
            written.append(path)
            with suppress(FileExistsError):  # a leftover that could not be removed
                self._files.create(path, data)
                return entry, partial(self._sync_named, path)
        if not self._holds(path, data):
            # Renamed over the damaged one, whose state thereby becomes whole again; it is not taken back.
            repaired = path.with_name(f"{path.name}.new")
            self._files.create(repaired, data)
            self._files.sync_file(repaired)
            self._files.replace(repaired, path)
            return entry, partial(self._files.sync_folder, self._folder)
        return entry, partial(self._sync_named, path)

    def _sync_named(self, path: Path) -> None:
        self._files.sync_file(path)
        self._files.sync_folder(self._folder)

    def _holds(self, path: Path, data: bytes) -> bool:
        try:
            return self._files.read(path, len(data) + 1) == data
        except OSError:
            return False

    def _commit(self, before: Journal, written: list[Path], *, had_journal: bool) -> None:
        removable, process = written.copy(), os.getpid()
        written.clear()  # from here on the journal on the disk may need them
        try:
            self._files.replace(self._new_journal_path, self._journal_path)
            self._sync(self._files.sync_folder, self._folder)
        except BaseException as error:
            if os.getpid() != process:  # as in `change`
                raise
            if isinstance(error, FileNotFoundError):  # as where the folder was exchanged since it was looked at
                self._require_still(before)
            if self._files.stamp(self._new_journal_path) is not None:  # it did not happen
                written.extend(removable)
                raise
            # Why: docs/decisions/0051.
            # Renamed, but perhaps not for good: it is taken back, so that memory and disk say the same. A rename can
            # also have happened where it is reported as failed (a network's answer was lost), or was interrupted.
            if had_journal:
                self._files.remove(self._new_journal_path)
                self._write_new_journal(before)
                self._files.replace(self._new_journal_path, self._journal_path)
            else:
                self._files.remove(self._journal_path)
            self._sync(self._files.sync_folder, self._folder)
            written.extend(removable)
            raise

    def _write_new_journal(self, journal: Journal) -> None:
        data = serialize_journal(journal)
        self._files.create(self._new_journal_path, data)
        self._sync(self._files.sync_file, self._new_journal_path)
        self._last_journal = data, journal

    def _take_back(self, written: list[Path], *, remove_folder: bool) -> None:
        with suppress(OSError):  # what stays is named by no journal, and the next change removes it
            for path in (*written, self._new_journal_path):
                self._files.remove(path)
            if remove_folder:
                self._files.remove_folder(self._folder)

    def _sweep(self, leftovers: list[Path]) -> None:
        """Remove what no journal needs; go round what cannot be removed, and say so."""
        for path in leftovers:
            try:
                self._files.remove(path)
            except OSError as error:
                if path == self._new_journal_path:  # where the next one is written
                    raise
                warnings.warn(
                    f"{path} is left of a change that was interrupted, and cannot be removed: "
                    f"{error.strerror or error}. It only takes room; remove it yourself.",
                    ICISDeployWarning,
                    stacklevel=2,
                )

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            self._files.remove(path)

    def _leftovers(self, journal: Journal, names: Iterable[str]) -> list[Path]:
        """Return which of our files in the folder the journal does not need, as a power cut leaves them.

        Other files are somebody else's: the folder may be a link that an attacker made.
        """
        needed = self._named(journal)
        return [self._folder / name for name in names if name not in needed and _OUR_NAMES.fullmatch(name)]

    def _named(self, journal: Journal) -> set[str]:
        return {_slots_name(entry) for entry in _slots_of(journal)} | {JOURNAL_NAME}

    def _sync(self, call: Callable[..., None], *paths: Path) -> None:
        start = time.perf_counter()
        call(*paths)
        self.sync_seconds += time.perf_counter() - start

    def _slots_path(self, entry: FileEntry) -> Path:
        return self._folder / _slots_name(entry)


_NO_ACCESS = frozenset({errno.EACCES, errno.EPERM})
_GIVE_ACCESS = "Run it as the user that the bundle belongs to, or give that user the file or folder."
