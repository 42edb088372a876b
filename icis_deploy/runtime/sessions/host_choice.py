"""The choice of classes that `model.onnx` makes itself, made on the host of scores, for models that end in scores."""

from __future__ import annotations

import numpy as np

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.runtime.sessions.protocol import TopOutput


def choice_of(scores: Float32, bundle: Bundle) -> TopOutput:
    """Return the classes with the greatest scores, as `Session.top` does.

    Args:
        scores: `(batch, num_outputs)` float32, as the model gives them.
        bundle: States how many are chosen, and what scores are.
    """
    columns = np.argsort(-scores, axis=1, kind="stable")[:, : bundle.top].astype(np.int64)
    if bundle.score_kind == "log-probabilities":
        scores = np.exp(scores)
    elif bundle.score_kind == "logits":
        scores = softmax(scores)
    return np.take_along_axis(scores, columns, axis=1), columns


def softmax(logits: Float32) -> Float32:
    """Return probabilities `(batch, num_outputs)` float32 of logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)
