"""Files on disk: written whole or not at all, hashed, read up to a limit; of a bundle or an update, plain ones."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO

from icis_deploy.common.given import check_flag
from icis_deploy.common.syncing import BINARY, sync_descriptor, sync_folder
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import ICISDeployError, StorageError, UsageError

_CHUNK_BYTES = 1 << 20
MAX_LINES = 1 << 22
"""Of a list in text: four million names. Each line takes 50 bytes of memory and its own."""

_LINE_ENDS = tuple(bytes([end]) for end in b"\n\r\x0b\x0c\x1c\x1d\x1e")
_HASHED_BYTES = 1 << 24
_MAX_KEPT_NAME = 60
"""Characters of a file's name in its temporary one, which must not be longer than file systems allow."""
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def path_from(given: object, *, name: str) -> Path:
    """Return a path that a caller gave.

    Args:
        given: A text or a path of any kind.
        name: What the caller gave it as, for the message.

    Raises:
        UsageError: If it is something else, or no file can have it as its path: an empty text, which Python takes for
            the folder that it runs in, or one with a null byte.
    """
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if isinstance(path, str) and path and "\0" not in path:
        return given if isinstance(given, Path) else Path(path)
    is_text = isinstance(path, str)
    kind = "" if is_text else f", of type {shown(type(given).__name__)}"
    raise UsageError(
        f"`{name}` is {shown(given)}{kind}; expected a path{' that a file can have' if is_text else ''}.",
        found=shown(path) if is_text else type(given).__name__,
        expected="a path, as a text or a pathlib.Path",
        hint=f"Give `{name}` as the path of a file or folder.",
    )


# Why: docs/decisions/0050.
def open_plain(path: Path) -> FileIO:
    """Open a plain file for reading, or what a symbolic link to one names.

    Otherwise whoever can put a name into a folder could make the reader wait forever, with a pipe that nobody writes
    to, or read a device.

    Raises:
        OSError: If it cannot be opened, or is no plain file.
        ValueError: If the path holds a null byte.
    """
    return FileIO(path, "rb", opener=plain_descriptor)


