"""How much of a model's accuracy a conversion that is not exact keeps.

Both sides are run on the same images. Where images are labelled with classes of the head, accuracy is compared: on seen
classes among themselves, and H where injected classes have images too. Where no label is a class of the head, the share
of images on which both choose the same class stands for it, near-ties left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float64
from icis_deploy.metrics.accuracy import accuracy_report


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
    before: Float64,
    after: Float64,
    *,
    labels: Sequence[str],
    class_names: Sequence[str],
    num_seen: int,
    agreement: float,
    min_seen_kept: float,
    max_h_loss: float,
) -> AccuracyKept:
    """Compare the accuracy of two models on the same images.

    Args:
        before: `(num_images, num_classes)` logits of the unconverted model.
        after: The same of the converted one.
        labels: `(num_images,)` class names; images of other classes are left out.
        class_names: `(num_classes,)`, seen ones first.
        num_seen: How many of them are seen.
        agreement: Share of the images on which both choose the same class, for where no label is known.
        min_seen_kept: Least share of the accuracy on seen classes that must be left.
        max_h_loss: By how much H may fall.
    """
    column_of = {name: index for index, name in enumerate(class_names)}
    known = np.array([index for index, label in enumerate(labels) if label in column_of], dtype=np.intp)
    columns = np.array([column_of[labels[index]] for index in known], dtype=np.int64)
    seen: tuple[float | None, float | None] = (None, agreement)
    harmonic: tuple[float | None, float | None] = (None, None)
    if not (columns < num_seen).any():
        kept, num_images = agreement, len(before)
    else:
        reports = [
            accuracy_report(scores[known], columns, seen=num_seen, original_logits=scores[known][:, :num_seen])
            for scores in (before, np.nan_to_num(after, nan=-np.inf))
        ]
        seen, harmonic = (reports[0].S_original, reports[1].S_original), (reports[0].H, reports[1].H)
        kept, num_images = _share(*seen), len(known)
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
