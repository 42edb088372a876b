"""A small classifier for the examples: pictures of two colours, a kind of thing for each pair, without training.

`model_file` writes the classifier of the seen kinds as ONNX; `picture` draws one picture of any kind. What a kind looks
like is known in numbers (`DESCRIPTORS`), as attributes of an expert would be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

import icis_deploy

NUM_SEEN, NUM_NEW, SIDE, NUM_FILTERS = 80, 5, 16, 64
_random = np.random.default_rng(0)
NAMES = [f"kind {number}" for number in range(NUM_SEEN + NUM_NEW)]
SEEN, NEW = NAMES[:NUM_SEEN], NAMES[NUM_SEEN:]
COLOURS = _random.uniform(40, 215, size=(len(NAMES), 6))
"""`(num_kinds, 6)`: red, green and blue of the left half and of the right one."""

DESCRIPTORS = dict(zip(NAMES, (COLOURS - 128) / 64, strict=True))
PREPROCESSING = icis_deploy.Preprocessing(resize=None, crop=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)

GRAPH = f"""
<ir_version: 8, opset_import: ["" : 18]>
colours (float[batch, 3, {SIDE}, {SIDE}] image) => (float[batch, {NUM_SEEN}] logits)
{{
    halves = Conv <strides = [1, {SIDE // 2}]> (image, filters, shifts)
    positive = Relu (halves)
    features = Flatten (positive)
    logits = Gemm <transB = 1> (features, weight, bias)
}}
"""


def picture(name: str, noise: float = 30.0) -> np.ndarray:
    """Return a picture of a kind, `(SIDE, SIDE, 3)` uint8; no two are the same."""
    left, right = COLOURS[NAMES.index(name)].reshape(2, 3) + _random.normal(0, 0.6 * noise, (2, 3))
    image = np.empty((SIDE, SIDE, 3))
    image[:, : SIDE // 2], image[:, SIDE // 2 :] = left, right
    return np.clip(image + _random.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def pictures(names: list[str], num_each: int) -> dict[str, list[np.ndarray]]:
    """Return some pictures of each kind, by its name."""
    return {name: [picture(name) for _ in range(num_each)] for name in names}


def model_file(folder: Path) -> Path:
    """Write the classifier of the seen kinds and return its file: it takes the kind whose mean features are nearest."""
    random = np.random.default_rng(1)
    each = random.normal(0, 1, (NUM_FILTERS, 3)) / (SIDE * SIDE / 2)
    filters = np.repeat(each, SIDE * SIDE // 2, axis=1).reshape(NUM_FILTERS, 3, SIDE, SIDE // 2)
    shifts = random.normal(0, 0.5, NUM_FILTERS)
    images = np.stack([picture(name) for name in SEEN for _ in range(20)])
    halves = PREPROCESSING.from_pixels(images).reshape(len(images), 3, SIDE, 2, SIDE // 2).sum(axis=(2, 4))
    features = np.maximum(np.einsum("fc,ncs->nfs", each, halves) + shifts[:, None], 0).reshape(len(images), -1)
    means = features.reshape(NUM_SEEN, 20, -1).mean(axis=1)
    sharpness = 20.0 / np.var(means, axis=0).sum()
    arrays = {
        "filters": filters,
        "shifts": shifts,
        "weight": 2 * sharpness * means,
        "bias": -sharpness * np.square(means).sum(axis=1),
    }
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"
