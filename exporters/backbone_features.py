"""Features that the user's backbone makes of pictures: of neutral ones, and of an image list.

Features of neutral pictures have the length and the spread that features of photos have, which rows alone cannot tell;
`icis_deploy.injection` calibrates with them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from exporters.gate_inputs import is_image_input, seeded_inputs
from exporters.head_finding import HeadLocation
from exporters.head_surgery import backbone
from exporters.model_loading import LoadedModel
from exporters.onnx_files import serialize_model
from icis_deploy.errors import ICISDeployError
from icis_deploy.preprocessing import Preprocessing
from icis_deploy.runtime.onnxruntime_session import load_session

NUM_PICTURES = 128
BATCH_SIZE = 16

Float32 = NDArray[np.float32]


def neutral_features(
    loaded: LoadedModel, location: HeadLocation, *, preprocessing: Preprocessing | None, seed: int
) -> Float32 | None:
    """Run the backbone on neutral pictures.

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
    pictures = seeded_inputs(sizes, preprocessing, num_inputs=NUM_PICTURES, seed=seed)
    try:
        found = backbone_features(loaded, location, np.split(pictures, NUM_PICTURES // BATCH_SIZE))
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
    fixed = loaded.input_shape[0]
    features = []
    for batch in batches:
        size = fixed if isinstance(fixed, int) else len(batch)
        for start in range(0, len(batch), size):
            # A model with a fixed batch takes no smaller last one: it is filled up, and what that gives is dropped.
            part = batch[start : start + size]
            output = session.run(np.resize(part, (size, *part.shape[1:])), with_features=True).features
            assert output is not None, "a backbone gives nothing else"
            features.append(output[: len(part)])
    return np.concatenate(features)
