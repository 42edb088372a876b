"""Logits of rows in float32, for searches and cross-validation that compute many of them."""

from __future__ import annotations

from icis_deploy.common.arrays import Float32


def head_logits(rows: Float32, features: Float32) -> Float32:
    """Return logits, `(num_features, num_rows)` float32.

    `Head.logits` gives those of a head in float64, the reference of exports.

    Args:
        rows: `(num_rows, feature_dim + 1)`, `[weight | bias]`.
        features: `(num_features, feature_dim)`.
    """
    logits: Float32 = features @ rows[:, :-1].T
    logits += rows[:, -1]
    return logits
