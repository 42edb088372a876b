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
8. Top-5 figures count an image as right where its class is among the five greatest logits; None where there are no more
   than five classes to choose among.
9. Intervals are of classes (`class_intervals`), the interval of the seen loss is of images (`seen_loss`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from icis_deploy.common.arrays import Bool, Int64
from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.averages import Logits, harmonic_mean, macro, mean_by_class, none_for_nan
from icis_deploy.metrics.class_intervals import class_intervals
from icis_deploy.metrics.outcomes import OutcomeHead, Outcomes, Skipped, leads_in, measure_outcomes
from icis_deploy.metrics.proportions import Interval
from icis_deploy.metrics.seen_loss import SeenLoss, seen_loss_of
from icis_deploy.metrics.trade_off import (
    BUDGETS,
    TOP,
    BudgetPoint,
    TradeOffPoint,
    ausuc,
    budget_point,
    curve_of,
    leads_from,
)

MAX_CROSSINGS = 20
"""As many pairs of confused classes as a report lists."""


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

    top5: Mapping[str, float | None] = field(default_factory=dict)
    """Top-5 accuracies by the names of the five figures, fractions of 1; None as there, and where no more than five
    classes compete."""

    AUSUC: float | None = None
    """Area under the curve of S against U, fraction of 1; None unless both have images."""

    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals of the five figures and of AUSUC, by name; of those that are over at least eight classes."""

    seen_loss: SeenLoss | None = None
    """What the new classes cost those that the original model knows, which of them lose, and to whom; None where no
    image is of one."""

    budget_points: tuple[BudgetPoint, ...] = ()
    """The greatest U for a loss of seen accuracy of 1, 2, 5 and 10 points; empty unless both have images."""

    curve: tuple[TradeOffPoint, ...] = ()
    """S against U as new logits are shifted, at most 200 points, from where seen classes always win; empty unless both
    have images."""

    class_names: tuple[str, ...] = ()
    """`(num_classes,)`, in the order of the columns; their numbers where names were not given."""

    class_num_images: tuple[int, ...] = ()
    """`(num_classes,)`: images of each class."""

    class_is_seen: tuple[bool, ...] = ()
    """`(num_classes,)`: which are seen classes."""

    class_mistake: tuple[int | None, ...] = ()
    """`(num_classes,)`: column of the most frequent wrong answer for images of each class; None where there is none."""

    skipped: tuple[Skipped, ...] = ()
    """Images that could not be read, and were left out of every figure."""

    reduced_decode: bool = False
    """Whether JPEG files were decoded at a part of their size, which a device does not do."""

    def __post_init__(self) -> None:
        for name in ("T", "U", "S", "H", "S_original", "AUSUC"):
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
            "top5": dict(self.top5),
            "AUSUC": self.AUSUC,
            "intervals": {name: interval.to_json() for name, interval in self.intervals.items()},
            "seen_loss": None if self.seen_loss is None else self.seen_loss.to_json(),
            "budget_points": [point.to_json() for point in self.budget_points],
            "curve": [point.to_json() for point in self.curve],
            "class_names": list(self.class_names),
            "class_num_images": list(self.class_num_images),
            "class_is_seen": list(self.class_is_seen),
            "class_mistake": list(self.class_mistake),
            "skipped": [{"key": each.key, "reason": each.reason} for each in self.skipped],
            "reduced_decode": self.reduced_decode,
        }


def accuracy_report(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    seen: int | ArrayLike,
    original_logits: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    max_seen_loss: float | None = None,
) -> AccuracyReport:
    """Score logits over all classes against labels; of equal logits the first wins.

    Args:
        logits: `(num_images, num_classes)`, of the classifier with the injected classes.
        labels: `(num_images,)` integer, column of the class that each image is of.
        seen: Which columns are seen classes: `(num_classes,)` bool, or their number where they come first.
        original_logits: `(num_images, num_seen_classes)`, of the original model, in the order of the seen columns;
            minus infinity in those that it does not have.
        class_names: `(num_classes,)`; by default the numbers of the columns.
        max_seen_loss: Budget for `seen_loss`, fraction of 1.

    Raises:
        IncompatibleError: If shapes disagree, a label is not a column, or a logit is NaN.
    """
    scores = checked_logits(logits, name="logits")
    num_images, num_classes = scores.shape
    columns = checked_labels(labels, num_images=num_images, num_classes=num_classes)
    seen_mask = mask_of_seen(seen, num_classes=num_classes)
    original = original_scores(original_logits, num_images=num_images, seen_mask=seen_mask)
    head = OutcomeHead(
        class_names=tuple(map(str, range(num_classes))) if class_names is None else tuple(class_names),
        is_seen=seen_mask,
        is_original=original_mask(original, seen_mask),
        has_original=original is not None,
    )
    keys = tuple(map(str, range(num_images)))
    return accuracy_of(
        measure_outcomes(scores, columns, head, keys=keys, original_scores=original), max_seen_loss=max_seen_loss
    )


def accuracy_of(outcomes: Outcomes, *, max_seen_loss: float | None = None) -> AccuracyReport:
    """Return the accuracy that outcomes amount to: a function of them in their order, which `merge` makes canonical.

    Args:
        outcomes: Of all images.
        max_seen_loss: Budget for `seen_loss`, fraction of 1.
    """
    head, columns, predictions = outcomes.head, outcomes.column("label"), outcomes.column("answer")
    seen_mask, num_classes = head.is_seen, len(head.class_names)
    of_seen = seen_mask[columns]
    crossed = of_seen != seen_mask[predictions]
    class_accuracy = mean_by_class(predictions == columns, columns, num_classes=num_classes)
    among_unseen = (outcomes.column("answer_among_unseen") == columns)[~of_seen]
    class_t = mean_by_class(among_unseen, columns[~of_seen], num_classes=num_classes)
    original_accuracy = None
    if head.has_original:
        was_right = (outcomes.column("original_answer") == columns)[of_seen]
        original_accuracy = mean_by_class(was_right, columns[of_seen], num_classes=num_classes)
    unseen_accuracy, seen_accuracy = macro(class_accuracy[~seen_mask]), macro(class_accuracy[seen_mask])
    leads = leads_from(*leads_in(outcomes), columns, seen_mask)
    before = None if original_accuracy is None else macro(original_accuracy)
    points = [] if leads is None else [budget_point(leads, max_seen_loss=each, before=before) for each in BUDGETS]
    by_class = {
        "T": class_t,
        "U": np.where(seen_mask, np.nan, class_accuracy),
        "S": np.where(seen_mask, class_accuracy, np.nan),
        **({} if original_accuracy is None else {"S_original": original_accuracy}),
    }
    return AccuracyReport(
        T=macro(class_t),
        U=unseen_accuracy,
        S=seen_accuracy,
        H=harmonic_mean(unseen_accuracy, seen_accuracy),
        S_original=before,
        num_images=len(outcomes),
        num_seen_images=int(of_seen.sum()),
        num_classes=num_classes,
        num_seen_classes=int(seen_mask.sum()),
        num_seen_taken_for_unseen=int((crossed & of_seen).sum()),
        num_unseen_taken_for_seen=int((crossed & ~of_seen).sum()),
        crossings=most_frequent_crossings(columns[crossed], predictions[crossed]),
        class_accuracy=none_for_nan(class_accuracy),
        class_change=None if original_accuracy is None else none_for_nan(class_accuracy - original_accuracy),
        top5=top5_accuracies(outcomes),
        AUSUC=None if leads is None else ausuc(leads),
        intervals=class_intervals(by_class, seen_mask, leads=leads),
        seen_loss=seen_loss_of(
            columns,
            outcomes.column("answer_among_original"),
            predictions,
            is_original=head.is_original,
            class_names=head.class_names,
            max_seen_loss=max_seen_loss,
        ),
        budget_points=tuple(point for point in points if point is not None),
        curve=() if leads is None else curve_of(leads),
        class_names=head.class_names,
        class_num_images=tuple(np.bincount(columns, minlength=num_classes).tolist()),
        class_is_seen=tuple(seen_mask.tolist()),
        class_mistake=most_frequent_mistakes(columns, predictions, num_classes=num_classes),
    )


def original_scores(original_logits: ArrayLike | None, *, num_images: int, seen_mask: Bool) -> Logits | None:
    """Return the original model's logits in the columns of the expanded head, minus infinity elsewhere.

    Args:
        original_logits: `(num_images, num_seen_classes)`, or None.
        num_images: As many as there are labels.
        seen_mask: `(num_classes,)`.

    Returns:
        `(num_images, num_classes)`, or None where there are no original logits.

    Raises:
        IncompatibleError: If they have another shape, or hold a NaN.
    """
    if original_logits is None:
        return None
    scores = checked_logits(original_logits, name="original logits")
    expected = (num_images, int(seen_mask.sum()))
    if scores.shape != expected:
        raise IncompatibleError(
            f"The original logits have shape {scores.shape}; expected {expected}: the same images, and one column for "
            f"each seen class.",
            found=scores.shape,
            expected=expected,
        )
    if expected[1] == len(seen_mask):
        return scores
    placed: Logits = np.full((num_images, len(seen_mask)), -np.inf, dtype=scores.dtype)
    placed[:, seen_mask] = scores
    return placed


def original_mask(original: Logits | None, seen_mask: Bool) -> Bool:
    """Return which classes the original model has, `(num_classes,)`: all seen ones, unless its logits say otherwise."""
    if original is None or not np.size(original):
        return seen_mask
    return np.asarray(seen_mask & ~np.isneginf(original).all(axis=0))


def top5_accuracies(outcomes: Outcomes) -> dict[str, float | None]:
    """Return the top-5 accuracies by the names of the five figures."""
    head, columns = outcomes.head, outcomes.column("label")
    of_seen = head.is_seen[columns]
    num_classes, num_seen = len(head.class_names), int(head.is_seen.sum())

    def figure(kind: str, images: Bool, num_candidates: int) -> float | None:
        if num_candidates <= TOP or not images.any():
            return None
        is_right = outcomes.in_top5_of(kind)[images]
        return macro(mean_by_class(is_right, columns[images], num_classes=num_classes))

    found = {
        "T": figure("unseen", ~of_seen, num_classes - num_seen),
        "U": figure("all", ~of_seen, num_classes),
        "S": figure("all", of_seen, num_classes),
    }
    found["H"] = harmonic_mean(found["U"], found["S"])
    found["S_original"] = figure("original", of_seen, num_seen) if head.has_original else None
    return found


def most_frequent_mistakes(columns: Int64, predictions: Int64, *, num_classes: int) -> tuple[int | None, ...]:
    """Return the most frequent wrong answer for images of each class, `(num_classes,)`; of equal ones the first."""
    is_wrong = (predictions != columns) & (predictions >= 0)
    labels, wrong, _ = _frequent_pairs(columns[is_wrong], predictions[is_wrong])
    found, first = np.unique(labels, return_index=True)
    mistakes = dict(zip(found.tolist(), wrong[first].tolist(), strict=True))
    return tuple(mistakes.get(each) for each in range(num_classes))


def most_frequent_crossings(labels: Int64, predictions: Int64) -> tuple[Crossing, ...]:
    """Return the most frequent (label, prediction) pairs; equally frequent ones in the order of their classes."""
    pairs = (each[:MAX_CROSSINGS].tolist() for each in _frequent_pairs(labels, predictions))
    return tuple(
        Crossing(label=label, prediction=prediction, num_images=count)
        for label, prediction, count in zip(*pairs, strict=True)
    )


def _frequent_pairs(labels: Int64, predictions: Int64) -> tuple[Int64, Int64, Int64]:
    """Return the different pairs with their counts, `(num_pairs,)` each, the most frequent first, then by class.

    As numbers, not as tuples: a thousand classes have a million pairs, and a tuple of two takes a hundred bytes.
    """
    width = int(predictions.max(initial=0)) + 2  # -1 is no class
    codes, counts = np.unique(labels.astype(np.int64) * width + (predictions + 1), return_counts=True)
    order = np.lexsort((codes, -counts))
    return codes[order] // width, codes[order] % width - 1, counts[order]


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
