"""Class-level cross-validation: play the injection of classes whose rows and features are known.

A fold of seen classes plays the unseen ones: their rows are predicted from the other classes, and features of all are
classified by the other classes' true rows and the predicted ones. What is recorded is enough to know the outcome for
every scale and offset that calibration may choose.

Rules:

1. The share of held-out classes is that of unseen classes among all, within 1/10..1/3, so that the game is like the
   real one.
2. Held-out classes compete in groups of the number of unseen classes: a single new class meets no other new one. Where
   there are not enough of them, *rivals* fill up the group: unseen classes' rows, predicted from the same training.
3. Whoever calls `play` has brought deviations to the length that calibration scales: methods differ in direction only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32, Float64, Int64
from icis_deploy.injection.pseudo_features.accuracy_matching import head_logits
from icis_deploy.injection.pseudo_features.draws import PseudoFeatures
from icis_deploy.injection.rows.predictors import Predict
from icis_deploy.injection.rows.spectrum import mean_row

MIN_SEEN = 6
"""Seen classes below which cross-validation says nothing."""

ENOUGH_HELD_OUT = 800
"""Folds are played until this many classes were held out; the rest would sharpen little and cost a fit each."""

MAX_GROUPS = 24
"""Groups of held-out classes that features of a fold's other classes meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One game: which classes play the unseen ones."""

    held_out: Int64
    """`(num_held_out,)`, sorted indices of seen classes."""

    training: Int64
    """`(num_training,)`, sorted indices of the classes that their rows are predicted from; none of them is held out."""

    groups: tuple[Int64, ...]
    """The held-out classes in groups that compete with each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """Predictions of one fold."""

    fold: Fold
    """The fold that was predicted."""

    deviations: Float32
    """`(num_held_out, feature_dim + 1)`: predicted row less the mean row of the training classes."""

    rivals: Float32
    """`(num_rivals, feature_dim + 1)`: deviations of rows of unseen classes that every group meets."""

    variance: Float64
    """`(num_held_out,)`: of the prediction, 0..1, where the method has one, else zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What calibration needs to know of every game: an injected row's logit is `mean + scale * deviation + offset`."""

    seen_margin: Float32
    """`(num_seen_games,)`: a seen feature's own logit less its mean row's; -inf where the head is wrong anyway."""

    seen_deviation: Float32
    """`(num_seen_games,)`: the largest deviation logit among the injected rows it met."""

    unseen_margin: Float32
    """`(num_unseen_games,)`: largest seen logit less the mean row's, of a held-out feature."""

    unseen_deviation: Float32
    """`(num_unseen_games,)`: the largest deviation logit among injected rows; its own class's where `is_hit`."""

    is_hit: NDArray[np.bool_]
    """`(num_unseen_games,)`: whether its own class is the first among the injected rows."""

    unseen_class: Int64
    """`(num_unseen_games,)`: the held-out class of the feature."""

    chance: float
    """Part of hits that guessing among the injected classes would give."""


