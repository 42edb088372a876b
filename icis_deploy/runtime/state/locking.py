"""The lock of a bundle's folder, between threads and between processes.

Rules:

1. Where the system has `flock`, the folder itself carries the lock. So there is no lock file to create, to leave
   behind, or to miss on a read-only disk.
2. Windows opens no folders. There a byte of the file `LOCK_NAME` in the folder is locked, which stays: to remove it
   would let two processes lock two files of one name. A bundle on a read-only disk takes no changes there.
3. Both locks belong to what was opened, so that two of one process exclude each other, and both end with the process.
4. A process that is forked meanwhile does not hold the lock, whatever it inherits.
"""

# Why: docs/decisions/0020, docs/decisions/0078 (forks), docs/decisions/0096 (Windows).

from __future__ import annotations

import errno
import importlib
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from icis_deploy.common.syncing import CLOSE_ON_EXEC

LOCK_NAME = ".lock"
_POLL_SECONDS = 0.005
_HELD_BY_ANOTHER = frozenset({errno.EACCES, errno.EDEADLK})


class Lockable(Protocol):
    """The system's calls for one kind of lock."""

    def open(self, folder: Path) -> int:
        """Return a descriptor of what carries the lock of a folder.

        Raises:
            OSError: If it cannot be opened.
        """
        ...

    def try_lock(self, descriptor: int) -> bool:
        """Take the lock if nobody has it; return whether that is so.

        Raises:
            OSError: If the file system has no such locks.
        """
        ...

    def unlock(self, descriptor: int) -> None:
        """Release it; closing what others inherited would not.

        Raises:
            OSError: If it was not held.
        """
        ...


class FolderFlock:
    """`flock` on the folder itself (rule 1)."""

    def open(self, folder: Path) -> int:
        """Open the folder; see `Lockable.open`."""
        return os.open(folder, os.O_RDONLY | CLOSE_ON_EXEC)

    def try_lock(self, descriptor: int) -> bool:
        """Lock it; see `Lockable.try_lock`."""
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self, descriptor: int) -> None:
        """Unlock it; see `Lockable.unlock`."""
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


class LockedByte:
    """The first byte of a file in the folder, locked by the C runtime of Windows (rule 2)."""

    def open(self, folder: Path) -> int:
        """Open the file; see `Lockable.open`."""
        return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC, 0o644)

    def try_lock(self, descriptor: int) -> bool:
        """Lock the byte, which need not be there; see `Lockable.try_lock`."""
        msvcrt = importlib.import_module("msvcrt")  # on other systems type checkers know nothing in it
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise
            return False
        return True

    def unlock(self, descriptor: int) -> None:
        """Unlock the byte; see `Lockable.unlock`."""
        msvcrt = importlib.import_module("msvcrt")
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


class FolderLock:
    """A context in which no other thread or process holds a folder's lock. Leaving it twice is leaving it once."""

    def __init__(self, lockable: Lockable, folder: Path, timeout_seconds: float) -> None:
        """Prepare to wait for the lock at most `timeout_seconds`, once the context is entered."""
        self._lockable, self._folder, self._timeout_seconds = lockable, folder, timeout_seconds
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        """Wait for the lock.

        Raises:
            TimeoutError: If another one holds it for too long.
            OSError: If what carries it cannot be opened or locked.
        """
        _LOCKS.add(self)
        try:
            self._descriptor = self._lockable.open(self._folder)
            deadline = time.monotonic() + self._timeout_seconds
            while not self._lockable.try_lock(self._descriptor):
                if time.monotonic() >= deadline:
                    raise TimeoutError
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._release()

    def _release(self) -> None:
        descriptor = self._descriptor
        if descriptor is not None:
            # To close it is not enough: a process that was forked meanwhile has it open as well.
            with suppress(OSError):
                self._lockable.unlock(descriptor)
            self._descriptor = None
            os.close(descriptor)
        _LOCKS.discard(self)

    def abandon(self) -> None:
        """Close a forked process's copy, without which the lock would outlive a parent that is killed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


_LOCKS: set[FolderLock] = set()
"""The locks that this process holds or waits for."""


def _abandon_locks() -> None:
    for lock in tuple(_LOCKS):
        lock.abandon()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_locks)
