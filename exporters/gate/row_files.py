"""Rows that one model gave, kept until another has given its own: few in memory, many in a file without a name.

The gate runs its models one after the other, so what each gives for an image has to last until all have run. Features,
scores and logits of fifty thousand images are a gigabyte; read again in blocks they take the memory of a block.
"""

# Why: docs/decisions/0142.

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.errors import StorageError

KEPT_BYTES = 8 << 20
"""Rows up to this size stay in memory: those of seeded inputs always do."""

VALUES_OF_A_BLOCK = 1 << 20
LEAST_ROWS_OF_A_BLOCK = 64
"""A large head is read from its file for each block, so that a block of it is not made smaller than this."""


class RowFile:
    """Rows of one width and type, written in order and read as often as needed."""

    def __init__(self, rows: Iterable[NDArray[Any]]) -> None:
        """Take rows.

        Args:
            rows: Batches `(batch, width)`, at least one, all with the same width and type.

        Raises:
            StorageError: If the disk refuses.
        """
        self._file = tempfile.SpooledTemporaryFile(max_size=KEPT_BYTES)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)
        self._count, self._width, self._dtype = 0, 0, np.dtype(np.float32)
        for batch in rows:
            assert not self._count or (self._width, self._dtype) == (batch.shape[1], batch.dtype), "rows of one kind"
            self._width, self._dtype = batch.shape[1], batch.dtype
            try:
                self._file.write(np.ascontiguousarray(batch).data)
            except OSError as error:
                raise StorageError(
                    f"Cannot keep what a model gives for {self._count} images in {tempfile.gettempdir()}: "
                    f"{error.strerror}.",
                    found=error.strerror,
                    expected=f"room for {self._width * self._dtype.itemsize} bytes an image",
                    where=tempfile.gettempdir(),
                    hint="Free some, name another folder in TMPDIR, or compare on fewer images.",
                ) from error
            self._count += len(batch)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return self._width

    def take(self, first: int, count: int) -> NDArray[Any]:
        """Return rows `(count, width)`, fewer at the end."""
        count = max(0, min(count, self._count - first))
        row_bytes = self._width * self._dtype.itemsize
        self._file.seek(first * row_bytes)
        return np.frombuffer(self._file.read(count * row_bytes), self._dtype).reshape(count, self._width)

    def rows(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        """Return single rows, `(num_indices, width)`."""
        return np.concatenate([self.take(int(index), 1) for index in indices])

    def blocks(self, size: int) -> Iterator[NDArray[Any]]:
        """Yield all rows in order, `size` at a time."""
        for first in range(0, self._count, size):
            yield self.take(first, size)


def block_size(width: int) -> int:
    """Return how many rows of so many values are worked on at once."""
    return max(LEAST_ROWS_OF_A_BLOCK, VALUES_OF_A_BLOCK // max(width, 1))
