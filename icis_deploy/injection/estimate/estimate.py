"""An estimate of an injection before it ships: how accurate it will be, the confidence in each class, what collides.

Nothing here has seen an image. The numbers come from class-level cross-validation with pseudo-features, extrapolated to
all seen classes by the learning curve. Two theories say how long class means of features are, and two readings of one
measurement how much images differ; the prediction lies between them. `icis_deploy.injection.estimate.intervals` makes
the intervals.
"""

# Why: docs/decisions/0039.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.injection.estimate.class_warnings import Collision, class_confidence, find_collisions
from icis_deploy.injection.estimate.intervals import WARNED_ERROR_FACTOR, Range, accuracy_ranges
from icis_deploy.injection.pseudo_features.draws import PseudoFeatures, draw
from icis_deploy.injection.pseudo_features.mixtures import CONCENTRATIONS
from icis_deploy.injection.rows.predictors import RowPredictor
from icis_deploy.injection.validation.cross_validation import (
    HeldOutRows,
    evaluate_folds,
    hold_out,
    with_less_training,
)
from icis_deploy.injection.validation.evaluation import (
    NUM_PSEUDO_FEATURES,
    Candidate,
    EvaluationSetup,
    at_competing_length,
)
from icis_deploy.injection.validation.operating_point import Rates, predicted_rates
from icis_deploy.injection.validation.selection import Selection

FEW_SEEN = 60
"""Seen classes below which the learning curve is too steep to be extrapolated (`scripts/experiments/other_heads.py`):
of heads with 40 classes H came out up to 16 points from what was predicted, of discriminants 36; of those with 80 up to
15 and 23."""

OTHER_LAW_SLOPE = 0.3
"""`FeatureLaw.slope` below which rows do not follow features as those of a network trained with its head do. Such heads
have 0.5 to 1; linear discriminants have 0.1 to 0.3, least squares and a label-smoothed head fitted to given features
less than 0: for these predicted H was off by up to 36 points (`scripts/experiments/other_heads.py`)."""

MISSED_ACCURACY = 0.08
"""How far pseudo-features may be from the head's accuracy, fraction of 1. They are within 0.07 of it or off by 0.19 and
more: without neutral features, those of most discriminants (`scripts/experiments/other_heads.py --no-backbone`)."""

NO_NEUTRAL_FEATURES = (
    "The backbone was not run on neutral images: the scale of features is guessed from the head's confidence. "
    "Injected classes may win too often or too rarely, and the estimate may be off by 30 points: measure on images."
)

SHARES = (0.5, 0.9)
"""Neighbour shares between which the estimate's interval is taken."""

NUM_LIKELY = 2
"""Kinds of pseudo-features that the prediction is the mean of."""

