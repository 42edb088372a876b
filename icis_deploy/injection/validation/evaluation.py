"""Evaluate a method: class-level cross-validation and calibration, the same way for every method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.injection.predictors.registry import Method, Prepared
from icis_deploy.injection.pseudo_features.draws import PseudoFeatures, draw, find_feature_source
from icis_deploy.injection.pseudo_features.source import FeatureSource
from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.class_features import ClassFeatures
from icis_deploy.injection.rows.predictors import Progress
from icis_deploy.injection.rows.spectrum import (
    RowSpectrum,
    at_length,
    bias_law,
    mean_deviation_length,
    mean_row,
    principal_axes,
    restoring_exponent,
    restoring_gain,
)
from icis_deploy.injection.validation.cross_validation import (
    Fold,
    HeldOutRows,
    Outcomes,
    evaluate_folds,
    hold_out,
    plan_folds,
)
from icis_deploy.injection.validation.operating_point import (
    Aim,
    OperatingPoint,
    Rates,
    predicted_rates,
)

NUM_PSEUDO_FEATURES = 2400
"""Pseudo-features that folds are evaluated with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What is assumed about features that nobody has seen."""

    neutral_features: Float32 | None
    """`(num_neutral, feature_dim)`: features that the backbone gives for neutral images; `None` where it was not
    run."""

    seen_accuracy: float
    """Accuracy of the head on images of its classes, in 0..1, both excluded."""

    is_accuracy_known: bool
    """Whether the classifier's owner said so."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnFeatures:
    """Features that stand in for images that nobody has."""

    source: FeatureSource
    """What they were drawn from."""

    pseudo: PseudoFeatures
    """The features."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationSetup:
    """What all methods are evaluated on."""

    descriptors: Float32
    """`(num_seen, descriptor_dim)`."""

    rows: Float32
    """`(num_seen, feature_dim + 1)`."""

    unseen_descriptors: Float32
    """`(num_unseen, descriptor_dim)`, of the classes that will be injected."""

    assumptions: Assumptions
    """About features that nobody has seen; pseudo-features are drawn with them."""

    sample: ClassFeatures | DrawnFeatures
    """Features of seen classes: of the owner's images, or drawn."""

    spectrum: RowSpectrum
    """Principal axes of the seen rows and the variance along them."""

    bias_law: Float32 | None
    """`(feature_dim,)`: what weights' deviations are multiplied by to give the bias's; `None` where biases do not
    follow from weights (`icis_deploy.injection.rows.spectrum`)."""

    aim: Aim
    """What calibration maximises."""

    seed: int
    """Seed of everything drawn at random."""

    @property
    def features(self) -> ClassFeatures:
        """Features of seen classes that folds are evaluated with."""
        return self.sample.pseudo if isinstance(self.sample, DrawnFeatures) else self.sample

    def calibration(self, exponent: float, point: OperatingPoint) -> DeviationCalibration:
        """Return what brings raw rows to an operating point.

        Args:
            exponent: For `spectrum.restoring_gain`.
            point: Scale and offset.
        """
        of_length = self.rows if self.bias_law is None else self.rows[:, :-1]
        return DeviationCalibration(
            mean_row=mean_row(self.rows),
            axes=self.spectrum.axes,
            axis_gain=restoring_gain(self.spectrum, exponent),
            length=point.scale * mean_deviation_length(of_length),
            offset=point.offset,
            bias_law=self.bias_law,
        )

    def folds(self, *, max_folds: int | None = None) -> tuple[Fold, ...]:
        """Return the folds to evaluate, the same ones for every method; `max_folds` of them at most."""
        return plan_folds(len(self.rows), len(self.unseen_descriptors), seed=self.seed, max_folds=max_folds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A method that was cross-validated and calibrated."""

    method: Method
    """The method, by which it is named."""

    prepared: Prepared
    """The method with its choices made."""

    exponent: float
    """For `spectrum.restoring_gain`, 0 to 1/4."""

    held_out: tuple[HeldOutRows, ...]
    """Predictions of held-out rows, their spread restored, at the seen rows' mean deviation length."""

    outcomes: Outcomes
    """Of all evaluations in cross-validation."""

    point: OperatingPoint
    """The best scale and offset for the setup's aim."""

    rates: Rates
    """Accuracies that cross-validation predicts at this point, fractions of 1."""

    cosine: float
    """Mean cosine between predicted and true deviations of held-out rows, -1..1."""

    seconds: float
    """Time that choices, cross-validation and calibration took."""

    def calibration(self, setup: EvaluationSetup) -> DeviationCalibration:
        """Return what brings this method's raw rows to its operating point."""
        return setup.calibration(self.exponent, self.point)


def set_up_evaluation(
    descriptors: Float32,
    rows: Float32,
    unseen_descriptors: Float32,
    *,
    assumptions: Assumptions,
    aim: Aim,
    seed: int,
    images: ClassFeatures | None = None,
) -> EvaluationSetup:
    """Return what methods are evaluated on for a head: features of its classes, and its spectrum.

    Args:
        descriptors: `(num_seen, descriptor_dim)`.
        rows: `(num_seen, feature_dim + 1)`, at least `cross_validation.MIN_SEEN`.
        unseen_descriptors: `(num_unseen, descriptor_dim)`, of the classes that will be injected.
        assumptions: About features that nobody has seen.
        aim: What calibration maximises.
        seed: Of everything drawn at random.
        images: Features of images of seen classes, enough to choose with; features are drawn without them.
    """
    return EvaluationSetup(
        descriptors=descriptors,
        rows=rows,
        unseen_descriptors=unseen_descriptors,
        assumptions=assumptions,
        sample=_draw_features(rows, assumptions, seed) if images is None else images,
        spectrum=principal_axes(rows),
        bias_law=bias_law(rows),
        aim=aim,
        seed=seed,
    )


def _draw_features(rows: Float32, assumptions: Assumptions, seed: int) -> DrawnFeatures:
    source = find_feature_source(
        rows,
        neutral_features=assumptions.neutral_features,
        seen_accuracy=assumptions.seen_accuracy,
        max_features=NUM_PSEUDO_FEATURES,
        seed=seed,
    )
    draws = draw(source, max_features=NUM_PSEUDO_FEATURES, seed=seed)
    return DrawnFeatures(source=source, pseudo=draws.features(seen_accuracy=assumptions.seen_accuracy))


def evaluate_method(method: Method, setup: EvaluationSetup, *, progress: Progress | None = None) -> Candidate:
    """Cross-validate and calibrate one method; one that trains a network is evaluated on one fold only."""
    started = time.perf_counter()
    prepared = method.prepare(setup.descriptors, setup.rows, setup.seed, progress)
    folds = setup.folds(max_folds=1 if method.is_trained else None)
    raw = hold_out(prepared.predict, setup.descriptors, setup.rows, setup.unseen_descriptors, folds)
    length = mean_deviation_length(setup.rows)
    exponent = restoring_exponent(np.concatenate([at_length(part.deviations, length) for part in raw]), setup.spectrum)
    held_out = at_competing_length(raw, setup, exponent)
    outcomes = evaluate_folds(held_out, setup.rows, setup.features, seed=setup.seed)
    point = setup.aim.choose(outcomes)
    return Candidate(
        method=method,
        prepared=prepared,
        exponent=exponent,
        held_out=held_out,
        outcomes=outcomes,
        point=point,
        rates=predicted_rates(outcomes, point),
        cosine=_mean_cosine(held_out, setup.rows),
        seconds=time.perf_counter() - started,
    )


def at_competing_length(raw: Sequence[HeldOutRows], setup: EvaluationSetup, exponent: float) -> tuple[HeldOutRows, ...]:
    """Return held-out predictions as calibration brings them to scale 1, where they compete."""
    competing = setup.calibration(exponent, OperatingPoint(scale=1.0, offset=0.0)).deviations
    return tuple(
        replace(part, deviations=competing(part.deviations), competitors=competing(part.competitors)) for part in raw
    )


def _mean_cosine(held_out: Sequence[HeldOutRows], rows: Float32) -> float:
    """Return the mean cosine between predicted and true deviations from the mean row, over all held-out classes."""
    truth = rows - mean_row(rows)
    predicted = np.concatenate([part.deviations for part in held_out])
    true = truth[np.concatenate([part.fold.held_out for part in held_out])]
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(true, axis=1)
    return float(np.mean((predicted * true).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)))
