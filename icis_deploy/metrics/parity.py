"""Parity: how far an exported model's logits are from its reference's, and whether that is close enough.

Errors are scaled by the standard deviation of the reference's logits, because a logit has no unit: the same absolute
error is nothing in one head and everything in another. A *near-tie* is an image whose two greatest reference logits are
closer than twice the greatest error found (one logit may be off upwards, the other downwards), and never further apart
than half a standard deviation; which of the two wins there is chance, so a disagreement on it is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float64
from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.accuracy_loss import AccuracyKept
from icis_deploy.metrics.seen_loss import SeenLoss

CONFIDENCE = 0.99
_ROUNDING = 1e-14
"""The least deviation, relative to the mean, that is told from the rounding of float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateProfile:
    """The thresholds that an export of one precision must keep.

    Example:
        for report in icis_deploy.verify("bundle", against="model.onnx"):
            print(report.max_scaled_error, report.profile.max_scaled_error)
    """

    name: str
    """The precision that the thresholds are for; key of `GATE_PROFILES`."""

    max_scaled_error: float
    """Greatest allowed error of any logit, in standard deviations of the reference's logits."""

    p999_scaled_error: float
    """Greatest allowed 99.9th percentile of the errors, in standard deviations of the reference's logits."""

    min_agreement: float
    """Least allowed fraction of images, near-ties left out, on which the greatest logit is that of the same class."""

    min_seen_kept: float | None = None
    """Least share of the accuracy on seen classes that must be left, where images are given; `None` asks for none."""

    max_h_loss: float = 0.01
    """By how much H may fall, fraction of 1, where `min_seen_kept` is not `None`."""


GATE_PROFILES = {
    profile.name: profile
    for profile in (
        GateProfile(name="fp32", max_scaled_error=1e-4, p999_scaled_error=5e-5, min_agreement=1.0),
        # Eleven significant bits in each of some fifty layers; the head alone loses them once.
        GateProfile(name="fp16", max_scaled_error=0.1, p999_scaled_error=0.05, min_agreement=0.995),
        # Scores behind a sigmoid stand closest to these bounds (5e-3); one wrong row is off by standard deviations.
        GateProfile(name="fp16 head", max_scaled_error=1e-2, p999_scaled_error=5e-3, min_agreement=1.0),
        # Of a model that had an int8 head before: rows and logits in 255 steps are off by hundredths.
        GateProfile(name="int8 head", max_scaled_error=0.2, p999_scaled_error=0.1, min_agreement=0.99),
        # Rows that are stored in fewer bits, each weight rounded once, and multiplied as floats.
        GateProfile(
            name="fp16 rows",
            max_scaled_error=5e-3,
            p999_scaled_error=2e-3,
            min_agreement=1.0,
            min_seen_kept=0.995,
            max_h_loss=0.005,
        ),
        GateProfile(
            name="int8 rows",
            max_scaled_error=0.1,
            p999_scaled_error=0.05,
            min_agreement=0.995,
            min_seen_kept=0.995,
            max_h_loss=0.005,
        ),
        # Eight bits change logits, and what counts is how much accuracy is kept: 99 %, as MLPerf requires on the edge.
        # The bounds on errors find what is broken outright.
        GateProfile(name="int8", max_scaled_error=4.0, p999_scaled_error=1.0, min_agreement=0.9, min_seen_kept=0.99),
    )
}
"""By the precision of the export; those of a head alone are for one that is not float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """The comparison of an exported model with its reference, and the verdict.

    Example:
        for report in icis_deploy.verify("bundle", against="model.onnx"):
            print(report.compared_with, report.passed, report.failures)
    """

    compared_with: str
    """What the reference was, in words."""

    profile: GateProfile
    """The thresholds that the errors are compared with."""

    num_images: int
    """Number of inputs that both were run on."""

    num_classes: int
    """Number of logits compared for each."""

    logit_std: float
    """Standard deviation of the reference's logits: the scale of the errors."""

    max_scaled_error: float
    """Greatest error of any logit, in units of `logit_std`; infinite where the exported model gave a NaN or an
    infinity."""

    p999_scaled_error: float
    """99.9th percentile of the errors, in units of `logit_std`."""

    num_near_ties: int
    """Images whose two greatest reference logits are closer than twice the greatest error (see the module)."""

    num_disagreements: int
    """Images, near-ties left out, on which another class wins."""

    agreement: float
    """Fraction of the images, near-ties left out, on which the same class wins."""

    agreement_lower_bound: float
    """One-sided 99 % Clopper-Pearson lower bound of `agreement`."""

    failures: tuple[str, ...]
    """Each threshold that was not kept, in words; empty if the gate is passed."""

    accuracy: AccuracyKept | None = None
    """Accuracy before and after, where the profile limits its loss and images were given; else `None`."""

    seen_loss: SeenLoss | None = None
    """What new classes cost the seen ones; `None` where no images of these were given, or there are no new ones."""

    @property
    def passed(self) -> bool:
        """Whether every threshold was kept."""
        return not self.failures

    @property
    def parity_failures(self) -> tuple[str, ...]:
        """The failures that say how the exported model differs from its reference: all but that of the seen loss."""
        over = None if self.seen_loss is None else self.seen_loss.failure
        return tuple(failure for failure in self.failures if failure != over)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, the verdict first; JSON has no infinity, so that becomes `null`."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        seen_loss = None if self.seen_loss is None else self.seen_loss.to_json()
        return {"passed": self.passed, **values, "failures": list(self.failures), "seen_loss": seen_loss}


