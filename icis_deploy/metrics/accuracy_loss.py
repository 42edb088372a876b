"""How much of a model's accuracy a conversion that is not exact keeps.

Both sides are run on the same images. Where images are labelled with classes of the head, accuracy is compared: on seen
classes among themselves, and H where injected classes have images too. Where no label is a class of the head, the share
of images on which both choose the same class stands for it, near-ties left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from icis_deploy.metrics.accuracy import accuracy_of
from icis_deploy.metrics.outcomes import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyKept:
    """Accuracy before and after a conversion, fractions of 1.

    Example:
        (report, *_) = icis_deploy.verify("int8", against="model.onnx", images="images.csv")
        if report.accuracy is not None:
            print(report.accuracy.seen_before, report.accuracy.seen_after)
    """

    num_images: int
    """Images with a label that the head knows; all of them where none has."""

    seen_before: float | None
    """Macro accuracy of the unconverted model on seen classes, among seen classes; `None` without labels."""

    seen_after: float | None
    """Macro accuracy of the converted model, likewise; without labels the share of images on which both choose the same
    class."""

    H_before: float | None
    """H of the unconverted model; `None` unless seen and injected classes have images."""

    H_after: float | None
    """H of the converted model; `None` unless seen and injected classes have images."""

    failures: tuple[str, ...]
    """Each limit that was not kept, in words."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {**asdict(self), "failures": list(self.failures)}


def compare_accuracy(
    before: Outcomes | None,
    after: Outcomes | None,
    *,
    num_images: int,
    agreement: float,
    min_seen_kept: float,
    max_h_loss: float,
) -> AccuracyKept:
    """Compare the accuracy of two models on the same images.

    Args:
        before: Outcomes of the unconverted model on the images with a label that the head knows, seen classes measured
            among themselves as those of the original; `None` where there is no such image.
        after: The same of the converted one.
        num_images: All images, those with other labels too.
        agreement: Share of the images on which both choose the same class, for where no label is a seen class.
        min_seen_kept: Least share of the accuracy on seen classes that must be left.
        max_h_loss: By how much H may fall.
    """
    seen: tuple[float | None, float | None] = (None, agreement)
    harmonic: tuple[float | None, float | None] = (None, None)
    kept = agreement
    if before is not None and after is not None and before.of_labels(before.head.is_seen).any():
        reports = [accuracy_of(outcomes) for outcomes in (before, after)]
        seen, harmonic = (reports[0].S_original, reports[1].S_original), (reports[0].H, reports[1].H)
        kept, num_images = _share(*seen), len(before)
    return AccuracyKept(
        num_images=num_images,
        seen_before=seen[0],
        seen_after=seen[1],
        H_before=harmonic[0],
        H_after=harmonic[1],
        failures=_failures(kept, harmonic, min_seen_kept=min_seen_kept, max_h_loss=max_h_loss),
    )


def _share(before: float | None, after: float | None) -> float:
    return 1.0 if not before else (after or 0.0) / before


def _failures(
    kept: float, harmonic: tuple[float | None, float | None], *, min_seen_kept: float, max_h_loss: float
) -> tuple[str, ...]:
    failures = []
    if kept < min_seen_kept:
        failures.append(
            f"{100 * kept:.2f} % of the accuracy on seen classes is kept, less than {100 * min_seen_kept:.0f} %"
        )
    before, after = harmonic
    if before is not None and after is not None and before - after > max_h_loss:
        failures.append(
            f"H falls from {100 * before:.1f} to {100 * after:.1f} %, by more than {100 * max_h_loss:.0f} point"
        )
    return tuple(failures)
