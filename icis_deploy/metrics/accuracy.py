"""Accuracy of a classifier on the classes that it was trained on, and on those injected into it.

Definitions, those of the literature on zero-shot learning (Xian et al., "Zero-Shot Learning - A Comprehensive
Evaluation of the Good, the Bad and the Ugly", sections 3.1 and 5):

1. Every figure is a macro average: the mean, over the classes that have images, of each class's top-1 accuracy.
2. T: images of unseen classes, choosing among the unseen classes only.
3. U: images of unseen classes, choosing among all classes.
4. S: images of seen classes, choosing among all classes.
5. H = 2US / (U + S), and 0 where both are 0.
6. S_original: images of seen classes, with the logits of the original model, which knows no other classes.
7. A figure that no image speaks for is None: not 0, which would be a result, and not NaN, which JSON does not have.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.common.arrays import Bool, Float64, Int64
from icis_deploy.errors import IncompatibleError

MAX_CROSSINGS = 20
"""As many pairs of confused classes as a report lists."""

Logits = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Images of one class taken for a class from the other side of the seen / unseen line.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        for crossing in report.crossings:
            print(crossing.label, crossing.prediction, crossing.num_images)
    """

    label: int
    """Index of the class the images are of."""

    prediction: int
    """Index of the class they were taken for."""

    num_images: int
    """Number of such images, at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """Accuracy on seen and unseen classes, and where the two are confused.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        print(report.T, report.U, report.S, report.H)

    Raises:
        IncompatibleError: On construction, if an accuracy is not a fraction of 1.
    """

    T: float | None
    """Macro accuracy, fraction of 1: images of unseen classes, choosing among the unseen classes."""

    U: float | None
    """Macro accuracy, fraction of 1: images of unseen classes, choosing among all classes."""

    S: float | None
    """Macro accuracy, fraction of 1: images of seen classes, choosing among all classes."""

    H: float | None
    """Harmonic mean of U and S, fraction of 1; None unless both have images."""

    S_original: float | None
    """S of the original model; None if its logits were not given or no image is of a seen class."""

    num_images: int
    """Images, of seen and unseen classes together."""

    num_seen_images: int
    """Images of seen classes."""

    num_classes: int
    """Number of classes, which is that of columns of the logits."""

    num_seen_classes: int
    """How many of these columns are seen classes."""

    num_seen_taken_for_unseen: int
    """Images of seen classes for which an unseen class won."""

    num_unseen_taken_for_seen: int
    """Images of unseen classes for which a seen class won."""

    crossings: tuple[Crossing, ...]
    """The most frequent pairs behind these two numbers, at most `MAX_CROSSINGS`, most frequent first."""

    class_accuracy: tuple[float | None, ...]
    """`(num_classes,)` top-1 accuracy of each class, choosing among all classes; None for a class without images."""

    class_change: tuple[float | None, ...] | None
    """`(num_classes,)` accuracy less the original model's, -1 to 1; None for a class that is unseen or without images,
    and altogether None where the original logits were not given."""

    def __post_init__(self) -> None:
        for name in ("T", "U", "S", "H", "S_original"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise IncompatibleError(
                    f"The accuracy {name} is {value}; expected a fraction from 0 to 1, or None.",
                    found=value,
                    expected="a fraction from 0 to 1, or None",
                    where=name,
                )

    @property
    def num_unseen_images(self) -> int:
        """Images of unseen classes."""
        return self.num_images - self.num_seen_images

    def to_json(self) -> dict[str, object]:
        """Return this report as values that `json.dumps` takes."""
        return {
            "T": self.T,
            "U": self.U,
            "S": self.S,
            "H": self.H,
            "S_original": self.S_original,
            "num_images": self.num_images,
            "num_seen_images": self.num_seen_images,
            "num_unseen_images": self.num_unseen_images,
            "num_classes": self.num_classes,
            "num_seen_classes": self.num_seen_classes,
            "num_seen_taken_for_unseen": self.num_seen_taken_for_unseen,
            "num_unseen_taken_for_seen": self.num_unseen_taken_for_seen,
            "crossings": [
                {"label": pair.label, "prediction": pair.prediction, "num_images": pair.num_images}
                for pair in self.crossings
            ],
            "class_accuracy": list(self.class_accuracy),
            "class_change": None if self.class_change is None else list(self.class_change),
        }


def accuracy_report(
    logits: ArrayLike, labels: ArrayLike, *, seen: int | ArrayLike, original_logits: ArrayLike | None = None
) -> AccuracyReport:
    """Score logits over all classes against labels; of equal logits the first wins.

    Args:
        logits: `(num_images, num_classes)`, of the classifier with the injected classes.
        labels: `(num_images,)` integer, column of the class that each image is of.
        seen: Which columns are seen classes: `(num_classes,)` bool, or their number where they come first.
        original_logits: `(num_images, num_seen_classes)`, of the original model, in the order of the seen columns.

    Raises:
        IncompatibleError: If shapes disagree, a label is not a column, or a logit is NaN.
    """
    scores = checked_logits(logits, name="logits")
    num_images, num_classes = scores.shape
    columns = checked_labels(labels, num_images=num_images, num_classes=num_classes)
    seen_mask = mask_of_seen(seen, num_classes=num_classes)
    of_seen, predictions = seen_mask[columns], winners(scores, np.arange(num_classes))
    crossed = of_seen != seen_mask[predictions]
    class_accuracy = mean_by_class(predictions == columns, columns, num_classes=num_classes)
    among_unseen = winners(scores[~of_seen], np.flatnonzero(~seen_mask)) == columns[~of_seen]
    original_accuracy = original_class_accuracy(original_logits, columns, seen_mask)
    unseen_accuracy, seen_accuracy = macro(class_accuracy[~seen_mask]), macro(class_accuracy[seen_mask])
    return AccuracyReport(
        T=macro(mean_by_class(among_unseen, columns[~of_seen], num_classes=num_classes)),
        U=unseen_accuracy,
        S=seen_accuracy,
        H=harmonic_mean(unseen_accuracy, seen_accuracy),
        S_original=None if original_accuracy is None else macro(original_accuracy),
        num_images=num_images,
        num_seen_images=int(of_seen.sum()),
        num_classes=num_classes,
        num_seen_classes=int(seen_mask.sum()),
        num_seen_taken_for_unseen=int((crossed & of_seen).sum()),
        num_unseen_taken_for_seen=int((crossed & ~of_seen).sum()),
        crossings=most_frequent_crossings(columns[crossed], predictions[crossed]),
        class_accuracy=none_for_nan(class_accuracy),
        class_change=None if original_accuracy is None else none_for_nan(class_accuracy - original_accuracy),
    )


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
        columns: `(num_candidates,)`, the columns to choose among; none are needed where there are no images.

    Returns:
        `(num_images,)` int64; -1 where every candidate is minus infinity, the logit of a class that a head lacks.
    """
    if len(scores) == 0:
        return np.zeros(0, dtype=np.int64)
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


