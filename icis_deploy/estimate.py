"""An honest estimate of an injection before it ships: how right it will be, which classes to doubt, what collides.

Nothing here has seen an image. The numbers come from class-level cross-validation with pseudo-features; the interval
says how far they move with what is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.calibration import Rates, predicted_rates, recognised
from icis_deploy.cross_validation import Fold, play
from icis_deploy.descriptor_weights import centred_similarity, cosine_similarity
from icis_deploy.pseudo_features import draw_pseudo_features
from icis_deploy.selection import Selection
from icis_deploy.trial import Candidate, Trial

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FEW_SEEN = 30
"""Seen classes below which the published method itself fell to a fraction of its accuracy."""

COLLIDING_COSINE = 0.9
"""Cosine of descriptors from which two classes are named as a collision."""

SHARES = (0.5, 0.9)
"""Neighbour shares between which the estimate's interval is taken."""

UNKNOWN_ACCURACY = 0.1
"""How far the classifier's accuracy may be from the one assumed, where its owner did not say."""

NORMAL_90 = 1.645
MAX_COLLISIONS = 20
MAX_LISTED = 1000
"""Classes whose confidence is kept in an update: devices store it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A predicted number and its 90 % interval, fractions of 1."""

    value: float
    """The prediction."""

    low: float
    """Lower end."""

    high: float
    """Upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """Two classes whose descriptors hardly differ."""

    class_name: str
    """An unseen class."""

    other: str
    """A seen class, or another unseen one."""

    is_other_seen: bool
    """Whether the other class is in the head."""

    cosine: float
    """Between their descriptors."""

    def __str__(self) -> str:
        if self.is_other_seen:
            return f"{self.class_name!r} would take images of {self.other!r}: cosine {self.cosine:.2f}"
        return f"{self.class_name!r} and {self.other!r} can hardly be told apart: cosine {self.cosine:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What cross-validation predicts of an injection."""

    T: Range
    """On unseen classes, choosing among unseen classes only."""

    U: Range
    """On unseen classes, choosing among all."""

    S: Range
    """On seen classes, choosing among all."""

    H: Range
    """Harmonic mean of U and S."""

    chance: float
    """T of guessing, in the cross-validation."""

    class_names: tuple[str, ...]
    """`(num_unseen,)`, of the injected classes."""

    confidence: tuple[float, ...]
    """`(num_unseen,)`: predicted part of each class's images that it wins among all classes."""

    collisions: tuple[Collision, ...]
    """The closest pairs of classes, closest first."""

    warnings: tuple[str, ...]
    """Reasons to doubt the injection as a whole, empty where there are none."""

    is_trustworthy: bool
    """Whether cross-validated T is better than chance beyond doubt."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: collisions also in words, and the `MAX_LISTED` least confident classes."""
        plain = asdict(self)
        del plain["class_names"]
        doubtful = sorted(zip(self.confidence, self.class_names, strict=True))[:MAX_LISTED]
        plain["confidence"] = {name: round(value, 4) for value, name in doubtful}
        plain["collisions"] = [{**asdict(one), "message": str(one)} for one in self.collisions]
        plain["warnings"] = list(self.warnings)
        return plain


def estimate_injection(
    selection: Selection,
    unseen_descriptors: Float32,
    *,
    class_names: Sequence[str],
    seen_names: Sequence[str],
) -> Estimate:
    """Estimate the accuracy of an injection and of each of its classes.

    Args:
        selection: The trial, and the method that predicts the rows.
        unseen_descriptors: `(num_unseen, descriptor_dim)`.
        class_names: `(num_unseen,)`.
        seen_names: `(num_seen,)`.
    """
    candidate, trial = selection.chosen, selection.trial
    assumed = trial.assumptions
    accuracies = {assumed.seen_accuracy}
    if not assumed.is_accuracy_known:
        accuracies |= {
            max(0.05, assumed.seen_accuracy - UNKNOWN_ACCURACY),
            min(0.99, assumed.seen_accuracy + UNKNOWN_ACCURACY),
        }
    variants = [candidate.rates]
    for accuracy, share in [*((accuracy, SHARES[0]) for accuracy in sorted(accuracies)), (max(accuracies), SHARES[1])]:
        pseudo = draw_pseudo_features(
            trial.rows,
            neutral_features=assumed.neutral_features,
            seen_accuracy=accuracy,
            max_features=len(trial.pseudo.features) // 2,
            seed=trial.seed + 1,
            neighbour_share=share,
        )
        outcomes = play(candidate.held_out, trial.rows, pseudo, seed=trial.seed)
        variants.append(predicted_rates(outcomes, candidate.point))
    chance = candidate.outcomes.chance
    is_trustworthy = _beats_chance(candidate)
    return Estimate(
        **_ranges(variants, num_unseen=len(class_names), num_seen=len(seen_names)),
        chance=chance,
        class_names=tuple(class_names),
        confidence=_confidence(candidate, trial, unseen_descriptors),
        collisions=find_collisions(trial.descriptors, unseen_descriptors, seen_names, class_names),
        warnings=_warnings(candidate.rates, chance, is_trustworthy, len(seen_names), len(class_names)),
        is_trustworthy=is_trustworthy,
    )


