"""How a class and what else is in an image mix into a pseudo-feature.

    NoiseMixture  centre + length * class + noise                                    where nothing is known of features
    ImageMixture  centre + spread * (sqrt(share) * class + sqrt(1 - share) * rest)   with neutral images

*class* is the class's direction and some of a similar class's. Everything random is drawn once, so that what is then
searched, the amount of class and the largest blend of similar classes, is searched on the same draws.

Images differ in how clearly they show their class: shares are drawn from `Beta(c mean, c (1 - mean))`, with a
*concentration* `c`; without one all are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from icis_deploy.common.arrays import Float32, Float64, Int64
from icis_deploy.injection.pseudo_features.threshold_search import quantile

# Why: docs/decisions/0054.
CONCENTRATIONS = (3.2, 8.0)
"""How alike images are in the share of class. Measured on rendered images that the demo's networks had not seen (40,
120 and 300 classes, trained well and badly; `scripts/experiments/other_heads.py` prints it), and read in two ways. What
an image has along its class's mean as a part of all images' spread: 2.3 to 3.7; of its own distance from the centre: 14
to 31. Pseudo-features are all about equally far from the centre, images are not: the first, and the geometric mean of
both."""


AMOUNT_STEP = 2.0**-14
"""How finely an amount of class is sought where images differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownClasses:
    """What each feature shows of its class and of a similar one."""

    classes: Int64
    """`(num_features,)`, indices of rows."""

    similar_classes: Int64
    """`(num_features,)`, indices of rows: of each feature's similar class."""

    own: Float32
    """`(num_features, feature_dim)`, directions of length 1, each or on average."""

    similar: Float32
    """`(num_features, feature_dim)`, such directions of similar classes times uniform numbers."""

    moments: tuple[float, float, float]
    """Means of own . own, own . similar and similar . similar over all features, of which these may be a part."""

    def at_length(self, length: Float32 | Float64 | float, max_blend: Float64 | float) -> Float32:
        """Return own and similar directions, `(num_features, feature_dim)`.

        Args:
            length: Root mean square length, of all features or of each.
            max_blend: Largest part of similar directions, in all features or in each.
        """
        own, both, similar = self.moments
        blend = np.asarray(max_blend, dtype=np.float64)
        factor = np.asarray(length, dtype=np.float64) / np.sqrt(own + blend * (2.0 * both + blend * similar))
        mixed = self.own * _column(factor)
        if blend.any():
            mixed += self.similar * _column(blend * factor)
        return mixed

    def part(self, which: Int64 | slice) -> ShownClasses:
        """Return some of the features."""
        return replace(
            self,
            classes=self.classes[which],
            similar_classes=self.similar_classes[which],
            own=self.own[which],
            similar=self.similar[which],
        )