def plain_descriptor(path: str | Path, flags: int) -> int:
    """Open a plain file as `open_plain` does, for a caller that closes the descriptor itself; for the same errors."""
    # Without O_NONBLOCK, opening a pipe waits for a writer; reading a plain file is the same with it.
    try:
        descriptor = os.open(path, flags | BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    except OSError as error:
        # What Linux says of a socket, and Windows of a folder.
        if error.errno in {errno.ENXIO, errno.EACCES} and not stat.S_ISREG(mode := _mode_of(path)):
            raise OSError(errno.EINVAL, _kind_of(mode)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _kind_of(mode))
    return descriptor


def _mode_of(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - may be a text
    except OSError:
        return stat.S_IFREG  # nothing is known of it


def _kind_of(mode: int) -> str:
    kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")
    return f"it is {kind} and no plain file"


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, lower-case hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with open_plain(path) as file:
        # Few large pieces: in one of several threads, each of them waits for Python's lock twice. They lie outside the
        # heap: glibc keeps more of what is allocated after a block of this size was freed, for a session up to 7 MB.
        size = min(_HASHED_BYTES, os.fstat(file.fileno()).st_size + 1)
        # Not closed here: after an interruption that would fail, as a piece of it is still in use.
        view = memoryview(mmap.mmap(-1, size))
        while count := file.readinto(view):
            digest.update(view[:count])
    return digest.hexdigest()


def write_file(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file: write a temporary one next to it, sync it, rename it over the file, sync the folder.

    Args:
        path: The file.
        data: All of its bytes, or pieces of them, which are written as they come.

    Raises:
        StorageError: If that fails; what was at `path` before is still there, unless only the folder could not be
            synced: then the message says that the new bytes are there, but may not survive a power cut.
    """
    temporary = None
    try:
        temporary = path.with_name(f".{path.name[:_MAX_KEPT_NAME]}.{_random_text()}.tmp")
        # Others may read it and not write it, or less where the umask says so.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise write_failure(path, error, after="Nothing was changed.") from error
    finally:  # also when interrupted; after the move there is nothing left to remove
        if temporary is not None:
            with suppress(OSError, ValueError):
                temporary.unlink()
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"Wrote {path}, but its folder could not be synced: {_reason(error)}. The file may not survive a power "
            f"cut.",
            found=_reason(error),
            where=path,
            hint="Check the disk, then write it again.",
        ) from error


def _random_text() -> str:
    """Return a part of a name that no other file has."""
    return os.urandom(8).hex()


@contextmanager
def new_folder(target: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Give an empty folder to fill, which replaces `target` when the block ends and is removed if it fails.

    Args:
        target: Path of the folder.
        overwrite: Whether a folder that is there may be replaced.
        marker: A file that a folder must hold to be replaced, unless it is empty: a mistyped path must not delete
            anything else.

    Yields:
        A temporary folder next to `target`, on the same file system.

    Raises:
        UsageError: If there is something at `target` already and `overwrite` is false, or it is a file, or a folder
            that holds something but no `marker`.
        StorageError: If the disk refuses; what was at `target` before is still there.
    """
    import shutil

    check_free(target, overwrite=overwrite, makes_folders=True)
    if os.path.lexists(target) and not os.path.isdir(target):  # noqa: PTH112 - see check_free
        raise UsageError(
            f"{target} is a file, where a folder is expected.",
            found="a file",
            expected="a folder",
            where=target,
            hint="Choose another path.",
        )
    if _holds_something_else(target, marker):
        raise UsageError(
            f"{target} holds files but no {marker}, so it is not what would be written there, and is not replaced.",
            expected=marker,
            where=target,
            hint="Choose another path, or remove it yourself.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f".{target.name}.{_random_text()}.building")
        building.mkdir(mode=0o755)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"Could not create {target}: {_reason(error)}.",
            found=_reason(error),
            where=target,
            hint="Choose another path.",
        ) from error
    try:
        yield building
        _swap_in(building, target)
    except OSError as error:
        raise write_failure(target, error, after="What was there before still is.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _holds_something_else(folder: Path, marker: str) -> bool:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names alone
    except OSError:  # it is not there, or the attempt to move it will say why it cannot be
        return False
    return bool(names) and marker not in names


def _swap_in(building: Path, target: Path) -> None:
    import shutil
    import tempfile

    if not target.exists():
        building.replace(target)
        return
    # A folder cannot be moved over a filled one: the old one steps aside, and back again if the new one cannot move in.
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
    try:
        target.replace(aside)
    except OSError:
        aside.rmdir()
        raise
    try:
        building.replace(target)
    except BaseException:  # an interruption as well: the old folder must not be lost
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def check_free(target: Path, *, overwrite: bool, makes_folders: bool = False) -> None:
    """Check that something can be written at a path, before the work that makes it.

    Args:
        target: Of a file or folder that will be written.
        overwrite: Whether what is there may be replaced.
        makes_folders: Whether it is a folder, such as a bundle: the folders above it are made where they are missing.

    Raises:
        UsageError: If it exists and may not be replaced, is a folder where a file is to be, there is no folder for it,
            or `overwrite` is no truth value.
        StorageError: If nothing can be written in its folder.
    """
    check_flag(overwrite, name="overwrite")
    # os.path and not pathlib, which raises where the system refuses to look (a name that is too long, a closed folder).
    if os.path.lexists(target) and not overwrite:
        raise UsageError(
            f"{target} already exists.",
            where=target,
            hint="Choose another path, or give `overwrite=True` to replace it.",
        )
    if not makes_folders and os.path.isdir(target):  # noqa: PTH112
        raise UsageError(
            f"{target} is a folder, where a file is to be written.",
            found="a folder",
            expected="a path of a file",
            where=target,
            hint="Name a file.",
        )
    _check_folder(os.path.dirname(os.path.abspath(target)), target, makes_folders=makes_folders)  # noqa: PTH100, PTH120


def _check_folder(folder: str, target: Path, *, makes_folders: bool) -> None:
    try:
        mode = os.stat(folder).st_mode  # noqa: PTH116 - see check_free
    except FileNotFoundError:
        if makes_folders:
            _check_folder(os.path.dirname(folder), target, makes_folders=True)  # noqa: PTH120 - see check_free
            return
        raise UsageError(
            f"{target} cannot be written: there is no folder {folder}.",
            found="nothing",
            expected="a folder",
            where=target,
            hint="Create it, or choose another path.",
        ) from None
    except (OSError, ValueError):
        return  # whoever writes there will say what the system says
    if not stat.S_ISDIR(mode):
        raise UsageError(
            f"{target} cannot be written: {folder} is a file, where a folder is expected.",
            found="a file",
            expected="a folder",
            where=target,
            hint="Choose another path.",
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise StorageError(
            f"{target} cannot be written: the folder {folder} does not allow it.",
            found="no permission to write",
            expected="a folder that can be written in",
            where=target,
            hint="Choose another path, or change the folder's permissions.",
        )


def read_capped(path: Path, *, max_bytes: int, what: str, error_type: type[ICISDeployError]) -> bytes:
    """Return the bytes of a file or pipe that a user names, or refuse to read more than `max_bytes` of them.

    Raises:
        error_type: If it cannot be read or is larger.
    """
    return _read_capped(path, _open_any, max_bytes=max_bytes, what=what, error_type=error_type)


def read_list(path: Path, *, max_bytes: int, what: str, error_type: type[ICISDeployError]) -> bytes:
    """Return the bytes of a text whose lines are all taken into memory; else as `read_capped`.

    Raises:
        error_type: As `read_capped`, and if it has more than `MAX_LINES` lines, as `str.splitlines` counts them.
    """
    data = read_capped(path, max_bytes=max_bytes, what=what, error_type=error_type)
    num_lines = sum(map(data.count, _LINE_ENDS))
    if num_lines > MAX_LINES:
        raise error_type(
            f"The {what} {path} has {num_lines} lines; at most {MAX_LINES} are read.",
            found=num_lines,
            expected=f"at most {MAX_LINES} lines",
            where=path,
        )
    return data


def read_plain(path: Path, *, max_bytes: int, what: str, error_type: type[ICISDeployError]) -> bytes:
    """Return the bytes of a plain file, which somebody else may have put there; else as `read_capped`."""
    return _read_capped(path, open_plain, max_bytes=max_bytes, what=what, error_type=error_type)


def _read_capped(
    path: Path,
    opened: Callable[[Path], IO[bytes]],
    *,
    max_bytes: int,
    what: str,
    error_type: type[ICISDeployError],
) -> bytes:
    chunks: list[bytes] = []
    left = max_bytes + 1
    try:
        with opened(path) as file:
            # In chunks: one read of the cap would reserve that much memory, whatever the file holds.
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                chunks.append(chunk)
                left -= len(chunk)
    except (OSError, ValueError) as error:
        raise error_type(
            f"Cannot read the {what} {path}: {_reason(error)}.",
            found=_reason(error),
            where=path,
        ) from error
    if not left:
        raise error_type(
            f"The {what} {path} is larger than {max_bytes} bytes, which no {what} is. Not read further.",
            found=f"more than {max_bytes} bytes",
            expected=f"at most {max_bytes} bytes",
            where=path,
        )
    return b"".join(chunks)


def _open_any(path: Path) -> IO[bytes]:
    return path.open("rb")


_CURES_OF_WRITING = {
    errno.ENOENT: "Create its folder, or choose another path.",
    errno.ENOTDIR: "Choose another path: what stands above it is a file.",
    errno.EISDIR: "Name a file: this is a folder.",
    errno.EACCES: "Choose another path, or change the permissions of its folder.",
    errno.EPERM: "Choose another path, or change the permissions of its folder.",
    errno.EROFS: "Choose a path on a disk that can be written.",
    errno.ENOSPC: "Free some space, then try again.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def write_failure(path: Path, error: OSError | ValueError, *, what: str = "", after: str = "") -> StorageError:
    """Return the error of ours for a write that the system refused.

    Args:
        path: What was written to.
        error: What the system raised.
        what: What was written, with `path`; by default the path alone.
        after: A sentence on what is there now.
    """
    return StorageError(
        f"Could not write {what or path}: {_reason(error)}. {after}".rstrip(),
        found=_reason(error),
        where=path,
        hint=_CURES_OF_WRITING.get(getattr(error, "errno", None) or 0, "Free some space or choose another path."),
    )


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
