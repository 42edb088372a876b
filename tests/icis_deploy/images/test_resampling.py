"""Resizing as torch does, against torch itself."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from icis_deploy.images.resampling import FILTERS, OFF, TORCH, TORCH_FILTERS, resize_as_torch, resize_image

SIZES = [((37, 29), (16, 16)), ((37, 29), (64, 41)), ((224, 31), (31, 224)), ((5, 4), (9, 2)), ((8, 8), (8, 3))]
CASES = [
    (antialias, name, size, new)
    for antialias, names in TORCH_FILTERS.items()
    for name, (size, new) in itertools.product(names, SIZES)
]
LEVELS = 0.01
"""Greatest difference from torch, in levels of 8-bit pixels: torch finds places between pixels in float32."""


def picture(size, num_channels=3):
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], num_channels), dtype=np.uint8)


@pytest.mark.parametrize(("antialias", "name", "size", "new"), CASES)
def test_a_tensor_is_resized_as_torch_resizes_it(antialias, name, size, new):
    pixels = picture(size)
    tensor = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1))[None]
    corners = {} if name == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        tensor, size=(new[1], new[0]), mode=name, antialias=antialias == TORCH, **corners
    )

    found = resize_as_torch(Image.fromarray(pixels), new, name, antialias=antialias)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[0].numpy().transpose(1, 2, 0), atol=LEVELS)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_pillow_is_torch_with_antialiasing_but_for_rounding_after_each_axis(name):
    image = Image.fromarray(picture((53, 40)))

    rounded = np.asarray(resize_image(image, (20, 17), name), dtype=np.float32)
    exact = resize_as_torch(image, (20, 17), name, antialias=TORCH).clip(0, 255)

    assert 0 < np.abs(rounded - exact).max() < 1.5


def test_without_antialiasing_a_reduced_picture_is_another_one():
    image = Image.fromarray(picture((200, 200)))

    assert (
        np.abs(
            resize_as_torch(image, (20, 20), "bilinear", antialias=OFF)
            - resize_as_torch(image, (20, 20), "bilinear", antialias=TORCH)
        ).mean()
        > 20
    )


@pytest.mark.parametrize("num_channels", [1, 2, 4])
@pytest.mark.parametrize("antialias", [TORCH, OFF])
def test_each_channel_is_resized_by_itself(num_channels, antialias):
    pixels = picture((12, 10), num_channels)
    image = Image.fromarray(pixels[..., 0] if num_channels == 1 else pixels)

    together = resize_as_torch(image, (7, 8), "bicubic", antialias=antialias)

    assert together.shape == (8, 7, num_channels)
    for channel in range(num_channels):
        alone = resize_as_torch(Image.fromarray(pixels[..., channel]), (7, 8), "bicubic", antialias=antialias)
        np.testing.assert_array_equal(together[..., channel], alone[..., 0])


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_is_pillows_own(name):
    image = Image.fromarray(picture((30, 20)))

    expected = np.asarray(image.resize((11, 13), getattr(Image.Resampling, name.upper())))
    np.testing.assert_array_equal(np.asarray(resize_image(image, (11, 13), name)), expected)