def _ranges(variants: Sequence[Rates], *, num_unseen: int, num_seen: int) -> dict[str, Range]:
    """Return T, U, S and H: the first variant's, between the extremes of all, widened by the draw of classes."""
    counts = {"T": num_unseen, "U": num_unseen, "S": num_seen, "H": min(num_unseen, num_seen)}
    ranges = {}
    for name, count in counts.items():
        values = [float(getattr(rates, name)) for rates in variants]
        value = values[0]
        draw = NORMAL_90 * float(np.sqrt(max(value * (1.0 - value), 0.25 / count) / count))
        low, high = value - min(values), max(values) - value
        ranges[name] = Range(
            value=value,
            low=max(0.0, value - float(np.hypot(low, draw))),
            high=min(1.0, value + float(np.hypot(high, draw))),
        )
    return ranges


def _beats_chance(candidate: Candidate) -> bool:
    """Say whether hits of held-out classes exceed chance, with a probability of error under one in a thousand.

    A class is one observation: its features are alike. A single unseen class has nothing to be confused with.
    """
    outcomes = candidate.outcomes
    if outcomes.chance >= 1.0:
        return True
    from scipy.stats import binomtest

    classes, index = np.unique(outcomes.unseen_class, return_inverse=True)
    hits = np.bincount(index, weights=outcomes.is_hit) / np.bincount(index)
    test = binomtest(int(np.floor(hits.sum())), len(classes), outcomes.chance, alternative="greater")
    return bool(test.pvalue < 1e-3)


def _confidence(candidate: Candidate, trial: Trial, unseen_descriptors: Float32) -> tuple[float, ...]:
    """Return the predicted chance of each unseen class to win its own images.

    A logistic regression from where a held-out class's descriptor lies (how near the nearest seen ones are, how near
    the nearest competitor) to whether its features were recognised, over all games of the cross-validation.
    """
    from sklearn.linear_model import LogisticRegression

    won = recognised(candidate.outcomes, candidate.point)
    described = np.full((len(trial.rows), 3), np.nan)
    for part in candidate.held_out:
        described[part.fold.held_out] = _position_in_fold(trial.descriptors, part.fold)
    inputs = described[candidate.outcomes.unseen_class]
    if won.all() or not won.any():
        return (float(won.mean()),) * len(unseen_descriptors)
    model = LogisticRegression(C=1.0).fit(inputs, won)
    asked = _position(trial.descriptors, unseen_descriptors, np.zeros(len(unseen_descriptors), dtype=np.int64))
    return tuple(float(value) for value in model.predict_proba(asked)[:, 1])


def _position_in_fold(descriptors: Float32, fold: Fold) -> Float64:
    group_of = np.empty(len(fold.held_out), dtype=np.int64)
    for number, group in enumerate(fold.groups):
        group_of[np.searchsorted(fold.held_out, group)] = number
    return _position(descriptors[fold.training], descriptors[fold.held_out], group_of)


def _position(seen_descriptors: Float32, unseen_descriptors: Float32, group_of: NDArray[np.int64]) -> Float64:
    """Return where descriptors lie, `(num_unseen, 3)`: nearest seen, mean of five seen, nearest of their own group."""
    to_seen = np.sort(centred_similarity(unseen_descriptors, seen_descriptors), axis=1)[:, ::-1]
    mean = seen_descriptors.mean(axis=0, dtype=np.float64).astype(np.float32)
    to_unseen = cosine_similarity(unseen_descriptors - mean, unseen_descriptors - mean)
    to_unseen[group_of[:, None] != group_of[None, :]] = 0.0
    np.fill_diagonal(to_unseen, 0.0)
    return np.stack([to_seen[:, 0], to_seen[:, :5].mean(axis=1), to_unseen.max(axis=1)], axis=1).astype(np.float64)


def find_collisions(
    seen_descriptors: Float32, unseen_descriptors: Float32, seen_names: Sequence[str], class_names: Sequence[str]
) -> tuple[Collision, ...]:
    """Return the pairs of an unseen class and another whose descriptors hardly differ, closest first.

    Cosines are of descriptors as given: two names of one thing are close whatever the other classes are.
    """
    found = []
    to_seen = cosine_similarity(unseen_descriptors, seen_descriptors)
    to_unseen = np.triu(cosine_similarity(unseen_descriptors, unseen_descriptors), k=1)
    for similarity, names, is_seen in ((to_seen, seen_names, True), (to_unseen, class_names, False)):
        # Attributes that are all positive lie close together: a pair must also stand out from what is usual.
        usual = float(np.quantile(similarity[similarity != 0.0], 0.99)) if similarity.any() else 0.0
        for row, column in np.argwhere(similarity >= max(COLLIDING_COSINE, usual)):
            found.append(
                Collision(
                    class_name=class_names[row],
                    other=names[column],
                    is_other_seen=is_seen,
                    cosine=float(similarity[row, column]),
                )
            )
    return tuple(sorted(found, key=lambda one: -one.cosine)[:MAX_COLLISIONS])


def _warnings(rates: Rates, chance: float, is_trustworthy: bool, num_seen: int, num_unseen: int) -> tuple[str, ...]:
    messages = []
    if not is_trustworthy:
        messages.append(
            f"The descriptors say nothing that helps: rows of held-out seen classes are told apart {rates.T:.1%} of "
            f"the time, and guessing gives {chance:.1%}. Check that descriptors and classes belong together."
        )
    if num_seen < FEW_SEEN:
        messages.append(
            f"There are {num_seen} seen classes to learn from; with fewer than {FEW_SEEN}, predictions and this "
            f"estimate are poor."
        )
    if num_unseen > num_seen:
        messages.append(
            f"{num_unseen} classes are injected into a head of {num_seen}: held-out classes were fewer, so the real T "
            f"will be lower than predicted."
        )
    return tuple(messages)
