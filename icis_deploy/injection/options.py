"""What a user chooses when injecting classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icis_deploy.common.given import check_choice, check_flag, is_real
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import UsageError
from icis_deploy.injection.predictors.registry import METHODS
from icis_deploy.injection.validation.operating_point import Aim

AUTO = "auto"
CALIBRATIONS = (AUTO, "length", "none")
FALLBACK_METHOD = "ridge"
"""What `auto` takes where there are too few seen classes to compare methods on."""

ARBITERS = (AUTO, "off")

MAX_SEED = (1 << 63) - 1
"""What torch takes as a seed, and every reader of a class update."""

DEFAULT_MAX_SEEN_LOSS = 0.02
"""Loss of seen accuracy that is allowed where nobody says otherwise, fraction of 1."""

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
    """How rows are brought to compete with the seen ones: "auto" to where `max_seen_loss` or `balance` wants them,
    "length" to the mean length of the seen rows, "none" leaves them as predicted: neither keeps a budget."""

    max_seen_loss: float | None = None
    """Greatest loss of macro-averaged accuracy on seen classes, in 0..1, both excluded; 0.02 unless a balance is
    given."""

    balance: float | None = None
    """Weight of U against S, in 0..1, both excluded, instead of a budget: 0.5 is the harmonic mean of papers, more
    favours unseen classes."""

    arbiter: str = AUTO
    """Whether how far new classes are favoured may depend on the image: "auto" where images of seen classes speak for
    it, "off" never."""

    seen_images: Any = None
    """Images of classes that the model knows, not those that it was trained on: a list of images (CSV with the columns
    `file` and `class`, or `file` alone), a folder of class folders or of images, an `.npz` with `features` and
    `labels`, or features `(num_images, feature_dim)` and class names, `None` of unlabelled ones. Inputs that
    are no image files are given in the forms of `evaluate`: an `.npy`, `.npz`, `.safetensors` or `.parquet` file, a
    pair of inputs and class names, or inputs by class name. They set the budget's threshold, choose the method, and are
    what the estimate is from."""

    photos: Any = None
    """A few photos of new classes, of some of them or all, in the forms of `seen_images`, each with its class. They
    move the rows that descriptors predict; a class with photos needs no descriptor."""

    skip_unreadable: bool = False
    """Whether images that cannot be read are left out, with a warning, instead of refused."""

    seen_accuracy: float | None = None
    """Accuracy of the classifier on images of its classes, in 0..1, both excluded; `None` if it is not known."""

    seed: int = 0
    """Seed of everything drawn at random, not negative."""

    def __post_init__(self) -> None:
        check_choice(self.method, (*METHODS, AUTO), what="method", name="method")
        check_choice(self.calibration, CALIBRATIONS, what="calibration", name="calibration")
        check_choice(self.arbiter, ARBITERS, what="arbiter", name="arbiter")
        if self.max_seen_loss is None and self.balance is None:
            object.__setattr__(self, "max_seen_loss", DEFAULT_MAX_SEEN_LOSS)
        aim_of(self)  # checks both numbers
        given = self.seen_accuracy
        if given is not None and not (is_real(given) and 0.0 < given < 1.0):
            raise UsageError(
                f"The seen accuracy is {given!r}; expected a fraction between 0 and 1, such as 0.76 for 76 %.",
                found=given,
                expected="a fraction between 0 and 1",
                hint="Give `seen_accuracy` as a fraction, or leave it out.",
            )
        check_flag(self.skip_unreadable, name="skip_unreadable")
        is_whole = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool)
        if not is_whole or not 0 <= self.seed <= MAX_SEED:
            raise UsageError(
                f"The seed is {shown(self.seed)}; expected a whole number that is not negative, and at most 2^63 - 1.",
                found=self.seed if is_whole else shown(self.seed),
                expected=f"a whole number, 0 to {MAX_SEED}",
                hint="Give another `seed`.",
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


def aim_of(options: InjectionOptions) -> Aim:
    """Return what the operating point is chosen for."""
    return Aim(max_seen_loss=options.max_seen_loss, balance=options.balance)
