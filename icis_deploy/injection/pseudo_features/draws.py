"""Features that stand in for images of the seen classes, drawn from the head and from neutral images.

    feature = activation(centre + amount * (direction of its class + blend * direction of a similar class) + rest)

- *The rest* is what neutral features (`icis_deploy.images.neutral`, through the backbone) have around their mean. It is
  smaller by what the class takes of their spread: an image of a class is no further from the centre than a neutral one,
  it shows its class instead of something else. Without neutral features the rest is isotropic noise, whose scale is set
  so that the head's confidence equals its accuracy: a network trained with cross-entropy is about calibrated.
- *Directions and centre*: `icis_deploy.injection.pseudo_features.class_means`. Lengths of class means are as theory has
  them for balanced linear networks, or all equal (neural collapse). Both can be drawn.
- *A similar class*: an image shows its class and, to a lesser degree, something similar. `blend` is uniform in
  0..`max_blend`, the similar class one of the `NUM_NEIGHBOURS` nearest in direction. Similarity comes from the rows and
  never from descriptors: descriptors that say nothing must not look useful.
- *The amount of class* and `max_blend` are set so that the untouched head is as accurate as its owner says, and
  `NEIGHBOUR_SHARE` of its errors come from similar classes.
- *Concentration*: all images show as much of their class, or some more than others
  (`icis_deploy.injection.pseudo_features.mixtures`).

What does not depend on a draw is found once (`FeatureSource`); what is random is drawn once and then shown as often as
it is needed under one assumption or another (`draw`, `Draws`), so that their results differ by the assumption alone.

Sources: Saxe, McClelland & Ganguli, "A mathematical theory of semantic development in deep neural networks", PNAS 2019
(singular modes of rows and features); Papyan, Han & Donoho, "Prevalence of neural collapse", PNAS 2020; Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017.
"""

# Why: docs/decisions/0037.

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.injection.pseudo_features.accuracy_matching import (
    amount_of_class,
    largest_blend,
    needed_strengths,
    recognised_share,
)
from icis_deploy.injection.pseudo_features.class_means import mixed_law, principal_law, recognising_law
from icis_deploy.injection.pseudo_features.mixtures import ImageMixture, NoiseMixture, ShownClasses
from icis_deploy.injection.pseudo_features.source import FeatureSource, source_by_law
from icis_deploy.injection.pseudo_features.threshold_search import Thresholds
from icis_deploy.injection.rows.class_features import ClassFeatures
from icis_deploy.injection.rows.logits import head_logits

NEIGHBOUR_SHARE = 0.7
"""Part of the head's errors that similar classes cause. Of published ImageNet classifiers' wrong answers, about 0.7
have the right class among the first five (MobileNetV2 0.68: 71.9 and 91.0 %; ResNet-50 0.70: 76.1 and 92.9 %)."""

MAX_PER_CLASS = 64

LARGEST_FACTOR = 64.0
"""Deviation of logits, up to which the scale of noise is sought where there are no neutral features."""

PROBE_SIZE = 800
"""Pseudo-features with which the amount of class and the largest blend are set."""

USUAL_BLEND = 1.0
"""Of similar classes, where a search for the largest blend begins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PseudoFeatures(ClassFeatures):
    """Drawn features; every class that was drawn has equally many."""

    class_share: float
    """Mean part of the features' spread that is class, 0..1."""

    max_blend: float
    """Largest part of a similar class's direction, in units of the own one's."""


