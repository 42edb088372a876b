"""A bundle of a few kilobytes, to see what a runtime really does: answer, take a class update, give it back.

Its model is a convolution, a ReLU, a mean over positions, a head of three classes and two slots, as bytes: a device has
no library to make it with. `tests/icis_deploy/doctor/tiny_model.py` is its source, and a test compares the two.
"""

# Why: docs/decisions/0126.

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import (
    MANIFEST_NAME,
    MODEL_NAME,
    SLOTS_NAME,
    Bundle,
    ModelInput,
    file_entry,
    serialize_manifest,
)
from icis_deploy.bundle.slot_files import serialize_slots
from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.head.slots import empty_slots

INPUT_SHAPE, FEATURE_DIM, CAPACITY = (3, 8, 8), 4, 2
CLASS_NAMES = ("cat", "dog", "owl")
NEW_CLASS = "okapi"
_MODEL = (
    "eNrtU8Fu00AQXdsbZ5kmqF1U0QpFIAsJyeLApZdKNCYIKvmEOOZS1sk2MWy8kXcbesyn5BP6A5Ce4Df4Bf6AWTskRgJx44Stp/XMe/vG2p1h7P"
    "Q7gxNo5TMxkdC+zJWVpeF0JuYmoi91sYgPofNBloVUF2Yq5jIJkmDltU8JHEEl42yuTW7zhYzoW6mukHkC2xwP51orOY4OzpXOhHqxkCWWeoNJ"
    "FPZgQ3N2KYW9KqWJ2q+VsFYWSPdhm4a9qRTji48yn0wt3KmCLBf4q0bKIqLncjaLuxDaUhRmcOStPB8NkqaBUdpuDaqgMmi5T/Mnh6dQFYBaxU"
    "OlJzmqQzyakbDxHlBxnZuNmodjPbK6jL8EjLLAvfve4OeppjcBIWRNyOozrojlc8QZId8cXOzwCTmMVwjSJ+QWc4nT45Ng7vbsv8e/84hf4R1S"
    "vMNm96XPULquraptuCa4Lvu15XJdl91p4l7VCLuuTTt1haTvtscnzK+rNFo0fUT+8sTHzHeu21ZOGXn3/qvD8PFmpPkDOGYeP4Q2b2XCjqbgsw"
    "DBHIa9X4aC34UOah3lI+jwfnNMABiS1JEZjm09B/weHGC227RvZQ93U/c7AR1QIPvdH176Ceg="
)


def filters() -> Float32:
    """Return the weights of the convolution, `(4, 3, 3, 3)`."""
    values: Float32 = (((np.arange(108) * 37) % 17 - 8) / 16).astype(np.float32)
    return values.reshape(FEATURE_DIM, 3, 3, 3)


def head() -> Head:
    """Return the head, three rows of `(5,)`."""
    rows = (((np.arange(15) * 7) % 11 - 5) / 4).astype(np.float32).reshape(3, FEATURE_DIM + 1)
    return Head(rows=rows, class_names=CLASS_NAMES)


def model_bytes() -> bytes:
    """Return the ONNX model."""
    return zlib.decompress(base64.b64decode(_MODEL))


def new_row() -> Float32:
    """Return the row of the class that is added, `(1, 5)`: twice the first one, so that it can win."""
    return np.asarray(2 * head().rows[:1], dtype=np.float32)


def class_update() -> ClassUpdate:
    """Return a class update that adds one class."""
    return ClassUpdate(base_fingerprint=head().fingerprint, rows=new_row(), added=(NEW_CLASS,), version=1)


def inputs() -> Float32:
    """Return two images, `(2, 3, 8, 8)`."""
    size = 2 * int(np.prod(INPUT_SHAPE))
    values: Float32 = (((np.arange(size) * 29) % 31 - 15) / 16).astype(np.float32)
    return values.reshape(2, *INPUT_SHAPE)


def expected_logits(rows: Float32) -> Float64:
    """Return what the model gives for `inputs`, in float64: `(2, num_classes)`.

    Args:
        rows: `(num_classes, 5)`.
    """
    windows = np.lib.stride_tricks.sliding_window_view(inputs().astype(np.float64), (3, 3), axis=(2, 3))
    maps = np.einsum("bchwij,fcij->bfhw", windows, filters().astype(np.float64))
    features = np.maximum(maps, 0.0).mean(axis=(2, 3))
    return np.asarray(features @ rows[:, :-1].T.astype(np.float64) + rows[:, -1], dtype=np.float64)


def write_tiny_bundle(folder: Path) -> Path:
    """Write the bundle into an empty folder; return the folder."""
    (folder / MODEL_NAME).write_bytes(model_bytes())
    (folder / SLOTS_NAME).write_bytes(serialize_slots(empty_slots(CAPACITY, FEATURE_DIM)))
    bundle = Bundle(
        head_kind="updatable",
        class_names=CLASS_NAMES,
        num_seen=len(CLASS_NAMES),
        feature_dim=FEATURE_DIM,
        capacity=CAPACITY,
        base_fingerprint=head().fingerprint,
        head_version=0,
        model_input=ModelInput(name="image", shape=INPUT_SHAPE, dtype="float32"),
        score_kind="logits",
        preprocessing=None,
        files={name: file_entry(folder / name) for name in (MODEL_NAME, SLOTS_NAME)},
        parity=(),
    )
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    return folder
