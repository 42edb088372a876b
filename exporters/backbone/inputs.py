"""What both sides of a comparison are run on: image files, or seeded pictures; read once, run several times."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.images.loading import load_images, load_pixels
from icis_deploy.images.neutral import neutral_images
from icis_deploy.images.preprocessing import Preprocessing

NUM_SEEDED_INPUTS = 64
BATCH_SIZE = 16
SEED = 20230810
_SPOOL_BYTES = 16 << 20
_MOST_KEPT_PIXELS = 256 * 256
"""Size of pictures that are kept: 50 MB at most. Every gate of a process compares on the same ones, and painting them
takes longer than the rest of a small model's export."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatch:
    """The same images for the original model and for the bundle."""

    prepared: NDArray[np.float32]
    """`(batch, *shape)` float32, as the original model takes them."""

    given: NDArray[np.generic]
    """What the bundle takes: the same array, or the pixels that it was prepared from."""

    count: int
    """How many of them count; a model with a fixed batch gets the first ones again to fill it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatches:
    """The gate's images, batch by batch, as often as they are gone through."""

    given: SpooledBatches
    """What the bundle takes, `(batch, *input_shape)` each; the last one may be smaller."""

    preprocessing: Preprocessing | None
    """What makes prepared images of pixels."""

    fixed_batch: int | None
    """The only batch that the model takes, if it takes no other."""

    def __iter__(self) -> Iterator[InputBatch]:
        """Yield the batches in order."""
        for given in self.given:
            full = given if self.fixed_batch is None else np.resize(given, (self.fixed_batch, *given.shape[1:]))
            is_pixels = given.dtype == np.uint8 and self.preprocessing is not None
            prepared = self.preprocessing.from_pixels(full) if is_pixels and self.preprocessing else full
            yield InputBatch(prepared=prepared, given=full, count=len(given))

    def one_by_one(self) -> Iterator[NDArray[np.float32]]:
        """Yield the same images prepared, each alone; in whole batches where the model takes no other."""
        for batch in self:
            size = self.fixed_batch or 1
            for start in range(0, batch.count, size):
                yield np.ascontiguousarray(batch.prepared[start : start + size])

    def close(self) -> None:
        """Remove what was kept in a file."""
        self.given.close()


def input_batches(
    model_input: ModelInput,
    preprocessing: Preprocessing | None,
    images: Sequence[Path] | None,
    *,
    fixed_batch: int | str | None,
) -> InputBatches:
    """Return what both sides of a comparison are run on.

    Args:
        model_input: What the bundle takes.
        preprocessing: How images are prepared; also what gives the seeded inputs the range of real ones.
        images: Image files to use; `None` for seeded inputs.
        fixed_batch: The first number of the model's input shape; a name stands for any batch.
    """
    fixed = fixed_batch if isinstance(fixed_batch, int) else None
    batches = _given_batches(model_input, preprocessing, images, batch_size=fixed or BATCH_SIZE)
    return InputBatches(given=SpooledBatches(batches), preprocessing=preprocessing, fixed_batch=fixed)


def _given_batches(
    model_input: ModelInput, preprocessing: Preprocessing | None, images: Sequence[Path] | None, *, batch_size: int
) -> Iterator[NDArray[np.generic]]:
    if images is not None and preprocessing is not None:
        load = load_pixels if model_input.takes_pixels else load_images
        for start in range(0, len(images), batch_size):
            yield load(images[start : start + batch_size], preprocessing)
        return
    if model_input.takes_pixels:
        height, width, channels = model_input.shape
        pictures = _comparison_images(height, width)[:, :channels]
        inputs: NDArray[np.generic] = np.rint(255 * pictures.transpose(0, 2, 3, 1)).astype(np.uint8)
    elif is_image_input(model_input.shape, preprocessing):
        channels, height, width = _channels_first(model_input.shape, preprocessing)
        inputs = _prepared(_comparison_images(height, width)[:, :channels], preprocessing)
    else:
        shape = (NUM_SEEDED_INPUTS, *model_input.shape)
        inputs = np.random.default_rng(SEED).uniform(-1, 1, shape).astype(np.float32)
    for start in range(0, len(inputs), batch_size):
        yield inputs[start : start + batch_size]


def _comparison_images(height: int, width: int) -> NDArray[np.float32]:
    return (_kept_pictures if height * width <= _MOST_KEPT_PIXELS else _painted_pictures)(height, width)


def _painted_pictures(height: int, width: int) -> NDArray[np.float32]:
    pictures = neutral_images(NUM_SEEDED_INPUTS, height, width, seed=SEED)
    pictures.flags.writeable = False  # whoever gets them gets the same ones
    return pictures


_kept_pictures = lru_cache(maxsize=1)(_painted_pictures)


def seeded_pictures(
    shape: tuple[int, ...], preprocessing: Preprocessing | None, *, num_inputs: int, seed: int, first: int = 0
) -> NDArray[np.float32]:
    """Return neutral pictures as a model takes them.

    Args:
        shape: Shape of one input, without the batch; `is_image_input` must hold.
        preprocessing: Applied to the pictures; without it they are scaled to -1..1.
        num_inputs: How many.
        seed: The same seed gives the same pictures.
        first: Which picture of the seed to begin with.

    Returns:
        `(num_inputs, *shape)` float32.
    """
    channels, height, width = _channels_first(shape, preprocessing)
    return _prepared(neutral_images(num_inputs, height, width, seed=seed, first=first)[:, :channels], preprocessing)


def _prepared(pictures: NDArray[np.float32], preprocessing: Preprocessing | None) -> NDArray[np.float32]:
    if preprocessing is None:
        return np.asarray(2 * pictures - 1, dtype=np.float32)
    return preprocessing.normalize(pictures.transpose(0, 2, 3, 1))


def is_image_input(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> bool:
    """Say whether one input of this shape, without the batch, can be a picture in the layout that is expected."""
    if len(shape) != 3:
        return False
    channels, *size = _channels_first(shape, preprocessing)
    return channels in ({1, 3} if preprocessing is None else {preprocessing.num_channels}) and min(size) >= 8


def _channels_first(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> tuple[int, ...]:
    is_last = preprocessing is not None and preprocessing.layout == "NHWC"
    return (shape[-1], *shape[:-1]) if is_last else shape
