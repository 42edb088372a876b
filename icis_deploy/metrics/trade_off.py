"""What seen classes lose and unseen ones gain as all new logits are raised or lowered by the same number.

An image has a *lead*: its greatest seen logit less its greatest new one. With a *shift* added to all new logits an
image's answer is a seen class as long as its lead is at least the shift, so that the whole curve follows from the leads
of the images that are right on their own side of the line.

AUSUC is the area under the curve of S against U (Chao et al., "An Empirical Study and Analysis of Generalized Zero-Shot
Learning for Object Recognition in the Wild", ECCV 2016), both macro averages. Its steps are joined by straight lines,
so it is the sum of the weights of all pairs of a seen and an unseen image in which the unseen one has the lesser lead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float64, Int64
from icis_deploy.metrics.averages import Logits, class_weights, winners

BUDGETS = (0.01, 0.02, 0.05, 0.1)
"""Losses of seen accuracy, fractions of 1, at which U is read off the curve."""

MAX_POINTS = 200
"""As many points of a curve as are kept: more cannot be told apart in a picture."""

_NUMBERS_AT_ONCE = 1 << 20

TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOffPoint:
    """S and U with a number added to all new logits, fractions of 1.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        print([(point.S, point.U) for point in report.curve])
    """

    shift: float
    """Added to new logits; infinite at the ends of a curve, where one side always wins."""

    S: float
    """Macro accuracy on seen classes, choosing among all."""

    U: float
    """Macro accuracy on unseen classes, choosing among all."""

    def to_json(self) -> dict[str, float | None]:
        """Return JSON values; an infinite shift is null."""
        return {"shift": _finite(self.shift), "S": self.S, "U": self.U}


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """The most that unseen classes can have for a loss of seen accuracy, fractions of 1.

    The shift is chosen with the measured images themselves: nobody who has none of the new classes can choose it so
    well, and what was exported shows how near one came.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        for point in report.budget_points:
            print(f"S -{point.max_seen_loss:.0%}: U {point.U:.1%}, among the first five {point.U_top5:.1%}")
    """

    max_seen_loss: float
    """The loss that is allowed."""

    shift: float
    """Added to new logits; infinite where any would do."""

    S: float
    """Macro accuracy on seen classes, choosing among all."""

    U: float
    """Macro accuracy on unseen classes, choosing among all."""

    U_top5: float
    """Share of images of unseen classes, macro averaged, with the right class among the first five."""

    def to_json(self) -> dict[str, float | None]:
        """Return JSON values; an infinite shift is null."""
        names = ("max_seen_loss", "S", "U", "U_top5")
        return {"shift": _finite(self.shift), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leads:
    """What a curve is made of: the leads of the images that are right on their own side of the seen / unseen line."""

    seen: Float64
    """`(num_right_seen,)`, ascending: leads of images of seen classes."""

    seen_columns: Int64
    """`(num_right_seen,)`, the classes that they are of."""

    unseen: Float64
    """`(num_right_unseen,)`, ascending: leads of images of unseen classes."""

    unseen_columns: Int64
    """`(num_right_unseen,)`, the classes that they are of."""

    unseen_top5: Float64
    """`(num_unseen,)`, ascending: the shift above which each image of an unseen class has it among the first five."""

    unseen_top5_columns: Int64
    """`(num_unseen,)`, the classes that these are of."""

    image_weight: Float64
    """`(num_classes,)`: what an image of each class counts in the macro average of its side; 0 without images."""

    def weights(self, columns: Int64) -> Float64:
        """Return what images of these classes count."""
        return np.asarray(self.image_weight[columns])


def leads_of(scores: Logits, columns: Int64, seen_mask: Bool) -> Leads | None:
    """Return the leads of images; `None` unless both sides have classes and images.

    Args:
        scores: `(num_images, num_classes)`, without NaN.
        columns: `(num_images,)`, labels.
        seen_mask: `(num_classes,)`.
    """
    of_seen = seen_mask[columns]
    if not of_seen.any() or of_seen.all():
        return None
    seen_columns, new_columns = np.flatnonzero(seen_mask), np.flatnonzero(~seen_mask)
    needed = np.full(len(columns), np.inf)
    needed[~of_seen] = shift_for_top(scores[~of_seen], columns[~of_seen], seen_columns, new_columns)
    return leads_from(
        lead_of(scores, seen_columns, new_columns),
        np.where(of_seen, winners(scores, seen_columns), winners(scores, new_columns)),
        needed,
        columns,
        seen_mask,
    )


def lead_of(scores: Logits, seen_columns: Int64, new_columns: Int64) -> Float64:
    """Return the greatest seen logit of each image less its greatest new one, `(num_images,)`."""
    with np.errstate(invalid="ignore"):  # both sides may be minus infinity; such an image is right on neither
        lead = scores[:, seen_columns].max(axis=1).astype(np.float64) - scores[:, new_columns].max(axis=1)
    return np.asarray(lead)


def leads_from(
    lead: Float64, own_answer: Int64, shift_for_top5: Float64, columns: Int64, seen_mask: Bool
) -> Leads | None:
    """Return the leads of images of which this is known; `None` unless both sides have images.

    Args:
        lead: `(num_images,)`, from `lead_of`.
        own_answer: `(num_images,)`: which class wins among those of the image's own side.
        shift_for_top5: `(num_images,)`, from `shift_for_top`; what it is of images of seen classes does not matter.
        columns: `(num_images,)`, labels.
        seen_mask: `(num_classes,)`.
    """
    of_seen = seen_mask[columns]
    if not of_seen.any() or of_seen.all():
        return None
    is_right = own_answer == columns
    seen_lead, seen_labels = _ascending(lead[of_seen & is_right], columns[of_seen & is_right])
    unseen_lead, unseen_labels = _ascending(lead[~of_seen & is_right], columns[~of_seen & is_right])
    top_lead, top_labels = _ascending(shift_for_top5[~of_seen], columns[~of_seen])
    weight = np.zeros(len(seen_mask))
    for labels in (columns[of_seen], columns[~of_seen]):
        weight[labels] = class_weights(labels)
    return Leads(
        seen=seen_lead,
        seen_columns=seen_labels,
        unseen=unseen_lead,
        unseen_columns=unseen_labels,
        unseen_top5=top_lead,
        unseen_top5_columns=top_labels,
        image_weight=weight,
    )


def _ascending(values: Float64, columns: Int64) -> tuple[Float64, Int64]:
    order = np.argsort(values, kind="stable")
    return np.asarray(values[order], dtype=np.float64), columns[order]


def shift_for_top(scores: Logits, labels: Int64, seen_columns: Int64, new_columns: Int64) -> Float64:
    """Return the shift above which the right class of each image is among the first five, infinite for none.

    Args:
        scores: `(num_images, num_classes)`.
        labels: `(num_images,)`, columns of new classes.
        seen_columns: The columns of seen classes.
        new_columns: Those of new ones.
    """
    own = scores[np.arange(len(labels)), labels].astype(np.float64)
    num_above = (scores[:, new_columns] > own[:, None]).sum(axis=1)
    num_best = min(TOP, len(seen_columns))
    best_seen = -np.sort(-np.partition(scores[:, seen_columns], -num_best, axis=1)[:, -num_best:], axis=1)
    # With r new classes above it, 4 - r seen ones may be too: the next best of them has to be below it.
    rank = TOP - 1 - num_above
    padded = np.pad(best_seen.astype(np.float64), ((0, 0), (0, TOP - num_best)), constant_values=-np.inf)
    rival = np.take_along_axis(padded, np.clip(rank, 0, TOP - 1)[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        return np.where((rank < 0) | np.isneginf(own), np.inf, rival - own)


def ausuc(leads: Leads) -> float:
    """Return the area under the curve of S against U, a fraction of 1."""
    return min(1.0, float(resampled_ausuc(leads, np.ones((1, len(leads.image_weight))))[0]))


def resampled_ausuc(leads: Leads, drawn: Float64) -> Float64:
    """Return the area under the curve of S against U in resamples, `(num_resamples,)`.

    Args:
        leads: Of all images.
        drawn: `(num_resamples, num_classes)`: how often each class counts, with a mean of 1 on each side.
    """
    less, less_or_equal = (np.searchsorted(leads.unseen, leads.seen, side=side) for side in ("left", "right"))
    of_seen, of_unseen = leads.weights(leads.seen_columns), leads.weights(leads.unseen_columns)
    # Few resamples at once where there are many images: each takes as many numbers as there are.
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, len(of_seen) + len(of_unseen)))
    areas = []
    for start in range(0, len(drawn), at_once):
        part = drawn[start : start + at_once]
        seen, unseen = of_seen * part[:, leads.seen_columns], of_unseen * part[:, leads.unseen_columns]
        gained = np.concatenate([np.zeros((len(part), 1)), np.cumsum(unseen, axis=1)], axis=1)
        areas.append((seen * (gained[:, less] + gained[:, less_or_equal])).sum(axis=1) / 2)
    return np.concatenate(areas) if areas else np.zeros(0)


def curve_of(leads: Leads) -> tuple[TradeOffPoint, ...]:
    """Return the curve from where seen classes always win to where new ones do, at most `MAX_POINTS` of its points."""
    shifts, s, u = _all_points(leads)
    kept = np.arange(len(shifts))
    if len(shifts) > MAX_POINTS:
        along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(s)) + np.abs(np.diff(u)))])
        kept = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], MAX_POINTS - 1), side="left"))
        kept = np.union1d(kept, [0, len(shifts) - 1])
    return tuple(TradeOffPoint(shift=float(shifts[i]), S=float(s[i]), U=float(u[i])) for i in kept)


def best_balance(leads: Leads) -> float:
    """Return the greatest harmonic mean of U and S that a shift gives, a fraction of 1."""
    _, s, u = _all_points(leads)
    return float(np.max(2.0 * s * u / np.maximum(s + u, np.finfo(np.float64).tiny)))


def _all_points(leads: Leads) -> tuple[Float64, Float64, Float64]:
    """Return the shifts of all points of the curve, ascending, with S and U there."""
    found = np.unique(np.concatenate([leads.seen, leads.unseen]))
    found = found[np.isfinite(found)]
    # Halfway between two leads, where no rounding decides.
    shifts = np.concatenate([[-np.inf], (found[1:] + found[:-1]) / 2, [np.inf]])
    return shifts, _seen_accuracy(leads, shifts), _unseen_accuracy(leads, shifts)


def budget_point(leads: Leads, *, max_seen_loss: float, before: float | None = None) -> BudgetPoint | None:
    """Return the greatest U for a loss of seen accuracy.

    Args:
        leads: Of all images.
        max_seen_loss: The loss that is allowed, fraction of 1.
        before: What is lost from; by default S where seen classes always win.

    Returns:
        `None` where more is lost even then.
    """
    weights = leads.weights(leads.seen_columns)
    alone = float(weights.sum())
    may_lose = max_seen_loss - ((alone if before is None else before) - alone) + 1e-9
    if may_lose < 0:
        return None
    num_lost = int(np.searchsorted(np.cumsum(weights), may_lose, side="right"))
    # All with this lead and greater ones are kept: a seen class wins where its lead equals the shift.
    shift = float(leads.seen[num_lost]) if num_lost < len(leads.seen) else math.inf
    at = np.array([shift])
    top = leads.weights(leads.unseen_top5_columns)[leads.unseen_top5 < shift].sum()
    return BudgetPoint(
        max_seen_loss=max_seen_loss,
        shift=shift,
        S=float(_seen_accuracy(leads, at)[0]),
        U=float(_unseen_accuracy(leads, at)[0]),
        U_top5=min(1.0, float(top)),
    )


def _seen_accuracy(leads: Leads, shifts: Float64) -> Float64:
    kept = np.concatenate([np.cumsum(leads.weights(leads.seen_columns)[::-1])[::-1], [0.0]])
    return np.asarray(np.minimum(kept[np.searchsorted(leads.seen, shifts, side="left")], 1.0))


def _unseen_accuracy(leads: Leads, shifts: Float64) -> Float64:
    gained = np.concatenate([[0.0], np.cumsum(leads.weights(leads.unseen_columns))])
    return np.asarray(np.minimum(gained[np.searchsorted(leads.unseen, shifts, side="left")], 1.0))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