def find_feature_source(
    rows: Float32, *, neutral_features: Float32 | None, seen_accuracy: float, max_features: int, seed: int
) -> FeatureSource:
    """Find what features are drawn from.

    What neutral images say about the law counts by the share of classes in their spread.

    Args:
        rows: `(num_seen, feature_dim + 1)`, at least three classes.
        neutral_features: `(num_neutral, feature_dim)`, or `None`.
        seen_accuracy: Accuracy of the head on images of its classes, in 0..1, both excluded.
        max_features: How many will be drawn; classes that the first draw leaves out are not considered.
        seed: Of the draw.
    """
    law = principal_law(rows, neutral_features)
    source = source_by_law(rows, law, neutral_features)
    probe = _classes(len(rows), max_features, np.random.default_rng(seed))[:PROBE_SIZE]
    recognised = recognised_share(seen_accuracy, NEIGHBOUR_SHARE)
    if law.slope is not None:
        mixture = _mix(source, probe, np.random.default_rng(seed), neighbours=None)
        share = mixture.class_share(amount_of_class(needed_strengths(rows, mixture), mixture, recognised))
        law = mixed_law(law, share)
    source = source.by_law(recognising_law(rows, law, classes=np.unique(probe), share=recognised))
    # Where every draw has all classes, their neighbours are found once for all draws.
    return source.with_neighbours() if len(rows) <= max_features else source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """Random numbers, and the features that they give under one assumption or another.

    A value: the same call gives the same features, whatever was drawn before.
    """

    rows: Float32
    """`(num_seen, feature_dim + 1)`, of the head."""

    lengths: Float32
    """`(num_seen,)`, of class means in a balanced linear network, 1 on average."""

    num_classes: int
    """Classes that have features."""

    mixture: NoiseMixture | ImageMixture
    """The features but for the amount of class and the largest blend; all images are equally clear."""

    needed: Thresholds | None
    """The strengths of class with which the head recognises the first `PROBE_SIZE` features, where nothing that is
    assumed changes them: with neutral features. `None` on noise, whose scale depends on the accuracy."""

    def with_lengths(self) -> Draws:
        """Return the same random numbers, with directions not equally long but as long as in a balanced network."""
        mixture = replace(self.mixture, shown=_at_lengths(self.mixture.shown, self.lengths))
        return replace(self, mixture=mixture, needed=_needed_in_images(self.rows, mixture))

    def features(
        self,
        *,
        seen_accuracy: float,
        neighbour_share: float = NEIGHBOUR_SHARE,
        concentration: float | None = None,
        part: float = 1.0,
        likely_blend: float = USUAL_BLEND,
    ) -> PseudoFeatures:
        """Return features under some assumptions.

        Args:
            seen_accuracy: Accuracy of the head on images of its classes, in 0..1, both excluded.
            neighbour_share: Part of the errors that similar classes cause.
            concentration: How alike images are in how clearly they show their class, where there are neutral features
                (`mixtures.CONCENTRATIONS`); `None` if they are quite alike.
            part: Of the features, in 0..1; of each class equally many, as far as there are several.
            likely_blend: Where the search for the largest blend begins; one that is near saves time.
        """
        rows, mixture = self.rows, self.mixture
        recognised = recognised_share(seen_accuracy, neighbour_share)
        if isinstance(mixture, NoiseMixture):
            mixture = _with_calibrated_noise(rows, mixture, seen_accuracy, recognised)
        else:
            mixture = replace(mixture, concentration=concentration)
        probe = mixture.part(slice(PROBE_SIZE))
        needed = needed_strengths(rows, probe) if self.needed is None else self.needed
        amount = amount_of_class(needed, probe, recognised)
        max_blend = largest_blend(rows, probe, amount, seen_accuracy, start=max(likely_blend, 0.1 * USUAL_BLEND))
        count = int(part * len(mixture.shown.classes))
        count -= count % self.num_classes if count > self.num_classes else 0
        mixture = mixture.part(slice(count))
        features = mixture.features(mixture.strengths(amount), max_blend)
        return PseudoFeatures(
            features=features,
            classes=mixture.shown.classes,
            class_share=mixture.class_share(amount),
            max_blend=max_blend,
            logits=head_logits(rows, features),
        )


def draw(source: FeatureSource, *, max_features: int, seed: int) -> Draws:
    """Draw all that is random.

    Args:
        source: What features are drawn from.
        max_features: How many to draw at most: as many of each class, up to `MAX_PER_CLASS`, or one of some classes.
        seed: Of all that is random.
    """
    random = np.random.default_rng(seed)
    classes = _classes(len(source.rows), max_features, random)
    drawn = np.unique(classes)
    mixture = _mix(source, classes, random, neighbours=source.neighbours(drawn))
    return Draws(
        rows=source.rows,
        lengths=source.lengths,
        num_classes=len(drawn),
        mixture=mixture,
        needed=_needed_in_images(source.rows, mixture),
    )


def _needed_in_images(rows: Float32, mixture: NoiseMixture | ImageMixture) -> Thresholds | None:
    """Return the strengths that the class needs in the first `PROBE_SIZE` features; `None` on noise."""
    return None if isinstance(mixture, NoiseMixture) else needed_strengths(rows, mixture.part(slice(PROBE_SIZE)))


