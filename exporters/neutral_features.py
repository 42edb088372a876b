"""Features of neutral pictures: what the user's backbone makes of nothing in particular.

They have the length and the spread that features of photos have, which rows alone cannot tell; `icis_deploy.injection`
calibrates with them.
"""

from __future__ import annotations

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

NUM_PICTURES = 64
BATCH_SIZE = 16


def neutral_features(
    loaded: LoadedModel, location: HeadLocation, *, preprocessing: Preprocessing | None, seed: int
) -> NDArray[np.float32] | None:
    """Run the backbone on neutral pictures.

    Args:
        loaded: The model.
        location: Its head.
        preprocessing: How its images are prepared; by default pixels are scaled to -1..1.
        seed: The same seed gives the same pictures.

    Returns:
        `(NUM_PICTURES, feature_dim)` float32; `None` where the model takes no pictures or cannot be run here.
    """
    batch, *shape = loaded.input_shape
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) < len(shape) or not is_image_input(sizes, preprocessing):
        return None
    inputs = seeded_inputs(sizes, preprocessing, num_inputs=NUM_PICTURES, seed=seed)
    size = batch if isinstance(batch, int) else BATCH_SIZE
    features = []
    try:
        session = load_session(serialize_model(backbone(loaded.model, location)))
        for start in range(0, len(inputs), size):
            # A model with a fixed batch takes no smaller last one: it is filled up, and what that gives is dropped.
            part = inputs[start : start + size]
            output = session.run(np.resize(part, (size, *sizes)), with_features=True).features
            assert output is not None, "a backbone gives nothing else"
            features.append(output[: len(part)])
    except ICISDeployError:
        return None
    found = np.concatenate(features)
    return found if np.isfinite(found).all() else None