def most_frequent_crossings(labels: Int64, predictions: Int64) -> tuple[Crossing, ...]:
    """Return the most frequent (label, prediction) pairs; equally frequent ones in the order of their classes."""
    pairs = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        Crossing(label=label, prediction=prediction, num_images=count)
        for (label, prediction), count in ordered[:MAX_CROSSINGS]
    )


def original_class_accuracy(original_logits: ArrayLike | None, columns: Int64, seen_mask: Bool) -> Float64 | None:
    """Return the original model's accuracy on each class, NaN where it is unseen or without images.

    Args:
        original_logits: `(num_images, num_seen_classes)`, or None.
        columns: `(num_images,)`, labels as columns of the expanded classifier.
        seen_mask: `(num_classes,)`.

    Returns:
        `(num_classes,)`, or None where there are no original logits.
    """
    if original_logits is None:
        return None
    scores = checked_logits(original_logits, name="original logits")
    expected = (len(columns), int(seen_mask.sum()))
    if scores.shape != expected:
        raise IncompatibleError(
            f"The original logits have shape {scores.shape}; expected {expected}: the same images, and one column for "
            f"each seen class.",
            found=scores.shape,
            expected=expected,
        )
    of_seen = seen_mask[columns]
    predictions = np.flatnonzero(seen_mask)[winners(scores[of_seen], np.arange(expected[1]))]
    return mean_by_class(predictions == columns[of_seen], columns[of_seen], num_classes=len(seen_mask))