def _classes(num_seen: int, max_features: int, random: np.random.Generator) -> Int64:
    """Return the class of each feature: as many of each, or one of some."""
    per_class = max(1, min(MAX_PER_CLASS, max_features // num_seen))
    return np.tile(random.permutation(num_seen)[:max_features], per_class).astype(np.int64)


def _mix(
    source: FeatureSource, classes: Int64, random: np.random.Generator, *, neighbours: Int64 | None
) -> NoiseMixture | ImageMixture:
    """Draw all that is random; all images are equally clear.

    Args:
        source: What features are drawn from.
        classes: `(num_features,)`.
        random: To draw with.
        neighbours: `(num_drawn, num_neighbours)`, of the drawn classes in their order; `None` if none will be shown.
    """
    own = source.directions[classes]
    similar_classes, similar = classes, np.zeros_like(own)
    if neighbours is not None:
        choice = random.integers(0, neighbours.shape[1], len(classes))
        similar_classes = neighbours[np.searchsorted(np.unique(classes), classes), choice]
        similar = source.directions[similar_classes]
        similar *= random.random((len(classes), 1)).astype(np.float32)
    shown = ShownClasses(
        classes=classes, similar_classes=similar_classes, own=own, similar=similar, moments=_moments(own, similar)
    )
    if source.around is None:
        noise = random.standard_normal(own.shape).astype(np.float32)
        return NoiseMixture(shown=shown, centre=source.centre, noise=noise)
    # Every neutral feature is used about equally often: fewer accidents than free draws.
    num_neutral = len(source.around)
    order = np.concatenate([random.permutation(num_neutral) for _ in range(-(-len(classes) // num_neutral))])
    return ImageMixture(
        shown=shown,
        centre=source.centre,
        rest=source.around[order[: len(classes)]],
        spread=float(np.sqrt(np.mean((source.around**2).sum(axis=1)))),
        clarity=random.random(len(classes)),
        concentration=None,
        is_rectified=source.is_rectified,
    )


def _at_lengths(shown: ShownClasses, lengths: Float32) -> ShownClasses:
    """Return directions that were of length 1 as long as their classes' are, `(num_seen,)`."""
    own = shown.own * lengths[shown.classes][:, None]
    similar = shown.similar * lengths[shown.similar_classes][:, None]
    return replace(shown, own=own, similar=similar, moments=_moments(own, similar))


def _moments(own: Float32, similar: Float32) -> tuple[float, float, float]:
    own_square, both, similar_square = (
        float(np.mean(np.einsum("ij,ij->i", *pair))) for pair in ((own, own), (own, similar), (similar, similar))
    )
    return own_square, both, similar_square


def _with_calibrated_noise(
    rows: Float32, mixture: NoiseMixture, seen_accuracy: float, recognised: float
) -> NoiseMixture:
    """Scale isotropic noise so that the head's median confidence in features without a similar class is its accuracy.

    Accuracy hardly depends on the scale of features, a head's biases being small compared with its logits; confidence
    does. Features that are more like another class are recognised wrongly with confidence at any scale, and a few that
    noise brings between two classes lower a mean at any: a median depends on neither.
    """
    probe = mixture.part(slice(PROBE_SIZE))
    logit_deviation = float(np.linalg.norm(rows[:, :-1], axis=1).mean())
    start = 1.0 / max(logit_deviation, np.finfo(np.float32).tiny)  # logits of deviation 1
    scaled = replace(probe, noise=probe.noise * np.float32(start))
    amount = amount_of_class(needed_strengths(rows, scaled), scaled, recognised)
    features = scaled.features(scaled.strengths(amount), 0.0)
    at_centre = head_logits(rows, mixture.centre[None])
    away = head_logits(rows, features) - at_centre
    lower, factor = 0.0, LARGEST_FACTOR
    for _ in range(14):
        middle = 0.5 * (lower + factor)
        is_enough = _confidence(away * np.float32(middle) + at_centre) >= seen_accuracy
        lower, factor = (lower, middle) if is_enough else (middle, factor)
    return replace(mixture, noise=mixture.noise * np.float32(start * factor))


def _confidence(logits: Float32) -> float:
    """Return the median of the largest softmax probability."""
    return float(np.median(1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)))
