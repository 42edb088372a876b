"""Features that stand in for images of the seen classes, drawn from the head and from pictures of nothing.

    feature = activation(neutral feature + strength * (direction of its class + blend * direction of a similar class))

- *Neutral features* are what the backbone makes of `icis_deploy.neutral_images`; they have the length and the spread of
  real features, which rows alone do not tell. Where there are none, isotropic noise takes their place, and its scale is
  set so that the head is as sure of itself as it is right: a network trained with cross-entropy is about calibrated.
- *Direction of a class*: `C (w - mean w)`, C the second moment of the centred weights. Rows are trained to tell classes
  apart and so play down what similar classes share; features do not. In a two-layer linear network whose layers are
  balanced, as weight decay makes them, class means are exactly this, lengths and all; in a network trained far beyond
  that, they are all equally long (neural collapse). Both can be drawn.
- *A similar class*: an image shows its class and, to a lesser degree, something similar. `blend` is uniform in
  0..`max_blend`, the similar class one of the `NUM_NEIGHBOURS` nearest in direction. Similarity comes from the rows and
  never from descriptors: descriptors that say nothing must not look useful.
- `strength` and `max_blend` are set so that the untouched head is right as often as its owner says, and
  `NEIGHBOUR_SHARE` of its errors come from similar classes.

Sources: Saxe, McClelland & Ganguli, "A mathematical theory of semantic development in deep neural networks", PNAS 2019
(singular modes of rows and features); Papyan, Han & Donoho, "Prevalence of neural collapse", PNAS 2020; Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icis_deploy.descriptor_weights import cosine_similarity

Float32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

NUM_NEIGHBOURS = 5
"""Classes that an image of a class may be blended with; what a top-5 accuracy forgives."""

NEIGHBOUR_SHARE = 0.7
"""Part of the head's errors that similar classes cause. Of published ImageNet classifiers' wrong answers, about 0.7
have the right class among the first five (MobileNetV2 0.68: 71.9 and 91.0 %; ResNet-50 0.70: 76.1 and 92.9 %)."""

MAX_PER_CLASS = 64

LARGEST_BLEND = 4.0
"""Of similar classes; an image that shows four times as much of another class is one of that class."""

LARGEST_FACTOR = 64.0
"""Deviation of logits, up to which the scale of noise is sought where there are no neutral features."""

PROBE_SIZE = 800
"""Pseudo-features with which `strength` and `max_blend` are set."""

PILOT_PART = 8
"""A search first looks at one in so many features, and at all of them only near what that finds."""

PILOT_DOUBT = 1.2
"""Factor by which the pilot's answer may well be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoFeatures:
    """Drawn features and the classes that they stand for."""

    features: Float32
    """`(num_features, feature_dim)`."""

    classes: Integers
    """`(num_features,)`, indices of rows; every class that was drawn has equally many features."""

    strength: float
    """Length of the class's direction in a feature, in units of features."""

    max_blend: float
    """Largest part of a similar class's direction."""

    logits: Float32
    """`(num_features, num_seen)`, of the untouched head: dear with many classes, and every game needs them."""

    @property
    def accuracy(self) -> float:
        """Part of the features that the untouched head gets right."""
        return float(np.mean(self.logits.argmax(axis=1) == self.classes))


@dataclass(frozen=True, slots=True)
class _Draws:
    """All that is random, drawn once, so that strength and blend can be tuned on the same draws."""

    classes: Integers  # (num_features,)
    noise: Float32  # (num_features, feature_dim)
    own: Float32  # (num_features, feature_dim), unit directions
    similar: Float32  # (num_features, feature_dim), unit directions times uniform numbers
    is_rectified: bool

    def features(self, strength: float, max_blend: float) -> Float32:
        """Return `(num_features, feature_dim)`."""
        mixed = self.noise + strength * (self.own + max_blend * self.similar)
        return np.asarray(np.maximum(mixed, 0.0) if self.is_rectified else mixed, dtype=np.float32)

    def part(self, which: Integers | slice) -> _Draws:
        """Return some of the draws."""
        return _Draws(self.classes[which], self.noise[which], self.own[which], self.similar[which], self.is_rectified)


