"""Bring predicted rows to where they compete: at the point that was aimed at, with what to expect there.

Without images the point is the one that cross-validation on drawn features speaks for. Images of seen classes set the
offset themselves, and may show that it is better to depend on the image: an arbiter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.common.terminal_text import percent, points_text
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.head import Head
from icis_deploy.injection.arbiter.budget import images_needed
from icis_deploy.injection.arbiter.choice import ArbiterChoice, choose_arbiter
from icis_deploy.injection.arbiter.pretend_new import InjectedHead, calibrated
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.estimate.estimate import Estimate, estimate_from_images, estimate_without_images
from icis_deploy.injection.estimate.rehearsal import rehearse, rehearse_on_images
from icis_deploy.injection.promise import (
    FEW_SEEN_WITHOUT_IMAGES,
    Promise,
    no_promise,
    promise_by_assumptions,
    promise_by_images,
)
from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.predictors import RowPredictor
from icis_deploy.injection.validation.evaluation import DrawnFeatures
from icis_deploy.injection.validation.operating_point import CURVE, CurvePoint, OperatingPoint
from icis_deploy.injection.validation.selection import Selection

NOTHING_FITS = 0.01
"""Predicted U, fraction of 1, below which a budget leaves new classes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """How rows compete, and what to expect of them."""

    selection: Selection
    """The methods that were compared, the chosen one at the operating point."""

    calibration: DeviationCalibration
    """From raw rows to rows that compete."""

    arbiter: Float32 | None
    """`(5,)`: what new logits get per unit of each of `head.arbiter.STATISTICS`; `None` for a constant offset."""

    arbiter_choice: ArbiterChoice | None
    """How a budget is spent; `None` without images, or where a balance was asked for."""

    estimate: Estimate
    """What to expect."""

    curve: tuple[CurvePoint, ...]
    """What to expect at other losses of seen accuracy; empty where there are too few images to say."""

    promise: Promise | None
    """The budget, and on what ground it is kept; `None` where a balance was asked for."""

    warnings: tuple[str, ...]
    """Reasons to doubt that the budget is kept, or is of use; those of the estimate are not among them."""


def operate(
    selection: Selection,
    predictor: RowPredictor,
    head: Head,
    new: Descriptors,
    *,
    images: SeenImages | None,
    is_arbiter_allowed: bool,
) -> Operation:
    """Choose how the rows of a chosen method compete.

    Args:
        selection: The methods that were compared, and the one to use.
        predictor: That method, trained on all seen classes.
        head: The seen classes.
        new: Descriptors of the injected classes.
        images: Of seen classes; `None` if nobody has any.
        is_arbiter_allowed: Whether offsets may depend on the image.

    Raises:
        IncompatibleError: If the images are too few for the budget.
    """
    budget = selection.setup.aim.max_seen_loss
    if images is not None and budget is not None:
        return _spend_by_images(selection, predictor, head, new, images, budget, is_arbiter_allowed)
    if not isinstance(selection.setup.sample, DrawnFeatures):
        return _balance_by_images(selection, predictor, head, new)
    return _assume(selection, predictor, head, new, budget)


def _assume(
    selection: Selection, predictor: RowPredictor, head: Head, new: Descriptors, budget: float | None
) -> Operation:
    """Operate without an image."""
    rehearsals = rehearse(selection.chosen, selection.setup)
    promise, warnings = None, []
    if budget is not None and head.num_classes < FEW_SEEN_WITHOUT_IMAGES:
        selection, promise = selection.at(rehearsals.safest()), no_promise(budget)
        warnings.append(few_seen_warning(head.num_classes))
    elif budget is not None:
        selection, promise = selection.at(rehearsals.within(budget)), promise_by_assumptions(budget)
    estimate = estimate_without_images(selection, rehearsals, predictor, new, seen_names=head.class_names)
    curve = rehearsals.curve()
    if budget is not None and promise is not None and promise.ground != "none":
        warnings += _nothing_fits(budget, estimate.U.value, curve)
    return Operation(
        selection=selection,
        calibration=selection.chosen.calibration(selection.setup),
        arbiter=None,
        arbiter_choice=None,
        estimate=estimate,
        curve=curve,
        promise=promise,
        warnings=tuple(warnings),
    )


def _balance_by_images(selection: Selection, predictor: RowPredictor, head: Head, new: Descriptors) -> Operation:
    """Operate at the balance of U and S that images of held-out classes speak for."""
    rehearsals = rehearse_on_images(selection.chosen, selection.setup)
    return Operation(
        selection=selection,
        calibration=selection.chosen.calibration(selection.setup),
        arbiter=None,
        arbiter_choice=None,
        estimate=estimate_from_images(
            selection,
            rehearsals.expected(selection.chosen.point),
            predictor,
            new,
            seen_names=head.class_names,
            accuracy=rehearsals.accuracy,
        ),
        curve=rehearsals.curve(),
        promise=None,
        warnings=(),
    )


