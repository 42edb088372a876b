"""What Windows does differently to files and processes, done on Linux, for a process that is nothing but that.

`become_windows` is called before icis-deploy is imported. It takes away what Windows lacks (`fcntl`, forks, flags,
folders that can be opened) and does with the rest as Windows does: a byte of a file is locked by whoever opened it, and
no file is replaced or removed that this process, its parent or a child of either has open.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess  # noqa: F401 - it asks for `msvcrt` itself, to know which system it is on
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

LACKED = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "fork", "register_at_fork")


def become_windows() -> None:
    """Make this process one on Windows, for good."""
    import fcntl

    sys.modules["msvcrt"] = _msvcrt(fcntl)
    sys.modules["fcntl"] = None  # type: ignore[assignment] - as Python marks what cannot be imported
    really = {name: getattr(os, name) for name in ("open", "fsync", "replace", "unlink")}

    def open_file(path, flags, mode=0o777, *, dir_fd=None):
        if dir_fd is not None:
            raise NotImplementedError("dir_fd unavailable on this platform")
        if os.path.isdir(path):  # noqa: PTH112
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really["open"](path, flags, mode)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        really["fsync"](descriptor)

    def replace(source, target):
        _refuse_if_open(source)
        _refuse_if_open(target)
        really["replace"](source, target)

    def unlink(path, *, dir_fd=None):
        _refuse_if_open(path)
        really["unlink"](path)

    os.open, os.fsync, os.replace, os.unlink, os.remove = open_file, fsync, replace, unlink, unlink
    os.supports_dir_fd = set()  # type: ignore[misc]
    for name in LACKED:
        delattr(os, name)

    from icis_deploy.common import syncing

    syncing.IS_WINDOWS = True


def _msvcrt(fcntl: ModuleType) -> ModuleType:
    """Return the locks of the C runtime: of one byte, by whoever opened the file, gone when it is closed."""
    module = ModuleType("msvcrt")
    module.LK_UNLCK, module.LK_NBLCK = 0, 2

    def locking(descriptor: int, mode: int, num_bytes: int) -> None:
        assert num_bytes == 1
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN if mode == module.LK_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module.locking = locking
    return module


def _refuse_if_open(path: str | Path) -> None:
    target = os.path.realpath(path)
    if any(target in _open_files(process) for process in _relatives()):
        raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used", target)


def _open_files(process: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{process}/fd").glob("*"):
        with suppress(OSError):  # closed meanwhile
            found.add(os.readlink(link))  # noqa: PTH115 - a text, which need be no path
    return found


def _relatives() -> set[int]:
    parents = {os.getpid(), os.getppid()}
    return parents | {child for parent in parents for child in _children(parent)}


def _children(process: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            found += [int(text) for text in path.read_text().split()]
    return found
