"""Choose a method by cross-validation, and say why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from icis_deploy.common.terminal_text import percent, points_text
from icis_deploy.injection.predictors.registry import METHODS, Method
from icis_deploy.injection.rows.predictors import Progress
from icis_deploy.injection.validation.evaluation import Candidate, DrawnFeatures, EvaluationSetup, evaluate_method
from icis_deploy.injection.validation.operating_point import Aim, OperatingPoint, Rates, predicted_rates

# Why: docs/decisions/0038.
METHODS_TIED = 0.5
"""Methods that score less than this part of the best are out. Of the others the held-out rows decide: on heads of other
kinds (`scripts/experiments/other_heads.py`) the balance that pseudo-features predict is off by up to a factor of two,
while rows are compared with true ones. There this choice gave as much H as, or more than, the best predicted balance
would have, but for one head."""

AFFORDABLE_TRAINING = 2.5e11
"""Multiplications of one training, up to which `auto` also considers a trained method: a few seconds on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedMethod:
    """How one method did in cross-validation.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        for each in injection.selection.candidates:
            print(each.method, each.rates.H, each.row_cosine)
    """

    method: str
    """Name of the method, such as `ridge`."""

    rates: Rates
    """Accuracies at its operating point, on features of held-out classes."""

    row_cosine: float
    """Mean cosine between predicted and true deviations of held-out rows, in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoice:
    """Which method cross-validation chose, and why.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        print(injection.selection.reason)
    """

    reason: str
    """Why it was chosen, in a sentence."""

    chosen: TriedMethod
    """One of the candidates."""

    candidates: tuple[TriedMethod, ...]
    """All that were tried, at least one."""

    balance: float | None
    """Weight of U against S, in 0..1; `None` where a budget of seen accuracy was kept."""

    max_seen_loss: float | None
    """Budget of seen accuracy, fraction of 1; `None` where a balance was asked for."""

    num_images: int
    """The owner's images of seen classes that methods were compared on; 0 where features were drawn."""

    seen_accuracy: float
    """Accuracy on seen classes that was assumed of the classifier, a fraction of 1."""

    is_accuracy_known: bool
    """Whether the classifier's owner stated it."""

    num_neutral_features: int
    """Features of neutral images that the scale of features was measured on; 0 where it was guessed."""

    scale: float
    """Length of a calibrated deviation from the mean row, in units of the seen rows' mean."""

    offset: float
    """Added to the bias of every injected row, in logits."""

    spread_exponent: float
    """Exponent with which the spread of predicted rows along the seen rows' principal axes was restored."""

    def best_without(self, methods: Collection[str]) -> str | None:
        """Return the method that would have been chosen had some not been tried; `None` if all are among these."""
        others = [one for one in self.candidates if one.method not in methods]
        if not others:
            return None
        aim = Aim(max_seen_loss=self.max_seen_loss, balance=self.balance)
        return others[_best([aim.score(one.rates) for one in others], [one.row_cosine for one in others])].method

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, rounded, as a class update's provenance keeps them."""
        return {
            "reason": self.reason,
            "balance": self.balance,
            "max_seen_loss": self.max_seen_loss,
            "num_images": self.num_images,
            "seen_accuracy": {"value": self.seen_accuracy, "is_known": self.is_accuracy_known},
            "num_neutral_features": self.num_neutral_features,
            "scale": self.scale,
            "offset": self.offset,
            "spread_exponent": self.spread_exponent,
            "candidates": [
                {
                    "method": one.method,
                    **{name: round(float(getattr(one.rates, name)), 4) for name in ("T", "U", "S", "H")},
                    "row_cosine": round(one.row_cosine, 4),
                }
                for one in self.candidates
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Methods that were evaluated, and the one to use."""

    setup: EvaluationSetup
    """What the candidates were evaluated on."""

    candidates: tuple[Candidate, ...]
    """All methods that were evaluated, at least one."""

    chosen: Candidate
    """The candidate to use."""

    @property
    def reason(self) -> str:
        """Why it was chosen, in a sentence."""
        if len(self.candidates) == 1:
            return f"{self.chosen.method.name} was asked for."
        aim = self.setup.aim
        best = max(self.candidates, key=lambda one: aim.score(one.rates))
        name, count, score = self.chosen.method.name, len(self.candidates), aim.score(self.chosen.rates)
        what = (
            "balance of U and S"
            if aim.max_seen_loss is None
            else f"U at a loss of {points_text(aim.max_seen_loss)} of S"
        )
        reason = (
            f"{name} predicts held-out rows best (cosine {self.chosen.cosine:.2f}) of {count} methods; its "
            f"cross-validated {what} is {percent(score)}"
        )
        if best.method is self.chosen.method:
            return f"{reason}, the best."
        return f"{reason}, {best.method.name} has {percent(aim.score(best.rates))}."

    def at(self, point: OperatingPoint, rates: Rates | None = None) -> Selection:
        """Return the same choice with the chosen candidate at another operating point.

        Args:
            point: Scale and offset.
            rates: Accuracies there; those of cross-validation by default.
        """
        rates = predicted_rates(self.chosen.outcomes, point) if rates is None else rates
        moved = replace(self.chosen, point=point, rates=rates)
        others = tuple(moved if one is self.chosen else one for one in self.candidates)
        return replace(self, candidates=others, chosen=moved)

    @property
    def choice(self) -> MethodChoice:
        """What was assumed, compared and chosen, without the arrays of the evaluation."""
        assumed, point = self.setup.assumptions, self.chosen.point
        neutral = assumed.neutral_features
        return MethodChoice(
            reason=self.reason,
            chosen=_tried(self.chosen),
            candidates=tuple(_tried(one) for one in self.candidates),
            balance=self.setup.aim.balance,
            max_seen_loss=self.setup.aim.max_seen_loss,
            num_images=0 if isinstance(self.setup.sample, DrawnFeatures) else len(self.setup.features.classes),
            seen_accuracy=assumed.seen_accuracy,
            is_accuracy_known=assumed.is_accuracy_known,
            num_neutral_features=0 if neutral is None else len(neutral),
            scale=point.scale,
            offset=point.offset,
            spread_exponent=self.chosen.exponent,
        )


def _tried(candidate: Candidate) -> TriedMethod:
    return TriedMethod(method=candidate.method.name, rates=candidate.rates, row_cosine=candidate.cosine)


def select(setup: EvaluationSetup, methods: Sequence[Method], *, progress: Progress | None = None) -> Selection:
    """Evaluate methods and choose one of them.

    Args:
        setup: What they are evaluated on.
        methods: At least one.
        progress: Called after each epoch, by methods that train.
    """
    candidates = tuple(evaluate_method(method, setup, progress=progress) for method in methods)
    return Selection(setup=setup, candidates=candidates, chosen=best_candidate(candidates, setup.aim))


def candidate_methods(setup: EvaluationSetup, latent_dim: int = 2048) -> tuple[Method, ...]:
    """Return the methods that `auto` chooses from: all that need no training, and `icis-centred` where it is cheap."""
    cheap = [method for method in METHODS.values() if not method.is_trained]
    width = setup.descriptors.shape[1] + setup.rows.shape[1]
    num_classes = len(setup.rows) + len(setup.unseen_descriptors)
    classes_per_step = min(64, num_classes)  # as `ICISConfig()` has them; its module needs torch
    num_steps = max(120, 15 * -(-num_classes // classes_per_step))
    multiplications = 3 * 2 * latent_dim * width * classes_per_step * num_steps
    if multiplications <= AFFORDABLE_TRAINING and find_spec("torch") is not None:
        return (METHODS["icis-centred"], *cheap)
    return tuple(cheap)


def best_candidate(candidates: Sequence[Candidate], aim: Aim) -> Candidate:
    """Return the candidate to use."""
    return candidates[_best([aim.score(one.rates) for one in candidates], [one.cosine for one in candidates])]


def _best(scores: Sequence[float], cosines: Sequence[float]) -> int:
    """Return which candidate to use.

    The one whose held-out rows point most nearly where the true rows do, which does not depend on drawn features, among
    those that score at least `METHODS_TIED` of the best.
    """
    tied = [index for index, score in enumerate(scores) if score >= METHODS_TIED * max(scores)]
    return max(tied, key=lambda index: cosines[index])
