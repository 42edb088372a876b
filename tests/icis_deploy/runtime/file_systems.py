"""File systems that fail: at a call, from a call on, or by losing power."""

from __future__ import annotations

import errno
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.runtime.state.filesystem import OSFileSystem

WRITING_CALLS = ("create", "sync_file", "replace", "remove", "make_folder", "remove_folder", "sync_folder")


class Killed(BaseException):
    """The process ended here: nothing it would have done afterwards happens."""


class FailingFiles:
    """The real disk, until the call with number `fail_at`, from 0; a file that is being created then is cut short."""

    def __init__(self, *, fail_at: int = 1 << 30, mode: str = "once") -> None:
        self.calls: list[str] = []
        self._counting = threading.Lock()
        self._real = OSFileSystem()
        self._fail_at = fail_at
        self._mode = mode

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        return self._guarded(name, real) if name in WRITING_CALLS else real

    def _guarded(self, name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with self._counting:  # slots are written in a thread of their own
                number = len(self.calls)
                self.calls.append(name)
            if number == self._fail_at and name == "create":
                path, data = arguments
                real(path, data[: len(data) // 2])
            if number == self._fail_at or (number > self._fail_at and self._mode != "once"):
                raise Killed if self._mode == "kill" else OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return call


@dataclass
class Inode:
    """A file's bytes, as the process sees them and as the disk has them."""

    seen: bytes
    synced: bytes | None = None


FOLDER = Inode(b"", b"")


def one_at_a_time(call: Any) -> Any:
    """Let only one thread at a time call methods of a disk."""

    @wraps(call)
    def locked(disk: VolatileDisk, *arguments: Any) -> Any:
        with disk.calling:
            return call(disk, *arguments)

    return locked


@dataclass
class VolatileDisk:
    """A disk that forgets what was not synced when the power goes, in the worst order that POSIX allows.

    Bytes are safe after a sync of the file, names after a sync of the folder; until then each may survive or not, by
    itself. Only `state/` lives here; everything else is read from the real disk.
    """

    root: Path
    seen: dict[Path, Inode] = field(default_factory=dict)
    synced: dict[Path, Inode] = field(default_factory=dict)
    cut_at: int = 1 << 30
    skipped_sync: str | None = None
    num_calls: int = 0
    syncs: list[str] = field(default_factory=list)
    calling: threading.Lock = field(default_factory=threading.Lock)

    def after_power_cut(self, seed: int) -> VolatileDisk:
        """The disk as the next start finds it: one of the possible ones."""
        random = np.random.default_rng(seed)
        left: dict[Path, Inode] = {}
        for path in sorted({*self.seen, *self.synced}):
            inode = random.choice(np.array([self.seen.get(path), self.synced.get(path)], dtype=object))
            if inode is None or (path.parent != self.root and path.parent not in left):
                continue
            data = inode.synced
            if data is None:
                data = inode.seen[: int(random.choice([0, len(inode.seen) // 2, len(inode.seen)]))]
            left[path] = inode if inode is FOLDER else Inode(data, data)
        return VolatileDisk(self.root, dict(left), dict(left))

    def names_left(self) -> set[str]:
        return {path.name for path in self.seen}

    def _call(self) -> bool:
        """Count a call; return whether the power goes in the middle of it."""
        self.num_calls += 1
        if self.num_calls > self.cut_at + 1:
            raise Killed
        return self.num_calls == self.cut_at + 1

    @one_at_a_time
    def read(self, path: Path, max_bytes: int) -> bytes:
        if not self._is_mine(path):
            return OSFileSystem().read(path, max_bytes)
        if path not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self.seen[path].seen[:max_bytes]

    @one_at_a_time
    def names(self, folder: Path) -> tuple[str, ...]:
        if not self._is_mine(folder):
            return OSFileSystem().names(folder)
        return tuple(sorted(path.name for path in self.seen if path.parent == folder))

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        return (id(self.seen[path]),) if path in self.seen else None

    @one_at_a_time
    def create(self, path: Path, data: bytes) -> None:
        cut = self._call()
        assert path not in self.seen
        assert path.parent in self.seen
        self.seen[path] = Inode(data[: len(data) // 2] if cut else data)
        self._end(cut)

    @one_at_a_time
    def sync_file(self, path: Path) -> None:
        cut = self._call()
        if self._syncs(path) and not cut:
            self.seen[path].synced = self.seen[path].seen
        self._end(cut)

    @one_at_a_time
    def sync_folder(self, path: Path) -> None:
        cut = self._call()
        if self._syncs(path) and not cut:
            self.synced = {one: inode for one, inode in self.synced.items() if one.parent != path} | {
                one: inode for one, inode in self.seen.items() if one.parent == path
            }
        self._end(cut)

    @one_at_a_time
    def replace(self, source: Path, target: Path) -> None:
        cut = self._call()
        self.seen[target] = self.seen.pop(source)
        self._end(cut)

    @one_at_a_time
    def remove(self, path: Path) -> None:
        cut = self._call()
        self.seen.pop(path, None)
        self._end(cut)

    @one_at_a_time
    def make_folder(self, path: Path) -> bool:
        cut = self._call()
        is_new = path not in self.seen
        self.seen.setdefault(path, FOLDER)
        self._end(cut)
        return is_new

    @one_at_a_time
    def remove_folder(self, path: Path) -> None:
        cut = self._call()
        del self.seen[path]
        self._end(cut)

    def locked(self, folder: Path, timeout_seconds: float) -> Any:
        return nullcontext()

    def _syncs(self, path: Path) -> bool:
        """Name a sync by what it is of and how often that was synced; return whether it is one that does something."""
        name = path.suffix or path.name
        self.syncs.append(f"{name} {sum(each.startswith(name) for each in self.syncs)}")
        return self.syncs[-1] != self.skipped_sync

    def _end(self, cut: bool) -> None:
        if cut:
            raise Killed

    def _is_mine(self, path: Path) -> bool:
        state = self.root / "state"
        return path == state or state in path.parents