class Mixture(Protocol):
    """Features but for two numbers: how much class there is in them, and how much of similar classes at most.

    The *strength* of the class is what its direction is multiplied by in a feature; the *amount* is one number for all
    features, from which their strengths follow.
    """

    @property
    def shown(self) -> ShownClasses:
        """What each feature shows of classes."""
        ...

    @property
    def usual_strength(self) -> float:
        """A strength that is about what many features need."""
        ...

    @property
    def largest_strength(self) -> float:
        """The largest that is sought."""
        ...

    def class_share(self, amount: float) -> float:
        """Return the mean part of the features' spread that is class, 0..1."""
        ...

    def strengths(self, amount: float) -> Float64:
        """Return the strength of the class in each feature, `(num_features,)`."""
        ...

    def amount_at(self, needed: Float64, share: float) -> float:
        """Return the amount at which a share of the features has the strength that it needs, `(num_features,)`."""
        ...

    def features(self, strengths: Float64, max_blend: Float64 | float) -> Float32:
        """Return `(num_features, feature_dim)`.

        Args:
            strengths: `(num_features,)`.
            max_blend: Of all features, or `(num_features,)`.
        """
        ...

    def part(self, which: Int64 | slice) -> Mixture:
        """Return some of the features."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseMixture:
    """Classes on top of noise; the amount of class is its strength, a length in units of features."""

    shown: ShownClasses
    """What each feature shows of classes."""

    centre: Float32
    """`(feature_dim,)`: where the head favours no class, as far as its biases show it."""

    noise: Float32
    """`(num_features, feature_dim)`, in units of features, with mean zero."""

    @property
    def usual_strength(self) -> float:
        """The length of the noise."""
        return float(np.linalg.norm(self.noise, axis=1).mean())

    @property
    def largest_strength(self) -> float:
        """A length beyond which noise does not matter."""
        return 16.0 * self.usual_strength

    def class_share(self, amount: float) -> float:
        """Return the part of the features' spread that is class, 0..1."""
        of_noise = float(np.mean((self.noise**2).sum(axis=1)))
        return amount**2 / max(amount**2 + of_noise, float(np.finfo(np.float32).tiny))

    def strengths(self, amount: float) -> Float64:
        """Return the strength of the class in each feature, `(num_features,)`: the amount."""
        return np.full(len(self.noise), amount)

    def amount_at(self, needed: Float64, share: float) -> float:
        """Return the amount at which a share of the features has the strength that it needs, `(num_features,)`."""
        return min(quantile(needed, share), self.largest_strength)

    def features(self, strengths: Float64, max_blend: Float64 | float) -> Float32:
        """Return `(num_features, feature_dim)`, for `(num_features,)` strengths."""
        mixed = self.shown.at_length(strengths, max_blend)
        mixed += self.centre
        mixed += self.noise
        return mixed

    def part(self, which: Int64 | slice) -> NoiseMixture:
        """Return some of the features."""
        return replace(self, shown=self.shown.part(which), noise=self.noise[which])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMixture:
    """Classes instead of something in a neutral image; the amount of class is its mean share of the spread.

    The strength is the square root of a feature's share.
    """

    shown: ShownClasses
    """What each feature shows of classes."""

    centre: Float32
    """`(feature_dim,)`: where the head favours no class."""

    rest: Float32
    """`(num_features, feature_dim)`: what neutral features have around their mean."""

    spread: float
    """Root mean square distance of neutral features from their mean, in units of features."""

    clarity: Float64
    """`(num_features,)`, uniform in 0..1: the greater, the more of an image is class."""

    concentration: float | None
    """Concentration of the Beta distribution of shares of class, above 0; `None` if all are equal."""

    is_rectified: bool
    """Whether features are never negative."""

    @property
    def usual_strength(self) -> float:
        """A sixth of the spread is class: little, since estimates are better on the way up."""
        return 0.4

    @property
    def largest_strength(self) -> float:
        """All is class."""
        return 1.0

    def class_share(self, amount: float) -> float:
        """Return the mean part of the features' spread that is class, 0..1: the amount."""
        return amount

    def strengths(self, amount: float) -> Float64:
        """Return the strength of the class in each feature, `(num_features,)`."""
        if self.concentration is None or not 0.0 < amount < 1.0:
            return np.full(len(self.rest), np.sqrt(amount))
        from scipy.special import betaincinv

        found = betaincinv(self.concentration * amount, self.concentration * (1.0 - amount), self.clarity)
        return np.asarray(np.sqrt(np.clip(found, 0.0, 1.0)))

    def amount_at(self, needed: Float64, share: float) -> float:
        """Return the amount at which a share of the features has the strength that it needs, `(num_features,)`."""
        shares = np.minimum(needed, 1.0) ** 2
        if self.concentration is None:
            return quantile(shares, share)
        from scipy.special import betainc

        # Greater amounts are enough for more features: what a step has found of a feature need not be found again.
        is_open, num_strong = np.flatnonzero(needed <= 1.0), 0
        lower, upper = 0.0, 1.0
        while upper - lower > AMOUNT_STEP:
            middle = 0.5 * (lower + upper)
            rank = betainc(self.concentration * middle, self.concentration * (1.0 - middle), shares[is_open])
            is_strong = rank <= self.clarity[is_open]
            num_now = num_strong + int(np.count_nonzero(is_strong))
            if num_now / len(needed) >= share:
                upper, is_open = middle, is_open[is_strong]
            else:
                lower, is_open, num_strong = middle, is_open[~is_strong], num_now
        return upper

    def features(self, strengths: Float64, max_blend: Float64 | float) -> Float32:
        """Return `(num_features, feature_dim)`, for `(num_features,)` strengths."""
        mixed = self.shown.at_length(self.spread * strengths, max_blend)
        mixed += self.rest * _column(np.sqrt(1.0 - strengths**2))
        mixed += self.centre
        return np.maximum(mixed, 0.0, out=mixed) if self.is_rectified else mixed

    def part(self, which: Int64 | slice) -> ImageMixture:
        """Return some of the features."""
        return replace(self, shown=self.shown.part(which), rest=self.rest[which], clarity=self.clarity[which])


def _column(values: Float64) -> Float32:
    """Return numbers as float32 that each multiply a row; a single one multiplies all."""
    return np.asarray(values, dtype=np.float32)[..., None]
