"""Read zip archives, and numpy's arrays in them, without more memory than their reader meant to spend.

Of an archive that comes from elsewhere nothing is believed that decides how much memory is taken:

1. Its members are counted before Python lists them, and their stated sizes added up before one is unpacked. Python's
   reader gives no more of a member than its stated size.
2. Members are stored or deflated. Of the other methods, bzip2 is unpacked in one piece whatever was asked for, and LZMA
   takes the memory that the file names.
3. Small files may unpack to `SMALL_BYTES`, larger ones to `MAX_RATIO` times their size: sparse attributes shrink to a
   hundredth, and whole models not at all.
4. An array has as many bytes as its shape and type need. numpy takes the memory for those before it reads.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.terminal_text import shown

SMALL_BYTES = 1 << 28
MAX_RATIO = 32
MAX_ARRAYS = 1 << 10
"""Members of an archive of arrays; those that are read here have five at most, those of others some dozens."""

_ENTRY_MARK = b"PK\x01\x02"
"""Each entry of a zip archive's directory begins so (APPNOTE.TXT 4.3.12)."""

_PIECE_BYTES = 1 << 20
_IS_ENCRYPTED = 1


def unpacked_limit(packed_bytes: int, max_bytes: int) -> int:
    """Return how much a file of this size may unpack to: at most `max_bytes`, and no more than rule 3 allows."""
    return min(max_bytes, max(SMALL_BYTES, MAX_RATIO * packed_bytes))


def open_archive(file: BinaryIO, *, max_members: int, max_bytes: int) -> zipfile.ZipFile:
    """Open an archive whose members fit into memory.

    Args:
        file: Of which the current position does not matter; it has to be one that can be searched.
        max_members: How many it may hold.
        max_bytes: What they may unpack to, all together; less where rule 3 allows less.

    Raises:
        ValueError: If it holds more members, bytes, or members of another kind than stored or deflated.
        zipfile.BadZipFile, OSError: If it is no zip archive, or cannot be read.
    """
    if _has_more_entries(file, max_members):
        raise ValueError(f"it has more than {max_members} members")
    packed = file.seek(0, os.SEEK_END)
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    for each in members:
        if each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or each.flag_bits & _IS_ENCRYPTED:
            raise ValueError(f"its member {shown(each.filename)} is neither stored nor deflated, or is encrypted")
    unpacked, limit = sum(each.file_size for each in members), unpacked_limit(packed, max_bytes)
    if unpacked > limit:
        raise ValueError(f"its {packed} bytes unpack to {unpacked}; at most {limit} are read of such a file")
    return archive


def _has_more_entries(file: BinaryIO, limit: int) -> bool:
    file.seek(0)
    num_found, rest = 0, b""
    while piece := file.read(_PIECE_BYTES):
        num_found += (rest + piece).count(_ENTRY_MARK)
        if num_found > limit:
            return True
        rest = piece[-len(_ENTRY_MARK) + 1 :]
    return False


def read_npz(
    file: BinaryIO, names: Collection[str], *, max_bytes: int
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Read arrays of an `.npz` archive, none of which holds pickled objects.

    Args:
        file: The archive.
        names: Arrays to read, where they are there.
        max_bytes: What all members may unpack to.

    Returns:
        The arrays that were found, and the names of all that are in the archive.

    Raises:
        ValueError: If it is no such archive, is damaged, or would take more memory (rules 1 to 4).
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with open_archive(file, max_members=MAX_ARRAYS, max_bytes=max_bytes) as archive:
            members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            for name in names:
                if name in members:
                    _check_array(archive, members[name])
                    with archive.open(members[name]) as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except ValueError:
        raise
    except Exception as error:  # numpy lets through what zipfile and zlib raise on a damaged file: a dozen types
        raise ValueError(str(error) or type(error).__name__) from error
    return arrays, tuple(members)


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Compare what an array's header says with its size in the archive, before numpy takes memory for it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"the array {shown(member.filename)} has a header of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"the array {shown(member.filename)} holds pickled objects")
        left, needed = member.file_size - file.tell(), dtype.itemsize * math.prod(shape)
    # Of elements without a size, or a shape with a zero in it, any number would need no bytes.
    if needed != left or max(shape, default=0) > member.file_size:
        raise ValueError(
            f"the array {shown(member.filename)} has {left} bytes; its shape {shown(shape)} and type "
            f"{shown(str(dtype))} need {needed}"
        )
