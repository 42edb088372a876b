"""Rehearse an injection that nobody has images for: what its rows do to features of every kind that may be assumed.

Rows of held-out classes are evaluated on pseudo-features, and extrapolated to all seen classes by the learning curve.
Two theories say how long class means of features are, and two readings of one measurement how much images differ; the
prediction lies between them. A budget of seen accuracy is kept on *cautious* features, which are about equally clear:
on others it would be spent two to three times (birds and ImageNet; `scripts/experiments/seen_budget.py`).
"""

# Why: docs/decisions/0039.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from icis_deploy.injection.pseudo_features.draws import Draws, PseudoFeatures, draw
from icis_deploy.injection.pseudo_features.mixtures import CONCENTRATIONS
from icis_deploy.injection.rows.class_features import ClassFeatures
from icis_deploy.injection.validation.cross_validation import (
    HeldOutRows,
    Outcomes,
    evaluate_folds,
    hold_out,
    learning_step,
    with_less_training,
)
from icis_deploy.injection.validation.evaluation import (
    NUM_PSEUDO_FEATURES,
    Candidate,
    DrawnFeatures,
    EvaluationSetup,
    at_competing_length,
)
from icis_deploy.injection.validation.operating_point import (
    CURVE,
    CurvePoint,
    OperatingPoint,
    Rates,
    choose_within_budget,
    choose_within_budgets,
    predicted_rates,
    top5_rate,
)

SHARES = (0.5, 0.9)
"""Neighbour shares between which the estimate's interval is taken."""

NUM_LIKELY = 2
"""Kinds of pseudo-features that the prediction is the mean of."""

CAUTIOUS_CONCENTRATION = 20.0
"""How alike images are in the share of class, for a budget that is to be kept: of asked 1, 2, 5 and 10 points 1.1, 1.6,
4.0 and 9.3 were lost on images, with `CONCENTRATIONS` two to three times what was asked."""

