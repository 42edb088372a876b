"""Keras writes ONNX itself, with any of its backends; docs/models.md says how. Skips where Keras is not installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.models import head_of

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed")

# Keras calls an exporter that torch deprecates, from C, where a warning that is an error becomes another error.
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = tuple(f"kind {index}" for index in range(12))


def test_a_model_that_keras_exported_is_exported_with_its_own_rescaling(tmp_path: Path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(len(NAMES), activation="softmax"),
        ]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = np.asarray(model(pixels.astype(np.float32)).detach())
    model.export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    settings = {"resize": [32, 32], "rescale": 1.0, "mean": 0, "std": 1, "layout": "NHWC"}

    opened = icis_deploy.inspect(tmp_path / "model.onnx", classes=tmp_path / "classes.txt")
    options = icis_deploy.ExportOptions(preprocess=settings)
    bundle = icis_deploy.export(opened, out=tmp_path / "bundle", options=options)

    assert head_of(opened).class_names == NAMES
    assert (bundle.score_kind, bundle.model_input.shape) == ("probabilities", (32, 32, 3))
    device = icis_deploy.Device.open(tmp_path / "bundle")
    found = np.exp(device.logits(bundle.preprocessing.from_pixels(pixels)).values)
    found /= found.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
