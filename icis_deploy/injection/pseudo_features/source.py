"""What the pseudo-features of a head are drawn from: directions of classes, a centre, and what else is in an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.injection.pseudo_features.class_means import FeatureLaw, balanced_centre, class_directions
from icis_deploy.injection.rows.spectrum import bias_law

NUM_NEIGHBOURS = 5
"""Classes that an image of a class may be blended with; those that a top-5 accuracy does not count as errors."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureSource:
    """What a head's pseudo-features are drawn from."""

    rows: Float32
    """`(num_seen, feature_dim + 1)`."""

    law: FeatureLaw
    """How class means of features follow from rows."""

    directions: Float32
    """`(num_seen, feature_dim)`, of class means, each of length 1."""

    lengths: Float32
    """`(num_seen,)`: lengths of class means in a balanced linear network, 1 on average."""

    centre: Float32
    """`(feature_dim,)`: where the head favours no class."""

    around: Float32 | None
    """`(num_neutral, feature_dim)`: neutral features less their mean; `None` where there are none."""

    is_rectified: bool
    """Whether features are never negative."""

    all_neighbours: Int64 | None = None
    """`(num_seen, num_neighbours)`: the most similar classes of each; `None` where they are found at each call."""

    def by_law(self, law: FeatureLaw) -> FeatureSource:
        """Return the same source under another law of the same rows."""
        directions, lengths = _directions(self.rows, law)
        return replace(self, law=law, directions=directions, lengths=lengths, all_neighbours=None)

    def with_neighbours(self) -> FeatureSource:
        """Return the same source with the neighbours of all classes, so that they are not found more than once."""
        return replace(self, all_neighbours=self.neighbours(np.arange(len(self.rows), dtype=np.int64)))

    def neighbours(self, classes: Int64) -> Int64:
        """Return the most similar classes of each class, `(num_classes, NUM_NEIGHBOURS or fewer)`.

        Args:
            classes: `(num_classes,)`, sorted.
        """
        if self.all_neighbours is not None:
            return self.all_neighbours[classes]
        count = min(NUM_NEIGHBOURS, len(self.directions) - 1)
        distance = -(self.directions[classes] @ self.directions.T)
        distance[np.arange(len(classes)), classes] = np.inf
        return np.sort(np.argpartition(distance, count - 1, axis=1)[:, :count], axis=1).astype(np.int64)


def source_by_law(rows: Float32, law: FeatureLaw, neutral_features: Float32 | None) -> FeatureSource:
    """Return what features are drawn from if they follow a law.

    Args:
        rows: `(num_seen, feature_dim + 1)`, at least three classes.
        law: Of these rows.
        neutral_features: `(num_neutral, feature_dim)`, or `None`.
    """
    around, centre, is_rectified = None, np.zeros(rows.shape[1] - 1, dtype=np.float32), False
    if neutral_features is not None:
        mean = neutral_features.mean(axis=0, dtype=np.float64).astype(np.float32)
        around = np.asarray(neutral_features, dtype=np.float32) - mean
        centre = balanced_centre(rows, law.spectrum, mean)
        # Features that are never negative end in a ReLU; so must what stands in for them.
        is_rectified = bool(np.min(neutral_features) >= 0.0)
    elif (law_of_biases := bias_law(rows)) is not None:
        # A head that compares distances favours no class where the linear part of its biases vanishes.
        centre = -law_of_biases
    directions, lengths = _directions(rows, law)
    return FeatureSource(
        rows=rows,
        law=law,
        directions=directions,
        lengths=lengths,
        centre=centre,
        around=around,
        is_rectified=is_rectified,
    )


def _directions(rows: Float32, law: FeatureLaw) -> tuple[Float32, Float32]:
    """Return directions of length 1 and the lengths that they had, `(num_seen, feature_dim)` and `(num_seen,)`."""
    directions = class_directions(rows, law, equal_lengths=False)
    lengths = np.linalg.norm(directions, axis=1)
    directions /= np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return directions, lengths
