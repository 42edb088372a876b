"""A tiny classifier with everything that a user brings: model, class list, descriptors, images."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icis_deploy.common.arrays import Float32

SIDE = 16
FEATURE_DIM = 24
DESCRIPTOR_DIM = 10
NUM_SEEN = 40
NUM_UNSEEN = 6

GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
tiny (float[batch, 3, 16, 16] image) => (float[batch, 40] logits) {
    maps = Conv <kernel_shape = [5, 5], strides = [3, 3]> (image, filters)
    positive = Relu (maps)
    pooled = GlobalAveragePool (positive)
    flat = Flatten (pooled)
    logits = Gemm <transB = 1> (flat, weight, bias)
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyProject:
    """Paths of a user's files."""

    model: Path
    classes: Path
    unseen: Path
    descriptors: Path
    preprocess: Path
    images: Path

    @property
    def seen_names(self) -> tuple[str, ...]:
        """Names of the classes that the model knows."""
        return tuple(self.classes.read_text().split())

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Names of the classes that have descriptors and images, and no row."""
        return tuple(self.unseen.read_text().split())


def write_tiny_project(folder: Path, *, seed: int = 0) -> TinyProject:
    """Write a classifier whose rows are a linear function of the descriptors, so that injection can predict rows.

    Args:
        folder: Where to write; made if it does not exist.
        seed: Of descriptors, weights and images.
    """
    rng = np.random.default_rng(seed)
    names = [f"class{index:02d}" for index in range(NUM_SEEN + NUM_UNSEEN)]
    descriptors = rng.normal(size=(len(names), DESCRIPTOR_DIM)).astype(np.float32)
    weight = (descriptors @ rng.normal(size=(DESCRIPTOR_DIM, FEATURE_DIM))).astype(np.float32)
    project = TinyProject(
        model=folder / "model.onnx",
        classes=folder / "classes.txt",
        unseen=folder / "unseen.txt",
        descriptors=folder / "descriptors.npz",
        preprocess=folder / "preprocess.json",
        images=folder / "images.csv",
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(project.model, weight[:NUM_SEEN], rng)
    project.classes.write_text("\n".join(names[:NUM_SEEN]) + "\n")
    project.unseen.write_text("\n".join(names[NUM_SEEN:]) + "\n")
    np.savez(project.descriptors, names=np.array(names), values=descriptors)
    settings = {"resize": SIDE, "crop": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3, "color": "RGB", "layout": "NCHW"}
    project.preprocess.write_text(json.dumps(settings))
    _write_images(project.images, names, rng)
    return project


def _write_model(path: Path, weight: Float32, rng: np.random.Generator) -> None:
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    model = onnx.parser.parse_model(GRAPH)
    arrays = {
        "filters": rng.normal(size=(FEATURE_DIM, 3, 5, 5)).astype(np.float32),
        "weight": weight,
        "bias": rng.normal(size=NUM_SEEN).astype(np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_images(path: Path, names: list[str], rng: np.random.Generator) -> None:
    from PIL import Image

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class"])
        for name in names:
            pixels = rng.integers(0, 256, (SIDE + 4, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path.parent / f"{name}.png")
            writer.writerow([f"{name}.png", name])
