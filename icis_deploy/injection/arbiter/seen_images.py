"""Images of classes that a head knows, as features: whose answers must not change, and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64, Int64, frozen_float32
from icis_deploy.errors import IncompatibleError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenImages:
    """Images of seen classes and what the head makes of them.

    Raises:
        IncompatibleError: On construction, if shapes disagree, a label is no class of the head, or no image is right.
    """

    features: Float32
    """`(num_images, feature_dim)` float32, read-only."""

    logits: Float32
    """`(num_images, num_seen)` float32, read-only: of the seen head alone."""

    labels: Int64
    """`(num_images,)`, indices of seen classes; of unlabelled images today's answers."""

    are_labelled: bool
    """Whether somebody said of which classes the images are. If not, every change of an answer counts as a loss, which
    is at least the loss of accuracy."""

    def __post_init__(self) -> None:
        num_images, num_seen = np.shape(self.logits)
        object.__setattr__(self, "features", frozen_float32(self.features, name="features of seen images", ndim=2))
        object.__setattr__(self, "logits", frozen_float32(self.logits, name="logits of seen images", ndim=2))
        if len(self.features) != num_images or self.labels.shape != (num_images,):
            raise IncompatibleError(
                f"There are {len(self.features)} features, {num_images} rows of logits and labels of shape "
                f"{self.labels.shape}; expected one of each for every image.",
                found=(len(self.features), num_images, self.labels.shape),
                expected="one of each for every image",
            )
        if not num_images:
            raise IncompatibleError(
                "There is no image of a seen class.",
                found=0,
                expected="at least one image",
                hint="Give one at least, or leave `seen_images` out.",
            )
        outside = (self.labels < 0) | (self.labels >= num_seen)
        if outside.any():
            first = int(outside.argmax())
            raise IncompatibleError(
                f"Image {first} is labelled {int(self.labels[first])}; the head has the classes 0 to {num_seen - 1}. "
                f"Only images of classes that the head knows can set a budget.",
                found=int(self.labels[first]),
                expected=f"0 to {num_seen - 1}",
            )
        if not self.is_right.any():
            raise IncompatibleError(
                f"The head is right on none of the {num_images} images: nothing can be lost on them.",
                found=0,
                expected="at least one right image",
                hint="Check that the labels are in the order of the head's classes, and how images are prepared.",
            )

    @property
    def num_images(self) -> int:
        """Number of images, right or not."""
        return len(self.features)

    @property
    def num_classes(self) -> int:
        """Number of classes that have images; of unlabelled images, that are an answer."""
        return len(np.unique(self.labels))

    @property
    def is_right(self) -> Bool:
        """`(num_images,)`: whether the head's answer is the label; of unlabelled images always."""
        return np.asarray(self.logits.argmax(axis=1) == self.labels)

    @property
    def accuracy(self) -> float:
        """Macro-averaged accuracy of the head, fraction of 1; 1 of unlabelled images."""
        return float(self.weights() @ self.is_right)

    def weights(self, is_chosen: Bool | None = None) -> Float64:
        """Return what each image counts, summing to 1.

        Each class counts the same, as in macro-averaged accuracy. Unlabelled images all count the same: a class that is
        the wrong answer for one image must not count as much as one that is right for many.

        Args:
            is_chosen: `(num_images,)`, the images that count, which are all by default.

        Returns:
            `(num_chosen,)` float64.
        """
        labels = self.labels if is_chosen is None else self.labels[is_chosen]
        return macro_weights(labels) if self.are_labelled else np.full(len(labels), 1.0 / len(labels))


def seen_images(features: Float32, rows: Float32, labels: Int64 | None) -> SeenImages:
    """Run a head on the features of images of its classes.

    Args:
        features: `(num_images, feature_dim)`.
        rows: `(num_seen, feature_dim + 1)`, the head.
        labels: `(num_images,)`, indices of seen classes; `None` if nobody knows them.
    """
    logits = np.asarray(features @ rows[:, :-1].T + rows[:, -1], dtype=np.float32)
    answers = logits.argmax(axis=1).astype(np.int64)
    return SeenImages(
        features=features,
        logits=logits,
        labels=answers if labels is None else np.asarray(labels, dtype=np.int64),
        are_labelled=labels is not None,
    )


def macro_weights(labels: Int64) -> Float64:
    """Return weights that sum to 1, `(num_images,)`: the same sum for each class that has images, split evenly."""
    count = np.bincount(labels)
    return np.asarray(1.0 / (count[labels] * np.count_nonzero(count)))