def checked_logits(logits: ArrayLike, *, name: str) -> Logits:
    """Return logits as a matrix; raise `IncompatibleError` if they are none, or hold a NaN (`argmax` would pick it)."""
    scores = np.asarray(logits)
    if scores.ndim != 2 or scores.dtype.kind != "f":
        raise IncompatibleError(
            f"The {name} have shape {scores.shape} and dtype {scores.dtype}; expected floating point of shape "
            f"(num_images, num_classes).",
            found=(scores.shape, str(scores.dtype)),
            expected="floating point of shape (num_images, num_classes)",
        )
    unordered = np.isnan(scores).any(axis=1)
    if unordered.any():
        raise IncompatibleError(
            f"The {name} of {int(unordered.sum())} images hold NaN (first: image {int(unordered.argmax())}). The "
            f"model is broken in this precision, or the image is; no accuracy can be stated.",
            found=int(unordered.sum()),
            expected=0,
        )
    return scores


def checked_labels(labels: ArrayLike, *, num_images: int, num_classes: int) -> Int64:
    """Return labels as int64; raise `IncompatibleError` if they do not fit the logits."""
    columns = np.asarray(labels)
    if columns.shape != (num_images,) or (columns.size and columns.dtype.kind not in "iu"):
        raise IncompatibleError(
            f"The labels have shape {columns.shape} and dtype {columns.dtype}; expected integers of shape "
            f"({num_images},): one for each row of the logits.",
            found=(columns.shape, str(columns.dtype)),
            expected=f"integers of shape ({num_images},)",
        )
    outside = (columns < 0) | (columns >= num_classes)
    if outside.any():
        first = int(outside.argmax())
        raise IncompatibleError(
            f"Label {int(columns[first])} of image {first} is not a column of the logits, which have {num_classes}. "
            f"The labels were made for another list of classes.",
            found=int(columns[first]),
            expected=f"0 to {num_classes - 1}",
            where=f"image {int(first)}",
        )
    return columns.astype(np.int64)


def mask_of_seen(seen: int | ArrayLike, *, num_classes: int) -> Bool:
    """Return which columns are seen classes, `(num_classes,)` bool, from a mask or from their number."""
    given = np.asarray(seen)
    if given.ndim == 0 and given.dtype.kind in "iu":
        if not 0 <= given <= num_classes:
            raise IncompatibleError(
                f"There cannot be {int(given)} seen classes: the logits have {num_classes} columns.",
                found=int(given),
                expected=f"at most {num_classes}",
            )
        return np.arange(num_classes) < given
    if given.shape != (num_classes,) or given.dtype.kind != "b":
        raise IncompatibleError(
            f"The mask of seen classes has shape {given.shape} and dtype {given.dtype}; expected bool of shape "
            f"({num_classes},), or the number of seen classes where they come first.",
            found=(given.shape, str(given.dtype)),
            expected=f"bool of shape ({num_classes},)",
        )
    return given


def none_for_nan(values: Float64) -> tuple[float | None, ...]:
    """Return floats with None instead of NaN."""
    return tuple(None if np.isnan(value) else float(value) for value in values)
