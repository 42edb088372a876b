"""Estimate T, U, S and H from held-out classes with real images, for a budget of seen accuracy.

Held-out classes are predicted from fewer classes than the new ones will be, and rows are the better the more classes
they are learnt from. So sets are played once more with less training, and what is found is extrapolated to all seen
classes, as it is on drawn features (`icis_deploy.injection.validation.cross_validation.learning_step`).
"""

# Why: docs/decisions/0068.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.injection.arbiter.budget import expected_threshold, images_needed
from icis_deploy.injection.arbiter.pretend_new import InjectedHead, PretendNew, play_sets, with_less_training
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.validation.cross_validation import learning_step
from icis_deploy.injection.validation.operating_point import CurvePoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Games:
    """Sets of pretend-new classes, and the first ones of them once more, their rows predicted from fewer classes."""

    now: tuple[PretendNew, ...]
    """All sets, predicted from all other classes; empty where the head is too small to play."""

    less: tuple[PretendNew, ...]
    """The first sets, predicted from fewer classes; at least one, unless there is no set."""

    step: float
    """From the training of `now` to all seen classes, in units of the step from `less` to `now`; 0..1."""

    def rates(self, images: SeenImages, offsets: Sequence[Float32 | float], *, budget: float) -> CurvePoint | None:
        """Return the accuracies to expect where all seen classes are learnt from.

        Args:
            images: Of seen classes.
            offsets: Of each set of `now`, `(num_images,)` or one for all images.
            budget: Loss of seen accuracy, fraction of 1.

        Returns:
            `None` as `held_out_rates`.
        """
        now = held_out_rates(images, self.now, offsets, budget=budget)
        same = held_out_rates(images, self.now[: len(self.less)], offsets[: len(self.less)], budget=budget)
        less = held_out_rates(images, self.less, offsets[: len(self.less)], budget=budget)
        if now is None or same is None or less is None:
            return now

        def extrapolated(name: str) -> float:
            gained = getattr(same, name) - getattr(less, name)
            return float(np.clip(getattr(now, name) + self.step * gained, 0.0, 1.0))

        T = extrapolated("T")  # noqa: N806
        U = min(extrapolated("U"), T)  # noqa: N806
        return CurvePoint(loss=budget, T=T, U=U, U_top5=max(extrapolated("U_top5"), U), S=now.S)


def play_games(
    images: SeenImages, head: InjectedHead, sets: Sequence[Int64], *, num_with_less: int, seed: int
) -> Games:
    """Play sets of classes as new ones, and some of them with less training.

    Args:
        images: Of seen classes.
        head: The head and what makes rows for it.
        sets: From `pretend_new.plan_sets`; none where the head is too small.
        num_with_less: How many of the sets are played again.
        seed: Of the training that is left out.
    """
    again = sets[:num_with_less]
    fewer = with_less_training(len(head.rows), again, seed=seed)
    step = 0.0
    if again:
        num_less = float(np.mean([len(one) for one in fewer]))
        num_held_out = float(np.mean([len(one) for one in again]))
        step = learning_step(len(head.rows), len(head.rows) - num_held_out, num_less)
    return Games(now=play_sets(images, head, sets), less=play_sets(images, head, again, training=fewer), step=step)


def held_out_rates(
    images: SeenImages, played: Sequence[PretendNew], offsets: Sequence[Float32 | float], *, budget: float
) -> CurvePoint | None:
    """Return the accuracies that pretend-new classes have where the images of the others lose no more than a budget.

    S is today's accuracy less what the others lost on average, so that it never exceeds what the head has.

    Args:
        images: Of seen classes.
        played: Sets of pretend-new classes.
        offsets: Of each set, `(num_images,)` or one for all images; only their differences matter.
        budget: Loss of seen accuracy, fraction of 1.

    Returns:
        `None` where no image is of a held-out class, or a set leaves too few images, or none that is right, to set a
        threshold.
    """
    found, num_classes = [], []
    for one, offset in zip(played, offsets, strict=True):
        is_new = one.is_held_out
        if not is_new.any():
            continue
        leads = one.leads + np.asarray(offset, dtype=np.float32)
        is_right = one.is_right[~is_new]
        if len(is_right) < images_needed(budget) or not is_right.any():
            return None
        weights, of_new = images.weights(~is_new), images.weights(is_new)
        threshold = expected_threshold(leads[~is_new], is_right, weights, budget=budget)
        lost = min(budget, float(weights @ is_right))
        recognised = one.is_hit & (leads > threshold)
        is_near = one.top5_leads + np.asarray(offset, dtype=np.float32) > threshold
        found.append(
            [
                float(of_new @ one.is_hit[is_new]),
                float(of_new @ recognised[is_new]),
                float(of_new @ is_near[is_new]),
                lost,
            ]
        )
        num_classes.append(len(np.unique(images.labels[is_new])))
    if not found:
        return None
    T, U, U_top5, lost = np.average(found, axis=0, weights=num_classes)  # noqa: N806
    return CurvePoint(
        loss=budget, T=float(T), U=float(U), U_top5=float(U_top5), S=float(max(0.0, images.accuracy - lost))
    )
