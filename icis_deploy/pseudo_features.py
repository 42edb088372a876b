"""Features that stand in for images of the seen classes, drawn from the head and from pictures of nothing.

    feature = activation(centre + strength * (direction of its class + blend * direction of a similar class) + rest)

- *The rest* is what neutral features (`icis_deploy.neutral_images`, through the backbone) have around their mean. It is
  as much less as the class takes of their spread: a picture of a class is no further from the centre than one of
  nothing, it shows its class in the place of something else. Without neutral features, isotropic noise takes
  their place, and its scale is set so that the head is as sure of itself as it is right: a network trained with
  cross-entropy is about calibrated.
- *Directions and centre*: `icis_deploy.feature_law`. Lengths of class means are as theory has it for balanced linear
  networks, or all equal (neural collapse). Both can be drawn.
- *A similar class*: an image shows its class and, to a lesser degree, something similar. `blend` is uniform in
  0..`max_blend`, the similar class one of the `NUM_NEIGHBOURS` nearest in direction. Similarity comes from the rows and
  never from descriptors: descriptors that say nothing must not look useful.
- `strength` and `max_blend` are set so that the untouched head is right as often as its owner says, and
  `NEIGHBOUR_SHARE` of its errors come from similar classes.
- *Clarity*: all images show as much of their class, or (`equally_clear=False`) the class takes a share `u^power` of the
  spread, u uniform. With little rest its variance is then exponential: most images are clear and a few are bad.

Sources: Saxe, McClelland & Ganguli, "A mathematical theory of semantic development in deep neural networks", PNAS 2019
(singular modes of rows and features); Papyan, Han & Donoho, "Prevalence of neural collapse", PNAS 2020; Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from icis_deploy.descriptor_weights import cosine_similarity
from icis_deploy.feature_law import FeatureLaw, balanced_centre, class_directions, mixed_law, principal_law

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

LARGEST_INVERSE_POWER = 64.0
"""Of clarity: then nearly all images show nothing but their class."""

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
    """Length of the class's direction in a feature, in units of features; where images are not equally clear, the
    inverse of clarity's power."""

    max_blend: float
    """Largest part of a similar class's direction."""

    law: FeatureLaw
    """How the features follow from the rows."""

    logits: Float32
    """`(num_features, num_seen)`, of the untouched head: dear with many classes, and every game needs them."""

    @property
    def accuracy(self) -> float:
        """Part of the features that the untouched head gets right."""
        return float(np.mean(self.logits.argmax(axis=1) == self.classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """All that is random, drawn once, so that strength and blend can be tuned on the same draws."""

    classes: Integers  # (num_features,)
    centre: Float32  # (feature_dim,)
    noise: Float32  # (num_features, feature_dim), around the centre
    own: Float32  # (num_features, feature_dim), directions of length 1, each or on average
    similar: Float32  # (num_features, feature_dim), such directions times uniform numbers
    clarity: Float32 | None  # (num_features, 1), uniform numbers; None if all are equally clear
    moments: tuple[float, float, float]  # means of own^2, own similar and similar^2 over all draws
    spread: float  # of neutral features: root mean square distance from their mean; 0 if nobody knows
    is_rectified: bool

    @property
    def strongest(self) -> float:
        """The strength beyond which nothing changes, or none is sought."""
        if not self.spread:
            return 16.0 * float(np.linalg.norm(self.noise, axis=1).mean())
        return self.spread / float(np.sqrt(self.moments[0])) if self.clarity is None else LARGEST_INVERSE_POWER

    def class_part(self, strength: float) -> Float32 | float:
        """Return the part of the spread that the class takes, `(num_features, 1)` or one number for all."""
        if self.clarity is not None:
            return np.asarray(self.clarity ** np.float32(1.0 / max(strength, 1e-3)), dtype=np.float32)
        return min(self.moments[0] * (strength / self.spread) ** 2, 1.0)

    def features(self, strength: float, max_blend: float) -> Float32:
        """Return `(num_features, feature_dim)`; strength is a length, or the inverse of clarity's power."""
        own, both, similar = self.moments
        length = np.sqrt(own + max_blend * (2.0 * both + max_blend * similar))  # root mean square of what is mixed
        shown = self.own + np.float32(max_blend) * self.similar
        if self.spread:
            part = self.class_part(strength)
            towards = np.sqrt(part) * self.spread / length
            mixed = self.centre + np.float32(towards) * shown + np.float32(np.sqrt(1.0 - part)) * self.noise
        else:
            mixed = np.float32(strength * np.sqrt(own) / length) * shown + self.noise
        return np.asarray(np.maximum(mixed, 0.0) if self.is_rectified else mixed, dtype=np.float32)

    def part(self, which: Integers | slice) -> _Draws:
        """Return some of the draws."""
        return replace(
            self,
            classes=self.classes[which],
            noise=self.noise[which],
            own=self.own[which],
            similar=self.similar[which],
            clarity=None if self.clarity is None else self.clarity[which],
        )


def draw_pseudo_features(
    rows: Float32,
    *,
    neutral_features: Float32 | None,
    seen_accuracy: float,
    max_features: int,
    seed: int,
    law: FeatureLaw | None = None,
    neighbour_share: float = NEIGHBOUR_SHARE,
    equal_lengths: bool = True,
    equally_clear: bool = True,
) -> PseudoFeatures:
    """Draw features of seen classes.

    Args:
        rows: `(num_seen, feature_dim + 1)`, at least three classes.
        neutral_features: `(num_neutral, feature_dim)`, or `None`.
        seen_accuracy: How often the head is right on images of its classes, in 0..1, both excluded.
        max_features: How many to draw at most: as many of each class, up to `MAX_PER_CLASS`, or one of some classes.
        seed: Of all draws.
        law: How features follow from these rows, if it was already found.
        neighbour_share: Part of the errors that similar classes cause.
        equal_lengths: Whether all classes' directions are equally long, or as long as in a balanced linear network.
        equally_clear: Whether all images show as much of their class; only told apart where there are neutral features.
    """
    random = np.random.default_rng(seed)
    per_class = max(1, min(MAX_PER_CLASS, max_features // len(rows)))
    drawn = random.permutation(len(rows))[:max_features]
    classes = np.tile(drawn, per_class).astype(np.int64)
    if law is None:
        law = _find_law(rows, classes, neutral_features, seen_accuracy, neighbour_share, seed)
    directions = class_directions(rows, law, equal_lengths=equal_lengths)
    draws = _draw(rows, law, directions, classes, neutral_features, random)
    if neutral_features is None:
        draws = _with_calibrated_noise(rows, draws, seen_accuracy, neighbour_share)
    elif not equally_clear:
        draws = replace(draws, clarity=random.random((len(classes), 1)).astype(np.float32))
    strength, max_blend = _fit(rows, draws.part(slice(PROBE_SIZE)), seen_accuracy, neighbour_share)
    features = draws.features(strength, max_blend)
    return PseudoFeatures(
        features=features,
        classes=classes,
        strength=strength,
        max_blend=max_blend,
        law=law,
        logits=_logits(rows, features),
    )


def _find_law(
    rows: Float32,
    classes: Integers,
    neutral: Float32 | None,
    seen_accuracy: float,
    neighbour_share: float,
    seed: int,
) -> FeatureLaw:
    """Return the law of features: what neutral pictures say of it counts by the share of classes in their spread."""
    law = principal_law(rows, neutral)
    if law.slope is None:
        return law
    random = np.random.default_rng(seed)
    probe = _draw(rows, law, class_directions(rows, law), classes[:PROBE_SIZE], neutral, random)
    strength = _fit_strength(rows, probe, seen_accuracy, neighbour_share)
    return mixed_law(law, float(probe.class_part(strength))) if probe.spread else law


def _draw(
    rows: Float32,
    law: FeatureLaw,
    directions: Float32,
    classes: Integers,
    neutral: Float32 | None,
    random: np.random.Generator,
) -> _Draws:
    drawn = np.unique(classes)
    neighbours = _neighbours(directions, drawn)
    choice = random.integers(0, neighbours.shape[1], len(classes))
    own, similar = directions[classes], directions[neighbours[np.searchsorted(drawn, classes), choice]]
    similar = similar * random.random((len(classes), 1)).astype(np.float32)
    centre, spread = np.zeros(directions.shape[1], dtype=np.float32), 0.0
    if neutral is None:
        noise = random.standard_normal((len(classes), directions.shape[1])).astype(np.float32)
    else:
        # Every neutral feature is used about equally often: fewer accidents than free draws.
        order = np.concatenate([random.permutation(len(neutral)) for _ in range(-(-len(classes) // len(neutral)))])
        mean = neutral.mean(axis=0, dtype=np.float64).astype(np.float32)
        around = np.asarray(neutral, dtype=np.float32) - mean
        spread = float(np.sqrt(np.mean((around**2).sum(axis=1))))
        noise, centre = around[order[: len(classes)]], balanced_centre(rows, law.spectrum, mean, spread)
    pairs = ((own, own), (own, similar), (similar, similar))
    own_square, both, similar_square = (float(np.mean(np.einsum("ij,ij->i", *pair))) for pair in pairs)
    return _Draws(
        classes=classes,
        centre=centre,
        noise=noise,
        own=own,
        similar=similar,
        clarity=None,
        moments=(own_square, both, similar_square),
        spread=spread,
        # Features that are never negative end in a ReLU; so must what stands in for them.
        is_rectified=neutral is not None and bool(np.min(neutral) >= 0.0),
    )


def _neighbours(directions: Float32, classes: Integers) -> Integers:
    """Return the most similar classes of each of `classes`, `(num_classes, NUM_NEIGHBOURS or fewer)`."""
    count = min(NUM_NEIGHBOURS, len(directions) - 1)
    similarity = cosine_similarity(directions[classes], directions)
    similarity[np.arange(len(classes)), classes] = -np.inf
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return np.asarray(np.sort(nearest, axis=1), dtype=np.int64)


def _fit(rows: Float32, draws: _Draws, seen_accuracy: float, neighbour_share: float) -> tuple[float, float]:
    """Return strength and largest blend: with both, the head is right as often as its owner says."""
    strength = _fit_strength(rows, draws, seen_accuracy, neighbour_share)
    max_blend = _turning_point(
        lambda which, value: ~_is_right(rows, draws, which, strength, value),
        len(draws.classes),
        1.0 - seen_accuracy,
        LARGEST_BLEND,
    )
    return strength, max_blend


def _fit_strength(rows: Float32, draws: _Draws, seen_accuracy: float, neighbour_share: float) -> float:
    """Return the strength at which, without blending, what is not class causes its share of the errors.

    Where rows differ much in length, no strength makes the short ones win; nearly what can be reached is then enough,
    or strength would grow without end.
    """
    reachable = float(_is_right(rows, draws, slice(None), draws.strongest, 0.0).mean())
    wanted = min(1.0 - (1.0 - seen_accuracy) * (1.0 - neighbour_share), 0.99 * reachable)
    return _turning_point(
        lambda which, value: _is_right(rows, draws, which, value, 0.0), len(draws.classes), wanted, draws.strongest
    )


def _is_right(rows: Float32, draws: _Draws, which: Integers | slice, strength: float, max_blend: float) -> Booleans:
    part = draws.part(which)
    return np.asarray(_logits(rows, part.features(strength, max_blend)).argmax(axis=1) == part.classes)


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
    scaled = replace(probe, noise=probe.noise * np.float32(start))
    features = scaled.features(*_fit(rows, scaled, seen_accuracy, neighbour_share))
    unbiased = _logits(rows, features) - rows[:, -1]
    lower, factor = 0.0, LARGEST_FACTOR
    for _ in range(14):
        middle = 0.5 * (lower + factor)
        is_enough = _confidence(unbiased * np.float32(middle) + rows[:, -1]) >= seen_accuracy
        lower, factor = (lower, middle) if is_enough else (middle, factor)
    return replace(draws, noise=draws.noise * np.float32(start * factor))


def _logits(rows: Float32, features: Float32) -> Float32:
    return np.asarray(features @ rows[:, :-1].T + rows[:, -1], dtype=np.float32)


def _confidence(logits: Float32) -> float:
    """Return the mean of the largest softmax probability."""
    return float(np.mean(1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)))
