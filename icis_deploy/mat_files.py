"""Read arrays from MATLAB's `.mat` files by scipy, once their checksums are known to hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

from icis_deploy.errors import LoadError, MissingDependencyError

HEADER_BYTES = 128
COMPRESSED = 15
CHUNK_BYTES = 1 << 16


def read_mat(file: BinaryIO, names: Sequence[str]) -> dict[str, Any]:
    """Return those arrays that a file holds, and what scipy adds to them (names that begin with two underscores).

    Args:
        file: Open at its beginning.
        names: Of the arrays; others are not read.

    Raises:
        LoadError: If it cannot be read as a `.mat` file; the message is the reason alone, without a full stop.
        MissingDependencyError: If scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingDependencyError("Reading a .mat file needs scipy: pip install 'icis-deploy[train]'") from error
    try:
        _check_checksums(file)
        file.seek(0)
        content: dict[str, Any] = loadmat(file, variable_names=names)
    except Exception as error:  # scipy lets through what zlib, struct and its own reader raise: a dozen types
        raise LoadError(str(error)) from error
    return content


def _check_checksums(file: BinaryIO) -> None:
    """Unpack what is packed, to its end: scipy stops when it has its values, and damaged ones can end the process.

    An element is two integers of 4 bytes, its type and its size, and then its data ("MAT-File Format", level 5, whose
    header ends in its version and the order of bytes). Other levels pack nothing in this way.
    """
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(file.read(HEADER_BYTES)[-4:])
    if order is None:
        return
    while len(tag := file.read(8)) == 8:
        kind, size = struct.unpack(order + "II", tag)
        end = file.tell() + size
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            while not unpacker.eof and (chunk := file.read(min(CHUNK_BYTES, end - file.tell()))):
                unpacker.decompress(chunk)
            if not unpacker.eof:
                raise LoadError("it ends too early")
        file.seek(end)
