"""Check a MATLAB file before scipy reads it, so that it takes no more memory than its arrays are meant to have.

scipy takes memory for the sizes that a file states before it looks for the values; stops at an array's last value, so
that damage behind it goes unseen; and has ended the process on elements that contradict themselves. Here each packed
element is unpacked to its end, and the sizes of the arrays that are asked for are compared with the bytes of the file.

Source: "MAT-File Format", MathWorks, level 5: a file is a header of 128 bytes, and elements. An element is two integers
of 4 bytes, its type and its size, and then its data; one of at most 4 bytes has size and type in the first integer. An
array is an element of elements: flags with its class, dimensions, name, and its values. Levels 4 and 7.3 are others.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO

from icis_deploy.common.archives import unpacked_limit
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import LoadError

MAX_MAT_BYTES = 1 << 33
"""What all elements may unpack to: features of 500,000 images, 2,048 values each, in float64."""

MAX_CELL_BYTES = 1 << 26
"""Of a cell array with all that is in it: a million names."""

HEADER_BYTES = 128
CHUNK_BYTES = 1 << 16

_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_CLASS_BYTES = {4: 4, 6: 8, 7: 4, 8: 1, 9: 1, 10: 2, 11: 2, 12: 4, 13: 4, 14: 8, 15: 8}
"""Bytes of a value in memory, by the class of its array: text, double, single, and eight kinds of integers."""

_STORED_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
"""Bytes of a value in the file, by the type of the element; of text, of its smallest character."""

_COMPLEX = 0x0800
_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class _Element:
    kind: int
    start: int
    size: int
    next: int


def check_mat(file: BinaryIO, names: Collection[str]) -> None:
    """Raise `LoadError` unless a file is of level 5, undamaged, and holds numbers or texts of the stated sizes.

    Args:
        file: Open at its beginning.
        names: Arrays that will be read; of others, only that their packed data is whole.

    Raises:
        LoadError: The message is the reason alone, without a full stop.
    """
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(file.read(HEADER_BYTES)[-4:])
    if order is None:
        raise LoadError("it is no MATLAB file of level 5, as `save -v6` and `-v7` write it")
    left = limit = unpacked_limit(num_bytes, MAX_MAT_BYTES)
    while len(tag := file.read(8)) == 8:
        kind, size = struct.unpack(order + "II", tag)
        end = file.tell() + size
        if end > num_bytes:
            raise LoadError("it ends too early")
        if kind == _COMPRESSED:
            start, size = _unpack(file, end, left, limit)
            left -= size
            kind, stated = struct.unpack_from(order + "II", start) if len(start) >= 8 else (0, 0)
            start, size = start[8:], size - 8
            if stated > size:
                raise LoadError(f"an array states {stated} bytes and has {size}")
        else:
            start = file.read(min(size, MAX_CELL_BYTES))
        if kind != _MATRIX:
            raise LoadError(f"it holds an element of type {kind}, which is no array")
        _check_array(start, size, order, names, limit)
        file.seek(end)


def _unpack(file: BinaryIO, end: int, left: int, limit: int) -> tuple[bytes, int]:
    """Return the beginning of what a packed element unpacks to, and its size; to its end, where its checksum is."""
    unpacker, start, size = zlib.decompressobj(), bytearray(), 0
    chunk = b""
    while not unpacker.eof and (chunk := unpacker.unconsumed_tail or file.read(min(CHUNK_BYTES, end - file.tell()))):
        piece = unpacker.decompress(chunk, 1 << 20)
        size += len(piece)
        if size > left:
            raise LoadError(f"its arrays unpack to more than {limit} bytes, the most that are read of such a file")
        start += piece[: MAX_CELL_BYTES - len(start)]
    if not unpacker.eof:
        raise LoadError("it ends too early")
    return bytes(start), size


def _check_array(
    data: bytes, size: int, order: str, names: Collection[str] | None, limit: int, *, where: str = ""
) -> None:
    """Check one array; `names` is `None` for one in a cell, which has none of its own and may be no cell again."""
    if not size and names is None:
        return  # an empty cell
    flags = _element_at(data, 0, size, order)
    dimensions = _element_at(data, flags.next, size, order)
    name = _element_at(data, dimensions.next, size, order)
    if flags.kind != 6 or flags.size != 8 or dimensions.kind != 5 or dimensions.size > 4 * _MAX_DIMENSIONS:
        raise LoadError("an array has no flags or dimensions")
    if name.next > len(data):
        raise LoadError("the name of an array is too long")
    text = data[name.start : name.start + name.size].decode("latin-1")
    if names is not None and text not in names:
        return
    where = where or f"the array {shown(text)}"
    (word,) = struct.unpack_from(order + "I", data, flags.start)
    shape = struct.unpack_from(f"{order}{dimensions.size // 4}i", data, dimensions.start)
    kind, count = word & 0xFF, math.prod(shape)
    if min(shape, default=0) < 0:
        raise LoadError(f"{where} has the shape {shape}")
    if kind == _CELL and names is not None:
        _check_cells(data, size, order, name.next, count, limit, where)
        return
    if kind not in _CLASS_BYTES or word & _COMPLEX:
        raise LoadError(f"{where} holds neither real numbers nor text")
    if not count:
        return
    values = _element_at(data, name.next, size, order)
    needed = count * _STORED_BYTES.get(values.kind, math.inf)
    if needed > values.size or (kind != _CHAR and needed != values.size) or count * _CLASS_BYTES[kind] > limit:
        raise LoadError(f"{where} of shape {shape} has {values.size} bytes of values of type {values.kind}")


def _check_cells(data: bytes, size: int, order: str, start: int, count: int, limit: int, where: str) -> None:
    if size > MAX_CELL_BYTES or 8 * count > size:
        raise LoadError(
            f"{where} states {count} cells in {size} bytes; at most {MAX_CELL_BYTES} bytes of cells are read"
        )
    for _ in range(count):
        cell = _element_at(data, start, size, order)
        if cell.kind != _MATRIX:
            raise LoadError(f"{where} has a cell that is no array")
        inside = data[cell.start : cell.start + cell.size]
        _check_array(inside, len(inside), order, None, limit, where=f"a cell of {where}")
        start = cell.next


def _element_at(data: bytes, start: int, size: int, order: str) -> _Element:
    """Return what the element at an offset states, none of which reaches beyond `size`."""
    if start + 8 > min(len(data), size):
        raise LoadError("an array ends too early")
    first, second = struct.unpack_from(order + "II", data, start)
    if first >> 16:  # a small one
        element = _Element(first & 0xFFFF, start + 4, first >> 16, start + 8)
        if element.size > 4:
            raise LoadError("a small element states more than 4 bytes")
        return element
    end = start + 8 + second
    if end > size:
        raise LoadError("an array ends too early")
    return _Element(first, start + 8, second, end + -end % 8)
