"""Set how far new classes are favoured, so that seen classes lose no more than a budget of their accuracy.

Every image of a seen class has a *lead*: the greatest new logit less the greatest seen one. The image's answer changes
where its lead exceeds a *threshold*, and it is a loss where the answer was right. A budget is in points of seen
accuracy, a fraction of 1: of all images, not only of those that are right.

Rules:

1. With `m` images of equal weight the threshold is the lead at index `floor(budget (m + 1)) - 1` in descending order,
   images that are wrong today last. For a further image of the same source the probability of a loss is then at most
   the budget, whatever the distribution of leads: its rank among all is uniform. The plain quantile spends about
   `1 / m` more. (The argument is that of split conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning
   in a Random World", 2005.)
2. Images weigh what their class weighs in a macro average (`SeenImages.weights`): a class with many images must not
   set the threshold for all. Sums of weights then replace counts, and the rule is no longer exact.
3. What was promised is measured on images that did not set the threshold: one half sets it, the other half measures
   it. After that all images set it.
4. An interval is of the source that the images came from. Images that the network was trained on, or rows were
   refined with, have leads that others do not have, and promise too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64, Int64
from icis_deploy.common.terminal_text import points_text
from icis_deploy.errors import IncompatibleError
from icis_deploy.few_shot.offset import may_lose_of, offset_for_loss
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.validation.operating_point import check_budget
from icis_deploy.metrics.proportions import Interval, clopper_pearson, order_statistic_interval

CONFIDENCE = 0.95
"""Of the intervals of a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLoss:
    """What one half of the images lost with the threshold that the other half set."""

    value: float
    """Macro-averaged loss of accuracy, fraction of 1."""

    interval: Interval
    """Clopper-Pearson; with unequal weights that of the effective number of images."""

    num_images: int
    """Images that it was measured on."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"value": self.value, **self.interval.to_json(), "num_images": self.num_images}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentBudget:
    """A threshold and what it costs seen classes."""

    budget: float
    """What was asked for: loss of macro-averaged seen accuracy, fraction of 1."""

    threshold: float
    """A lead, in logits: images whose lead is greater get a new class. All images set it."""

    expected: Interval
    """Where the loss on further images of the same source lies, from the order statistic alone."""

    measured: MeasuredLoss | None
    """On half of the images; `None` where a half is too small to set a threshold."""

    num_images: int
    """Images that set the threshold."""

    are_labelled: bool
    """Whether they were labelled; if not, losses are changed answers, an upper bound."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: what was promised, and on what ground."""
        return {
            "budget": self.budget,
            "expected_loss": self.expected.to_json(),
            "measured_loss": None if self.measured is None else self.measured.to_json(),
            "confidence": CONFIDENCE,
            "num_images": self.num_images,
            "are_labelled": self.are_labelled,
        }


def images_needed(budget: float) -> int:
    """Return how many images a budget needs at least: with fewer even a threshold above all leads promises less."""
    return math.ceil(1.0 / budget - 1e-9) - 1


def budget_threshold(leads: Float32, is_right: Bool, weights: Float64, *, budget: float) -> float:
    """Return the threshold at which a budget is spent, rules 1 and 2.

    Args:
        leads: `(num_images,)`, greatest new logit less greatest seen one.
        is_right: `(num_images,)`, whether there is something to lose.
        weights: `(num_images,)`, summing to 1.
        budget: Fraction of 1.

    Returns:
        One of the leads of images that are right.

    Raises:
        UsageError: If the budget is out of range.
        IncompatibleError: If there are too few images for it, or none is right.
    """
    check_budget(budget)
    num_images = len(leads)
    may_lose = may_lose_of(num_images, budget)
    if may_lose < -1e-9:
        least = math.ceil(1e4 / (num_images + 1)) / 1e4
        images = "image" if num_images == 1 else "images"
        raise IncompatibleError(
            f"{num_images} {images} of seen classes cannot set a loss of at most {points_text(budget)} of accuracy; it "
            f"takes {images_needed(budget)}.",
            found=num_images,
            expected=images_needed(budget),
            hint=f"Give more images, or allow a loss of {points_text(least)} with `max_seen_loss`.",
        )
    if not is_right.any():
        raise IncompatibleError(
            "The head is right on no image: nothing can be lost on them.",
            found=0,
            expected="at least one right image",
            hint=(
                "Check that `classes` has the order of the model's outputs, and that `preprocess` is the model's own."
            ),
        )
    return offset_for_loss(leads[is_right], weights[is_right], may_lose=may_lose)


