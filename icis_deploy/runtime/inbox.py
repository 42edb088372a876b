"""An inbox: a folder into which carriers put class updates, applied in the order of names.

    inbox/8.icis             a file to apply; names that do not end in `.icis` are left alone
    inbox/done/8.icis        a copy of what was taken
    inbox/refused/8.icis     a copy of what was refused, and `8.icis.reason` with the reason

Rules:

1. Whoever may write to the inbox is not trusted. Its files are opened below the folder that is open, never through a
   link, never if they are no plain files, and never read further than an update for the bundle can be long.
2. No file stops another one: not by its name, type, mode, owner, size or content. Each one leaves the inbox in the run
   that looks at it, except where the device itself is at fault; then it and all after it wait for the next run, since
   an update that is skipped could never be applied after a later one.
3. What is kept is a copy under a name of ours, so neither its owner nor its mode, nor a process that still writes to
   it, reaches into `done/` and `refused/`. Each of them keeps the last `MAX_KEPT_FILES` files and `MAX_KEPT_BYTES`.
4. A run looks at no more than `MAX_FILES` files. A file that is damaged, and was written to a moment ago, may be half
   of one: it is looked at again when it has rested for `REST_SECONDS`.
"""

# Why: docs/decisions/0080.

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.common.syncing import CLOSE_ON_EXEC
from icis_deploy.common.terminal_text import MAX_REASON, printable, reason_of, shown
from icis_deploy.errors import (
    CorruptFileError,
    ICISDeployError,
    IncompatibleError,
    IntegrityError,
    LoadError,
    RuntimeFailureError,
    StorageError,
    VerdictError,
)
from icis_deploy.runtime.changes.rules import max_update_bytes
from icis_deploy.runtime.device import AppliedUpdate, Device
from icis_deploy.runtime.state.store import Store

SUFFIX = ".icis"
DONE, REFUSED = "done", "refused"
MAX_FILES = 256
MAX_RESTLESS = 16
"""How many files that may be half written a run looks at."""
MAX_KEPT_FILES = 200
MAX_KEPT_BYTES = 1 << 26
REST_SECONDS = 2.0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.icis")
_OF_THE_DEVICE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Reasons not to open a file that would be the same for any other; all else is a matter of the one file."""
_READ_BYTES = 1 << 20
_BUG = "This is a bug in icis-deploy; please report it with the file."
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FILE_FLAGS = os.O_RDONLY | CLOSE_ON_EXEC | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FOLDER_FLAGS = os.O_RDONLY | CLOSE_ON_EXEC | getattr(os, "O_DIRECTORY", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxFile:
    """A file that left the inbox: either `applied` or `reason` is given."""

    name: str
    """Its name in the inbox, which its carrier chose."""

    applied: AppliedUpdate | None = None
    """What was applied."""

    reason: ICISDeployError | None = None
    """Why it was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxReport:
    """What a run did."""

    files: tuple[InboxFile, ...]
    """What left the inbox, in the order in which it was looked at."""

    num_left: int
    """How many files wait for the next run, counted to `MAX_FILES`."""

    fault: ICISDeployError | None = None
    """What is wrong with the device, where that ended the run."""


def process_inbox(
    inbox: Path, folder: Path, *, device: Device | None = None, sleep: Callable[[float], None] = time.sleep
) -> InboxReport:
    """Apply what is in an inbox to a bundle, and sort it.

    Args:
        inbox: The folder, which exists and in which this user may rename what others put there.
        folder: The bundle.
        device: The bundle as it is open already; `None` opens it where there is something to apply.
        sleep: Waits for a number of seconds.

    Raises:
        StorageError: If the inbox cannot be read, or nothing can be moved out of it, or on a system such as Windows.
        ICISDeployError: As `Device.open`, if there is something to apply, or `operations.history`.
    """
    if os.open not in os.supports_dir_fd:
        raise StorageError(
            "This system opens no files by their folder's descriptor, without which a carrier could exchange the inbox "
            "while it is sorted.",
            found=sys.platform,
            expected="Linux or macOS",
            where=inbox,
            hint="Apply the files one by one with `Device.apply()`.",
        )
    bundle = load_manifest(folder)
    Store(folder).load_journal(bundle)  # what is wrong with a device is said also where nothing waits
    with _opened(inbox) as descriptor:
        names = _names(descriptor)
        if not names:
            return InboxReport(files=(), num_left=0)
        run = _Run(
            descriptor, inbox, folder, Device.open(folder) if device is None else device, max_update_bytes(bundle)
        )
        restless = run.look_at(names, until_rested=False)
        if restless and run.fault is None:
            sleep(REST_SECONDS)
            run.look_at(restless, until_rested=True)
        return InboxReport(files=tuple(run.files), num_left=len(_names(descriptor)), fault=run.fault)


