"""What an injection promises of the accuracy on seen classes, and on what ground."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icis_deploy.common.terminal_text import points_text
from icis_deploy.injection.arbiter.budget import SpentBudget
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.metrics.proportions import Interval

FEW_SEEN_WITHOUT_IMAGES = 60
"""Seen classes below which no budget is promised without an image: assumptions about features are off too far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A budget of seen accuracy, and what speaks for its being kept.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        if injection.promise is not None:
            print(injection.promise.max_seen_loss, injection.promise.message)
    """

    max_seen_loss: float
    """The budget: greatest loss of macro-averaged accuracy on seen classes, fraction of 1."""

    ground: str
    """`images`, `unlabelled images`, `assumptions` (no image), or `none`: nothing is promised."""

    message: str
    """The promise in a sentence or two."""

    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: with images, expected and measured loss with 95 % intervals, and number of images."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "max_seen_loss": self.max_seen_loss,
            "ground": self.ground,
            "message": self.message,
            **self.details,
        }


def promise_by_images(spent: SpentBudget, images: SeenImages) -> Promise:
    """Return what images of seen classes let promise."""
    kind = "labelled" if images.are_labelled else "unlabelled"
    lost = "seen accuracy" if images.are_labelled else "today's answers"
    message = (
        f"On further images of the same source at most {points_text(spent.budget)} of {lost} are expected to be lost "
        f"(95 % interval {_points(spent.expected)}): {images.num_images} {kind} images of {images.num_classes} classes "
        f"say so."
    )
    if spent.measured is not None:
        message += (
            f" With half of them setting the offset, the other half lost {100 * spent.measured.value:.1f} points "
            f"({_points(spent.measured.interval)})."
        )
    if not images.are_labelled:
        message += " Without labels every change of an answer counts as a loss, so that less accuracy is lost."
    return Promise(
        max_seen_loss=spent.budget,
        ground="images" if images.are_labelled else "unlabelled images",
        message=message,
        details={**spent.to_json(), "num_classes": images.num_classes},
    )


def promise_by_assumptions(budget: float) -> Promise:
    """Return what is promised without an image of a seen class."""
    return Promise(
        max_seen_loss=budget,
        ground="assumptions",
        message=(
            f"No image was seen: the offset loses {points_text(budget)} of seen accuracy on the most cautious of the "
            f"features that may be assumed. What is lost on images may be up to twice as much and 3 points."
        ),
    )


def promise_by_photos(budget: float) -> Promise:
    """Return what is promised of rows that photos moved, without an image of a seen class."""
    return Promise(
        max_seen_loss=budget,
        ground="assumptions",
        message=(
            f"No image of a seen class was given: the offset loses {points_text(budget)} of seen accuracy on features "
            f"that stand in for them, brought to where the photos of new classes lie. What is lost on images may be up "
            f"to twice as much and 3 points."
        ),
    )


def no_promise(budget: float) -> Promise:
    """Return what is said where nothing can be promised."""
    return Promise(
        max_seen_loss=budget,
        ground="none",
        message="Without images of seen classes nothing is promised of so small a head.",
    )


def _points(interval: Interval) -> str:
    """Return an interval of fractions of 1 in points."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