def expected_threshold(leads: Float32, is_right: Bool, weights: Float64, *, budget: float) -> float:
    """Return the threshold at which a budget is expected to be spent on further images, for an estimate.

    It lies between two leads: whole ranks, which a promise needs, spend less where images are few.

    Args:
        leads: As for `budget_threshold`, and so are `is_right`, `weights` and `budget`.
        is_right: At least one.
        weights: Summing to 1.
        budget: Fraction of 1.
    """
    order = np.argsort(-leads[is_right], kind="stable")
    lost = np.cumsum(weights[is_right][order])
    return float(np.interp(budget * (len(leads) + 1) / len(leads), lost, leads[is_right][order]))


def loss(leads: Float32, is_right: Bool, weights: Float64, *, threshold: float) -> float:
    """Return the loss of accuracy, fraction of 1, that a threshold costs the images."""
    return float(weights @ (is_right & (leads > threshold)))


def spend_budget(images: SeenImages, leads: Float32, *, budget: float, seed: int) -> SpentBudget:
    """Set the threshold with all images, and measure with halves what such a threshold costs.

    Args:
        images: Of seen classes.
        leads: `(num_images,)`, their leads. Where an arbiter was fitted on the same images, those that it gives
            images that it was not fitted on.
        budget: Fraction of 1.
        seed: Of the halves.

    Raises:
        UsageError: If the budget is out of range.
        IncompatibleError: If there are too few images for it.
    """
    weights, is_right = images.weights(), images.is_right
    threshold = budget_threshold(leads, is_right, weights, budget=budget)
    lost = loss(leads, is_right, weights, threshold=threshold)
    trials = _effective_number(weights)
    return SpentBudget(
        budget=budget,
        threshold=threshold,
        expected=order_statistic_interval(lost * trials + 1.0, trials, confidence=CONFIDENCE),
        measured=_measure(images, leads, budget=budget, seed=seed),
        num_images=images.num_images,
        are_labelled=images.are_labelled,
    )


def _measure(images: SeenImages, leads: Float32, *, budget: float, seed: int) -> MeasuredLoss | None:
    """Let one half of the images set a threshold and return what it costs the other half."""
    is_setting = halves(images.labels, seed=seed)
    is_right = images.is_right
    if is_setting.sum() < images_needed(budget) or not is_right[is_setting].any() or is_setting.all():
        return None
    threshold = budget_threshold(leads[is_setting], is_right[is_setting], images.weights(is_setting), budget=budget)
    weights = images.weights(~is_setting)
    value = loss(leads[~is_setting], is_right[~is_setting], weights, threshold=threshold)
    trials = _effective_number(weights)
    return MeasuredLoss(
        value=value,
        interval=clopper_pearson(value * trials, trials, confidence=CONFIDENCE),
        num_images=int((~is_setting).sum()),
    )


def halves(labels: Int64, *, seed: int) -> Bool:
    """Return one half of the images, `(num_images,)`: of each class every second one of a random order."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]  # classes in order, their images at random
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order[int(random.integers(2)) :: 2]] = True
    return chosen


def _effective_number(weights: Float64) -> float:
    """Return how many images of equal weight would say as much: `1 / sum of squares` of weights that sum to 1."""
    return float(1.0 / (weights @ weights))
