"""The arbiter: how far new classes are favoured over seen ones, image by image.

    new logit' = new logit + offset(image);   offset(image) = constant + weights . statistics(image)

One constant offset treats all images alike. Whether a new class that comes close to the best seen one is the better
answer depends on the image, and the seen logits say how: an image that the head is sure of has other statistics than
one that it has no class for. `icis_deploy.injection.arbiter` fits the weights and sets the constant.

Rules:

1. Seen logits keep their bits, and all new logits of an image get the same offset. The order of the seen classes among
   themselves does not change, nor that of the new ones: T stays what it was.
2. The statistics are those of the features and of the seen logits as the model computes them. No new class takes part
   in them: one that is added, replaced, disabled or taught changes the logit of no other class, and an empty slot
   stays far below all of them.
3. A seen class that is disabled takes no part either: the statistics are then those of the others
   (`statistics_change`).
4. With weights of zero it is a constant offset; with a constant of zero as well there is no arbiter.
5. Everything is float32, in the order of `seen_statistics`; a model's nodes are the same operations.

The literature's forms of it: a constant is calibrated stacking (Chao et al., "An Empirical Study and Analysis of
Generalized Zero-Shot Learning for Object Recognition in the Wild", ECCV 2016); a gate between seen and new classes is
that of Atzmon and Chechik, "Adaptive Confidence Smoothing for Generalized Zero-Shot Learning", CVPR 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.common.arrays import Float32, frozen_float32
from icis_deploy.errors import IncompatibleError

STATISTICS = ("top_logit", "mean_logit", "log_variance", "log_squared_length", "top_deviation")
"""What an image's offset follows from, in the order of the weights: the greatest seen logit; mean and logarithm of the
variance of the seen logits; logarithm of the squared length of the features; distance of the row of the greatest seen
logit from the mean seen row."""

TINY, GREATEST = np.float32(1e-12), np.finfo(np.float32).max
"""Least and greatest variance and squared length that a logarithm is taken of, so that statistics are finite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arbiter:
    """What is added to all new logits of an image.

    Raises:
        IncompatibleError: On construction, if there is not one finite weight for each statistic, or the constant is
            not finite in float32.
    """

    weights: Float32
    """`(5,)` float32, read-only: logits per unit of each of `STATISTICS`."""

    constant: float
    """In logits; a float32 number."""

    is_constant: bool = field(init=False)
    """Whether all images get the same offset."""

    def __post_init__(self) -> None:
        weights = frozen_float32(self.weights, name="arbiter's weights", ndim=1)
        if len(weights) != len(STATISTICS):
            raise IncompatibleError(f"The arbiter has {len(weights)} weights; expected {len(STATISTICS)}.")
        constant = frozen_float32([self.constant], name="arbiter's constant", ndim=1)[0]
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "constant", float(constant))
        object.__setattr__(self, "is_constant", not weights.any())

    def offsets(self, statistics: Float32) -> Float32:
        """Return what is added to the new logits of each image.

        Args:
            statistics: `(num_images, 5)` float32, from `seen_statistics`.

        Returns:
            `(num_images,)` float32, in logits.
        """
        # OpenBLAS has flagged an invalid operation here on finite numbers, whose result was right.
        with np.errstate(invalid="ignore"):
            product = statistics @ self.weights
        return np.asarray(product + np.float32(self.constant), dtype=np.float32)

    def lowered_by(self, threshold: float) -> Arbiter:
        """Return the arbiter that favours new classes less by a number of logits, the same for all images."""
        return Arbiter(weights=self.weights, constant=self.constant - threshold)

    def values(self) -> Float32:
        """Return weights and constant in one array, `(6,)` float32: what a model takes as an input."""
        return np.append(self.weights, np.float32(self.constant))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, from which float32 numbers come back bit for bit."""
        return {"weights": [float(weight) for weight in self.weights], "constant": self.constant}


def no_arbiter(num_rows: int) -> Float32:
    """Return the coefficients of rows without an arbiter, `(num_rows, 5)` float32 zeros, read-only."""
    coefficients = np.zeros((num_rows, len(STATISTICS)), dtype=np.float32)
    coefficients.flags.writeable = False
    return coefficients


def constant_arbiter(offset: float) -> Arbiter:
    """Return the arbiter that adds the same number of logits for all images."""
    return Arbiter(weights=np.zeros(len(STATISTICS), dtype=np.float32), constant=offset)


def deviation_lengths(rows: Float32) -> Float32:
    """Return the distance of each seen row from the mean seen row, `(num_seen,)` float32: a constant of a model.

    Computed in float64; a distance beyond float32 becomes its greatest number.

    Args:
        rows: `(num_seen, feature_dim + 1)`, biases included.
    """
    lengths = np.linalg.norm(rows - rows.mean(axis=0, dtype=np.float64), axis=1)
    return np.asarray(np.minimum(lengths, GREATEST), dtype=np.float32)


def seen_statistics(features: Float32, seen_logits: Float32, lengths: Float32) -> Float32:
    """Return what an image's offset follows from, `(num_images, 5)` float32 (`STATISTICS`).

    In ONNX: ReduceMax; ReduceMean; Sub, Mul, ReduceMean, Clip, Log; ReduceSumSquare, Clip, Log; ArgMax, Gather.

    Args:
        features: `(num_images, feature_dim)` float32.
        seen_logits: `(num_images, num_seen)` float32, finite, as the model gives them.
        lengths: `(num_seen,)` float32, from `deviation_lengths`.
    """
    mean = seen_logits.mean(axis=1, dtype=np.float32)
    with np.errstate(over="ignore"):  # what overflows becomes the greatest number
        variance = np.square(seen_logits - mean[:, None]).mean(axis=1, dtype=np.float32)
        squared_length = np.square(features).sum(axis=1, dtype=np.float32)
    return np.stack(
        [
            seen_logits.max(axis=1),
            mean,
            np.log(np.clip(variance, TINY, GREATEST)),
            np.log(np.clip(squared_length, TINY, GREATEST)),
            lengths[seen_logits.argmax(axis=1)],
        ],
        axis=1,
    )


def statistics_change(seen_logits: Float32, lengths: Float32, enabled: NDArray[np.intp]) -> Float32:
    """Return by how much the statistics change where only some seen classes take part, `(num_images, 5)` float32.

    Logits may be shifted, by another number for each image, as those are that come back from a softmax as logarithms
    of its probabilities: the greatest and the mean logit are shifted alike with and without the disabled classes, a
    variance does not see a shift, and the class with the greatest logit stays the same. The length of the features is
    the same as well. Of one class there is no variance, so where no more than one is enabled that of all stays; where
    none is, there is nothing that new classes are weighed against, and nothing changes.

    Args:
        seen_logits: `(num_images, num_seen)` float32, of all seen classes.
        lengths: `(num_seen,)` float32, from `deviation_lengths`; the mean row is that of all seen classes.
        enabled: Indices of the seen classes that take part.
    """
    no_features = np.zeros((len(seen_logits), 1), dtype=np.float32)
    before = seen_statistics(no_features, seen_logits, lengths)
    if not enabled.size:
        return np.zeros_like(before)
    others = np.ascontiguousarray(seen_logits[:, enabled])  # summed in the order of an image's own logits
    change = seen_statistics(no_features, others, lengths[enabled]) - before
    if enabled.size == 1:
        change[:, STATISTICS.index("log_variance")] = 0.0
    return change


def arbitrate(
    arbiter: Arbiter, features: ArrayLike, seen_logits: ArrayLike, new_logits: ArrayLike, lengths: Float32
) -> Float32:
    """Return the logits of all classes, the seen ones first and with their own bits.

    Args:
        arbiter: What is added to new logits.
        features: `(num_images, feature_dim)`.
        seen_logits: `(num_images, num_seen)`.
        new_logits: `(num_images, num_new)`; of an empty slot or a disabled class it may be -inf.
        lengths: `(num_seen,)` float32, from `deviation_lengths`.

    Returns:
        `(num_images, num_seen + num_new)` float32.
    """
    seen, new = np.asarray(seen_logits, dtype=np.float32), np.asarray(new_logits, dtype=np.float32)
    statistics = seen_statistics(np.asarray(features, dtype=np.float32), seen, lengths)
    return np.concatenate([seen, new + arbiter.offsets(statistics)[:, None]], axis=1)