def draw_pseudo_features(
    rows: Float32,
    *,
    neutral_features: Float32 | None,
    seen_accuracy: float,
    max_features: int,
    seed: int,
    neighbour_share: float = NEIGHBOUR_SHARE,
    equal_lengths: bool = True,
) -> PseudoFeatures:
    """Draw features of seen classes.

    Args:
        rows: `(num_seen, feature_dim + 1)`, at least three classes.
        neutral_features: `(num_neutral, feature_dim)`, or `None`.
        seen_accuracy: How often the head is right on images of its classes, in 0..1, both excluded.
        max_features: How many to draw at most: as many of each class, up to `MAX_PER_CLASS`, or one of some classes.
        seed: Of all draws.
        neighbour_share: Part of the errors that similar classes cause.
        equal_lengths: Whether all classes' directions are equally long, or as long as in a balanced linear network.
    """
    random = np.random.default_rng(seed)
    per_class = max(1, min(MAX_PER_CLASS, max_features // len(rows)))
    drawn = random.permutation(len(rows))[:max_features]
    classes = np.tile(drawn, per_class).astype(np.int64)
    draws = _draw(class_directions(rows, equal_lengths=equal_lengths), classes, neutral_features, random)
    if neutral_features is None:
        draws = _with_calibrated_noise(rows, draws, seen_accuracy, neighbour_share)
    strength, max_blend = _fit(rows, draws.part(slice(PROBE_SIZE)), seen_accuracy, neighbour_share)
    features = draws.features(strength, max_blend)
    return PseudoFeatures(
        features=features,
        classes=classes,
        strength=strength,
        max_blend=max_blend,
        logits=_logits(rows, features),
    )


def class_directions(rows: Float32, *, equal_lengths: bool = True) -> Float32:
    """Return the directions of the class means of features, `(num_seen, feature_dim)`, of length 1 each or on average.

    Computed through whichever of the two second moments, of features or of classes, is smaller.
    """
    centred = rows[:, :-1] - rows[:, :-1].mean(axis=0, dtype=np.float64).astype(np.float32)
    has_few_classes = len(centred) < centred.shape[1]
    directions = (centred @ centred.T) @ centred if has_few_classes else centred @ (centred.T @ centred)
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    if not equal_lengths:
        length = length.mean()
    return np.asarray(directions / np.maximum(length, np.finfo(np.float32).tiny), dtype=np.float32)


def _draw(directions: Float32, classes: Integers, neutral: Float32 | None, random: np.random.Generator) -> _Draws:
    neighbours = _neighbours(directions, np.unique(classes))
    choice = random.integers(0, neighbours.shape[1], len(classes))
    similar = directions[neighbours[np.searchsorted(np.unique(classes), classes), choice]]
    blend = random.random((len(classes), 1)).astype(np.float32)
    if neutral is None:
        noise = random.standard_normal((len(classes), directions.shape[1])).astype(np.float32)
    else:
        # Every neutral feature is used about equally often: fewer accidents than free draws.
        order = np.concatenate([random.permutation(len(neutral)) for _ in range(-(-len(classes) // len(neutral)))])
        noise = np.asarray(neutral, dtype=np.float32)[order[: len(classes)]]
    # Features that are never negative end in a ReLU; so must what stands in for them.
    is_rectified = neutral is not None and bool(np.min(neutral) >= 0.0)
    return _Draws(classes, noise, directions[classes], similar * blend, is_rectified)


def _neighbours(directions: Float32, classes: Integers) -> Integers:
    """Return the most similar classes of each of `classes`, `(num_classes, NUM_NEIGHBOURS or fewer)`."""
    count = min(NUM_NEIGHBOURS, len(directions) - 1)
    similarity = cosine_similarity(directions[classes], directions)
    similarity[np.arange(len(classes)), classes] = -np.inf
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return np.asarray(np.sort(nearest, axis=1), dtype=np.int64)


def _fit(rows: Float32, draws: _Draws, seen_accuracy: float, neighbour_share: float) -> tuple[float, float]:
    """Return strength and largest blend.

    Strength is set without blending, so that neutral pictures cause their share of the errors; then the blend, so that
    similar classes cause theirs. Where rows differ much in length, no strength makes the short ones win; nearly what
    can be reached is then enough, or strength would grow without end.
    """

    def is_right(which: Integers | slice, strength: float, max_blend: float) -> Booleans:
        part = draws.part(which)
        return np.asarray(_logits(rows, part.features(strength, max_blend)).argmax(axis=1) == part.classes)

    count = len(draws.classes)
    strongest = 16.0 * float(np.linalg.norm(draws.noise, axis=1).mean())
    reachable = float(is_right(slice(None), strongest, 0.0).mean())
    unblended = min(1.0 - (1.0 - seen_accuracy) * (1.0 - neighbour_share), 0.99 * reachable)
    strength = _turning_point(lambda which, value: is_right(which, value, 0.0), count, unblended, strongest)
    max_blend = _turning_point(
        lambda which, value: ~is_right(which, strength, value), count, 1.0 - seen_accuracy, LARGEST_BLEND
    )
    return strength, max_blend


def _turning_point(
    has_turned: Callable[[Integers, float], Booleans], count: int, share: float, largest: float
) -> float:
    """Return the smallest value in 0..`largest` at which a share of the features has turned; `largest` if none has it.

    By bisection, near what a pilot of the features says. A feature turns about once as the value grows: each look is at
    those alone that turn between the bounds, so that all looks together cost about three at everything.

    Args:
        has_turned: Of features, by index, and a value: whether each has turned there.
        count: Number of features.
        share: Part of the features, 0..1.
        largest: Upper bound.
    """
    looks: list[float] = []
    if count >= PROBE_SIZE // 2:
        guess = _turning_point(has_turned, count // PILOT_PART, share, largest)
        looks = [guess * PILOT_DOUBT**power for power in (1, -1, 2, -2, 4, -4)]
    lower, upper, num_below = 0.0, largest, 0
    between = np.arange(count, dtype=np.int64)
    while upper - lower > largest / 2**14 and len(between):
        middle = looks.pop(0) if looks else 0.5 * (lower + upper)
        if not lower < middle < upper:
            continue
        turned = has_turned(between, middle)
        if num_below + int(turned.sum()) >= share * count:
            upper, between = middle, between[turned]
        else:
            lower, between, num_below = middle, between[~turned], num_below + int(turned.sum())
    return upper


def _with_calibrated_noise(rows: Float32, draws: _Draws, seen_accuracy: float, neighbour_share: float) -> _Draws:
    """Scale isotropic noise so that the head's mean confidence in the features is its accuracy.

    Accuracy hardly depends on the scale of features, a head's biases being small beside its logits; confidence does.
    """
    probe = draws.part(slice(PROBE_SIZE))
    logit_deviation = float(np.linalg.norm(rows[:, :-1], axis=1).mean())
    start = 1.0 / max(logit_deviation, np.finfo(np.float32).tiny)  # logits of deviation 1
    scaled = _Draws(probe.classes, probe.noise * np.float32(start), probe.own, probe.similar, False)
    features = scaled.features(*_fit(rows, scaled, seen_accuracy, neighbour_share))
    unbiased = _logits(rows, features) - rows[:, -1]
    lower, factor = 0.0, LARGEST_FACTOR
    for _ in range(14):
        middle = 0.5 * (lower + factor)
        is_enough = _confidence(unbiased * np.float32(middle) + rows[:, -1]) >= seen_accuracy
        lower, factor = (lower, middle) if is_enough else (middle, factor)
    return _Draws(draws.classes, draws.noise * np.float32(start * factor), draws.own, draws.similar, False)


def _logits(rows: Float32, features: Float32) -> Float32:
    return np.asarray(features @ rows[:, :-1].T + rows[:, -1], dtype=np.float32)


def _confidence(logits: Float32) -> float:
    """Return the mean of the largest softmax probability."""
    return float(np.mean(1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)))
