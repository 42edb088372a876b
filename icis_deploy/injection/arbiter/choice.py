"""Spend a budget of seen accuracy: by an arbiter where held-out classes speak for it, else by a constant offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.common.terminal_text import percent, points_text
from icis_deploy.errors import UntrustworthyError
from icis_deploy.head.arbiter import Arbiter, constant_arbiter, deviation_lengths, seen_statistics
from icis_deploy.injection.arbiter.budget import SpentBudget, images_needed, spend_budget
from icis_deploy.injection.arbiter.fitting import MIN_SEEN, cross_fitted_offsets, fit_arbiter, held_out_offsets
from icis_deploy.injection.arbiter.held_out import Games, held_out_rates, play_games
from icis_deploy.injection.arbiter.pretend_new import NUM_SETS, InjectedHead, plan_sets
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.validation.operating_point import CURVE, CurvePoint

NUM_EXPENSIVE_SETS = 3
"""Sets that are played where each costs a training: an arbiter that is fitted on them gives as much U as one of ten,
within a point, and one of two sets loses up to 2 (birds and ImageNet, known classes held out)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArbiterChoice:
    """How a budget is spent, and what to expect of it."""

    arbiter: Arbiter
    """What is added to new logits; its constant spends the budget. Where it is the same for all images it can become
    part of the new rows' biases."""

    reason: str
    """Why this arbiter, or why a constant offset, in a sentence."""

    spent: SpentBudget
    """The threshold and what it costs seen classes."""

    curve: Mapping[float, CurvePoint]
    """Estimates from held-out classes, by loss of seen accuracy: of `CURVE` and the budget those that there are enough
    images for; empty where no image is of a held-out class."""

    constant_curve: Mapping[float, CurvePoint]
    """The same with a constant offset; equal to `curve` where that was chosen."""

    @property
    def estimate(self) -> CurvePoint | None:
        """What to expect at the budget."""
        return self.curve.get(self.spent.budget)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for an update's provenance."""
        return {
            "arbiter": self.arbiter.to_json(),
            "reason": self.reason,
            **self.spent.to_json(),
            "curve": [point.to_json() for _, point in sorted(self.curve.items())],
        }


def choose_arbiter(
    images: SeenImages,
    head: InjectedHead,
    *,
    budget: float,
    seed: int,
    is_arbiter_allowed: bool = True,
    is_fit_expensive: bool = False,
) -> ArbiterChoice:
    """Choose how new classes are favoured, so that the images lose at most a budget.

    Args:
        images: Of seen classes; not those that the network was trained on.
        head: The head with its new rows, and how they were made.
        budget: Loss of macro-averaged seen accuracy, fraction of 1.
        seed: Of partitions, folds and halves.
        is_arbiter_allowed: Whether anything but a constant offset may be chosen.
        is_fit_expensive: Whether rows are predicted by training a network: then few sets are played.

    Raises:
        UsageError: If the budget is out of range.
        IncompatibleError: If there are too few images for it.
    """
    new_logits = images.features @ head.new_rows[:, :-1].T + head.new_rows[:, -1]
    leads = np.asarray(new_logits.max(axis=1) - images.logits.max(axis=1), dtype=np.float32)
    spent = spend_budget(images, leads, budget=budget, seed=seed)  # first: it refuses what cannot be kept
    num_seen = len(head.rows)
    games = _play(images, head, seed, is_fit_expensive)
    played = games.now
    no_offsets = [0.0] * len(played)
    constant_curve = _curve(images, games, no_offsets, budget)
    try:
        _require_ground(num_seen, is_arbiter_allowed)
        offsets = held_out_offsets(played)
        reason = _require_gain(
            held_out_rates(images, played, offsets, budget=budget),
            held_out_rates(images, played, no_offsets, budget=budget),
            budget,
        )
        curve = _curve(images, games, offsets, budget)
        arbiter = fit_arbiter(played, is_used=np.ones(images.num_images, dtype=bool))
        statistics = seen_statistics(images.features, images.logits, deviation_lengths(head.rows))
        leads = leads + cross_fitted_offsets(played, statistics, seed=seed)
        spent = spend_budget(images, leads, budget=budget, seed=seed)
    except UntrustworthyError as refusal:
        arbiter, curve, reason = constant_arbiter(0.0), constant_curve, f"A constant offset: {refusal}"
    return ArbiterChoice(
        arbiter=arbiter.lowered_by(spent.threshold),
        reason=reason,
        spent=spent,
        curve=curve,
        constant_curve=constant_curve,
    )


def _play(images: SeenImages, head: InjectedHead, seed: int, is_fit_expensive: bool) -> Games:
    """Play seen classes as new ones, as often as fits cost little."""
    num_seen, num_new = len(head.rows), len(head.new_rows)
    if num_seen <= NUM_SETS:
        return Games(now=(), less=(), step=0.0)
    sets = plan_sets(images.labels, num_seen=num_seen, num_new=num_new, seed=seed)
    if is_fit_expensive:
        return play_games(images, head, sets[:NUM_EXPENSIVE_SETS], num_with_less=1, seed=seed)
    return play_games(images, head, sets, num_with_less=len(sets), seed=seed)


def _curve(
    images: SeenImages, games: Games, offsets: Sequence[Float32 | float], budget: float
) -> dict[float, CurvePoint]:
    """Return the estimates at each loss of seen accuracy that there are enough images for.

    What more is allowed never costs U: where the extrapolation of few images says otherwise, it is not followed.
    """
    curve: dict[float, CurvePoint] = {}
    least, least_top5 = 0.0, 0.0
    for asked in sorted({*CURVE, budget}):
        rates = games.rates(images, offsets, budget=asked)
        if rates is not None:
            least, least_top5 = max(least, rates.U), max(least_top5, rates.U_top5)
            curve[asked] = replace(rates, U=least, U_top5=least_top5)
    return curve


def _require_ground(num_seen: int, is_arbiter_allowed: bool) -> None:
    """Raise `UntrustworthyError` where an arbiter is not to be tried."""
    if not is_arbiter_allowed:
        raise UntrustworthyError("an arbiter was not asked for.")
    if num_seen < MIN_SEEN:
        raise UntrustworthyError(
            f"the head has {num_seen} classes, and below {MIN_SEEN} held-out classes do not tell where an arbiter "
            f"harms."
        )


def _require_gain(with_arbiter: CurvePoint | None, without: CurvePoint | None, budget: float) -> str:
    """Return why an arbiter is chosen; raise `UntrustworthyError` where held-out classes do not speak for it.

    Both are of the same sets, as they were played: a learning curve says nothing of which of the two is better.
    """
    if with_arbiter is None or without is None:
        raise UntrustworthyError(
            f"too few images are left where classes are held out to compare an arbiter with it (more than "
            f"{images_needed(budget)} are needed)."
        )
    if with_arbiter.U <= without.U:
        raise UntrustworthyError(
            f"on held-out classes an arbiter gives U {percent(with_arbiter.U)} and a constant offset "
            f"{percent(without.U)} at a loss of {points_text(budget)}."
        )
    return (
        f"On held-out classes an arbiter gives U {percent(with_arbiter.U)} and a constant offset {percent(without.U)} "
        f"at a loss of {points_text(budget)}."
    )
