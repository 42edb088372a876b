"""An estimate of an injection before it ships: how accurate it will be, the confidence in each class, what collides.

With images of seen classes the numbers are those of held-out classes with their real images. Without an image they come
from class-level cross-validation with pseudo-features (`icis_deploy.injection.estimate.rehearsal`). The owner's model
is not more accurate with new classes than without: S is never more than it has today.
`icis_deploy.injection.estimate.intervals` makes the intervals.
"""

# Why: docs/decisions/0039.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from icis_deploy.common.terminal_text import percent
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.injection.estimate.class_warnings import Collision, class_confidence, find_collisions
from icis_deploy.injection.estimate.intervals import WARNED_ERROR_FACTOR, Range, accuracy_ranges
from icis_deploy.injection.estimate.rehearsal import UNKNOWN_ACCURACY, Rehearsals
from icis_deploy.injection.rows.predictors import RowPredictor
from icis_deploy.injection.validation.evaluation import Candidate, DrawnFeatures, EvaluationSetup
from icis_deploy.injection.validation.operating_point import Rates
from icis_deploy.injection.validation.selection import Selection

FEW_SEEN = 60
"""Seen classes below which the learning curve is too steep to be extrapolated (`scripts/experiments/other_heads.py`):
of heads with 40 classes H came out up to 16 points from what was predicted, of discriminants 36; of those with 80 up to
15 and 23."""

OTHER_LAW_SLOPE = 0.3
"""`FeatureLaw.slope` below which rows do not follow features as those of a network trained with its head do. Such heads
have 0.5 to 1; linear discriminants have 0.1 to 0.3, least squares and a label-smoothed head fitted to given features
less than 0: for these predicted H was off by up to 36 points (`scripts/experiments/other_heads.py`)."""

IMAGES_ERROR_FACTOR = 0.5
"""How far estimates from images of held-out classes are off, in units of the error of those from drawn features: 6 to 8
points of U (root mean square, birds and ImageNet), which is half of `intervals.MODEL_ERROR`. That is of new classes
that the backbone knows, as it does those held out. Lower ends of intervals keep the whole of `MODEL_ERROR`, which was
measured on networks that never saw the new classes."""

KNOWN_TO_BACKBONE = (
    "Predictions are of classes that the backbone knows. Of classes that the whole network never saw, U was up to 22 "
    "points lower than predicted."
)
"""What no estimate of ours sees: held-out classes were left out of the head, and the backbone was trained on them."""

MISSED_ACCURACY = 0.08
"""How far pseudo-features may be from the head's accuracy, fraction of 1. They are within 0.07 of it or off by 0.19 and
more: without neutral features, those of most discriminants (`scripts/experiments/other_heads.py --no-backbone`)."""

NO_NEUTRAL_FEATURES = (
    "The backbone was not run on neutral images: the scale of features is guessed from the head's confidence. "
    "Injected classes may win too often or too rarely, and the estimate may be off by 30 points: measure on images."
)

MAX_LISTED = 1000
"""Classes whose confidence is kept in an update: devices store it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What cross-validation predicts of an injection.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        print(injection.estimate.H.value, injection.estimate.warnings)
    """

    T: Range
    """Accuracy on unseen classes, choosing among unseen classes only."""

    U: Range
    """Accuracy on unseen classes, choosing among all."""

    S: Range
    """Accuracy on seen classes, choosing among all."""

    H: Range
    """Harmonic mean of U and S."""

    chance: float
    """T of guessing in the cross-validation, 0..1."""

    class_names: tuple[str, ...]
    """`(num_unseen,)`, of the injected classes."""

    confidence: tuple[float, ...]
    """`(num_unseen,)`: predicted part of each class's images that are recognised among all classes, 0..1."""

    collisions: tuple[Collision, ...]
    """The closest pairs of classes, closest first."""

    warnings: tuple[str, ...]
    """Reasons not to rely on the injection as a whole, empty where there are none."""

    is_trustworthy: bool
    """Whether cross-validated T is significantly better than chance."""

    limit: str = KNOWN_TO_BACKBONE
    """What the numbers do not say, in words."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: collisions also in words, and the `MAX_LISTED` least confident classes."""
        plain = asdict(self)
        del plain["class_names"]
        least = sorted(zip(self.confidence, self.class_names, strict=True))[:MAX_LISTED]
        plain["confidence"] = {name: round(value, 4) for value, name in least}
        plain["collisions"] = [{**asdict(one), "message": str(one)} for one in self.collisions]
        plain["warnings"] = list(self.warnings)
        return plain


def estimate_without_images(
    selection: Selection,
    rehearsals: Rehearsals,
    predictor: RowPredictor,
    unseen: Descriptors,
    *,
    seen_names: Sequence[str],
) -> Estimate:
    """Estimate the accuracy of an injection and of each of its classes from drawn features.

    Args:
        selection: What methods were evaluated on, and the one that predicts the rows, at its operating point.
        rehearsals: Of that method.
        predictor: That method, trained on all seen classes.
        unseen: The injected classes' descriptors.
        seen_names: `(num_seen,)`.
    """
    point, assumed = selection.chosen.point, selection.setup.assumptions
    expected = rehearsals.expected(point)
    today = assumed.seen_accuracy
    impossible = _impossible_features(selection.setup)
    warnings = (*_size_warnings(len(seen_names), unseen.num_classes), *_law_warnings(selection.setup), *impossible)
    return _estimate(
        selection,
        predictor,
        unseen,
        seen_names,
        expected=replace(expected, S=min(expected.S, today)),
        others=[one.rates(point) for one in rehearsals.all],
        error_factor=(factor := math.inf if impossible else WARNED_ERROR_FACTOR if warnings else 1.0),
        error_factor_below=factor,
        warnings=warnings,
        greatest_S=today if assumed.is_accuracy_known else 1.0,
    )


