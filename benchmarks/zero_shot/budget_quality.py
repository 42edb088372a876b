"""What an injection costs seen classes and gives new ones, on labelled features; macro-averaged fractions of 1.

The figures are those of `icis_deploy.metrics`, as `evaluate` reports them of a bundle. They may differ by an image
where two new classes have the same descriptor: then the last bit of their logits decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import Injection
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.metrics.accuracy import accuracy_report
from icis_deploy.metrics.trade_off import ausuc, best_balance, leads_of


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

    Raises:
        IncompatibleError: If all features are of seen classes, or all of new ones.
    """
    num_seen = head.num_classes
    seen, new = np.asarray(head.logits(features), dtype=np.float32), head_logits(injection.rows, features)
    if injection.arbiter is not None:
        new = new + (seen_statistics(features, seen, deviation_lengths(head.rows)) @ injection.arbiter)[:, None]
    logits = np.concatenate([seen, new], axis=1)
    report = accuracy_report(logits, labels, seen=num_seen, original_logits=seen)
    leads = leads_of(logits, labels, np.arange(logits.shape[1]) < num_seen)
    if leads is None:
        raise IncompatibleError(
            "An injection is measured on features of seen and of new classes; here they are of one kind.",
            expected="features of seen and of new classes",
        )
    return SpentAccuracy(
        T=known(report.T),
        U=known(report.U),
        U_top5=known(report.top5["U"]),
        S_before=known(report.S_original),
        lost=known(report.S_original) - known(report.S),
        best_balance=best_balance(leads),
        AUSUC=ausuc(leads),
    )


def known(figure: float | None) -> float:
    """Return a figure that there are images for; not a number where there is nothing to choose among."""
    return math.nan if figure is None else figure
