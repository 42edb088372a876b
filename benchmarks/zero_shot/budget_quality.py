"""What an injection costs seen classes and gives new ones, on labelled features; macro-averaged fractions of 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64, Int64
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.head import Head
from icis_deploy.injection.arbiter.seen_images import macro_weights
from icis_deploy.injection.inject import Injection
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.injection.validation.cross_validation import needed_for_top5


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentAccuracy:
    """A measurement at the operating point of an injection, and what its rows could do at others."""

    T: float
    """Accuracy on new classes, choosing among them only."""

    U: float
    """Accuracy on new classes, choosing among all."""

    U_top5: float
    """As U, where the right class is among the five first."""

    S_before: float
    """Accuracy on seen classes without the new ones."""

    lost: float
    """By how much the new classes lower it."""

    best_balance: float
    """Greatest harmonic mean of U and S if new classes were favoured more or less."""

    AUSUC: float
    """Area under S against U as they are favoured more and more."""

    @property
    def S(self) -> float:  # noqa: N802 - the field's own name
        """Accuracy on seen classes with the new ones."""
        return self.S_before - self.lost

    @property
    def H(self) -> float:  # noqa: N802 - the field's own name
        """Harmonic mean of U and S."""
        return 2.0 * self.U * self.S / max(self.U + self.S, 1e-12)


def measure_budget(head: Head, injection: Injection, features: Float32, labels: Int64) -> SpentAccuracy:
    """Measure an injection.

    Args:
        head: What was injected into.
        injection: With or without an arbiter.
        features: `(num_features, feature_dim)`, of seen and of new classes.
        labels: `(num_features,)`, indices of the head's classes followed by the injected ones.
    """
    num_seen = head.num_classes
    seen, new = np.asarray(head.logits(features), dtype=np.float32), head_logits(injection.rows, features)
    if injection.arbiter is not None:
        new = new + (seen_statistics(features, seen, deviation_lengths(head.rows)) @ injection.arbiter)[:, None]
    is_new = labels >= num_seen
    leads = new.max(axis=1) - seen.max(axis=1)
    is_right = ~is_new & (seen.argmax(axis=1) == labels)
    is_hit = is_new & (new.argmax(axis=1) + num_seen == labels)
    own = new[is_new, labels[is_new] - num_seen]
    is_near = np.zeros(len(labels), dtype=bool)
    is_near[is_new] = own > needed_for_top5(own, new[is_new], seen[is_new])
    weights = np.zeros(len(labels))
    for side in (is_new, ~is_new):
        weights[side] = macro_weights(labels[side])
    before = float(weights @ is_right)
    best, area = _frontier(leads, is_right, is_hit, weights)
    return SpentAccuracy(
        T=float(weights @ is_hit),
        U=float(weights @ (is_hit & (leads > 0.0))),
        U_top5=float(weights @ is_near),
        S_before=before,
        lost=float(weights @ (is_right & (leads > 0.0))),
        best_balance=best,
        AUSUC=area,
    )


def _frontier(leads: Float32, is_right: Bool, is_hit: Bool, weights: Float64) -> tuple[float, float]:
    """Return the greatest H and the area under S against U over all thresholds of the leads."""
    order = np.argsort(-leads, kind="stable")
    lost, won = (np.append(0.0, np.cumsum((weights * one)[order])) for one in (is_right, is_hit))
    seen = lost[-1] - lost
    best = float(np.max(2.0 * seen * won / np.maximum(seen + won, 1e-12)))
    return best, float(np.sum(np.diff(won) * (seen[1:] + seen[:-1]) / 2.0))