UNKNOWN_ACCURACY = 0.1
"""How far the classifier's accuracy may be from the one assumed, where its owner did not say."""

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

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: collisions also in words, and the `MAX_LISTED` least confident classes."""
        plain = asdict(self)
        del plain["class_names"]
        least = sorted(zip(self.confidence, self.class_names, strict=True))[:MAX_LISTED]
        plain["confidence"] = {name: round(value, 4) for value, name in least}
        plain["collisions"] = [{**asdict(one), "message": str(one)} for one in self.collisions]
        plain["warnings"] = list(self.warnings)
        return plain


def estimate_injection(
    selection: Selection,
    predictor: RowPredictor,
    unseen: Descriptors,
    *,
    seen_names: Sequence[str],
) -> Estimate:
    """Estimate the accuracy of an injection and of each of its classes.

    Args:
        selection: What methods were evaluated on, and the one that predicts the rows.
        predictor: That method, trained on all seen classes.
        unseen: The injected classes' descriptors.
        seen_names: `(num_seen,)`.
    """
    candidate, setup = selection.chosen, selection.setup
    curve = learning_curve(candidate, setup)
    others = [curve.rates(setup, pseudo) for pseudo in _pseudo_features(setup)]
    likely = others[:NUM_LIKELY]
    expected = Rates(**{name: float(np.mean([getattr(one, name) for one in likely])) for name in ("T", "U", "S")})
    chance = candidate.outcomes.chance
    is_trustworthy = _beats_chance(candidate)
    impossible = _impossible_features(setup)
    warnings = (*_size_warnings(len(seen_names), unseen.num_classes), *_law_warnings(setup), *impossible)
    return Estimate(
        **accuracy_ranges(
            expected,
            others,
            num_unseen=unseen.num_classes,
            num_seen=len(seen_names),
            num_held_out=sum(len(part.fold.held_out) for part in candidate.held_out),
            error_factor=math.inf if impossible else WARNED_ERROR_FACTOR if warnings else 1.0,
        ),
        chance=chance,
        class_names=unseen.class_names,
        confidence=class_confidence(candidate, setup, predictor, unseen.values),
        collisions=find_collisions(setup.descriptors, unseen.values, seen_names, unseen.class_names),
        warnings=(*([] if is_trustworthy else [_no_help(expected, chance)]), *warnings),
        is_trustworthy=is_trustworthy,
    )


def _pseudo_features(setup: EvaluationSetup) -> Iterator[PseudoFeatures]:
    """Yield pseudo-features drawn once more: two likely kinds, then some at the ends of what may be assumed.

    Half of the features will do for those at the ends, which only widen an interval.
    """
    assumed, accuracy = setup.assumptions, setup.assumptions.seen_accuracy
    drawn = draw(setup.source, max_features=NUM_PSEUDO_FEATURES, seed=setup.seed + 1)
    near = {"likely_blend": setup.pseudo.max_blend}
    few = {"concentration": CONCENTRATIONS[0], "part": 0.5, **near}
    yield drawn.features(seen_accuracy=accuracy, concentration=CONCENTRATIONS[0], **near)
    yield drawn.with_lengths().features(seen_accuracy=accuracy, concentration=CONCENTRATIONS[1], **near)
    yield drawn.features(seen_accuracy=accuracy, concentration=None, part=0.5, **near)
    for share in SHARES:
        yield drawn.features(seen_accuracy=accuracy, neighbour_share=share, **few)
    if not assumed.is_accuracy_known:
        yield drawn.features(seen_accuracy=max(0.05, accuracy - UNKNOWN_ACCURACY), **few)
        yield drawn.features(seen_accuracy=min(0.99, accuracy + UNKNOWN_ACCURACY), **few)


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
        f"The descriptors say nothing that helps: rows of held-out seen classes are told apart {rates.T:.1%} of "
        f"the time, and guessing gives {chance:.1%}. Check that descriptors and classes belong together."
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
    warnings, slope = [], setup.source.law.slope
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
    assumed, found = setup.assumptions, setup.pseudo.accuracy
    wanted, is_known = assumed.seen_accuracy, assumed.is_accuracy_known
    if found >= wanted - MISSED_ACCURACY - (0.0 if is_known else UNKNOWN_ACCURACY):
        return []
    return [
        f"No features that are drawn for this head make it as accurate as it is: {found:.1%} of them are "
        f"recognised, and {wanted:.1%} of images {'are' if is_known else 'are assumed to be'}. "
        f"Its features are of another kind, and the estimate says nothing: measure on images."
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCurve:
    """Held-out rows of a candidate, predicted from fewer classes than in its cross-validation."""

    candidate: Candidate
    """The candidate, with the predictions of its cross-validation."""

    thinned: tuple[HeldOutRows, ...]
    """The same folds, predicted from fewer training classes."""

    step: float
    """From cross-validation to all seen classes, in units of the step from less training to cross-validation; 0..1."""

    def rates(self, setup: EvaluationSetup, pseudo: PseudoFeatures) -> Rates:
        """Return the accuracies to expect when all seen classes are learnt from.

        Args:
            setup: What the candidate was evaluated on.
            pseudo: Features to evaluate with, the setup's or others.
        """
        point = self.candidate.point
        now, less = (
            predicted_rates(evaluate_folds(rows, setup.rows, pseudo, seed=setup.seed), point)
            for rows in (self.candidate.held_out, self.thinned)
        )
        return Rates(
            T=self._extrapolated(less.T, now.T),
            U=self._extrapolated(less.U, now.U),
            S=self._extrapolated(less.S, now.S),
        )

    def _extrapolated(self, less: float, now: float) -> float:
        return min(max(now + self.step * (now - less), 0.0), 1.0)


def learning_curve(candidate: Candidate, setup: EvaluationSetup) -> LearningCurve:
    """Predict a candidate's held-out rows once more, from fewer classes.

    Rows are predicted better the more classes they are learnt from, so that cross-validation, which hides a part of the
    seen classes, is too pessimistic about an injection that learns from all of them. How fast rows get better is seen
    by hiding more: the same held-out classes are predicted from fewer training classes. Accuracies are then
    extrapolated linearly in the logarithm of the number of training classes, over a step that is never longer than the
    one observed.

    Args:
        candidate: A method that was cross-validated.
        setup: What it was evaluated on.
    """
    folds = tuple(part.fold for part in candidate.held_out)
    fewer = with_less_training(folds, seed=setup.seed)
    raw = hold_out(candidate.prepared.predict, setup.descriptors, setup.rows, setup.unseen_descriptors, fewer)
    sizes = [sum(len(fold.training) for fold in group) / len(group) for group in (fewer, folds)]
    step = math.log(len(setup.rows) / sizes[1]) / max(math.log(sizes[1] / sizes[0]), 1e-9)
    return LearningCurve(
        candidate=candidate, thinned=at_competing_length(raw, setup, candidate.exponent), step=min(step, 1.0)
    )
