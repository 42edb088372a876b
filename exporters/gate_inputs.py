"""The inputs of the parity gate: image files, or seeded pictures, prepared once and read several times."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.images import iterate_batches
from icis_deploy.neutral_images import neutral_images
from icis_deploy.preprocessing import Preprocessing

NUM_SEEDED_INPUTS = 64
BATCH_SIZE = 16
SEED = 20230810
_SPOOL_BYTES = 16 << 20


class SpooledBatches:
    """Batches that can be gone through again: prepared once, kept in a file where they are many."""

    def __init__(self, batches: Iterable[NDArray[Any]]) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed with this object
        self._num_batches = 0
        for batch in batches:
            np.save(self._file, batch, allow_pickle=False)
            self._num_batches += 1

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yield the batches in order."""
        self._file.seek(0)
        for _ in range(self._num_batches):
            yield np.load(self._file, allow_pickle=False)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def gate_inputs(
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    images: Sequence[Path] | None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[NDArray[np.float32]]:
    """Yield the batches that both sides of a comparison are run on.

    Args:
        shape: Shape of one input, without the batch.
        preprocessing: How images are prepared; also what gives the seeded inputs the range of real ones.
        images: Image files to use; `None` for seeded inputs.
        batch_size: Inputs in a batch; the last one may be smaller.

    Yields:
        `(batch, *shape)` float32.
    """
    if images is not None and preprocessing is not None:
        yield from iterate_batches(images, preprocessing, batch_size=batch_size)
        return
    inputs = seeded_inputs(shape, preprocessing, num_inputs=NUM_SEEDED_INPUTS, seed=SEED)
    for start in range(0, len(inputs), batch_size):
        yield inputs[start : start + batch_size]


def seeded_inputs(
    shape: tuple[int, ...], preprocessing: Preprocessing | None, *, num_inputs: int, seed: int
) -> NDArray[np.float32]:
    """Return inputs as a model might get them: procedural pictures for an image model, noise for any other.

    Args:
        shape: Shape of one input, without the batch.
        preprocessing: Applied to the pictures; without it they are scaled to -1..1.
        num_inputs: How many.
        seed: The same seed gives the same inputs.

    Returns:
        `(num_inputs, *shape)` float32.
    """
    if not is_image_input(shape, preprocessing):
        return np.random.default_rng(seed).uniform(-1, 1, (num_inputs, *shape)).astype(np.float32)
    channels, *size = _channels_first(shape, preprocessing)
    pictures = neutral_images(num_inputs, size[0], size[1], seed=seed)[:, :channels]
    if preprocessing is None:
        return np.asarray(2 * pictures - 1, dtype=np.float32)
    return preprocessing.normalize(pictures.transpose(0, 2, 3, 1))


def is_image_input(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> bool:
    """Say whether one input of this shape, without the batch, can be a picture in the layout that is expected."""
    if len(shape) != 3:
        return False
    channels, *size = _channels_first(shape, preprocessing)
    return channels in {1, 3} and min(size) >= 8


def _channels_first(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> tuple[int, ...]:
    is_last = preprocessing is not None and preprocessing.layout == "NHWC"
    return (shape[-1], *shape[:-1]) if is_last else shape
