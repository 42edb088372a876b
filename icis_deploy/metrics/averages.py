"""Averages over classes, and which class wins: what every measure of accuracy is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Bool, Float64, Int64

Logits = NDArray[np.floating]


def harmonic_mean(unseen_accuracy: float | None, seen_accuracy: float | None) -> float | None:
    """Return 2US / (U + S), 0 where both are 0, None where either has no images."""
    if unseen_accuracy is None or seen_accuracy is None:
        return None
    total = unseen_accuracy + seen_accuracy
    return 2 * unseen_accuracy * seen_accuracy / total if total > 0 else 0.0


def winners(scores: Logits, columns: Int64) -> Int64:
    """Return, for each image, which of `columns` has the largest logit.

    Args:
        scores: `(num_images, num_classes)`.
        columns: `(num_candidates,)`, the columns to choose among.

    Returns:
        `(num_images,)` int64; -1 where there are no candidates, or every one is minus infinity, the logit of a class
        that a head lacks.
    """
    if not len(scores) or not len(columns):
        return np.full(len(scores), -1, dtype=np.int64)
    candidates = scores if len(columns) == scores.shape[1] else scores[:, columns]
    best = candidates.argmax(axis=1)
    is_known = ~np.isneginf(np.take_along_axis(candidates, best[:, None], axis=1)[:, 0])
    return np.where(is_known, columns[best], -1)


def mean_by_class(is_correct: Bool, labels: Int64, *, num_classes: int) -> Float64:
    """Return each class's share of correctly classified images, NaN for a class without images.

    Args:
        is_correct: `(num_images,)`.
        labels: `(num_images,)`.
        num_classes: Length of the result.

    Returns:
        `(num_classes,)` float64.
    """
    num_of_class = np.bincount(labels, minlength=num_classes)
    num_correct = np.bincount(labels, weights=is_correct, minlength=num_classes)
    share = np.full(num_classes, np.nan)
    np.divide(num_correct, num_of_class, out=share, where=num_of_class > 0)
    return share


def macro(class_accuracy: Float64) -> float | None:
    """Return the mean over the classes that have images, None if none has."""
    measured = class_accuracy[~np.isnan(class_accuracy)]
    return float(measured.mean()) if len(measured) else None


def none_for_nan(values: Float64) -> tuple[float | None, ...]:
    """Return floats with None instead of NaN."""
    return tuple(None if np.isnan(value) else float(value) for value in values)


def class_weights(labels: Int64) -> Float64:
    """Return what each image counts in a macro average, `(num_images,)` summing to 1: each class with images the same.

    Args:
        labels: `(num_images,)`, at least one.
    """
    count = np.bincount(labels)
    return np.asarray(1.0 / (count[labels] * np.count_nonzero(count)))
