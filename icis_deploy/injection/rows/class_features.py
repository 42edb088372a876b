"""Features of seen classes, of images or drawn, with the logits that the head gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassFeatures:
    """Features and the classes that they stand for."""

    features: Float32
    """`(num_features, feature_dim)` float32."""

    classes: Int64
    """`(num_features,)`, indices of rows."""

    logits: Float32
    """`(num_features, num_seen)`, of the untouched head: expensive with many classes, and every fold needs them."""

    @property
    def accuracy(self) -> float:
        """Part of the features that the untouched head recognises."""
        return float(np.mean(self.logits.argmax(axis=1) == self.classes))
