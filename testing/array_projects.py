"""Small classifiers of what is no image: rows of a table, spectrograms and embedded text.

Each world has classes with descriptors, of which a class's inputs are a linear function with noise. The backbone is
random, and the head a ridge regression on the seen classes, so that rows can be predicted and accuracy means something.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32

NUM_SEEN, NUM_UNSEEN, DESCRIPTOR_DIM, FEATURE_DIM = 30, 5, 8, 64
PER_CLASS = 8

SHAPES = {"table": (12,), "spectrogram": (1, 20, 30), "text": (6, 16)}
"""Shape of one input of each kind: columns; channel, mel bands and frames; tokens and the width of their vectors."""

GRAPHS = {
    "table": """
<ir_version: 8, opset_import: ["": 18]>
table (float[batch, 12] columns) => (float[batch, {num_seen}] logits) {{
    hidden = MatMul (columns, backbone)
    positive = Relu (hidden)
    logits = Gemm <transB = 1> (positive, weight, bias)
}}
""",
    "spectrogram": """
<ir_version: 8, opset_import: ["": 18]>
spectrogram (float[batch, 1, 20, 30] mel) => (float[batch, {num_seen}] logits) {{
    maps = Conv <kernel_shape = [20, 5], strides = [1, 5]> (mel, filters)
    positive = Relu (maps)
    pooled = GlobalAveragePool (positive)
    flat = Flatten (pooled)
    logits = Gemm <transB = 1> (flat, weight, bias)
}}
""",
    "text": """
<ir_version: 8, opset_import: ["": 18]>
text (float[batch, 6, 16] tokens) => (float[batch, {num_seen}] logits)
<int64[1] axis = {{1}}> {{
    mean = ReduceMean <keepdims = 0> (tokens, axis)
    hidden = MatMul (mean, backbone)
    positive = Relu (hidden)
    logits = Gemm <transB = 1> (positive, weight, bias)
}}
""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayProject:
    """What a user with such a model has."""

    model: Path
    seen_names: tuple[str, ...]
    unseen_names: tuple[str, ...]

    descriptors: dict[str, Float32]
    """`(8,)` for each class."""

    inputs: Float32
    """`(num_inputs, *shape)`, of all classes in turn."""

    labels: tuple[str, ...]
    """`(num_inputs,)`."""

    def of(self, names: tuple[str, ...]) -> tuple[Float32, list[str]]:
        """Return inputs and labels of some classes."""
        kept = [index for index, label in enumerate(self.labels) if label in names]
        return self.inputs[kept], [self.labels[index] for index in kept]


def write_array_project(folder: Path, kind: str, *, seed: int = 0) -> ArrayProject:
    """Write the model of one of the kinds in `SHAPES`, and return it with all that belongs to it."""
    random, shape = np.random.default_rng(seed), SHAPES[kind]
    names = tuple(f"{kind}-{index:02d}" for index in range(NUM_SEEN + NUM_UNSEEN))
    descriptors = random.normal(size=(len(names), DESCRIPTOR_DIM)).astype(np.float32)
    prototypes = descriptors @ random.normal(size=(DESCRIPTOR_DIM, int(np.prod(shape)))) / np.sqrt(DESCRIPTOR_DIM)
    labels = tuple(name for name in names for _ in range(PER_CLASS))
    noise = 0.3 * random.normal(size=(len(labels), prototypes.shape[1]))
    inputs = (np.repeat(prototypes, PER_CLASS, axis=0) + noise).reshape(len(labels), *shape).astype(np.float32)
    constants = _backbone(kind, random)
    train = np.repeat(prototypes[:NUM_SEEN], 40, axis=0)
    train = (train + 0.3 * random.normal(size=train.shape)).reshape(-1, *shape).astype(np.float32)
    features = _features(kind, train, constants)
    rows = _ridge(features, np.repeat(np.arange(NUM_SEEN), 40))
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / "model.onnx", kind, {**constants, "weight": rows[:, :-1], "bias": rows[:, -1]})
    return ArrayProject(
        model=folder / "model.onnx",
        seen_names=names[:NUM_SEEN],
        unseen_names=names[NUM_SEEN:],
        descriptors=dict(zip(names, descriptors, strict=True)),
        inputs=inputs,
        labels=labels,
    )


def _backbone(kind: str, random: np.random.Generator) -> dict[str, Float32]:
    if kind == "spectrogram":
        filters = random.normal(size=(FEATURE_DIM, 1, 20, 5)) / 10
        return {"filters": filters.astype(np.float32)}
    width = SHAPES[kind][-1]
    return {"backbone": (random.normal(size=(width, FEATURE_DIM)) / np.sqrt(width)).astype(np.float32)}


def _features(kind: str, inputs: Float32, constants: dict[str, Float32]) -> NDArray[np.float64]:
    if kind == "spectrogram":
        windows = inputs.reshape(len(inputs), 20, 6, 5).transpose(0, 2, 1, 3).reshape(len(inputs), 6, 100)
        maps = windows @ constants["filters"].reshape(FEATURE_DIM, 100).T
        return np.asarray(np.maximum(maps, 0).mean(axis=1), dtype=np.float64)
    pooled = inputs.mean(axis=1) if kind == "text" else inputs
    return np.asarray(np.maximum(pooled @ constants["backbone"], 0), dtype=np.float64)


def _ridge(features: NDArray[np.float64], classes: NDArray[np.int64]) -> Float32:
    """Return rows `[weight | bias]` that tell classes apart, `(num_seen, feature_dim + 1)`."""
    targets = 10.0 * np.eye(NUM_SEEN)[classes]
    extended = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    solved = np.linalg.solve(extended.T @ extended + 0.1 * np.eye(extended.shape[1]), extended.T @ targets)
    return np.asarray(solved.T, dtype=np.float32)


def _save(path: Path, kind: str, constants: dict[str, Float32]) -> None:
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    model = onnx.parser.parse_model(GRAPHS[kind].format(num_seen=NUM_SEEN))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