PARITY = np.dtype(
    [
        ("mean", "<f8"),  # of the reference's logits
        ("squares", "<f8"),  # sum of their squared distances from it
        ("margin", "<f8"),  # between its two greatest
        ("max_error", "<f8"),
        ("agrees", "?"),  # whether the same class wins
    ]
)
"""What is kept of an image. All else that a report needs is the greatest errors."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Errors:
    """Errors of images, of which any partition in any order can be put together to the same report."""

    rows: NDArray[np.void]
    """`(num_images,)` of dtype `PARITY`."""

    greatest: Float64
    """`(at most num_kept,)` ascending: the greatest errors of single logits."""

    num_kept: int
    """How many of these are kept, `num_kept_of` all images that will be compared."""

    num_classes: int


def num_kept_of(num_images: int, num_classes: int) -> int:
    """Return how many errors are greater than the 99.9th percentile of those of so many images, or equal to it."""
    last = num_images * num_classes - 1
    return last - math.ceil(0.999 * last) + 1


def compare_logits(
    reference: NDArray[np.floating[Any]],
    exported: NDArray[np.floating[Any]],
    *,
    profile: GateProfile,
    compared_with: str,
) -> ParityReport:
    """Compare an exported model's logits with its reference's.

    Args:
        reference: `(num_images, num_classes)`, any float dtype.
        exported: The same shape.
        profile: The thresholds.
        compared_with: What the reference is, in words.

    Raises:
        IncompatibleError: If the shapes differ, are empty, or the reference is not finite or constant.
    """
    shape = np.shape(reference)
    num_images, num_classes = shape if len(shape) == 2 else (0, 0)
    return compare_blocks(
        [(reference, exported)],
        num_images=num_images,
        num_classes=num_classes,
        profile=profile,
        compared_with=compared_with,
    )


def compare_blocks(
    blocks: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]],
    *,
    num_images: int,
    num_classes: int,
    profile: GateProfile,
    compared_with: str,
) -> ParityReport:
    """Compare logits that come in blocks; any partition gives the same report, bit for bit.

    Args:
        blocks: Those of some images, of the reference and of the exported model, `(block, num_classes)` each.
        num_images: Images of all blocks together.
        num_classes: Logits of an image.
        profile: The thresholds.
        compared_with: What the reference is, in words.

    Raises:
        IncompatibleError: As `compare_logits`.
    """
    num_kept = num_kept_of(num_images, num_classes) if num_images * num_classes else 0
    errors = (
        measure_errors(reference, exported, num_kept=num_kept, compared_with=compared_with)
        for reference, exported in blocks
    )
    return parity_of(errors, profile=profile, compared_with=compared_with)


def measure_errors(
    reference: NDArray[np.floating[Any]],
    exported: NDArray[np.floating[Any]],
    *,
    num_kept: int,
    compared_with: str,
) -> Errors:
    """Return the errors of a batch of images.

    Args:
        reference: `(num_images, num_classes)`, any float dtype.
        exported: The same shape.
        num_kept: `num_kept_of` all images, not of this batch.
        compared_with: What the reference is, in words.

    Raises:
        IncompatibleError: If the shapes differ, are empty, or the reference is not finite.
    """
    expected, found = np.asarray(reference, np.float64), np.asarray(exported, np.float64)
    _check_comparable(expected, found, compared_with)
    # A NaN would pass every `error > threshold`; as an infinite error it fails them all.
    errors = np.abs(found - expected)
    errors[np.isnan(errors)] = np.inf
    rows = np.empty(len(expected), dtype=PARITY)
    rows["mean"], rows["squares"] = moments_of(expected)
    rows["max_error"] = errors.max(axis=1)
    rows["margin"] = np.inf
    if expected.shape[1] > 1:
        top_two = np.partition(expected, -2, axis=1)[:, -2:]
        rows["margin"] = top_two[:, 1] - top_two[:, 0]
    rows["agrees"] = expected.argmax(axis=1) == np.nan_to_num(found, nan=-np.inf).argmax(axis=1)
    return Errors(
        rows=rows, greatest=_greatest(errors.reshape(-1), num_kept), num_kept=num_kept, num_classes=expected.shape[1]
    )


def _greatest(errors: Float64, num_kept: int) -> Float64:
    """Return the greatest errors, ascending."""
    if len(errors) > num_kept:
        errors = np.partition(errors, len(errors) - num_kept)[len(errors) - num_kept :]
    return np.sort(errors)


def parity_of(parts: Iterable[Errors], *, profile: GateProfile, compared_with: str) -> ParityReport:
    """Return the report on images whose errors were measured, in any order.

    Args:
        parts: At least one, all with the same `num_kept`.
        profile: The thresholds.
        compared_with: What the reference is, in words.

    Raises:
        IncompatibleError: If the reference is constant.
    """
    rows_of, greatest, first = [], np.zeros(0), None
    for part in parts:
        first = part if first is None else first
        rows_of.append(part.rows)
        greatest = _greatest(np.concatenate([greatest, part.greatest]), first.num_kept)
    assert first is not None
    rows = np.concatenate(rows_of)
    scale = _scale(rows, first.num_classes, compared_with)
    max_error = float(greatest[-1])
    # Both logits may be off by the greatest error, in opposite directions. An error as wide as the logits themselves
    # must not excuse everything, so a margin above half a deviation is never a tie.
    # Why: docs/decisions/0007.
    is_near_tie = rows["margin"] <= min(2 * max_error, 0.5 * scale)
    near_ties, disagreements = int(is_near_tie.sum()), int((~rows["agrees"] & ~is_near_tie).sum())
    num_clear = len(rows) - near_ties
    # Index from the end: the rank of the percentile among all errors, of which only the greatest are here.
    p999_error = float(greatest[-num_kept_of(len(rows), first.num_classes)])
    measured: dict[str, Any] = {
        "max_scaled_error": max_error / scale,
        "p999_scaled_error": p999_error / scale,
        "num_near_ties": near_ties,
        "num_disagreements": disagreements,
        "agreement": 1.0 - disagreements / num_clear if num_clear else 1.0,
        "agreement_lower_bound": agreement_lower_bound(num_clear - disagreements, num_clear),
    }
    return ParityReport(
        compared_with=compared_with,
        profile=profile,
        num_images=len(rows),
        num_classes=first.num_classes,
        logit_std=scale,
        failures=_failures(profile, measured),
        **measured,
    )


def _check_comparable(expected: Float64, found: Float64, compared_with: str) -> None:
    if expected.shape != found.shape or expected.ndim != 2 or expected.size == 0:
        raise IncompatibleError(
            f"The exported model gave logits of shape {found.shape}; the reference has {expected.shape}.",
            found=found.shape,
            expected=expected.shape,
        )
    if not np.isfinite(expected).all():
        raise IncompatibleError(
            f"The reference ({compared_with}) gives a NaN or an infinity, with which nothing can be compared.",
            found="a NaN or an infinity",
            expected="finite logits",
            where=compared_with,
            hint="Check the original model on an image, and how images are prepared.",
        )


def _scale(rows: NDArray[np.void], num_classes: int, compared_with: str) -> float:
    """Return the standard deviation of the reference's logits; raise `IncompatibleError` if there is none."""
    mean, scale = mean_and_deviation(rows["mean"], rows["squares"], num_classes)
    if not scale > _ROUNDING * abs(mean):
        raise IncompatibleError(
            f"The reference ({compared_with}) gives one number as the logit of every class and image, so errors have "
            f"no scale.",
            found=0.0,
            expected="a standard deviation above 0",
            where=compared_with,
            hint="Check the original model on an image: is it trained?",
        )
    return scale


