"""Bytes and names brought to the disk itself, as each system wants that done.

Rules:

1. A sync that returns has waited for the device, and not only for the system's own cache. On macOS `fsync` leaves bytes
   in the drive's cache, so there `F_FULLFSYNC` is asked for; file systems that do not know it get `fsync`.
2. POSIX keeps the names of a folder apart from the bytes of its files, so a new or renamed file needs both syncs.
3. Windows syncs only what was opened for writing, and opens no folders. NTFS logs renames itself, in their order,
   but writes its log when it likes: after a power cut the last rename may not have happened, which is the state before.
"""

# Why: docs/decisions/0096.

from __future__ import annotations

import errno
import os
from pathlib import Path

IS_WINDOWS = os.name == "nt"
CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)
BINARY = getattr(os, "O_BINARY", 0)
"""Of a descriptor on Windows, without which each line end that is read or written becomes another one."""

_NOT_KNOWN = frozenset({errno.ENOTSUP, errno.ENOTTY, errno.EINVAL})
"""What macOS says where a file system, such as one of a network, does not know `F_FULLFSYNC`."""


def sync_descriptor(descriptor: int) -> None:
    """Wait until the bytes behind a descriptor, which on Windows must be open for writing, are on the disk.

    Raises:
        OSError: If they cannot be brought there.
    """
    full = None if IS_WINDOWS else _full_sync_command()
    if full is not None:
        import fcntl

        try:
            fcntl.fcntl(descriptor, full)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
        else:
            return
    os.fsync(descriptor)


def _full_sync_command() -> int | None:
    import fcntl

    return getattr(fcntl, "F_FULLFSYNC", None)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    Raises:
        OSError: If they cannot be brought there.
    """
    _sync(path, os.O_RDWR if IS_WINDOWS else os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until a folder's names are on the disk; on Windows, do nothing (rule 3).

    Raises:
        OSError: If they cannot be brought there.
    """
    if not IS_WINDOWS:
        _sync(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | CLOSE_ON_EXEC)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