def _spend_by_images(
    selection: Selection,
    predictor: RowPredictor,
    head: Head,
    new: Descriptors,
    images: SeenImages,
    budget: float,
    is_arbiter_allowed: bool,
) -> Operation:
    """Let images of seen classes set the offset."""
    setup, candidate = selection.setup, selection.chosen
    calibration = candidate.calibration(setup)
    injected = InjectedHead(
        rows=head.rows,
        descriptors=setup.descriptors,
        new_descriptors=new.values,
        new_rows=calibration.apply(predictor.rows(new.values)),
        predict_rows=calibrated(candidate.prepared.predict, calibration),
    )
    choice = _choose(images, injected, budget, setup.seed, is_arbiter_allowed, candidate.method.is_trained)
    point = OperatingPoint(scale=candidate.point.scale, offset=candidate.point.offset + choice.arbiter.constant)
    if isinstance(setup.sample, DrawnFeatures):
        # Too few images to say what to expect: they only set the offset.
        moved, rehearsals = selection.at(point), rehearse(candidate, setup)
        estimate = estimate_without_images(moved, rehearsals, predictor, new, seen_names=head.class_names)
        curve = rehearsals.curve()
    else:
        expected = choice.estimate or candidate.rates
        # Confidence in classes is from the constant offset of cross-validation, at about the same loss.
        estimate = estimate_from_images(
            selection, expected, predictor, new, seen_names=head.class_names, accuracy=images.accuracy
        )
        curve = tuple(each for _, each in sorted(choice.curve.items()))
    return Operation(
        selection=selection.at(point, choice.estimate or candidate.rates),
        calibration=replace(calibration, offset=point.offset),
        arbiter=None if choice.arbiter.is_constant else choice.arbiter.weights,
        arbiter_choice=choice,
        estimate=estimate,
        curve=curve,
        promise=promise_by_images(choice.spent, images),
        warnings=tuple(_nothing_fits(budget, estimate.U.value, curve)),
    )


def spend_without_estimate(
    predictor: RowPredictor, head: Head, new: Descriptors, images: SeenImages, *, budget: float, seed: int
) -> tuple[DeviationCalibration, Promise]:
    """Let images set the offset of rows that nothing can be cross-validated of.

    Args:
        predictor: Trained on all seen classes.
        head: The seen classes.
        new: Descriptors of the injected classes.
        images: Of seen classes.
        budget: Loss of seen accuracy, fraction of 1.
        seed: Of the halves that the loss is measured on.

    Raises:
        IncompatibleError: If the images are too few for the budget.
    """
    mean = head.rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    width = head.feature_dim + 1
    calibration = DeviationCalibration(
        mean_row=mean,
        axes=np.zeros((0, width), dtype=np.float32),
        axis_gain=np.zeros(0, dtype=np.float32),
        length=float(np.linalg.norm(head.rows - mean, axis=1).mean()),
        offset=0.0,
    )
    injected = InjectedHead(
        rows=head.rows,
        descriptors=np.zeros((head.num_classes, 1), dtype=np.float32),
        new_descriptors=np.zeros((new.num_classes, 1), dtype=np.float32),
        new_rows=calibration.apply(predictor.rows(new.values)),
        predict_rows=lambda _descriptors, _rows, asked: np.zeros((len(asked), width), dtype=np.float32),
    )
    choice = choose_arbiter(images, injected, budget=budget, seed=seed, is_arbiter_allowed=False)
    return replace(calibration, offset=choice.arbiter.constant), promise_by_images(choice.spent, images)


def few_seen_warning(num_seen: int) -> str:
    """Return the warning that nothing is promised of a small head without images."""
    return (
        f"With {num_seen} seen classes and no image no loss of seen accuracy can be promised (it takes "
        f"{FEW_SEEN_WITHOUT_IMAGES}), and new classes are hardly favoured: give images of seen classes with "
        f"`seen_images`."
    )


def _choose(
    images: SeenImages,
    injected: InjectedHead,
    budget: float,
    seed: int,
    is_arbiter_allowed: bool,
    is_fit_expensive: bool,
) -> ArbiterChoice:
    """Choose how the budget is spent; where the images are too few for it, say which U is left at what they allow."""

    def choose(loss: float) -> ArbiterChoice:
        return choose_arbiter(
            images,
            injected,
            budget=loss,
            seed=seed,
            is_arbiter_allowed=is_arbiter_allowed,
            is_fit_expensive=is_fit_expensive,
        )

    try:
        return choose(budget)
    except IncompatibleError as error:
        if images.num_images >= images_needed(budget):
            raise
        possible = 1.0 / (images.num_images + 1)
        left = choose(possible).curve.get(min((one for one in CURVE if one >= possible), default=possible))
        if left is None:
            raise
        raise IncompatibleError(
            f"{error.what} At a loss of {points_text(left.loss)}, U is predicted to be {percent(left.U)}.",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from error


def _nothing_fits(budget: float, unseen_accuracy: float, curve: Sequence[CurvePoint]) -> list[str]:
    """Return a warning where a budget leaves new classes nothing, and what more would give."""
    if unseen_accuracy >= NOTHING_FITS:
        return []
    more = "; ".join(f"{percent(point.U)} at {points_text(point.loss)}" for point in curve if point.loss > budget)
    others = f" Predicted U at greater losses: {more}." if more else ""
    return [
        f"Within a loss of {points_text(budget)} of seen accuracy hardly any image of a new class is recognised: "
        f"predicted U is {percent(unseen_accuracy)}.{others}"
    ]
