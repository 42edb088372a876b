"""Exact intervals of a proportion: Clopper-Pearson, and what an order statistic says of the population.

Both are quantiles of beta distributions, solved here by bisection because a device that measures has no scipy. Counts
may be real numbers: for weighted observations the number of trials is the effective one, `1 / sum of squared weights`
(Korn and Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts Estimated from
Survey Data", Survey Methodology 24, 1998). With equal weights the intervals are exact.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from icis_deploy.errors import IncompatibleError

_MAX_TERMS = 10_000
_SMALL = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A two-sided confidence interval of a proportion, fractions of 1.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        for name, interval in report.intervals.items():
            print(name, interval.low, interval.high)

    Raises:
        IncompatibleError: On construction, unless 0 <= low <= high <= 1.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise IncompatibleError(f"The interval is {self.low} to {self.high}; expected 0 <= low <= high <= 1.")

    def to_json(self) -> dict[str, float]:
        """Return JSON values."""
        return asdict(self)


def clopper_pearson(successes: float, trials: float, *, confidence: float = 0.95) -> Interval:
    """Return the two-sided Clopper-Pearson interval of a proportion.

    Args:
        successes: 0 to `trials`; may be a real number (see the module).
        trials: More than 0.
        confidence: Probability that the interval holds the proportion, at least.
    """
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes <= 0.0 else beta_quantile(tail, successes, trials - successes + 1.0)
    high = 1.0 if successes >= trials else beta_quantile(1.0 - tail, successes + 1.0, trials - successes)
    return Interval(low=low, high=high)


def order_statistic_interval(rank: float, trials: float, *, confidence: float = 0.95) -> Interval:
    """Return where the share of a population beyond one of its draws lies, with a probability of `confidence`.

    The share of a population that exceeds the `rank`-th greatest of `trials` independent draws has the distribution
    Beta(rank, trials - rank + 1), whatever the population's own distribution, with the mean `rank / (trials + 1)`
    (David and Nagaraja, "Order Statistics", section 2.1).

    Args:
        rank: From the greatest draw, 1, to the least, `trials`; may be a real number (see the module).
        trials: At least 1.
        confidence: Probability that the interval holds the share.
    """
    tail = (1.0 - confidence) / 2.0
    a, b = rank, trials - rank + 1.0
    return Interval(low=beta_quantile(tail, a, b), high=beta_quantile(1.0 - tail, a, b))


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile of a beta distribution, to 1e-12.

    Args:
        probability: In 0..1.
        a: First shape, more than 0.
        b: Second shape, more than 0.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2.0
        if beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function, the cumulative distribution of Beta(a, b) at `x`.

    Source: DLMF 8.17.22, the continued fraction, evaluated by Lentz's method on the side where it converges fast.

    Args:
        x: In 0..1.
        a: First shape, more than 0.
        b: Second shape, more than 0.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return min(1.0, math.exp(log_front) / (a * _continued_fraction(x, a, b)))


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Return `1 + d1/(1 + d2/(1 + ...))` of DLMF 8.17.22 by the modified Lentz method."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, _MAX_TERMS):
        m = term // 2
        if term % 2:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1.0 / ((1.0 + factor * denominator) or _SMALL)
        numerator = (1.0 + factor / numerator) or _SMALL
        value *= numerator * denominator
        if abs(numerator * denominator - 1.0) < 1e-15:
            break
    return value
