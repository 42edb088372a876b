"""Seeded inputs for models of any number of channels."""

import numpy as np
import pytest

from exporters.backbone.inputs import is_image_input, seeded_images
from icis_deploy.images.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("color", "channels", "layout"),
    [("L", None, "NCHW"), ("L", 5, "NCHW"), ("LA", None, "NHWC"), ("RGBA", None, "NCHW"), ("CMYK", None, "NHWC")],
)
def test_seeded_images_have_the_channels_that_the_preprocessing_gives(color, channels, layout):
    settings = Preprocessing(resize=16, crop=16, mean=0.0, std=1.0, color=color, channels=channels, layout=layout)

    images = seeded_images(settings.input_shape, settings, num_inputs=3, seed=0)

    assert is_image_input(settings.input_shape, settings)
    assert images.shape == (3, *settings.input_shape)
    first = images if layout == "NCHW" else images.transpose(0, 3, 1, 2)
    assert (first.min(), first.max()) >= (0, 0.5)
    if color in ("LA", "RGBA"):
        assert (first[:, -1] == 1).all()
    if channels:
        np.testing.assert_array_equal(first, np.repeat(first[:, :1], channels, axis=1))


def test_seeded_images_are_scaled_as_pixels_are():
    ones = Preprocessing(resize=16, crop=16, mean=(0,) * 3, std=(1,) * 3)
    bytes_ = Preprocessing(resize=16, crop=16, mean=(0,) * 3, std=(1,) * 3, rescale=1.0)

    expected = seeded_images(ones.input_shape, ones, num_inputs=2, seed=0)
    found = seeded_images(ones.input_shape, bytes_, num_inputs=2, seed=0)
    np.testing.assert_allclose(found, 255 * expected, rtol=1e-5)