UNKNOWN_ACCURACY = 0.1
"""How far the classifier's accuracy may be from the one assumed, where its owner did not say."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rehearsal:
    """What held-out rows do to features of one kind, and what they did when predicted from fewer classes."""

    now: Outcomes
    """With the training classes of cross-validation."""

    less: Outcomes
    """With fewer."""

    step: float
    """From cross-validation to all seen classes, in units of the step from less training to cross-validation; 0..1."""

    def rates(self, point: OperatingPoint) -> Rates:
        """Return the accuracies to expect when all seen classes are learnt from."""
        now, less = predicted_rates(self.now, point), predicted_rates(self.less, point)
        return Rates(**{name: self._extrapolated(getattr(less, name), getattr(now, name)) for name in ("T", "U", "S")})

    def top5(self, point: OperatingPoint) -> float:
        """Return U with the right class among the five first, at least U; a learning curve would move it little."""
        return max(top5_rate(self.now, point), self.rates(point).U)

    def _extrapolated(self, less: float, now: float) -> float:
        return min(max(now + self.step * (now - less), 0.0), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rehearsals:
    """One injection on features of every kind."""

    likely: tuple[Rehearsal, ...]
    """On features that the prediction is the mean of; they know the five first classes."""

    others: tuple[Rehearsal, ...]
    """On features at the ends of what may be assumed."""

    cautious: tuple[Outcomes, ...]
    """On features that a budget of seen accuracy is kept on."""

    accuracy: float
    """Of the head today, fraction of 1; S is never predicted to be more."""

    @property
    def all(self) -> tuple[Rehearsal, ...]:
        """All kinds."""
        return (*self.likely, *self.others)

    def expected(self, point: OperatingPoint) -> Rates:
        """Return the prediction at an operating point."""
        rates = [one.rates(point) for one in self.likely]
        return Rates(**{name: float(np.mean([getattr(one, name) for one in rates])) for name in ("T", "U", "S")})

    def within(self, max_seen_loss: float) -> OperatingPoint:
        """Return the operating point with the most U within a budget of seen accuracy, fraction of 1."""
        return choose_within_budget(self.cautious, max_seen_loss=max_seen_loss)

    def safest(self) -> OperatingPoint:
        """Return the operating point with the most U at which no feature of any kind is lost."""
        return choose_within_budget([*(one.now for one in self.all), *self.cautious], max_seen_loss=0.0)

    def curve(self) -> tuple[CurvePoint, ...]:
        """Return what to expect at the losses of `CURVE`."""
        points = []
        for loss, point in zip(CURVE, choose_within_budgets(self.cautious, CURVE), strict=True):
            rates = self.expected(point)
            points.append(
                CurvePoint(
                    loss=loss,
                    T=rates.T,
                    U=rates.U,
                    S=min(rates.S, self.accuracy),
                    U_top5=float(np.mean([one.top5(point) for one in self.likely])),
                )
            )
        return tuple(points)


def rehearse(candidate: Candidate, setup: EvaluationSetup) -> Rehearsals:
    """Rehearse an injection on drawn features.

    Args:
        candidate: The method that predicts its rows.
        setup: What it was evaluated on; drawn features.
    """
    assert isinstance(setup.sample, DrawnFeatures), "images make assumptions needless"
    curve = learning_curve(candidate, setup)
    drawn = draw(setup.sample.source, max_features=NUM_PSEUDO_FEATURES, seed=setup.seed + 1)
    kinds = list(_kinds(drawn, setup, setup.sample.pseudo.max_blend))
    cautious = drawn.features(
        seen_accuracy=setup.assumptions.seen_accuracy,
        concentration=CAUTIOUS_CONCENTRATION,
        likely_blend=setup.sample.pseudo.max_blend,
    )
    return Rehearsals(
        likely=tuple(curve.rehearsal(setup, one, with_top5=True) for one in kinds[:NUM_LIKELY]),
        others=tuple(curve.rehearsal(setup, one) for one in kinds[NUM_LIKELY:]),
        cautious=(evaluate_folds(candidate.held_out, setup.rows, cautious, seed=setup.seed),),
        accuracy=setup.assumptions.seen_accuracy,
    )


def rehearse_on_images(candidate: Candidate, setup: EvaluationSetup) -> Rehearsals:
    """Return what cross-validation did to images, without any assumption about features."""
    likely = learning_curve(candidate, setup).rehearsal(setup, setup.features, with_top5=True)
    return Rehearsals(likely=(likely,), others=(), cautious=(likely.now,), accuracy=setup.features.accuracy)


def _kinds(drawn: Draws, setup: EvaluationSetup, max_blend: float) -> Iterator[PseudoFeatures]:
    """Yield pseudo-features of two likely kinds, then some at the ends of what may be assumed.

    Half of the features will do for those at the ends, which only widen an interval.
    """
    assumed, accuracy = setup.assumptions, setup.assumptions.seen_accuracy
    near = {"likely_blend": max_blend}
    few = {"concentration": CONCENTRATIONS[0], "part": 0.5, **near}
    yield drawn.features(seen_accuracy=accuracy, concentration=CONCENTRATIONS[0], **near)
    yield drawn.with_lengths().features(seen_accuracy=accuracy, concentration=CONCENTRATIONS[1], **near)
    yield drawn.features(seen_accuracy=accuracy, concentration=None, part=0.5, **near)
    for share in SHARES:
        yield drawn.features(seen_accuracy=accuracy, neighbour_share=share, **few)
    if not assumed.is_accuracy_known:
        yield drawn.features(seen_accuracy=max(0.05, accuracy - UNKNOWN_ACCURACY), **few)
        yield drawn.features(seen_accuracy=min(0.99, accuracy + UNKNOWN_ACCURACY), **few)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCurve:
    """Held-out rows of a candidate, predicted from fewer classes than in its cross-validation."""

    candidate: Candidate
    """The candidate, with the predictions of its cross-validation."""

    thinned: tuple[HeldOutRows, ...]
    """The same folds, predicted from fewer training classes."""

    step: float
    """From cross-validation to all seen classes, in units of the step from less training to cross-validation; 0..1."""

    def rehearsal(self, setup: EvaluationSetup, sample: ClassFeatures, *, with_top5: bool = False) -> Rehearsal:
        """Return what the rows do to features, predicted from both numbers of classes.

        Args:
            setup: What the candidate was evaluated on.
            sample: Features to evaluate with, the setup's or others.
            with_top5: As for `evaluate_folds`.
        """
        now = evaluate_folds(self.candidate.held_out, setup.rows, sample, seed=setup.seed, with_top5=with_top5)
        less = evaluate_folds(self.thinned, setup.rows, sample, seed=setup.seed)
        return Rehearsal(now=now, less=less, step=self.step)


def learning_curve(candidate: Candidate, setup: EvaluationSetup) -> LearningCurve:
    """Predict a candidate's held-out rows once more, from fewer classes.

    Rows are predicted better the more classes they are learnt from, so that cross-validation, which hides a part of the
    seen classes, is too pessimistic about an injection that learns from all of them. How fast rows get better is seen
    by hiding more: the same held-out classes are predicted from fewer training classes. Accuracies are then
    extrapolated to all seen classes (`learning_step`).

    Args:
        candidate: A method that was cross-validated.
        setup: What it was evaluated on.
    """
    folds = tuple(part.fold for part in candidate.held_out)
    fewer = with_less_training(folds, seed=setup.seed)
    raw = hold_out(candidate.prepared.predict, setup.descriptors, setup.rows, setup.unseen_descriptors, fewer)
    less, now = (sum(len(fold.training) for fold in group) / len(group) for group in (fewer, folds))
    return LearningCurve(
        candidate=candidate,
        thinned=at_competing_length(raw, setup, candidate.exponent),
        step=learning_step(len(setup.rows), now, less),
    )