@contextmanager
def _opened(inbox: Path) -> Iterator[int]:
    try:
        descriptor = os.open(inbox, _FOLDER_FLAGS)
    except OSError as error:
        raise _storage_error(inbox, error) from error
    try:
        status = os.fstat(descriptor)
        is_foreign = status.st_uid != os.geteuid() and os.geteuid() != 0
        if not os.access(inbox, os.W_OK | os.X_OK) or (status.st_mode & stat.S_ISVTX and is_foreign):
            raise StorageError(
                f"{inbox} belongs to another user, who alone may move files of others out of it.",
                found=f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}",
                expected=f"owner {os.geteuid()}",
                where=inbox,
                hint="Give the folder to the user that applies updates, and check that its disk is not read-only.",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _names(descriptor: int) -> list[str]:
    """Return the first names of updates in an inbox, in order."""
    with os.scandir(descriptor) as entries:
        return heapq.nsmallest(MAX_FILES, (entry.name for entry in entries if entry.name.endswith(SUFFIX)))


class _Run:
    """One look at an inbox that is open as `descriptor`."""

    def __init__(self, descriptor: int, inbox: Path, folder: Path, device: Device, max_bytes: int) -> None:
        self.files: list[InboxFile] = []
        self.fault: ICISDeployError | None = None
        self._descriptor, self._inbox, self._folder, self._max_bytes = descriptor, inbox, folder, max_bytes
        self._device = device

    def look_at(self, names: list[str], *, until_rested: bool) -> list[str]:
        """Apply or refuse files in this order; return those that were left because they may be half written."""
        restless: list[str] = []
        for name in names:
            status: os.stat_result | None = None
            data, reason = b"", None
            try:
                status = self._status(name)
                data = self._read(name, status)
                applied = self._device.apply(data)
            except FileNotFoundError:
                continue  # its carrier took it back
            except ICISDeployError as error:
                reason = error
            except MemoryError as error:  # no file takes more than an update for this bundle does
                self.fault = RuntimeFailureError(
                    f"There is not enough memory to apply {shown(name)}: {reason_of(error)}.",
                    found=reason_of(error),
                    expected="memory for an update of this bundle",
                    where=self._inbox / name,
                    hint="End other programs; what is left in the inbox waits for the next run.",
                )
                break
            except Exception as error:  # a bug of ours that one file finds must not stop the others
                reason = CorruptFileError(f"Reading it failed: {reason_of(error)} ({type(error).__name__}).", hint=_BUG)
            if reason is None:
                self._leave(name, status, DONE, data)
                self.files.append(InboxFile(name=name, applied=applied))
                continue
            if is_of_the_device(reason, self._folder):
                self.fault = reason
                break
            if data and self._was_taken(name, data):
                continue
            is_half = isinstance(reason, CorruptFileError) and _is_fresh(status)
            if is_half and (until_rested or len(restless) < MAX_RESTLESS):
                restless.append(name)
                continue
            self._leave(name, status, REFUSED, data, reason=reason)
            self.files.append(InboxFile(name=name, reason=reason))
        return restless

    def _status(self, name: str) -> os.stat_result:
        """Return what the system says of a name in the inbox.

        Raises:
            FileNotFoundError: If it is gone.
            LoadError: If it says nothing of this one, such as a folder with another user's FUSE mount.
            StorageError: If it has no memory to say anything.
        """
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _OF_THE_DEVICE:
                raise _storage_error(self._inbox, error) from error
            reason = error.strerror or str(error)
            raise LoadError(
                f"It cannot be looked at: {reason}.",
                found=reason,
                expected="a plain file",
                hint="Check its permissions.",
            ) from error

    def _read(self, name: str, status: os.stat_result) -> bytes:
        """Return the bytes of a file of the inbox.

        Raises:
            FileNotFoundError: If it is gone.
            LoadError: If it is no plain file, too long for an update, or cannot be read.
            StorageError: If the system has no descriptor or memory for it.
        """
        if not stat.S_ISREG(status.st_mode):
            raise LoadError("It is no plain file.", found="no plain file", expected="a plain file")
        if status.st_size > self._max_bytes:
            raise LoadError(
                f"It has {status.st_size} bytes, which no update for this bundle has. Not read.",
                found=status.st_size,
                expected=f"at most {self._max_bytes} bytes",
            )
        try:
            descriptor = os.open(name, _FILE_FLAGS, dir_fd=self._descriptor)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged since
                    raise LoadError("It is no plain file.", found="no plain file", expected="a plain file")
                pieces, left = [], self._max_bytes + 1
                while left and (piece := file.read(min(left, _READ_BYTES))):
                    pieces.append(piece)
                    left -= len(piece)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _OF_THE_DEVICE:
                raise _storage_error(self._inbox, error) from error
            reason = error.strerror or str(error)
            raise LoadError(f"It cannot be read: {reason}.", found=reason, expected="a readable file") from error
        return b"".join(pieces)

    def _was_taken(self, name: str, data: bytes) -> bool:
        """Say whether another run, of a server perhaps, has taken this file since it was read, and others after it.

        It would be refused as older than they are. The other run keeps its copy before the name leaves the inbox.
        """
        with suppress(OSError):
            if os.access(name, os.F_OK, dir_fd=self._descriptor, follow_symlinks=False):
                return False
            done = os.open(DONE, _FOLDER_FLAGS | _NO_LINK, dir_fd=self._descriptor)
            try:
                descriptor = os.open(kept_name(name), _FILE_FLAGS, dir_fd=done)
                with os.fdopen(descriptor, "rb") as file:
                    return stat.S_ISREG(os.fstat(descriptor).st_mode) and file.read(len(data) + 1) == data
            finally:
                os.close(done)
        return False

    def _leave(
        self,
        name: str,
        status: os.stat_result | None,
        kept_in: str,
        data: bytes,
        *,
        reason: ICISDeployError | None = None,
    ) -> None:
        """Keep a copy of a file that was looked at, and take it out of the inbox; without a status, by its name."""
        # A copy is for people; that the file leaves matters more, above all where the disk is full.
        with suppress(OSError):
            self._keep(name, kept_in, data, reason)
        try:
            if status is None:
                self._hide(name)
                return
            now = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
                return  # its carrier has put another one in its place, which has its turn in the next run
            self._remove(name, now)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.fault = _storage_error(self._inbox / name, error)

    def _remove(self, name: str, status: os.stat_result) -> None:
        """Take a name out of the inbox; a folder with something in it stays under a hidden name."""
        try:
            if stat.S_ISDIR(status.st_mode):
                os.rmdir(name, dir_fd=self._descriptor)
            else:
                os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            raise
        except OSError:
            self._hide(name)

    def _hide(self, name: str) -> None:
        hidden = f".refused-{time.time_ns()}-{_digest(name)}"
        os.rename(name, hidden, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def _keep(self, name: str, kept_in: str, data: bytes, reason: ICISDeployError | None) -> None:
        folder = self._folder_for(kept_in)
        try:
            kept = kept_name(name)
            if data:
                _write(folder, kept, data)
            if reason is not None:
                text = " ".join(f"Error: {reason}".split())
                _write(folder, f"{kept}.reason", f"{printable(text)}\n".encode("utf-8", "backslashreplace"))
            _prune(folder)
        finally:
            os.close(folder)

    def _folder_for(self, name: str) -> int:
        """Open `done` or `refused`; what else has that name, a carrier's link perhaps, is hidden first."""
        for _ in range(2):
            with suppress(FileExistsError):
                os.mkdir(name, 0o750, dir_fd=self._descriptor)
            try:
                folder = os.open(name, _FOLDER_FLAGS | _NO_LINK, dir_fd=self._descriptor)
            except OSError:
                self._hide(name)
                continue
            if os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
                return folder
            os.close(folder)
            self._hide(name)
        raise OSError(errno.EEXIST, "its name is taken", name)


def is_of_the_device(error: ICISDeployError, folder: Path) -> bool:
    """Return whether an update was refused for what is wrong with the device, so that any other one would be too.

    Args:
        error: What `Device.apply` raised for the bytes of an update.
        folder: The bundle.
    """
    if not isinstance(error, IntegrityError | IncompatibleError | LoadError | VerdictError):
        return True
    if error.where is None:
        return False
    # A device works in the folder that a link led to when it was opened.
    folders = {folder, Path(os.path.realpath(folder))}
    return not folders.isdisjoint((Path(error.where), *Path(error.where).parents))


def _is_fresh(status: os.stat_result | None) -> bool:
    """Return whether a file was written to a moment ago."""
    return status is not None and 0 <= time.time() - status.st_mtime < REST_SECONDS


def kept_name(name: str) -> str:
    """Return the name under which `done/` and `refused/` keep a file: its own, if that is short and plain."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name.removesuffix(SUFFIX)).lstrip("._-")[:60]
    return f"{stem or 'file'}-{_digest(name)}{SUFFIX}"


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def _write(folder: int, name: str, data: bytes) -> None:
    temporary = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC, 0o640, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:  # half a file would stay for ever, and hold what a full disk has left
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _prune(folder: int) -> None:
    """Remove the oldest files until the rest keep within the quota."""
    with os.scandir(folder) as entries:
        found = [(entry.stat(follow_symlinks=False), entry.name) for entry in entries]
    files = sorted(((s.st_mtime_ns, s.st_size, name) for s, name in found if stat.S_ISREG(s.st_mode)), reverse=True)
    num_bytes = 0
    for index, (_, size_bytes, name) in enumerate(files):
        num_bytes += size_bytes
        if index >= MAX_KEPT_FILES or num_bytes > MAX_KEPT_BYTES:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _storage_error(path: Path, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(
        f"The inbox cannot be worked on: {reason} ({printable(str(path), max_length=MAX_REASON)}).",
        found=reason,
        expected="a folder that can be read and changed",
        where=path,
        hint="Give the folder to the user that applies updates, and check the disk.",
    )
