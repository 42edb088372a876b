"""What a user chooses when injecting classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from icis_deploy.errors import UsageError
from icis_deploy.injection.predictors.registry import method_named
from icis_deploy.injection.validation.operating_point import check_balance

AUTO = "auto"
CALIBRATIONS = (AUTO, "length", "none")
FALLBACK_METHOD = "ridge"
"""What `auto` takes where there are too few seen classes to compare methods on."""

DEFAULT_SEEN_ACCURACY = 0.85
"""Accuracy that is assumed where the classifier's owner does not state one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionOptions:
    """How to predict and calibrate.

    Example:
        options = icis_deploy.InjectionOptions(method="ridge", seen_accuracy=0.76)
        icis_deploy.inject("model.onnx", classes="classes.txt", descriptors="descriptors.npz", options=options)

    Raises:
        UsageError: On construction, if there is no such method or calibration, or a number is out of range.
    """

    method: str = AUTO
    """One of `registry.METHODS`; "auto" lets cross-validation choose."""

    calibration: str = AUTO
    """How rows are brought to compete with the seen ones: "auto" to where cross-validation predicts the best balance,
    "length" to the mean length of the seen rows, "none" leaves them as predicted."""

    balance: float = 0.5
    """Weight of U against S, in 0..1, both excluded; more than 0.5 favours unseen classes."""

    seen_accuracy: float | None = None
    """Accuracy of the classifier on images of its classes, in 0..1, both excluded; `None` if it is not known."""

    seed: int = 0
    """Seed of everything drawn at random, not negative."""

    def __post_init__(self) -> None:
        if self.method != AUTO:
            method_named(self.method)
        if self.calibration not in CALIBRATIONS:
            raise UsageError(
                f"There is no calibration {self.calibration!r}; choose one of {', '.join(CALIBRATIONS)}.",
                found=self.calibration,
                expected=CALIBRATIONS,
            )
        check_balance(self.balance)
        if self.seen_accuracy is not None and not 0.0 < self.seen_accuracy < 1.0:
            raise UsageError(
                f"The seen accuracy is {self.seen_accuracy}; expected a fraction between 0 and 1, such as 0.76 for 76 "
                f"%.",
                found=self.seen_accuracy,
                expected="a fraction between 0 and 1",
            )
        if self.seed < 0:
            raise UsageError(
                f"The seed is {self.seed}; expected a number that is not negative.",
                found=self.seed,
                expected="at least 0",
            )

    @property
    def needs_cross_validation(self) -> bool:
        """Whether anything is chosen by cross-validation."""
        return AUTO in {self.method, self.calibration}

    def without_cross_validation(self) -> InjectionOptions:
        """Return the options with what needs no cross-validation instead of "auto"."""
        return replace(
            self,
            method=FALLBACK_METHOD if self.method == AUTO else self.method,
            calibration="length" if self.calibration == AUTO else self.calibration,
        )
