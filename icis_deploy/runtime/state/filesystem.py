"""The file system: every call with which the device half touches the disk, one system call's worth each.

It is a seam so that tests can stop the world at any of these calls, refuse any of them, or forget what was not synced.
Nothing here decides anything, and errors are the operating system's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from icis_deploy.common.files import plain_descriptor
from icis_deploy.common.syncing import BINARY, CLOSE_ON_EXEC, IS_WINDOWS, sync_file, sync_folder
from icis_deploy.runtime.state.locking import FolderFlock, FolderLock, LockedByte

_READ_BYTES = 1 << 16
_POLL_SECONDS = 0.005
_SHARING_SECONDS = 2.0
"""How long Windows is asked again for a file that another process has open: readers of a journal take microseconds."""

Result = TypeVar("Result")


class FileSystem(Protocol):
    """What the store needs of a file system."""

    def read(self, path: Path, max_bytes: int) -> bytes:
        """Return a plain file's bytes, at most `max_bytes` of them.

        Raises:
            OSError: If it cannot be read, or is no plain file.
        """
        ...

    def names(self, folder: Path) -> tuple[str, ...]:
        """Return the names in a folder, in alphabetical order; none if there is no such folder.

        Raises:
            OSError: If it cannot be read.
        """
        ...

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        """Return numbers that change when a file is replaced; `None` if there is no such file."""
        ...

    def create(self, path: Path, data: bytes) -> None:
        """Write a new file, which others may read and not write, or less where the umask says so.

        What it holds and that it is there may be lost until both are synced.

        Raises:
            OSError: If there is a file already, or the disk refuses; a part of the file may be there then.
        """
        ...

    def sync_file(self, path: Path) -> None:
        """Wait until a file's bytes are on the disk.

        Raises:
            OSError: If they cannot be brought there.
        """
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another; that it happened may be lost until the folder is synced.

        Raises:
            OSError: If it did not happen.
        """
        ...

    def remove(self, path: Path) -> None:
        """Remove a file; do nothing if there is none.

        Raises:
            OSError: If the disk refuses.
        """
        ...

    def make_folder(self, path: Path) -> bool:
        """Make a folder; return whether there was none.

        Raises:
            OSError: If the disk refuses.
        """
        ...

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder.

        Raises:
            OSError: If it is not empty, or the disk refuses.
        """
        ...

    def sync_folder(self, path: Path) -> None:
        """Wait until a folder's names are on the disk, as far as the system can be asked for that.

        Raises:
            OSError: If they cannot be brought there.
        """
        ...

    def locked(self, folder: Path, timeout_seconds: float) -> AbstractContextManager[None]:
        """Return a context in which no other thread or process holds this folder's lock.

        A process that is forked meanwhile does not hold it, whatever it inherits. Leaving it twice is leaving it once.

        Raises:
            TimeoutError: On entering, if another one holds it for longer than `timeout_seconds`.
            OSError: On entering, if the folder cannot be opened.
        """
        ...


class OSFileSystem:
    """The file system of the operating system (POSIX); see `FileSystem` for what its methods promise."""

    def read(self, path: Path, max_bytes: int) -> bytes:
        """Return a file's bytes; see `FileSystem.read`."""
        descriptor = plain_descriptor(path, os.O_RDONLY | CLOSE_ON_EXEC)
        try:
            # A read reserves as much memory as it is asked for, and caps are a thousand times what a file usually has.
            pieces, left = [], max_bytes
            num_asked = max(_READ_BYTES, os.fstat(descriptor).st_size + 1)
            while left and (piece := os.read(descriptor, min(left, num_asked))):
                pieces.append(piece)
                left -= len(piece)
        finally:
            os.close(descriptor)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def names(self, folder: Path) -> tuple[str, ...]:
        """Return the names in a folder; see `FileSystem.names`."""
        try:
            return tuple(sorted(os.listdir(folder)))  # noqa: PTH208 - the order and the type of the seam
        except FileNotFoundError:
            return ()

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        """Return numbers that change when a file is replaced; see `FileSystem.stamp`."""
        try:
            status = os.stat(path)  # noqa: PTH116 - half the time of `Path.stat`, and asked for with every request
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def create(self, path: Path, data: bytes) -> None:
        """Write a new file; see `FileSystem.create`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC | BINARY, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)

    def sync_file(self, path: Path) -> None:
        """Sync a file; see `FileSystem.sync_file`."""
        sync_file(path)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another; see `FileSystem.replace`."""
        os.replace(source, target)  # noqa: PTH105 - see `stamp`

    def remove(self, path: Path) -> None:
        """Remove a file; see `FileSystem.remove`."""
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - see `stamp`

    def make_folder(self, path: Path) -> bool:
        """Make a folder; see `FileSystem.make_folder`."""
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            return False
        return True

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder; see `FileSystem.remove_folder`."""
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """Sync a folder; see `FileSystem.sync_folder`."""
        sync_folder(path)

    def locked(self, folder: Path, timeout_seconds: float) -> AbstractContextManager[None]:
        """Hold a folder's lock; see `FileSystem.locked`."""
        return FolderLock(FolderFlock(), folder, timeout_seconds)


class WindowsFileSystem(OSFileSystem):
    """The file system of Windows; see `FileSystem` for what its methods promise.

    Windows replaces and removes no file that any process has open, and opens none that is being replaced. Whoever reads
    a journal without the lock closes it at once, so the call is tried again for a while.
    """

    def read(self, path: Path, max_bytes: int) -> bytes:
        """Return a file's bytes; see `FileSystem.read`."""
        return _patiently(partial(super().read, path, max_bytes))

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another; see `FileSystem.replace`."""
        _patiently(partial(super().replace, source, target))

    def remove(self, path: Path) -> None:
        """Remove a file; see `FileSystem.remove`."""
        _patiently(partial(super().remove, path))

    def locked(self, folder: Path, timeout_seconds: float) -> AbstractContextManager[None]:
        """Hold a folder's lock; see `FileSystem.locked`."""
        return FolderLock(LockedByte(), folder, timeout_seconds)


def leads_nowhere(path: Path) -> bool:
    """Return whether a path is a link to what is not there, such as a folder on a disk that is not mounted."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114 - whatever the system refuses


def system_files() -> FileSystem:
    """Return the file system of this machine."""
    return WindowsFileSystem() if IS_WINDOWS else OSFileSystem()


def _patiently(call: Callable[[], Result]) -> Result:
    """Call, again while another process has the file open, and raise what the last call raised."""
    deadline = time.monotonic() + _SHARING_SECONDS
    while True:
        try:
            return call()
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)
