"""Weights of seen classes in an unseen one, from descriptors alone: the controls that mix seen rows.

Every function takes unseen descriptors `(num_unseen, descriptor_dim)` and seen ones `(num_seen, descriptor_dim)`, and
returns weights `(num_unseen, num_seen)` float32, none of them negative.
"""

from __future__ import annotations

import numpy as np

from icis_deploy.common.arrays import Float32, Float64

MIXTURE_CANDIDATES = 40
"""Nearest seen classes among which a mixture may choose."""

MIXTURE_RIDGE = 0.1
"""Penalty on squared weights of a mixture, in units of a descriptor's squared length."""

AVERAGE_NEIGHBOURS = 8
AVERAGE_SHARPNESS = 5.0
"""`wavg`: how many seen classes are averaged, and weights `exp(sharpness * cosine)`."""


def cosine_similarity(left: Float32, right: Float32) -> Float32:
    """Return cosines, `(num_left, num_right)`, of descriptors `(num_left, dim)` and `(num_right, dim)`."""
    return np.asarray(_unit(left) @ _unit(right).T, dtype=np.float32)


def centred_similarity(unseen_descriptors: Float32, seen_descriptors: Float32) -> Float32:
    """Return cosines between descriptors less the mean seen one, `(num_unseen, num_seen)`."""
    mean = seen_descriptors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return cosine_similarity(unseen_descriptors - mean, seen_descriptors - mean)


def nearest_weights(unseen_descriptors: Float32, seen_descriptors: Float32) -> Float32:
    """Give the seen class with the most similar descriptor all the weight."""
    nearest = centred_similarity(unseen_descriptors, seen_descriptors).argmax(axis=1)
    weights = np.zeros((len(unseen_descriptors), len(seen_descriptors)), dtype=np.float32)
    weights[np.arange(len(nearest)), nearest] = 1.0
    return weights


def equal_weights(unseen_descriptors: Float32, seen_descriptors: Float32) -> Float32:
    """Give all seen classes the same weight: what no description at all would predict."""
    return np.full((len(unseen_descriptors), len(seen_descriptors)), 1.0 / len(seen_descriptors), dtype=np.float32)


def costa_weights(unseen_descriptors: Float32, seen_descriptors: Float32) -> Float32:
    """Weigh all seen classes by similarity; a negative one counts as none.

    Source: Mensink, Gavves & Snoek, "COSTA", CVPR 2014, with cosines of descriptors as co-occurrence.
    """
    return _normalised(np.maximum(cosine_similarity(unseen_descriptors, seen_descriptors), 0.0))


def average_weights(unseen_descriptors: Float32, seen_descriptors: Float32) -> Float32:
    """Weigh the nearest seen classes, exponentially less with distance.

    Source: Xu et al., "VGSE: Visually-Grounded Semantic Embeddings", CVPR 2022 (WAvg), weights normalised.
    """
    similarity = centred_similarity(unseen_descriptors, seen_descriptors)
    count = min(AVERAGE_NEIGHBOURS, similarity.shape[1])
    threshold = np.partition(similarity, -count, axis=1)[:, -count][:, None]
    return _normalised(np.where(similarity >= threshold, np.exp(AVERAGE_SHARPNESS * similarity), 0.0))


def mixture_weights(unseen_descriptors: Float32, seen_descriptors: Float32) -> Float32:
    """Find the sparse non-negative weights that rebuild a class's descriptor from the seen ones.

    They need not sum to 1: what no seen class explains leaves the row nearer to the mean.
    """
    from scipy.optimize import nnls

    mean = seen_descriptors.mean(axis=0, dtype=np.float64)
    seen, unseen = _unit(seen_descriptors - mean), _unit(unseen_descriptors - mean)
    similarity = unseen @ seen.T
    count = min(MIXTURE_CANDIDATES, len(seen))
    candidates = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    weights = np.zeros(similarity.shape, dtype=np.float32)
    for index, chosen in enumerate(candidates):
        # min |q - A'x|^2 + ridge |x|^2 through the Cholesky factor of its normal equations: small whatever the width.
        factor = np.linalg.cholesky(seen[chosen] @ seen[chosen].T + MIXTURE_RIDGE * np.eye(count))
        weights[index, chosen] = nnls(factor.T, np.linalg.solve(factor, similarity[index, chosen]))[0]
    return weights


def _normalised(weights: Float32) -> Float32:
    total = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(weights / total, dtype=np.float32)


def _unit(vectors: Float32 | Float64) -> Float32 | Float64:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, np.finfo(np.float32).tiny))
