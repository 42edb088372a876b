"""Intervals around predicted accuracies: how far what is then measured may lie from them.

Four things are added in squares, on the scale `arcsin(sqrt(accuracy))`, where a draw of n classes has the standard
deviation `1 / (2 sqrt(n))` whatever the accuracy and an interval never leaves 0..1:

- *assumptions*: how far the prediction moves with what is assumed of images;
- *the classes drawn*: a class is one observation, its images are alike;
- *the classes held out*: those of cross-validation were drawn too;
- *the model*: pseudo-features are not images. How far predictions were off beyond all that was seen on heads of many
  kinds with rendered images (`MODEL_ERROR`), and it is more where there is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np

from icis_deploy.injection.validation.operating_point import Rates

NORMAL_90 = 1.645

# Why: docs/decisions/0053, 0086.
MODEL_ERROR: Mapping[str, float] = MappingProxyType({"T": 0.13, "U": 0.14, "S": 0.10, "H": 0.07})
"""Standard deviation of what was measured from what was predicted, in radians, beyond the draw of classes: of heads
without a warning 0.13, 0.14, 0.09 and 0.05 in one world of rendered images, 0.15, 0.16, 0.10 and 0.09 in another
(`scripts/experiments/other_heads.py`, seeds 0 and 1)."""

WARNED_ERROR_FACTOR = 3.0
"""How many times as large the model's error is where there is a warning: 2.2 to 3.9 in those worlds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A predicted number and its 90 % interval, fractions of 1.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        print(injection.estimate.H.low, injection.estimate.H.high)
    """

    value: float
    """The prediction, 0..1."""

    low: float
    """Lower end of the interval, 0..1."""

    high: float
    """Upper end of the interval, 0..1."""

    def to_json(self) -> dict[str, float]:
        """Return JSON values."""
        return asdict(self)


def accuracy_ranges(
    expected: Rates,
    others: Sequence[Rates],
    *,
    num_unseen: int,
    num_seen: int,
    num_held_out: int,
    error_factor: float,
    error_factor_below: float,
) -> dict[str, Range]:
    """Return the ranges of T, U, S and H.

    Args:
        expected: The prediction.
        others: Predictions under other assumptions.
        num_unseen: Classes that T and U are measured on.
        num_seen: Classes that S is measured on.
        num_held_out: Classes that were held out in cross-validation.
        error_factor: How many times as large as usual the model's error may be: 1, or `WARNED_ERROR_FACTOR` where there
            is a warning; `math.inf` where nothing is known, and an interval holds everything.
        error_factor_below: The same for the lower ends of T, U and H, which new classes lower that are harder than
            those held out.
    """
    counts = {"T": num_unseen, "U": num_unseen, "S": num_seen, "H": min(num_unseen, num_seen)}
    ranges = {}
    for name, count in counts.items():
        value, *moved = (_angle(getattr(rates, name)) for rates in (expected, *others))
        factors = (error_factor if name == "S" else error_factor_below, error_factor)
        drawn_below, drawn_above = (
            NORMAL_90**2 * (0.25 / count + 0.25 / num_held_out + (factor * MODEL_ERROR[name]) ** 2)
            for factor in factors
        )
        below, above = (max([0.0, *(sign * (one - value) for one in moved)]) for sign in (-1.0, 1.0))
        ranges[name] = Range(
            value=float(getattr(expected, name)),
            low=_accuracy(value - float(np.hypot(below, np.sqrt(drawn_below)))),
            high=_accuracy(value + float(np.hypot(above, np.sqrt(drawn_above)))),
        )
    return ranges


def _angle(accuracy: float) -> float:
    return float(np.arcsin(np.sqrt(accuracy)))


def _accuracy(angle: float) -> float:
    return float(np.sin(np.clip(angle, 0.0, 0.5 * np.pi)) ** 2)