def moments_of(logits: Float64) -> tuple[Float64, Float64]:
    """Return the mean of each image's logits, and the sum of their squared distances from it, `(num_images,)` each."""
    means = logits.mean(axis=1)
    return means, np.square(logits - means[:, None]).sum(axis=1)


def mean_and_deviation(means: Float64, squares: Float64, num_classes: int) -> tuple[float, float]:
    """Return mean and standard deviation of all logits from the moments of each image, in any order of images."""
    # Exactly rounded sums do not depend on the order. Squares are about means: those of logits that are far from 0 and
    # near each other would cancel.
    mean = math.fsum(means.tolist()) / len(means)
    between = math.fsum(np.square(means - mean).tolist()) * num_classes
    return mean, math.sqrt((math.fsum(squares.tolist()) + between) / (len(means) * num_classes))


def _failures(profile: GateProfile, measured: dict[str, Any]) -> tuple[str, ...]:
    failures = [
        f"{name} {measured[name]:.3g} is above {limit:.3g}"
        for name, limit in (
            ("max_scaled_error", profile.max_scaled_error),
            ("p999_scaled_error", profile.p999_scaled_error),
        )
        if not measured[name] <= limit
    ]
    if not math.isfinite(measured["max_scaled_error"]):
        failures[0] += ": the exported model gives a NaN or an infinity"
    if measured["agreement"] < profile.min_agreement:
        failures.append(
            f"agreement {measured['agreement']:.4f} is below {profile.min_agreement:.4f}: another class wins on "
            f"{measured['num_disagreements']} images that are no near-ties"
        )
    return tuple(failures)


def agreement_lower_bound(num_agreeing: int, num_images: int) -> float:
    """Return the one-sided 99 % Clopper-Pearson lower bound of a proportion.

    Solved by bisection on the exact binomial tail, because a device that checks parity has no scipy.

    Args:
        num_agreeing: Number of successes, 0 to `num_images`.
        num_images: Number of trials; 0 gives a bound of 0.
    """
    if num_agreeing == 0:
        return 0.0
    counts = np.arange(num_agreeing, num_images + 1)
    log_choices = _log_choices(num_images)[counts]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # P(X >= num_agreeing) of a binomial distribution, summed in logarithms; `middle` is never 0 or 1 to the bit.
        tail = np.exp(log_choices + counts * math.log(middle) + (num_images - counts) * math.log1p(-middle)).sum()
        if tail < 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


def _log_choices(trials: int) -> Float64:
    """Return `(trials + 1,)`: the logarithm of `trials` over k, for every k."""
    log_factorials = np.array([math.lgamma(count + 1) for count in range(trials + 1)])
    return np.asarray(log_factorials[trials] - log_factorials - log_factorials[::-1])
