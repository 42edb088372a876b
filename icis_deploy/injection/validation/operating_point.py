"""Choose, without an image, the two numbers with which predicted rows compete against the seen ones.

    row = mean seen row + scale * deviation, at the seen rows' mean length;   bias += offset

A scale below 1 is the shrinkage that an uncertain direction calls for; the offset says how far an injected class is
favoured. Both are chosen where class-level cross-validation (`icis_deploy.injection.validation.cross_validation`)
predicts the best balance of U and S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64
from icis_deploy.errors import UsageError
from icis_deploy.injection.validation.cross_validation import Outcomes

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


def check_balance(balance: float) -> None:
    """Check the weight of U in the harmonic mean of U and S.

    Raises:
        UsageError: If it is not between 0 and 1, both excluded.
    """
    if not 0.0 < balance < 1.0:
        raise UsageError(
            f"The balance is {balance}; expected a number between 0 (seen classes) and 1 (unseen ones).",
            found=balance,
            expected="0 to 1",
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


def weighted_harmonic_mean(unseen: float | Float64, seen: float | Float64, balance: float) -> float | Float64:
    """Return `1 / (balance / unseen + (1 - balance) / seen)`, zero where one of them is."""
    denominator = balance * seen + (1.0 - balance) * unseen
    return np.where(denominator > 0.0, unseen * seen / np.maximum(denominator, np.finfo(np.float64).tiny), 0.0)


def _thresholds(outcomes: Outcomes, scale: float) -> tuple[Float32, Float32]:
    """Return the offsets up to which seen features stay right, and above which unseen ones are."""
    seen = outcomes.seen_margin - np.float32(scale) * outcomes.seen_deviation
    unseen = outcomes.unseen_margin - np.float32(scale) * outcomes.unseen_deviation
    return seen, np.where(outcomes.is_hit, unseen, np.float32(np.inf))


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
