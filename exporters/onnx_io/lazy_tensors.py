"""Tensors that are not in memory: parts of a file, or values that are computed when they are read, piece by piece.

A head of 100,000 classes is half a gigabyte. Read, expanded, serialized and written as arrays, it would be in memory
four times. So weights in a file stay there until something computes with them, and new ones are written in pieces.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from icis_deploy.common.files import plain_descriptor

PIECE_BYTES = 16 << 20
"""Size of the piece of a lazy tensor that is in memory at once."""

Pieces = Callable[[], Iterator[NDArray[Any]]]


class LazyTensor:
    """A tensor that is the concatenation of pieces along its first axis, each computed when it is read.

    It implements `onnx_ir.TensorProtocol`, and holds no data.
    """

    def __init__(
        self,
        pieces: Pieces,
        *,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
        whole: Callable[[], NDArray[Any]] | None = None,
    ) -> None:
        self.name: str | None = name
        self.doc_string: str | None = None
        self.metadata_props: MutableMapping[str, str] = {}
        self.meta: MutableMapping[str, Any] = {}
        self.dtype = dtype
        self.shape: ir.ShapeProtocol = ir.Shape(shape)
        self.raw = pieces
        self._whole = whole

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape.numpy())

    @property
    def nbytes(self) -> int:
        """Number of bytes; an element of a lazy tensor has whole ones."""
        return self.size * self.dtype.bitwidth // 8

    def numpy(self) -> NDArray[Any]:
        """Return the whole tensor; where it is a part of a file, a view of that, which reads what is used."""
        if self._whole is not None:
            return self._whole()
        array = np.empty(tuple(self.shape.numpy()), dtype=self.dtype.numpy())
        start = 0
        for piece in self.raw():
            array[start : start + len(piece)] = piece
            start += len(piece)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the whole tensor."""
        return np.asarray(self.numpy(), dtype=dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Refuse: there is no memory to share."""
        raise BufferError("A lazy tensor has no memory to share; ask for numpy().")

    def __dlpack_device__(self) -> tuple[int, int]:
        """Refuse: there is no memory to share."""
        raise BufferError("A lazy tensor has no memory to share; ask for numpy().")

    def chunks(self) -> Iterator[bytes]:
        """Yield the tensor's bytes in order, little-endian, a piece at a time."""
        for piece in self.raw():
            yield little_endian_bytes(piece)

    def tobytes(self) -> bytes:
        """Return the tensor's bytes, little-endian."""
        return b"".join(self.chunks())

    def tofile(self, file: IO[bytes]) -> None:
        """Write the tensor's bytes, a piece at a time."""
        file.writelines(self.chunks())


class OpenFile:
    """An open file: what is moved over its path later does not change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._descriptor = plain_descriptor(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size_bytes = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def view(self, offset: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Return `(count,)` elements from `offset` on, read-only.

        They are read from the disk as they are used, and released when the array is.

        Raises:
            ValueError: If the file ends before that.
        """
        length = count * dtype.itemsize
        if offset + length > self.size_bytes:
            raise ValueError(f"{self.path} has {self.size_bytes} bytes; a weight needs {offset + length}")
        if not length:
            return np.empty(0, dtype=dtype)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._descriptor, offset + length - start, access=mmap.ACCESS_READ, offset=start)
        return np.frombuffer(mapped, dtype=dtype.newbyteorder("<"), count=count, offset=offset - start)


def tensor_in_file(file: OpenFile, offset: int, *, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> LazyTensor:
    """Return a tensor whose data stay in a file.

    Args:
        file: The file.
        offset: Position of the tensor in the file, in bytes.
        dtype: A type of whole bytes.
        shape: Its shape.
        name: Its name.
    """
    element = np.dtype(dtype.numpy())
    count = math.prod(shape)

    def pieces() -> Iterator[NDArray[Any]]:
        step = max(1, PIECE_BYTES // element.itemsize)
        for start in range(0, count, step):
            yield file.view(offset + start * element.itemsize, element, min(step, count - start))

    return LazyTensor(
        pieces, dtype=dtype, shape=shape, name=name, whole=lambda: file.view(offset, element, count).reshape(shape)
    )


def chunks_of(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    """Yield the bytes of any tensor, of a lazy one in pieces."""
    if isinstance(tensor, LazyTensor):
        yield from tensor.chunks()
    else:
        yield tensor.tobytes()


def little_endian_bytes(array: NDArray[Any]) -> bytes:
    """Return an array's bytes as ONNX files hold them."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
