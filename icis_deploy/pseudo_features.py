"""Features that stand in for images of the seen classes, drawn from the head and from pictures of nothing.

    feature = activation(centre + amount * (direction of its class + blend * direction of a similar class) + rest)

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
- *The amount of class* and `max_blend` are set so that the untouched head is right as often as its owner says, and
  `NEIGHBOUR_SHARE` of its errors come from similar classes.
- *Concentration*: all images show as much of their class, or some more than others (`icis_deploy.feature_mixtures`).

Sources: Saxe, McClelland & Ganguli, "A mathematical theory of semantic development in deep neural networks", PNAS 2019
(singular modes of rows and features); Papyan, Han & Donoho, "Prevalence of neural collapse", PNAS 2020; Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bias_law import bias_law
from icis_deploy.descriptor_weights import cosine_similarity
from icis_deploy.feature_law import (
    FeatureLaw,
    balanced_centre,
    class_directions,
    mixed_law,
    principal_law,
    recognising_law,
)
from icis_deploy.feature_mixtures import InPictures, Mixture, OnNoise, ShownClasses

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
"""Pseudo-features with which the amount of class and the largest blend are set."""

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

    class_share: float
    """Mean part of the features' spread that is class, 0..1."""

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
    concentration: float | None = None,
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
        concentration: How alike images are in how clearly they show their class, where there are neutral features
            (`feature_mixtures.CONCENTRATIONS`); `None` if they are quite alike.
    """
    random = np.random.default_rng(seed)
    per_class = max(1, min(MAX_PER_CLASS, max_features // len(rows)))
    drawn = random.permutation(len(rows))[:max_features]
    classes = np.tile(drawn, per_class).astype(np.int64)
    if law is None:
        law = _find_law(rows, classes, neutral_features, seen_accuracy, neighbour_share, seed)
    directions = class_directions(rows, law, equal_lengths=equal_lengths)
    mixture = _mix(rows, law, directions, classes, neutral_features, random)
    if isinstance(mixture, OnNoise):
        mixture = _with_calibrated_noise(rows, mixture, seen_accuracy, neighbour_share)
    else:
        mixture = replace(mixture, concentration=concentration)
    amount, max_blend = _fit(rows, mixture.part(slice(PROBE_SIZE)), seen_accuracy, neighbour_share)
    features = mixture.features(amount, max_blend)
    return PseudoFeatures(
        features=features,
        classes=classes,
        class_share=mixture.class_share(amount),
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
    law, share = principal_law(rows, neutral), 1.0 - (1.0 - seen_accuracy) * (1.0 - neighbour_share)
    if law.slope is not None:
        random = np.random.default_rng(seed)
        probe = _mix(rows, law, class_directions(rows, law), classes[:PROBE_SIZE], neutral, random)
        amount = _fit_amount(rows, probe, seen_accuracy, neighbour_share)
        law = mixed_law(law, probe.class_share(amount))
    return recognising_law(rows, law, classes=np.unique(classes[:PROBE_SIZE]), share=share)


def _mix(
    rows: Float32,
    law: FeatureLaw,
    directions: Float32,
    classes: Integers,
    neutral: Float32 | None,
    random: np.random.Generator,
) -> OnNoise | InPictures:
    """Draw all that is random; all images are equally clear."""
    drawn = np.unique(classes)
    neighbours = _neighbours(directions, drawn)
    choice = random.integers(0, neighbours.shape[1], len(classes))
    own, similar = directions[classes], directions[neighbours[np.searchsorted(drawn, classes), choice]]
    similar = similar * random.random((len(classes), 1)).astype(np.float32)
    pairs = ((own, own), (own, similar), (similar, similar))
    own_square, both, similar_square = (float(np.mean(np.einsum("ij,ij->i", *pair))) for pair in pairs)
    shown = ShownClasses(classes=classes, own=own, similar=similar, moments=(own_square, both, similar_square))
    if neutral is None:
        # A head that compares distances favours no class where the linear part of its biases vanishes.
        law_of_biases = bias_law(rows)
        centre = np.zeros(own.shape[1], dtype=np.float32) if law_of_biases is None else -law_of_biases
        return OnNoise(shown=shown, centre=centre, noise=random.standard_normal(own.shape).astype(np.float32))
    # Every neutral feature is used about equally often: fewer accidents than free draws.
    order = np.concatenate([random.permutation(len(neutral)) for _ in range(-(-len(classes) // len(neutral)))])
    mean = neutral.mean(axis=0, dtype=np.float64).astype(np.float32)
    around = np.asarray(neutral, dtype=np.float32) - mean
    spread = float(np.sqrt(np.mean((around**2).sum(axis=1))))
    return InPictures(
        shown=shown,
        centre=balanced_centre(rows, law.spectrum, mean),
        rest=around[order[: len(classes)]],
        spread=spread,
        clarity=random.random((len(classes), 1)),
        concentration=None,
        # Features that are never negative end in a ReLU; so must what stands in for them.
        is_rectified=bool(np.min(neutral) >= 0.0),
    )


def _neighbours(directions: Float32, classes: Integers) -> Integers:
    """Return the most similar classes of each of `classes`, `(num_classes, NUM_NEIGHBOURS or fewer)`."""
    count = min(NUM_NEIGHBOURS, len(directions) - 1)
    similarity = cosine_similarity(directions[classes], directions)
    similarity[np.arange(len(classes)), classes] = -np.inf
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return np.asarray(np.sort(nearest, axis=1), dtype=np.int64)


def _fit(rows: Float32, mixture: Mixture, seen_accuracy: float, neighbour_share: float) -> tuple[float, float]:
    """Return amount of class and largest blend: with both, the head is right as often as its owner says."""
    amount = _fit_amount(rows, mixture, seen_accuracy, neighbour_share)
    max_blend = _turning_point(
        lambda which, value: ~_is_right(rows, mixture, which, amount, value),
        len(mixture.shown.classes),
        1.0 - seen_accuracy,
        LARGEST_BLEND,
    )
    return amount, max_blend


def _fit_amount(rows: Float32, mixture: Mixture, seen_accuracy: float, neighbour_share: float) -> float:
    """Return the amount of class at which, without blending, what is not class causes its share of the errors.

    Where rows differ much in length, no amount makes the short ones win; nearly what can be reached is then enough,
    or the amount would grow without end.
    """
    reachable = float(_is_right(rows, mixture, slice(None), mixture.most, 0.0).mean())
    wanted = min(1.0 - (1.0 - seen_accuracy) * (1.0 - neighbour_share), 0.99 * reachable)
    return _turning_point(
        lambda which, value: _is_right(rows, mixture, which, value, 0.0),
        len(mixture.shown.classes),
        wanted,
        mixture.most,
    )


def _is_right(rows: Float32, mixture: Mixture, which: Integers | slice, amount: float, max_blend: float) -> Booleans:
    part = mixture.part(which)
    return np.asarray(_logits(rows, part.features(amount, max_blend)).argmax(axis=1) == part.shown.classes)


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


def _with_calibrated_noise(rows: Float32, mixture: OnNoise, seen_accuracy: float, neighbour_share: float) -> OnNoise:
    """Scale isotropic noise so that the head's median confidence in features without a similar class is its accuracy.

    Accuracy hardly depends on the scale of features, a head's biases being small beside its logits; confidence does.
    Features that are more like another class are recognised wrongly with confidence at any scale, and a few that noise
    brings between two classes hold a mean back at any: neither may have a say.
    """
    probe = mixture.part(slice(PROBE_SIZE))
    logit_deviation = float(np.linalg.norm(rows[:, :-1], axis=1).mean())
    start = 1.0 / max(logit_deviation, np.finfo(np.float32).tiny)  # logits of deviation 1
    scaled = replace(probe, noise=probe.noise * np.float32(start))
    features = scaled.features(_fit_amount(rows, scaled, seen_accuracy, neighbour_share), 0.0)
    at_centre = _logits(rows, mixture.centre[None])
    away = _logits(rows, features) - at_centre
    lower, factor = 0.0, LARGEST_FACTOR
    for _ in range(14):
        middle = 0.5 * (lower + factor)
        is_enough = _confidence(away * np.float32(middle) + at_centre) >= seen_accuracy
        lower, factor = (lower, middle) if is_enough else (middle, factor)
    return replace(mixture, noise=mixture.noise * np.float32(start * factor))


def _logits(rows: Float32, features: Float32) -> Float32:
    return np.asarray(features @ rows[:, :-1].T + rows[:, -1], dtype=np.float32)


def _confidence(logits: Float32) -> float:
    """Return the median of the largest softmax probability."""
    return float(np.median(1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)))
