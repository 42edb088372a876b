"""Choose, without an image, the two numbers with which predicted rows compete against the seen ones.

    row = mean seen row + scale * deviation, at the seen rows' mean length;   bias += offset

A scale below 1 is the shrinkage that an uncertain direction calls for; the offset says how far an injected class is
favoured. Class-level cross-validation (`icis_deploy.injection.validation.cross_validation`) predicts what each costs:
both are chosen for the most U within a budget of seen accuracy, or for the best balance of U and S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64
from icis_deploy.common.given import is_real
from icis_deploy.errors import UsageError
from icis_deploy.injection.validation.cross_validation import Outcomes

CURVE = (0.01, 0.02, 0.05, 0.1)
"""Losses of seen accuracy, fractions of 1, that U is estimated at."""

SCALES = tuple(float(scale) for scale in np.geomspace(0.25, 1.6, 14))
NUM_OFFSETS = 256
FLATNESS = 0.95
"""Points that score at least this part of the best are as good as cross-validation can tell: their middle is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """How injected classes compete with the seen ones."""

    scale: float
    """Length of a predicted deviation from the mean row, in units of the seen rows' mean."""

    offset: float
    """Added to the bias of every predicted row, in logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Macro-averaged accuracies, fractions of 1; H follows from U and S.

    Example:
        >>> icis_deploy.Rates(T=0.8, U=0.5, S=0.5).H
        0.5
    """

    T: float
    """Accuracy on unseen classes, choosing among unseen classes only."""

    U: float
    """Accuracy on unseen classes, choosing among all."""

    S: float
    """Accuracy on seen classes, choosing among all."""

    @property
    def H(self) -> float:  # noqa: N802 - the field's own name
        """Harmonic mean of U and S."""
        return float(weighted_harmonic_mean(self.U, self.S, 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint(Rates):
    """What to expect where seen classes lose a certain part of their accuracy.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        for point in injection.curve:
            print(point.loss, point.U, point.U_top5)
    """

    loss: float
    """Loss of seen accuracy, fraction of 1."""

    U_top5: float
    """As U, where the right class is among the five first."""

    def to_json(self) -> dict[str, float]:
        """Return JSON values, rounded."""
        names = ("T", "U", "U_top5", "S", "H")
        return {"loss": self.loss, **{name: round(float(getattr(self, name)), 4) for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What an operating point is chosen for: a budget of seen accuracy, or a balance of U and S.

    Raises:
        UsageError: On construction, if a number is out of range, or there is not exactly one.
    """

    max_seen_loss: float | None = None
    """Greatest loss of seen accuracy, fraction of 1."""

    balance: float | None = None
    """Weight of U against S in the harmonic mean that is maximised, in 0..1, both excluded."""

    def __post_init__(self) -> None:
        if (self.max_seen_loss is None) == (self.balance is None):
            found = (self.max_seen_loss, self.balance)
            raise UsageError(
                f"The greatest loss of seen accuracy is {found[0]} and the balance {found[1]}; expected one of them.",
                found=found,
                expected="a loss or a balance",
                hint="Give `max_seen_loss` to keep a budget, or `balance` to weigh U against S.",
            )
        if self.max_seen_loss is not None:
            check_budget(self.max_seen_loss)
        if self.balance is not None:
            check_balance(self.balance)

    def choose(self, outcomes: Outcomes) -> OperatingPoint:
        """Return the best scale and offset in cross-validation."""
        if self.max_seen_loss is not None:
            return choose_within_budget([outcomes], max_seen_loss=self.max_seen_loss)
        return choose_operating_point(outcomes, balance=self.balance or 0.5)

    def score(self, rates: Rates) -> float:
        """Return how good the rates at a chosen point are, 0..1: U within a budget, else the weighted mean."""
        if self.balance is None:
            return rates.U
        return float(weighted_harmonic_mean(rates.U, rates.S, self.balance))


def check_budget(budget: float) -> None:
    """Check a budget of seen accuracy.

    Raises:
        UsageError: If it is not between 0 and 1, both excluded.
    """
    if not is_real(budget) or not 0.0 < budget < 1.0:
        raise UsageError(
            f"The greatest loss of seen accuracy is {budget!r}; expected a fraction between 0 and 1, such as 0.02 for "
            f"2 points.",
            found=budget,
            expected="a fraction between 0 and 1",
            hint="Give another `max_seen_loss`.",
        )


def check_balance(balance: float) -> None:
    """Check the weight of U in the harmonic mean of U and S.

    Raises:
        UsageError: If it is not between 0 and 1, both excluded.
    """
    if not is_real(balance) or not 0.0 < balance < 1.0:
        raise UsageError(
            f"The balance is {balance!r}; expected a number between 0 (seen classes) and 1 (unseen ones).",
            found=balance,
            expected="0 to 1",
            hint="Give another `balance`; 0.5 is that of papers.",
        )


def choose_operating_point(outcomes: Outcomes, *, balance: float = 0.5) -> OperatingPoint:
    """Return the scale and offset with the best predicted balance of U and S.

    Args:
        outcomes: Of class-level cross-validation.
        balance: Weight of U in the harmonic mean of U and S, in 0..1, both excluded: 0.5 is H, more favours unseen
            classes.

    Raises:
        UsageError: If the balance is out of range.
    """
    check_balance(balance)
    best = [_best_offset(outcomes, scale, balance) for scale in SCALES]
    top = max(score for score, _ in best)
    good = [index for index, (score, _) in enumerate(best) if score >= FLATNESS * top]
    middle = good[len(good) // 2]
    return OperatingPoint(scale=SCALES[middle], offset=best[middle][1])


def choose_within_budget(kinds: Sequence[Outcomes], *, max_seen_loss: float) -> OperatingPoint:
    """Return the scale and offset with the greatest U among those whose loss of seen accuracy is within a budget.

    Args:
        kinds: Outcomes on features of one or more kinds: the loss is within the budget on each of them, U is their
            mean.
        max_seen_loss: Fraction of 1; with 0, the greatest offset at which no seen feature is lost.
    """
    return choose_within_budgets(kinds, [max_seen_loss])[0]


def choose_within_budgets(kinds: Sequence[Outcomes], max_seen_losses: Sequence[float]) -> tuple[OperatingPoint, ...]:
    """Return for each budget what `choose_within_budget` does; several take hardly longer than one."""
    found: list[list[tuple[float, OperatingPoint]]] = [[] for _ in max_seen_losses]
    for scale in SCALES:
        needed = [_thresholds(one, scale) for one in kinds]
        bearable = [np.sort(by_seen[np.isfinite(by_seen)]) for by_seen, _ in needed]
        for tried, loss in zip(found, max_seen_losses, strict=True):
            offset = min(
                _largest_offset(sorted_needed, int(loss * len(by_seen)))
                for sorted_needed, (by_seen, _) in zip(bearable, needed, strict=True)
            )
            point = OperatingPoint(scale=scale, offset=offset if np.isfinite(offset) else 0.0)
            tried.append((float(np.mean([(by_unseen < point.offset).mean() for _, by_unseen in needed])), point))
    return tuple(_middle_of_best(tried) for tried in found)


def _middle_of_best(tried: Sequence[tuple[float, OperatingPoint]]) -> OperatingPoint:
    """Return the middle one of the points whose score, the first value, is about the best."""
    top = max(score for score, _ in tried)
    good = [point for score, point in tried if FLATNESS * top <= score]
    return good[len(good) // 2]


def predicted_rates(outcomes: Outcomes, point: OperatingPoint) -> Rates:
    """Return the accuracies that an operating point has in cross-validation."""
    needed_by_seen, needed_by_unseen = _thresholds(outcomes, point.scale)
    return Rates(
        T=float(outcomes.is_hit.mean()),
        U=float(np.mean(needed_by_unseen < point.offset)),
        S=float(np.mean(needed_by_seen >= point.offset)),
    )


def recognised(outcomes: Outcomes, point: OperatingPoint) -> Bool:
    """Say of every evaluation of an unseen feature whether its class won, `(num_unseen_evaluations,)`."""
    return np.asarray(_thresholds(outcomes, point.scale)[1] < point.offset)


def top5_rate(outcomes: Outcomes, point: OperatingPoint) -> float:
    """Return U with the right class among the five first; needs outcomes that know it."""
    needed = outcomes.top5_margin - np.float32(point.scale) * outcomes.top5_deviation
    return float(np.mean(needed < point.offset))


def weighted_harmonic_mean(unseen: float | Float64, seen: float | Float64, balance: float) -> float | Float64:
    """Return `1 / (balance / unseen + (1 - balance) / seen)`, zero where one of them is."""
    denominator = balance * seen + (1.0 - balance) * unseen
    return np.where(denominator > 0.0, unseen * seen / np.maximum(denominator, np.finfo(np.float64).tiny), 0.0)


def _thresholds(outcomes: Outcomes, scale: float) -> tuple[Float32, Float32]:
    """Return the offsets up to which seen features stay right, and above which unseen ones are."""
    seen = outcomes.seen_margin - np.float32(scale) * outcomes.seen_deviation
    unseen = outcomes.unseen_margin - np.float32(scale) * outcomes.unseen_deviation
    return seen, np.where(outcomes.is_hit, unseen, np.float32(np.inf))


def _largest_offset(bearable: Float32, num_lost: int) -> float:
    """Return the largest offset at which no more seen features are lost; infinite where there is none to lose.

    Args:
        bearable: `(num_right,)`, ascending: the offset up to which each seen feature stays right.
        num_lost: How many may be lost.
    """
    return float(bearable[min(num_lost, len(bearable) - 1)]) if len(bearable) else float("inf")


def _best_offset(outcomes: Outcomes, scale: float, balance: float) -> tuple[float, float]:
    """Return the best score of a scale and the offset that has it."""
    seen, unseen = _thresholds(outcomes, scale)
    reachable = np.concatenate([seen[np.isfinite(seen)], unseen[np.isfinite(unseen)]])
    if not len(reachable):
        return 0.0, 0.0
    offsets = np.quantile(reachable, np.linspace(0.0, 1.0, NUM_OFFSETS))
    seen_rate = 1.0 - np.searchsorted(np.sort(seen), offsets, side="left") / len(seen)
    unseen_rate = np.searchsorted(np.sort(unseen), offsets, side="left") / len(unseen)
    scores = np.asarray(weighted_harmonic_mean(unseen_rate, seen_rate, balance))
    good = np.flatnonzero(scores >= (1.0 - 0.5 * (1.0 - FLATNESS)) * scores.max())
    middle = int(good[len(good) // 2])
    return float(scores.max()), float(offsets[middle])
