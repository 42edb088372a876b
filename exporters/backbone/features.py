"""Features that the user's backbone computes, of neutral images and of prepared inputs.

Features of neutral images have the length and the spread that features of photos have, which rows alone do not show;
`icis_deploy.injection.inject` calibrates with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from exporters.backbone.inputs import is_image_input, seeded_images
from exporters.head.finding import HeadLocation
from exporters.head.surgery import backbone
from exporters.loading.models import LoadedModel
from exporters.onnx_io.files import serialize_model
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ICISDeployError, RuntimeFailureError
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession, load_session
from icis_deploy.runtime.sessions.protocol import Session

NUM_NEUTRAL_IMAGES = 128
BATCH_SIZE = 2
"""Number of images that a thread renders, prepares and runs at once. With 16, a third of the time of the first runs
went into memory that the system had to clear for them; with few, the cores also finish together."""


def neutral_features(
    loaded: LoadedModel, location: HeadLocation, *, preprocessing: Preprocessing | None, seed: int
) -> Float32 | None:
    """Run the backbone on neutral images.

    Every core renders images and runs the backbone on them, a batch at a time: rendering takes as long as running a
    small model.

    Args:
        loaded: The model.
        location: Its head.
        preprocessing: How its images are prepared; by default pixels are scaled to -1..1.
        seed: The same seed gives the same images.

    Returns:
        `(NUM_NEUTRAL_IMAGES, feature_dim)` float32; `None` where the model takes no images or cannot be run here.
    """
    shape = loaded.input_shape[1:]
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) < len(shape) or not is_image_input(sizes, preprocessing):
        return None
    size = loaded.fixed_batch or BATCH_SIZE
    starts, num_cores = range(0, NUM_NEUTRAL_IMAGES, size), _num_usable_cores()

    def open_session() -> ONNXRuntimeSession:
        # Where there are fewer batches than cores, as with a large fixed batch, each run uses several cores.
        num_threads = max(1, num_cores // len(starts))
        return load_session(serialize_model(backbone(loaded.model, location)), num_threads=num_threads)

    def features_from(first: int) -> Float32:
        count = min(size, NUM_NEUTRAL_IMAGES - first)
        batch = seeded_images(
            sizes, preprocessing, num_inputs=count, seed=seed, first=first, value_range=loaded.value_range
        )
        return _features(session.result(), batch, loaded.fixed_batch)

    try:
        with ThreadPoolExecutor(num_cores) as pool:
            session = pool.submit(open_session)  # the other cores begin to render
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
    return np.concatenate([_features(session, batch, loaded.fixed_batch) for batch in batches])


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
        raise RuntimeFailureError("The model gives no features; expected a backbone.", expected="features")
    return features


def _features(session: ONNXRuntimeSession, batch: Float32, fixed_batch: int | None) -> Float32:
    size = fixed_batch or len(batch)
    features = []
    for start in range(0, len(batch), size):
        # A model with a fixed batch takes no smaller last one: it is padded, and the padding's features are dropped.
        part = batch[start : start + size]
        features.append(features_of(session, np.resize(part, (size, *part.shape[1:])))[: len(part)])
    return np.concatenate(features)


def _num_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