def plan_folds(num_seen: int, num_unseen: int, *, seed: int, max_folds: int | None = None) -> tuple[Fold, ...]:
    """Return the folds to play.

    Args:
        num_seen: At least `MIN_SEEN`.
        num_unseen: Classes that will be injected.
        seed: Of the partition.
        max_folds: How many to play at most, where a fit is expensive.
    """
    num_folds = int(np.clip(round((num_seen + num_unseen) / num_unseen), 3, 10))
    num_played = min(num_folds, -(-ENOUGH_HELD_OUT * num_folds // num_seen), max_folds or num_folds)
    order = np.random.default_rng(seed).permutation(num_seen)
    folds = []
    for part in np.array_split(order, num_folds)[:num_played]:
        num_groups = max(1, round(len(part) / num_unseen))
        held_out = np.sort(part).astype(np.int64)
        training = np.setdiff1d(np.arange(num_seen, dtype=np.int64), held_out)
        groups = tuple(np.sort(group).astype(np.int64) for group in np.array_split(part, num_groups))
        folds.append(Fold(held_out=held_out, training=training, groups=groups))
    return tuple(folds)


def with_less_training(folds: tuple[Fold, ...], *, seed: int) -> tuple[Fold, ...]:
    """Return the same folds, each with as many training classes fewer as it holds out, drawn at random."""
    random = np.random.default_rng(seed)
    thinned = []
    for fold in folds:
        kept = random.permutation(len(fold.training))[min(len(fold.held_out), len(fold.training) // 2) :]
        thinned.append(replace(fold, training=fold.training[np.sort(kept)]))
    return tuple(thinned)


def hold_out(
    predict: Predict, descriptors: Float32, rows: Float32, unseen_descriptors: Float32, folds: tuple[Fold, ...]
) -> tuple[HeldOutRows, ...]:
    """Predict the held-out rows of every fold, and those of its rivals, from its training classes.

    Args:
        predict: A method.
        descriptors: `(num_seen, descriptor_dim)`.
        rows: `(num_seen, feature_dim + 1)`.
        unseen_descriptors: `(num_unseen, descriptor_dim)`; as many of them as a group lacks become its rivals.
        folds: What to hold out.

    Returns:
        A prediction for each fold; deviations keep the lengths predicted.
    """
    held_out = []
    for fold in folds:
        training, asked = rows[fold.training], descriptors[fold.held_out]
        rivals = unseen_descriptors[: max(0, len(unseen_descriptors) - min(len(group) for group in fold.groups))]
        predicted = predict(descriptors[fold.training], training, np.concatenate([asked, rivals]))
        deviations = predicted.rows - mean_row(training)
        held_out.append(
            HeldOutRows(
                fold=fold,
                deviations=deviations[: len(asked)],
                rivals=deviations[len(asked) :],
                variance=predicted.variance[: len(asked)],
            )
        )
    return tuple(held_out)


def play(held_out: tuple[HeldOutRows, ...], rows: Float32, pseudo: PseudoFeatures, *, seed: int) -> Outcomes:
    """Classify pseudo-features in every fold and return the outcomes of all folds together.

    Args:
        held_out: Predictions of the folds.
        rows: `(num_seen, feature_dim + 1)`, the true rows.
        pseudo: Features of seen classes, and what those rows make of them.
        seed: Of the draw of groups, where there are more than `MAX_GROUPS`.
    """
    random = np.random.default_rng(seed)
    mean = mean_row(rows)
    base = pseudo.features @ mean[:-1] + mean[-1]  # (num_features,)
    first = pseudo.logits.argmax(axis=1)  # (num_features,)
    injected = [rows for part in held_out for rows in (part.deviations, part.rivals)]
    logits = head_logits(np.concatenate(injected), pseudo.features)  # one product for all folds is fastest
    parts = np.split(logits, np.cumsum([len(rows) for rows in injected])[:-1], axis=1)
    games = [
        _play_fold(one.fold, deviations, rivals, base, first, pseudo, random)
        for one, deviations, rivals in zip(held_out, parts[::2], parts[1::2], strict=True)
    ]
    columns = [np.concatenate(column) for column in zip(*games, strict=True)]
    sizes = [len(group) + len(part.rivals) for part in held_out for group in part.fold.groups]
    return Outcomes(
        seen_margin=columns[0],
        seen_deviation=columns[1],
        unseen_margin=columns[2],
        unseen_deviation=columns[3],
        is_hit=columns[4],
        unseen_class=columns[5],
        chance=len(sizes) / sum(sizes),
    )


def _play_fold(
    fold: Fold,
    deviations: Float32,
    rivals: Float32,
    base: Float32,
    first: Int64,
    pseudo: PseudoFeatures,
    random: np.random.Generator,
) -> tuple[NDArray[np.generic], ...]:
    """Return the columns of `Outcomes` for one fold.

    Args:
        fold: The game.
        deviations: `(num_features, num_held_out)`, deviation logits.
        rivals: `(num_features, num_rivals)`, likewise.
        base: `(num_features,)`, logits of the mean row.
        first: `(num_features,)`, of all seen classes the one with the largest logit.
        pseudo: The features.
        random: To draw groups with.
    """
    logits = pseudo.logits
    is_held_out = np.zeros(logits.shape[1], dtype=bool)
    is_held_out[fold.held_out] = True
    seen, unseen = np.flatnonzero(~is_held_out[pseudo.classes]), np.flatnonzero(is_held_out[pseudo.classes])
    top_seen = logits[np.arange(len(logits)), first]  # (num_features,), of the classes that are not held out
    others = np.flatnonzero(is_held_out[first])
    top_seen[others] = logits[np.ix_(others, np.flatnonzero(~is_held_out))].max(axis=1)
    top_seen = top_seen - base
    own = logits[np.arange(len(logits)), pseudo.classes] - base
    seen_margin = np.where(own[seen] >= top_seen[seen], own[seen], -np.inf)
    rival = rivals.max(axis=1, initial=-np.inf)  # (num_features,)
    groups = [np.searchsorted(fold.held_out, group) for group in fold.groups]
    met = random.permutation(len(groups))[:MAX_GROUPS]
    met_by_seen = [deviations[:, groups[g]] if len(groups) > 1 else deviations for g in met]
    seen_deviation = np.concatenate([np.maximum(logits.max(axis=1), rival)[seen] for logits in met_by_seen])
    group_of = np.empty(len(fold.held_out), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[group] = number
    place = np.searchsorted(fold.held_out, pseudo.classes[unseen])  # of each unseen feature's own class
    competes = group_of[place][:, None] == group_of[None, :]  # (num unseen features, num_held_out)
    competing = np.where(competes, deviations[unseen], -np.inf)
    best = competing.max(axis=1)
    return (
        np.tile(seen_margin, len(met)),
        seen_deviation,
        top_seen[unseen],
        np.maximum(best, rival[unseen]),
        (competing.argmax(axis=1) == place) & (best > rival[unseen]),
        pseudo.classes[unseen],
    )