def estimate_from_images(
    selection: Selection,
    expected: Rates,
    predictor: RowPredictor,
    unseen: Descriptors,
    *,
    seen_names: Sequence[str],
    accuracy: float,
) -> Estimate:
    """Estimate the accuracy of an injection and of each of its classes from images of held-out classes.

    Args:
        selection: As for `estimate_without_images`, evaluated on images.
        expected: Accuracies of held-out classes with their images.
        predictor: As for `estimate_without_images`.
        unseen: The injected classes' descriptors.
        seen_names: `(num_seen,)`.
        accuracy: Of the head on the images, fraction of 1; S is never more.
    """
    return _estimate(
        selection,
        predictor,
        unseen,
        seen_names,
        expected=replace(expected, S=min(expected.S, accuracy)),
        others=[],
        error_factor=IMAGES_ERROR_FACTOR,
        error_factor_below=1.0,
        warnings=tuple(_size_warnings(len(seen_names), unseen.num_classes)),
        greatest_S=1.0,
    )


def _estimate(
    selection: Selection,
    predictor: RowPredictor,
    unseen: Descriptors,
    seen_names: Sequence[str],
    *,
    expected: Rates,
    others: Sequence[Rates],
    error_factor: float,
    error_factor_below: float,
    warnings: tuple[str, ...],
    greatest_S: float,  # noqa: N803
) -> Estimate:
    candidate, setup = selection.chosen, selection.setup
    chance, is_trustworthy = candidate.outcomes.chance, _beats_chance(candidate)
    ranges = accuracy_ranges(
        expected,
        others,
        num_unseen=unseen.num_classes,
        num_seen=len(seen_names),
        num_held_out=len(np.unique(candidate.outcomes.unseen_class)),
        error_factor=error_factor,
        error_factor_below=error_factor_below,
    )
    ranges["S"] = replace(ranges["S"], high=max(ranges["S"].value, min(ranges["S"].high, greatest_S)))
    return Estimate(
        T=ranges["T"],
        U=ranges["U"],
        S=ranges["S"],
        H=ranges["H"],
        chance=chance,
        class_names=unseen.class_names,
        confidence=class_confidence(candidate, setup, predictor, unseen.values),
        collisions=find_collisions(setup.descriptors, unseen.values, seen_names, unseen.class_names),
        warnings=(*([] if is_trustworthy else [_no_help(expected, chance)]), *warnings),
        is_trustworthy=is_trustworthy,
    )


def _beats_chance(candidate: Candidate) -> bool:
    """Say whether hits of held-out classes exceed chance, with a probability of error under one in a thousand.

    A class is one observation: its features are alike. A single unseen class has nothing to be confused with.
    """
    outcomes = candidate.outcomes
    if outcomes.chance >= 1.0:
        return True
    from scipy.special import bdtrc

    classes, index = np.unique(outcomes.unseen_class, return_inverse=True)
    hits = np.bincount(index, weights=outcomes.is_hit) / np.bincount(index)
    # The chance of more than one hit less, so of at least as many; scipy.stats has it too, and takes 0.4 s to import.
    as_many = bdtrc(np.floor(hits.sum()) - 1.0, len(classes), outcomes.chance)
    return bool(as_many < 1e-3)


def _no_help(rates: Rates, chance: float) -> str:
    return (
        f"The descriptors say nothing that helps: rows of held-out seen classes are told apart {percent(rates.T)} of "
        f"the time, and guessing gives {percent(chance)}. Check that descriptors and classes belong together."
    )


def _size_warnings(num_seen: int, num_unseen: int) -> list[str]:
    """Return warnings where there are too few seen classes to predict from."""
    warnings = []
    if num_seen < FEW_SEEN:
        warnings.append(
            f"There are {num_seen} seen classes to learn from; with fewer than {FEW_SEEN}, this estimate is rough and "
            f"predicted rows are poor."
        )
    if 2 * num_unseen > num_seen:
        warnings.append(
            f"{num_unseen} classes are injected into a head of {num_seen}: cross-validation cannot hold out so large a "
            f"part of it, and the estimate is rough."
        )
    return warnings


def _law_warnings(setup: EvaluationSetup) -> list[str]:
    """Return warnings where pseudo-features may not follow rows as the head's features do."""
    assert isinstance(setup.sample, DrawnFeatures), "only drawn features have a law"
    warnings, slope = [], setup.sample.source.law.slope
    if setup.assumptions.neutral_features is None:
        warnings.append(NO_NEUTRAL_FEATURES)
    if slope is not None and slope < OTHER_LAW_SLOPE:
        warnings.append(
            f"The rows of this head do not follow its features as those of a network trained with its head do: where "
            f"rows differ most, features of neutral images do not (slope {slope:.2f}, expected {OTHER_LAW_SLOPE} or "
            f"more). Such are linear discriminants and least squares. The estimate may be off by 30 points: measure on "
            f"images."
        )
    return warnings


def _impossible_features(setup: EvaluationSetup) -> list[str]:
    """Return a warning where pseudo-features cannot be what the head's features are."""
    assumed, found = setup.assumptions, setup.features.accuracy
    wanted, is_known = assumed.seen_accuracy, assumed.is_accuracy_known
    if found >= wanted - MISSED_ACCURACY - (0.0 if is_known else UNKNOWN_ACCURACY):
        return []
    return [
        f"No features that are drawn for this head make it as accurate as it is: {percent(found)} of them are "
        f"recognised, and {percent(wanted)} of images {'are' if is_known else 'are assumed to be'}. "
        f"Its features are of another kind, and the estimate says nothing: measure on images."
    ]
