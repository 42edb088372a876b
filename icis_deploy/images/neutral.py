"""Neutral images: procedural images of nothing in particular, which are dead leaves, gradients or noise.

They stand in for photos where only the statistics of natural images matter: features of them have the length and the
spread that features of photos have, and an exported model can be compared with its reference on them. No data set is
needed and none is imitated.

Rules:

1. Image `i` of a seed is the same however many images are drawn, and in whatever batches.
2. The kinds take turns, so that a few consecutive images hold all of them.

Sources: `icis_deploy.images.dead_leaves`; noise with amplitude 1/f^a, Field, JOSA A 1987.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32
from icis_deploy.errors import UsageError
from icis_deploy.images.dead_leaves import dead_leaves


def neutral_images(num_images: int, height: int, width: int, *, seed: int, first: int = 0) -> Float32:
    """Return neutral images, the same ones for the same seed.

    Args:
        num_images: How many.
        height: In pixels.
        width: In pixels.
        seed: Not negative.
        first: Index of the seed's image to begin with, not negative.

    Returns:
        `(num_images, 3, height, width)` float32 in 0..1.

    Raises:
        UsageError: If a count is not positive, or `seed` or `first` is negative.
    """
    if min(num_images, height, width) < 1 or min(seed, first) < 0:
        raise UsageError(
            f"Cannot draw {num_images} neutral images of {height}x{width} pixels from seed {seed}, beginning with "
            f"number {first}; expected positive counts, and a seed and a number that are not negative.",
            found=(num_images, height, width, seed, first),
            expected="positive counts, and a seed and a first number of at least 0",
        )
    images = np.empty((num_images, 3, height, width), dtype=np.float32)
    for index, image in enumerate(images, start=first):
        image[:] = _neutral_image(index, height, width, seed)
    return images


def _neutral_image(index: int, height: int, width: int, seed: int) -> Float32:
    """Return image `index` of a seed, `(3, height, width)`."""
    return KINDS[index % len(KINDS)](height, width, np.random.default_rng([seed, index]))


def gradient(height: int, width: int, random: np.random.Generator) -> Float32:
    """Return a few smooth waves of colour, from a plain slope to a coarse pattern.

    Returns:
        `(3, height, width)` float32 in 0..1.
    """
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image = np.zeros((3, height, width), dtype=np.float32)
    for _ in range(int(random.integers(1, 4))):
        angle, waves = random.random() * 2 * np.pi, 0.3 * 10 ** random.random()
        along_x, along_y = (float(waves * np.pi * part) for part in (np.cos(angle), np.sin(angle)))
        phase = along_x * x + (along_y * y + random.random() * 2 * np.pi)
        image += random.standard_normal((3, 1, 1), dtype=np.float32) * np.sin(phase)
    return _fit_to_range(image, random)


def noise(height: int, width: int, random: np.random.Generator) -> Float32:
    """Return noise whose amplitude falls with frequency as 1/f^a, a between 0.5 and 2; photos have about 1.

    Returns:
        `(3, height, width)` float32 in 0..1.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    amplitude = (frequency ** -(0.5 + 1.5 * random.random())).astype(np.float32)
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width), dtype=np.float32)) * amplitude
    # Colours of neighbouring pixels go together, as they do in photos.
    mixing = random.standard_normal((3, 3), dtype=np.float32)
    return _fit_to_range(np.tensordot(mixing, np.fft.irfft2(spectrum, s=(height, width)), axes=1), random)


def _fit_to_range(image: NDArray[np.floating], random: np.random.Generator) -> Float32:
    """Return `(3, height, width)` with a drawn brightness and contrast, cut off at 0 and 1; `image` is overwritten."""
    deviation = max(float(image.std()), np.finfo(np.float32).tiny)
    contrast, brightness = 0.08 + 0.22 * random.random(), 0.3 + 0.4 * random.random()
    image -= image.mean()
    image *= contrast
    image /= deviation
    image += brightness
    return np.clip(image, 0.0, 1.0, out=image).astype(np.float32)


KINDS: tuple[Callable[[int, int, np.random.Generator], Float32], ...] = (dead_leaves, gradient, dead_leaves, noise)
"""The kinds in turn; dead leaves twice, since they are the most like photos."""
