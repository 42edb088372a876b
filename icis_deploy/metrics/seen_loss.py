"""What new classes cost those that the original model knows: right answers that a new class takes.

Rules:

1. An image of a class of the original model is lost if the model is right on it among its own classes, and no longer
   where the new ones compete. Both answers are of the same logits, so that what a conversion costs is not in it
   (`accuracy_loss` measures that), and nothing can be gained: a class that lost to an old one still does.
2. The loss is the macro average of what is lost: `S_original - S`, a fraction of 1.
3. Its interval is that of Clopper and Pearson for the share of lost images: exact where all classes have as many
   images, otherwise for as many as would say as much (`proportions`). It is of further images of the same classes and
   the same source.
4. A loss is over a budget if the whole 95 % interval is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from icis_deploy.common.arrays import Bool, Int64
from icis_deploy.common.terminal_text import points_text
from icis_deploy.metrics.averages import class_weights
from icis_deploy.metrics.proportions import Interval, clopper_pearson

CONFIDENCE = 0.95
MAX_LISTED = 20
"""As many classes as a report lists, of those that lose and of those that take."""

_NUM_NAMED = 3
"""As many classes as a sentence names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakingClass:
    """A new class that wins on images on which the model was right before.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        if report.seen_loss is not None:
            print([(each.name, each.num_taken) for each in report.seen_loss.taking])
    """

    name: str

    num_taken: int
    """Images that it takes, at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LosingClass:
    """A seen class that new ones take images from.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        if report.seen_loss is not None:
            for each in report.seen_loss.losing:
                print(each.name, each.num_lost, "of", each.num_images, "to", [one.name for one in each.taken_by])
    """

    name: str

    num_images: int
    """Images of it."""

    num_lost: int
    """Those that the model was right on before, and is not now; at least 1."""

    taken_by: tuple[TakingClass, ...]
    """The new classes that win on them, the most frequent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLoss:
    """What new classes cost the seen ones, and whether that is within a budget.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        if report.seen_loss is not None:
            print(report.seen_loss.loss, report.seen_loss.interval, report.seen_loss.losing)
    """

    before: float
    """Macro accuracy on the original model's classes, choosing among them alone, fraction of 1."""

    after: float
    """The same where all classes compete."""

    interval: Interval
    """95 % interval of `before - after` (see the module)."""

    num_images: int
    """Images of the original model's classes."""

    num_lost: int
    """Images that the model was right on before, and is not now."""

    losing: tuple[LosingClass, ...]
    """The classes that lose most, at most `MAX_LISTED`, the greatest loss first."""

    taking: tuple[TakingClass, ...]
    """The new classes that take most, at most `MAX_LISTED`, the greatest number of images first."""

    max_seen_loss: float | None = None
    """The budget, fraction of 1; `None` where there is none."""

    @property
    def loss(self) -> float:
        """`before - after`, a fraction of 1."""
        return max(0.0, self.before - self.after)

    @property
    def verdict(self) -> Literal["within", "over", "cannot tell"] | None:
        """`within` or `over` the budget if the whole interval is; `None` where there is no budget."""
        if self.max_seen_loss is None:
            return None
        if self.interval.low > self.max_seen_loss:
            return "over"
        return "within" if self.interval.high <= self.max_seen_loss else "cannot tell"

    @property
    def text(self) -> str:
        """The loss and its interval, in words."""
        interval = f"95 % interval {100 * self.interval.low:.1f} to {100 * self.interval.high:.1f}"
        return (
            f"{points_lost(self.before, self.after)} points of seen accuracy, {100 * self.before:.1f} -> "
            f"{100 * self.after:.1f} % on {self.num_images} images ({interval})"
        )

    @property
    def failure(self) -> str | None:
        """In words by how much the budget is exceeded, and by which classes; `None` unless the verdict is `over`."""
        if self.max_seen_loss is None or self.verdict != "over":
            return None
        losing = [
            f"{each.name!r} ({each.num_lost} of {each.num_images} images, to {each.taken_by[0].name!r})"
            for each in self.losing[:_NUM_NAMED]
        ]
        taking = [f"{each.name!r} ({each.num_taken})" for each in self.taking[:_NUM_NAMED]]
        return (
            f"new classes cost {self.text}, over the budget of {points_text(self.max_seen_loss)}; most is lost by "
            f"{', '.join(losing)}; most is taken by {', '.join(taking)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        values = asdict(self)
        return {"verdict": self.verdict, "loss": self.loss, **values, "interval": self.interval.to_json()}


def points_lost(before: float, after: float) -> str:
    """Return the difference of two fractions of 1 in points, with one decimal; equal ones always read the same."""
    return f"{round(round(100 * (before - after), 6), 1) + 0.0:.1f}"  # + 0.0: or nothing lost could read -0.0


def seen_loss_of(
    columns: Int64,
    among_original: Int64,
    among_all: Int64,
    *,
    is_original: Bool,
    class_names: Sequence[str],
    max_seen_loss: float | None = None,
) -> SeenLoss | None:
    """Return what new classes cost on images of the original model's classes.

    Args:
        columns: `(num_images,)`, labels.
        among_original: `(num_images,)`: which class wins among those of the original model.
        among_all: `(num_images,)`: which wins among all.
        is_original: `(num_classes,)`.
        class_names: `(num_classes,)`.
        max_seen_loss: The budget, if there is one, fraction of 1.

    Returns:
        `None` where no image is of a class of the original model.
    """
    chosen = is_original[columns]
    if not chosen.any():
        return None
    labels, answers = columns[chosen], among_all[chosen]
    weights = class_weights(labels)
    was_right = among_original[chosen] == labels
    is_lost = was_right & (answers != labels)
    trials = 1.0 / float(weights @ weights)
    share = float(weights @ is_lost)
    return SeenLoss(
        before=float(weights @ was_right),
        after=float(weights @ (was_right & ~is_lost)),
        interval=clopper_pearson(min(share * trials, trials), trials, confidence=CONFIDENCE),
        num_images=len(labels),
        num_lost=int(is_lost.sum()),
        losing=_losing(labels, answers, is_lost, class_names),
        taking=_taking(answers[is_lost], class_names)[:MAX_LISTED],
        max_seen_loss=max_seen_loss,
    )


def _losing(labels: Int64, answers: Int64, is_lost: Bool, class_names: Sequence[str]) -> tuple[LosingClass, ...]:
    num_images, num_lost = np.bincount(labels), np.bincount(labels[is_lost])
    losing = np.flatnonzero(num_lost)
    # The greatest share first: each class counts the same. Of equal shares that with more images says more.
    order = sorted(losing.tolist(), key=lambda each: (-num_lost[each] / num_images[each], -num_lost[each], each))
    return tuple(
        LosingClass(
            name=class_names[each],
            num_images=int(num_images[each]),
            num_lost=int(num_lost[each]),
            taken_by=_taking(answers[is_lost & (labels == each)], class_names),
        )
        for each in order[:MAX_LISTED]
    )


def _taking(answers: Int64, class_names: Sequence[str]) -> tuple[TakingClass, ...]:
    counts = sorted(Counter(answers.tolist()).items(), key=lambda item: (-item[1], item[0]))
    return tuple(TakingClass(name=class_names[column], num_taken=count) for column, count in counts)


def stated_budget(updates: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how much seen accuracy class updates were made to cost together, fraction of 1.

    Each was promised alone, so the budgets add up. An update that adds no class costs nothing.

    Args:
        updates: As a manifest states them; the budget is `max_seen_loss` in `budget` of an update's provenance. No code
            wrote that for this one to read, so that anything may stand there.

    Returns:
        `None` where no update adds a class, or one that does states no budget.
    """
    budgets = [_stated_by(update) for update in updates if update.get("added") or update.get("replaced")]
    known = [budget for budget in budgets if budget is not None]
    return min(1.0, sum(known)) if known and len(known) == len(budgets) else None


def _stated_by(update: Mapping[str, Any]) -> float | None:
    provenance = update.get("provenance")
    budget = provenance.get("budget") if isinstance(provenance, Mapping) else None
    value = budget.get("max_seen_loss") if isinstance(budget, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0.0 <= value <= 1.0 else None
