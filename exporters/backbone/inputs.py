"""Inputs that both sides of a comparison are run on, as often as they are needed: what a user gives, or seeded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.images.inputs import InputForm, prepared_batches
from icis_deploy.images.neutral import neutral_images
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.sources import InputSource

NUM_SEEDED_INPUTS = 64
BATCH_SIZE = 16
SEED = 20230810
_KEPT_BYTES = 64 << 20
_READERS = 2
"""Threads that prepare images while a model runs on others."""

_MAX_CACHED_PIXELS = 256 * 256
"""Greatest size of seeded images that are cached: 50 MB in all. Every gate of a process compares on the same images,
and rendering them takes longer than the rest of a small model's export."""


class RepeatedBatches:
    """Batches that can be iterated over again: the first ones are kept, the rest are made anew.

    Thousands of prepared images are gigabytes, whether in memory or in a file; files of images are a fiftieth of that,
    and threads read them while a model runs.
    """

    def __init__(self, make: Callable[[int], Iterator[NDArray[Any]]]) -> None:
        """Keep batches up to `_KEPT_BYTES`.

        Args:
            make: Yields the batches from a number on, the same ones whenever it is called.
        """
        self._make = make
        self._kept: list[NDArray[Any]] = []
        self._is_all = False
        for batch in make(0):
            if self._kept and sum(each.nbytes for each in self._kept) + batch.nbytes > _KEPT_BYTES:
                return
            self._kept.append(batch)
        self._is_all = True

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yield the batches in order."""
        yield from self._kept
        if not self._is_all:
            yield from self._make(len(self._kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatch:
    """The same images for the original model and for the bundle."""

    prepared: NDArray[np.float32]
    """`(batch, *input_shape)` float32, the original model's input."""

    given: NDArray[np.generic]
    """The bundle's input: the same array, or the uint8 pixels `(batch, height, width, channels)` that it was prepared
    from."""

    count: int
    """Number of images that are not padding: a fixed batch is filled up by repeating its first images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatches:
    """Images for a comparison, batch by batch; each iteration yields the same ones."""

    given: RepeatedBatches
    """The bundle's inputs, `(batch, *input_shape)` each, float32 or uint8; the last batch may be smaller."""

    preprocessing: Preprocessing | None
    """Turns pixels into prepared images; `None` where the model takes no images."""

    fixed_batch: int | None
    """Batch size of a model that takes no other; `None` for one that takes any."""

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


def input_batches(
    model_input: ModelInput,
    preprocessing: Preprocessing | None,
    images: InputSource | None,
    *,
    fixed_batch: int | None,
    value_range: tuple[float, float] | None = None,
) -> InputBatches:
    """Return the inputs of a comparison.

    Args:
        model_input: The bundle's input.
        preprocessing: How images are prepared; also scales the seeded inputs to the range of real ones.
        images: Image files or arrays to use; `None` for seeded inputs.
        fixed_batch: Batch size of a model that takes no other; `None` for one that takes any.
        value_range: What seeded inputs are scaled to without preprocessing; `None` for -1..1.
    """
    scaled_to = (-1.0, 1.0) if value_range is None else value_range
    size = fixed_batch or BATCH_SIZE
    if images is None:
        make = partial(_seeded_batches, model_input, preprocessing, size, scaled_to)
    else:
        form = InputForm(shape=model_input.shape, dtype=model_input.dtype, preprocessing=preprocessing)
        make = partial(_batches_of, images, form, size)
    return InputBatches(given=RepeatedBatches(make), preprocessing=preprocessing, fixed_batch=fixed_batch)


def _batches_of(images: InputSource, form: InputForm, size: int, first: int) -> Iterator[NDArray[np.generic]]:
    for batch in prepared_batches(images, form, batch_size=size, workers=_READERS, first=first * size):
        yield batch.inputs


def _seeded_batches(
    model_input: ModelInput,
    preprocessing: Preprocessing | None,
    size: int,
    scaled_to: tuple[float, float],
    first: int,
) -> Iterator[NDArray[np.generic]]:
    if model_input.takes_pixels:
        height, width, channels = model_input.shape
        neutral = _with_channels(_comparison_images(height, width), channels, preprocessing)
        inputs: NDArray[np.generic] = np.rint(255 * neutral.transpose(0, 2, 3, 1)).astype(np.uint8)
    elif is_image_input(model_input.shape, preprocessing):
        channels, height, width = _channels_first(model_input.shape, preprocessing)
        inputs = _prepared(
            _with_channels(_comparison_images(height, width), channels, preprocessing), preprocessing, scaled_to
        )
    else:
        shape = (NUM_SEEDED_INPUTS, *model_input.shape)
        inputs = np.random.default_rng(SEED).uniform(*scaled_to, shape).astype(np.float32)
    for start in range(first * size, len(inputs), size):
        yield inputs[start : start + size]


def _comparison_images(height: int, width: int) -> NDArray[np.float32]:
    return (_cached_images if height * width <= _MAX_CACHED_PIXELS else _rendered_images)(height, width)


def _rendered_images(height: int, width: int) -> NDArray[np.float32]:
    images = neutral_images(NUM_SEEDED_INPUTS, height, width, seed=SEED)
    images.flags.writeable = False  # all callers share them
    return images


_cached_images = lru_cache(maxsize=1)(_rendered_images)


def seeded_images(
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    *,
    num_inputs: int,
    seed: int,
    first: int = 0,
    value_range: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Return neutral images, prepared for a model.

    Args:
        shape: Shape of one input, without the batch; `is_image_input` must hold.
        preprocessing: Applied to the images.
        value_range: What they are scaled to without preprocessing; `None` for -1..1.
        num_inputs: Number of images.
        seed: The same seed gives the same images.
        first: Index of the first image of the seed's sequence.

    Returns:
        `(num_inputs, *shape)` float32.
    """
    channels, height, width = _channels_first(shape, preprocessing)
    images = neutral_images(num_inputs, height, width, seed=seed, first=first)
    scaled_to = (-1.0, 1.0) if value_range is None else value_range
    return _prepared(_with_channels(images, channels, preprocessing), preprocessing, scaled_to)


def _with_channels(
    images: NDArray[np.float32], num_channels: int, preprocessing: Preprocessing | None
) -> NDArray[np.float32]:
    """Return `(num_images, num_channels, height, width)` of images with three channels, in 0..1."""
    if preprocessing is not None and preprocessing.color in ("LA", "RGBA"):
        opaque = np.ones_like(images[:, :1])
        return np.concatenate([images[:, : num_channels - 1], opaque], axis=1)
    if preprocessing is not None and preprocessing.channels is not None:
        return images[:, :1].repeat(num_channels, axis=1)
    return images[:, np.arange(num_channels) % images.shape[1]]


def _prepared(
    images: NDArray[np.float32], preprocessing: Preprocessing | None, scaled_to: tuple[float, float]
) -> NDArray[np.float32]:
    if preprocessing is None:
        least, greatest = scaled_to
        return np.asarray((greatest - least) * images + least, dtype=np.float32)
    return preprocessing.normalize(images.transpose(0, 2, 3, 1))


def is_image_input(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> bool:
    """Say whether one input of this shape, without the batch, can be an image in the expected layout."""
    if len(shape) != 3:
        return False
    channels, *size = _channels_first(shape, preprocessing)
    return channels in ({1, 3} if preprocessing is None else {preprocessing.num_channels}) and min(size) >= 8


def _channels_first(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> tuple[int, ...]:
    is_last = preprocessing is not None and preprocessing.layout == "NHWC"
    return (shape[-1], *shape[:-1]) if is_last else shape
