"""Images are prepared in JavaScript as Python prepares them, from the same pixels."""

from __future__ import annotations

import base64
import json

import numpy as np
import PIL
import pytest
from PIL import Image

from icis_deploy.images.preprocessing import Preprocessing
from tests.exporters.web.javascript import JavaScriptError, Node

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = {
    "short side": {"resize": 40, "crop": 32},
    "squashed": {"resize": (24, 30), "crop": (24, 30)},
    "enlarged": {"resize": 150, "crop": (131, 120)},
    "not resized": {"resize": None, "crop": 90},
    "cut larger than the image": {"resize": 20, "crop": (61, 64), "crop_rounding": "down"},
    "bicubic": {"resize": 41, "crop": 32, "interpolation": "bicubic"},
    "lanczos": {"resize": 41, "crop": 32, "interpolation": "lanczos"},
    "box": {"resize": 41, "crop": 32, "interpolation": "box"},
    "hamming": {"resize": 41, "crop": 32, "interpolation": "hamming"},
    "nearest": {"resize": 41, "crop": 31, "interpolation": "nearest"},
    "torch": {"resize": 41, "crop": 32, "antialias": "torch"},
    "torch bicubic": {"resize": 41, "crop": 32, "antialias": "torch", "interpolation": "bicubic"},
    "off": {"resize": 41, "crop": 32, "antialias": "off"},
    "off bicubic": {"resize": 130, "crop": 32, "antialias": "off", "interpolation": "bicubic"},
    "off nearest": {"resize": 41, "crop": 32, "antialias": "off", "interpolation": "nearest"},
    "padded": {"resize": 40, "crop": 40, "pad_to_square": True, "fill": (10, 200, 30)},
    "BGR, NHWC": {"resize": 40, "crop": 32, "color": "BGR", "layout": "NHWC"},
    "rescaled": {"resize": 40, "crop": 32, "rescale": 1 / 127.5},
    "whole pixels": {
        "resize": 40,
        "crop": 32,
        "rescale": 1.0,
        "mean": (123.0, 117.0, 104.0),
        "std": (58.0, 57.0, 57.5),
    },
    "grey": {"resize": 40, "crop": 32, "color": "L", "mean": (0.5,), "std": (0.25,)},
    "grey, repeated": {"resize": 40, "crop": 32, "color": "L", "channels": 3},
}


def prepared(node: Node, pixels: np.ndarray, preprocessing: Preprocessing, *, as_pixels: bool) -> np.ndarray:
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    found = node.call(
        "prepared",
        settings=json.dumps(preprocessing.to_json()),
        pixels=base64.b64encode(rgba.tobytes()).decode(),
        width=pixels.shape[1],
        height=pixels.shape[0],
        asPixels=as_pixels,
    )
    return np.frombuffer(base64.b64decode(found), np.uint8 if as_pixels else np.float32)


@pytest.mark.parametrize("size", [(57, 83), (120, 61)])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_pixels_give_the_same_input(node, name, size):
    preprocessing = Preprocessing(**{"mean": MEAN, "std": STD, **SETTINGS[name]})
    noise = np.random.default_rng(len(name)).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)

    found = prepared(node, noise, preprocessing, as_pixels=False).reshape(preprocessing.input_shape)

    expected = preprocessing.prepare(image)
    if preprocessing.antialias == "pillow" and name == "squashed" and int(PIL.__version__.split(".")[0]) < 13:
        assert np.abs(found - expected).max() < 2.5 / 255 / min(STD)  # two levels: axes in another order
    elif preprocessing.antialias == "pillow":
        np.testing.assert_array_equal(found, expected)
        pixels = prepared(node, noise, preprocessing, as_pixels=True).reshape(preprocessing.pixel_shape)
        np.testing.assert_array_equal(pixels, preprocessing.crop_pixels(image))
    else:  # floats, summed up in another order
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_transparency_is_dropped(node):
    preprocessing = Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    rgba = np.random.default_rng(0).integers(0, 256, size=(9, 9, 4), dtype=np.uint8)
    found = node.call(
        "prepared",
        settings=json.dumps(preprocessing.to_json()),
        pixels=base64.b64encode(rgba.tobytes()).decode(),
        width=9,
        height=9,
        asPixels=False,
    )
    expected = preprocessing.prepare(Image.fromarray(rgba))
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found), np.float32), expected.ravel())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"sharpen": 2}, "TypeError", "unknown.*sharpen"),
        ({"interpolation": "cubic"}, "TypeError", "a setting is unknown"),
        ({"color": "CMYK", "mean": [0.5] * 4, "std": [0.5] * 4}, "IncompatibleError", "takes CMYK images"),
        ({"resize": 100_000}, "ImageError", "100000 x 100000 pixels"),
    ],
)
def test_settings_of_a_later_release_are_refused_and_none_is_guessed(node, change, error, match):
    settings = Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3).to_json() | change
    with pytest.raises(JavaScriptError, match=match) as caught:
        node.call(
            "prepared",
            settings=json.dumps(settings),
            pixels=base64.b64encode(bytes(4 * 81)).decode(),
            width=9,
            height=9,
            asPixels=False,
        )
    assert caught.value.name == error
