"""Resize images as Pillow does, and as torch does.

Both libraries place pixels alike (a pixel is a square, its value in the middle), and differ in three ways:

    pillow   8-bit pixels; the filter grows with the reduction (antialiasing); rounded after each axis
    torch    floats, otherwise as Pillow: `torch.nn.functional.interpolate(..., antialias=True)`
    off      floats, and the filter keeps its width of pixels: `interpolate(..., antialias=False)`; its cubic has
             the coefficient -0.75 where the others have -0.5, and its `nearest` takes the pixel before

torchvision and transformers resize images of Pillow in the first way. On tensors of 8-bit pixels they are within one
level of it.

Sources: Pillow, src/libImaging/Resample.c; PyTorch, aten/src/ATen/native/UpSample.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32, Float64

if TYPE_CHECKING:
    from PIL.Image import Image

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
"""By the names of Pillow and torchvision."""

PILLOW, TORCH, OFF = "pillow", "torch", "off"
ANTIALIASING = (PILLOW, TORCH, OFF)
TORCH_FILTERS = {TORCH: ("bilinear", "bicubic"), OFF: ("nearest", "bilinear", "bicubic")}

_CUBIC = -0.75


def resize_image(image: Image, size: tuple[int, int], interpolation: str) -> Image:
    """Return an image resized by Pillow.

    Args:
        image: Of any mode.
        size: Width and height in pixels.
        interpolation: One of `FILTERS`.
    """
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling[interpolation.upper()])


def resize_as_torch(image: Image, size: tuple[int, int], interpolation: str, *, antialias: str) -> Float32:
    """Return an image resized as torch resizes a tensor of floats.

    Args:
        image: Of 8 bits a channel.
        size: Width and height in pixels.
        interpolation: One of `TORCH_FILTERS[antialias]`.
        antialias: `torch` or `off`.

    Returns:
        `(height, width, num_channels)` float32, 0..255 but for what a cubic overshoots.
    """
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    if image.size == size:
        return pixels
    if antialias == TORCH:
        return _by_pillow_in_floats(pixels, size, interpolation)
    width, height = size
    columns = _along(pixels, 1, width, interpolation)
    return _along(columns, 0, height, interpolation)


def _by_pillow_in_floats(pixels: Float32, size: tuple[int, int], interpolation: str) -> Float32:
    """Pillow's filters are torch's, and in mode F it rounds as little as torch does."""
    from PIL import Image

    channels = [
        np.asarray(resize_image(Image.fromarray(np.ascontiguousarray(channel)), size, interpolation))
        for channel in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(channels, axis=2)


def _along(pixels: Float32, axis: int, length: int, interpolation: str) -> Float32:
    """Return pixels resized along one axis without antialiasing."""
    indices, weights = _taps(pixels.shape[axis], length, interpolation)
    shape = [1, 1, 1]
    shape[axis] = length
    total = np.zeros([length if each == axis else size for each, size in enumerate(pixels.shape)], dtype=np.float32)
    for index, weight in zip(indices, weights, strict=True):
        total += np.take(pixels, index, axis=axis) * weight.astype(np.float32).reshape(shape)
    return total


def _taps(old: int, new: int, interpolation: str) -> tuple[NDArray[np.intp], Float64]:
    """Return which old pixels each new one is a sum of, and their weights: `(num_taps, new)` each."""
    scale = old / new
    if interpolation == "nearest":
        first = np.minimum(np.floor(np.arange(new) * scale), old - 1).astype(np.intp)
        return first[None], np.ones((1, new))
    centre = (np.arange(new) + 0.5) * scale - 0.5
    if interpolation == "bilinear":
        centre = np.maximum(centre, 0.0)
        first = np.floor(centre).astype(np.intp)
        after = centre - first
        indices = np.stack([first, first + 1])
        weights = np.stack([1 - after, after])
    else:
        first = np.floor(centre).astype(np.intp)
        after = centre - first
        indices = first + np.arange(-1, 3)[:, None]
        weights = np.stack([_cubic(np.abs(after - offset)) for offset in range(-1, 3)])
    return np.clip(indices, 0, old - 1), weights


def _cubic(distance: Float64) -> Float64:
    """Return Keys' cubic at distances of 0..2."""
    a, x = _CUBIC, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
