"""Features that the user's backbone makes of pictures: of neutral ones, and of an image list.

Features of neutral pictures have the length and the spread that features of photos have, which rows alone cannot tell;
`icis_deploy.injection.inject` calibrates with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from exporters.backbone.inputs import is_image_input, seeded_pictures
from exporters.head.finding import HeadLocation
from exporters.head.surgery import backbone
from exporters.loading.models import LoadedModel
from exporters.onnx_io.files import serialize_model
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ICISDeployError, RuntimeFailureError
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession, load_session
from icis_deploy.runtime.sessions.protocol import Session

NUM_PICTURES = 128
BATCH_SIZE = 2
"""Pictures that a thread paints, prepares and runs at once. With 16, a third of what the first runs took was memory
that the system had to clear for them; with few, the cores also end together."""


def neutral_features(
    loaded: LoadedModel, location: HeadLocation, *, preprocessing: Preprocessing | None, seed: int
) -> Float32 | None:
    """Run the backbone on neutral pictures.

    Every core paints pictures and runs the backbone on them, a batch at a time: of a small model painting takes as long
    as running.

    Args:
        loaded: The model.
        location: Its head.
        preprocessing: How its images are prepared; by default pixels are scaled to -1..1.
        seed: The same seed gives the same pictures.

    Returns:
        `(NUM_PICTURES, feature_dim)` float32; `None` where the model takes no pictures or cannot be run here.
    """
    shape = loaded.input_shape[1:]
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) < len(shape) or not is_image_input(sizes, preprocessing):
        return None
    fixed = loaded.input_shape[0]
    size = fixed if isinstance(fixed, int) else BATCH_SIZE
    starts, num_cores = range(0, NUM_PICTURES, size), _num_usable_cores()

    def open_session() -> ONNXRuntimeSession:
        # Where there are fewer batches than cores, as with a large fixed batch, a run has several cores.
        num_threads = max(1, num_cores // len(starts))
        return load_session(serialize_model(backbone(loaded.model, location)), num_threads=num_threads)

    def features_from(first: int) -> Float32:
        count = min(size, NUM_PICTURES - first)
        batch = seeded_pictures(sizes, preprocessing, num_inputs=count, seed=seed, first=first)
        return _features(session.result(), batch, fixed)

    try:
        with ThreadPoolExecutor(num_cores) as pool:
            session = pool.submit(open_session)  # the other cores begin to paint
            found = np.concatenate(list(pool.map(features_from, starts)))
    except ICISDeployError:
        return None
    return found if np.isfinite(found).all() else None


def backbone_features(loaded: LoadedModel, location: HeadLocation, batches: Iterable[Float32]) -> Float32:
    """Run the backbone on prepared inputs.

    Args:
        loaded: The model.
        location: Its head.
        batches: `(batch, *input shape)` each, of any size.

    Returns:
        `(num_inputs, feature_dim)` float32.

    Raises:
        RuntimeFailureError: If the runtime fails.
        MissingDependencyError: If it is not installed.
    """
    session = load_session(serialize_model(backbone(loaded.model, location)))
    return np.concatenate([_features(session, batch, loaded.input_shape[0]) for batch in batches])


def features_of(session: Session, inputs: NDArray[np.generic]) -> Float32:
    """Run a backbone on one batch.

    Args:
        session: Of a model that gives its features, as `exporters.head.surgery.backbone` makes it.
        inputs: `(batch, *input_shape)`.

    Returns:
        `(batch, feature_dim)` float32.

    Raises:
        RuntimeFailureError: If the runtime fails, or the model gives no features.
    """
    features = session.run(inputs, with_features=True).features
    if features is None:
        raise RuntimeFailureError("The model gives no features; expected a backbone.")
    return features


def _features(session: ONNXRuntimeSession, batch: Float32, fixed: int | str | None) -> Float32:
    size = fixed if isinstance(fixed, int) else len(batch)
    features = []
    for start in range(0, len(batch), size):
        # A model with a fixed batch takes no smaller last one: it is filled up, and what that gives is dropped.
        part = batch[start : start + size]
        features.append(features_of(session, np.resize(part, (size, *part.shape[1:])))[: len(part)])
    return np.concatenate(features)


def _num_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
