"""Accuracies of an injection on labelled features, with those predicted and the best that its rows could reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.errors import UsageError
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import Injection
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.injection.rows.spectrum import mean_row
from icis_deploy.injection.validation.operating_point import weighted_harmonic_mean

SCALES = np.geomspace(0.1, 3.0, 30)
"""Lengths that the best choice is sought among, in units of the injected deviations'."""

NUM_OFFSETS = 200

COLUMNS = f"{'case':24} {'method':9}    T     U     S     H | predicted T   U     S     H (90 %)          H/best warned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An injection on labelled features; fractions of 1."""

    method: str
    """The method that predicted the rows."""

    rates: tuple[float, float, float, float]
    """Measured T, U, S and H."""

    predicted: tuple[float, float, float, float]
    """Predicted T, U, S and H."""

    intervals: tuple[tuple[float, float], ...]
    """90 % intervals of predicted T, U, S and H, low and high ends."""

    best_h: float
    """H of the best scale and offset, chosen with these features, for the same rows."""

    num_warnings: int
    """Number of warnings of the estimate."""

    @property
    def part_of_best(self) -> float:
        """H as a part of the best."""
        return self.rates[3] / max(self.best_h, 1e-9)

    @property
    def is_within(self) -> tuple[bool, ...]:
        """Whether each of T, U, S and H lies in its interval."""
        return tuple(low <= rate <= high for rate, (low, high) in zip(self.rates, self.intervals, strict=True))

    def line(self, name: str) -> str:
        """Return a line of the table with `COLUMNS`, accuracies in percent."""
        rates, predicted = (" ".join(f"{100 * value:5.1f}" for value in four) for four in (self.rates, self.predicted))
        low, high = (100 * end for end in self.intervals[3])
        warned = "yes" if self.num_warnings else "no"
        expected = f"{predicted} ({low:5.1f} to {high:5.1f})"
        return f"{name:24} {self.method:9} {rates} |     {expected} {self.part_of_best:8.3f} {warned}"


def measure_injection(head: Head, injection: Injection, features: Float32, labels: Int64) -> Measured:
    """Measure an injection that has an estimate.

    Args:
        head: What was injected into.
        injection: Calibrated by cross-validation.
        features: `(num_features, feature_dim)`.
        labels: `(num_features,)`, indices of the head's classes followed by the injected ones.
    """
    estimate, num_seen = injection.estimate, head.num_classes
    if estimate is None:
        raise UsageError("This injection has no estimate to compare with; calibration 'auto' makes one.")
    seen, new = head.logits(features), head_logits(injection.rows, features)
    is_unseen = labels >= num_seen
    is_hit, is_correct = new.argmax(axis=1) + num_seen == labels, seen.argmax(axis=1) == labels
    wins = new.max(axis=1) > seen.max(axis=1)
    T, U = float(is_hit[is_unseen].mean()), float((is_hit & wins)[is_unseen].mean())  # noqa: N806
    S = float((is_correct & ~wins)[~is_unseen].mean())  # noqa: N806
    # A row without the mean row and the offset, which its bias contains, competes at other lengths.
    mean = mean_row(head.rows)
    offset = 0.0 if injection.selection is None else injection.selection.offset
    base = features @ mean[:-1] + mean[-1]
    deviation = (new - offset - base[:, None]).max(axis=1)
    best = 0.0
    for scale in SCALES:
        needed = seen.max(axis=1) - base - scale * deviation
        for bias in np.quantile(needed, np.linspace(0.0, 1.0, NUM_OFFSETS)):
            unseen_rate = float((is_hit & (needed < bias))[is_unseen].mean())
            best = max(best, _harmonic(unseen_rate, float((is_correct & (needed >= bias))[~is_unseen].mean())))
    return Measured(
        method=injection.method,
        rates=(T, U, S, _harmonic(U, S)),
        predicted=(estimate.T.value, estimate.U.value, estimate.S.value, estimate.H.value),
        intervals=tuple((one.low, one.high) for one in (estimate.T, estimate.U, estimate.S, estimate.H)),
        best_h=best,
        num_warnings=len(estimate.warnings),
    )


def summary(measured: Sequence[Measured]) -> str:
    """Return a summary of measurements, in lines: H / best, and how often intervals hold and how wide they are."""
    parts = [one.part_of_best for one in measured]
    lines = [f"H / best: mean {np.mean(parts):.3f}, least {min(parts):.3f}, of {len(parts)}"]
    for word, is_warned in (("no warning", False), ("a warning", True)):
        group = [one for one in measured if bool(one.num_warnings) == is_warned]
        if group:
            covered = " ".join(f"{100 * share:.0f} %" for share in np.mean([one.is_within for one in group], axis=0))
            width = np.mean([high - low for one in group for low, high in one.intervals[3:]])
            error = np.mean([abs(one.rates[3] - one.predicted[3]) for one in group])
            lines.append(
                f"{len(group)} with {word}: intervals of T, U, S and H hold {covered}; of H {100 * width:.0f} points "
                f"wide, predicted {100 * error:.1f} off on average"
            )
    return "\n".join(lines)


def _harmonic(unseen: float, seen: float) -> float:
    return float(weighted_harmonic_mean(unseen, seen, 0.5))
