"""Files of inputs, on disk or at a URI of fsspec such as `s3://bucket/a.tar`, and whether they stay as they were.

A file that another process writes while it is read gives inputs of two states. So whoever reads one for long notes its
version first, and compares it at the end.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias, cast

from icis_deploy.common.files import open_plain, path_from
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import ImageError, MissingDependencyError

_EXTRAS = {"https": "http", "s3a": "s3", "gcs": "gs", "abfss": "abfs"}
"""What fsspec calls the extra of a protocol, where that has another name."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: one is a drive of Windows


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that fsspec reads; of the parts of a path it has those that files of inputs need."""

    uri: str
    """With its protocol, such as `s3://bucket/a.tar`."""

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.uri).name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.uri).suffix

    def beside(self, name: str) -> RemoteFile:
        """Return a file of the same folder, or one deeper."""
        return RemoteFile(f"{self.uri.rpartition('/')[0]}/{name}")


InputFile: TypeAlias = Path | RemoteFile


def is_uri(text: str) -> bool:
    """Say whether a text is a URI, and no path."""
    return _URI.match(text) is not None


def input_file(text: str | os.PathLike[str]) -> InputFile:
    """Return the file that a path or a URI names; nothing is opened."""
    return RemoteFile(text) if isinstance(text, str) and is_uri(text) else path_from(text, name="images")


def file_beside(file: InputFile, name: str) -> InputFile:
    """Return what a list names: a file relative to the list's folder, or one at a path or URI of its own."""
    if is_uri(name):
        return RemoteFile(name)
    return file.beside(name) if isinstance(file, RemoteFile) else file.parent / name


def open_input(file: InputFile) -> BinaryIO:
    """Open a file for reading at any place; the caller closes it.

    Raises:
        OSError, ValueError: If it is on disk, and cannot be opened or is no plain file.
        ImageError: If it is at a URI, and its service does not give it.
        MissingDependencyError: If fsspec, or what it needs for this protocol, is not installed.
    """
    if isinstance(file, Path):
        return cast(BinaryIO, io.BufferedReader(open_plain(file)))
    with _reaching(file):
        system, path = _system(file)
        return cast(BinaryIO, _NamedReads(system.open(path, "rb"), file))


def read_input(file: InputFile, *, max_bytes: int) -> bytes:
    """Return the bytes of a file, whose size is looked at first.

    Raises:
        As `open_input`; and ImageError: If it has more bytes.
    """
    with open_input(file) as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        data = opened.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(data) > max_bytes:
        raise ImageError(
            f"{file} has {size} bytes; at most {max_bytes} are read.",
            found=size,
            expected=f"at most {max_bytes} bytes",
            where=str(file),
            hint="Give a smaller image, or the array that the model takes.",
        )
    return data


def exists(file: InputFile) -> bool:
    """Say whether there is such a file; for errors of a service as `open_input`."""
    if isinstance(file, Path):
        return os.path.isfile(file)  # noqa: PTH113 - pathlib raises for a name that is too long
    with _reaching(file):
        system, path = _system(file)
        return bool(system.isfile(path))


def version_of(file: InputFile) -> str:
    """Return a text that changes when a file is written or replaced, as far as its file system tells.

    Raises:
        OSError: If it is on disk, and not there.
        ImageError: If it is at a URI, and its service does not say it.
    """
    if isinstance(file, Path):
        found = file.stat()
        return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"
    with _reaching(file):
        system, path = _system(file)
        system.invalidate_cache()  # or what was listed once would be said for ever
        return str(system.ukey(path))


@contextmanager
def unchanged(file: InputFile, version: str) -> Iterator[None]:
    """Raise `ImageError` if a file is no longer of a version when the block ends, or where it fails for that."""
    try:
        yield
    except (OSError, ValueError, ImageError):
        _check_unchanged(file, version)
        raise
    _check_unchanged(file, version)


def _check_unchanged(file: InputFile, version: str) -> None:
    try:
        now = version_of(file)
    except OSError:
        now = "gone"
    if now != version:
        raise ImageError(
            f"{file} was changed while it was read{' (it is gone)' if now == 'gone' else ''}.",
            found=now,
            expected=version,
            where=str(file),
            hint="Start again when nobody writes it, or read a copy.",
        )


class _NamedReads(io.RawIOBase):
    """A file of fsspec whose errors, of whatever service, are `ImageError`s that name the URI."""

    def __init__(self, opened: Any, file: RemoteFile) -> None:
        self._opened, self._file = opened, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        with _reaching(self._file):
            return bytes(self._opened.read(size))

    def readall(self) -> bytes:
        return self.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with _reaching(self._file):
            return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


def _system(file: RemoteFile) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {file} needs fsspec, which cannot be imported ({error}).",
            found=str(error),
            expected="fsspec",
            where=str(file),
            hint="Install it: pip install 'icis-deploy[data]'.",
        ) from error
    try:
        system, path = url_to_fs(file.uri)
    except ImportError as error:
        protocol = file.uri.partition("://")[0]
        extra = _EXTRAS.get(protocol, protocol)
        raise MissingDependencyError(
            f"Reading {file} needs what fsspec uses for {protocol}: {reason_of(error)}.",
            found=reason_of(error),
            expected=f"a package for {protocol}",
            where=str(file),
            hint=f"Install it: pip install 'fsspec[{extra}]'.",
        ) from error
    return system, path


@contextmanager
def _reaching(file: RemoteFile) -> Iterator[None]:
    try:
        yield
    except (ImageError, MissingDependencyError):
        raise
    except Exception as error:  # each service has errors of its own
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else reason_of(error) or type(error).__name__
        raise ImageError(
            f"Cannot read {file}: {reason}.",
            found=type(error).__name__,
            expected="a file that can be read",
            where=str(file),
            hint="Check the URI, the bucket's name and the credentials that its service takes.",
        ) from error
