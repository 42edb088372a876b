"""How a class and what else is in a picture mix into a pseudo-feature.

    OnNoise     centre + length * class + noise                                    where nothing is known of features
    InPictures  centre + spread * (sqrt(share) * class + sqrt(1 - share) * rest)          with neutral pictures

*class* is the class's direction and some of a similar class's. Everything random is drawn once, so that what is then
searched, the amount of class and the largest blend of similar classes, is searched on the same draws.

Images differ in how clearly they show their class: shares are drawn from `Beta(c mean, c (1 - mean))`, with a
*concentration* `c`; without one all are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Integers = NDArray[np.int64]

CONCENTRATIONS = (3.2, 8.0)
"""How alike images are in the share of class. Measured on rendered pictures that the demo's networks had not seen (40,
120 and 300 classes, trained well and badly; `scripts/other_heads.py` prints it), and read in two ways. What a picture
has along its class's mean as a part of all pictures' spread: 2.3 to 3.7; of its own distance from the centre: 14 to 31.
Pseudo-features are all about equally far from the centre, pictures not: the first, and the geometric mean of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownClasses:
    """What of classes is to be seen in each feature."""

    classes: Integers
    """`(num_features,)`, indices of rows."""

    own: Float32
    """`(num_features, feature_dim)`, directions of length 1, each or on average."""

    similar: Float32
    """`(num_features, feature_dim)`, such directions of similar classes times uniform numbers."""

    moments: tuple[float, float, float]
    """Means of own^2, own similar and similar^2 over all features, of which these may be a part."""

    def mixed(self, max_blend: float) -> Float32:
        """Return own and similar directions, `(num_features, feature_dim)`, of root mean square length 1."""
        own, both, similar = self.moments
        length = np.sqrt(own + max_blend * (2.0 * both + max_blend * similar))
        return np.asarray((self.own + np.float32(max_blend) * self.similar) / np.float32(length), dtype=np.float32)

    def part(self, which: Integers | slice) -> ShownClasses:
        """Return some of the features."""
        return replace(self, classes=self.classes[which], own=self.own[which], similar=self.similar[which])


class Mixture(Protocol):
    """Features but for two numbers: how much class there is in them, and how much of similar classes at most."""

    @property
    def shown(self) -> ShownClasses:
        """What of classes is to be seen."""
        ...

    @property
    def most(self) -> float:
        """The largest amount of class that is sought."""
        ...

    def class_share(self, amount: float) -> float:
        """Return the mean part of the features' spread that is class, 0..1."""
        ...

    def features(self, amount: float, max_blend: float) -> Float32:
        """Return `(num_features, feature_dim)`."""
        ...

    def part(self, which: Integers | slice) -> Mixture:
        """Return some of the features."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OnNoise:
    """Classes on top of noise; the amount of class is its length, in units of features."""

    shown: ShownClasses
    """What of classes is to be seen."""

    centre: Float32
    """`(feature_dim,)`: where the head favours no class, as far as its biases tell."""

    noise: Float32
    """`(num_features, feature_dim)`, around zero."""

    @property
    def most(self) -> float:
        """A length beyond which noise does not matter."""
        return 16.0 * float(np.linalg.norm(self.noise, axis=1).mean())

    def class_share(self, amount: float) -> float:
        """Return the part of the features' spread that is class, 0..1."""
        of_noise = float(np.mean((self.noise**2).sum(axis=1)))
        return amount**2 / max(amount**2 + of_noise, float(np.finfo(np.float32).tiny))

    def features(self, amount: float, max_blend: float) -> Float32:
        """Return `(num_features, feature_dim)`."""
        mixed = self.centre + np.float32(amount) * self.shown.mixed(max_blend) + self.noise
        return np.asarray(mixed, dtype=np.float32)

    def part(self, which: Integers | slice) -> OnNoise:
        """Return some of the features."""
        return replace(self, shown=self.shown.part(which), noise=self.noise[which])


@dataclass(frozen=True, slots=True, kw_only=True)
class InPictures:
    """Classes in the place of something in a neutral picture; the amount of class is its mean share of the spread."""

    shown: ShownClasses
    """What of classes is to be seen."""

    centre: Float32
    """`(feature_dim,)`: where the head favours no class."""

    rest: Float32
    """`(num_features, feature_dim)`: what neutral features have around their mean."""

    spread: float
    """Root mean square distance of neutral features from their mean."""

    clarity: Float64
    """`(num_features, 1)`, uniform numbers: the greater, the more of a picture is class."""

    concentration: float | None
    """How alike images are in the share of class; `None` if they are quite alike."""

    is_rectified: bool
    """Whether features are never negative."""

    @property
    def most(self) -> float:
        """All is class."""
        return 1.0

    def class_share(self, amount: float) -> float:
        """Return the mean part of the features' spread that is class, 0..1: the amount."""
        return amount

    def features(self, amount: float, max_blend: float) -> Float32:
        """Return `(num_features, feature_dim)`."""
        share = self._shares(amount)
        of_class = np.sqrt(share) * np.float32(self.spread)
        mixed = self.centre + of_class * self.shown.mixed(max_blend) + np.sqrt(1.0 - share) * self.rest
        return np.asarray(np.maximum(mixed, 0.0) if self.is_rectified else mixed, dtype=np.float32)

    def part(self, which: Integers | slice) -> InPictures:
        """Return some of the features."""
        return replace(self, shown=self.shown.part(which), rest=self.rest[which], clarity=self.clarity[which])

    def _shares(self, mean: float) -> Float32:
        """Return the part of the spread that is class in each feature, `(num_features, 1)`, or `(1, 1)` for all."""
        if self.concentration is None or not 0.0 < mean < 1.0:
            return np.full((1, 1), mean, dtype=np.float32)
        from scipy.special import betaincinv

        found = betaincinv(self.concentration * mean, self.concentration * (1.0 - mean), self.clarity)
        return np.asarray(np.clip(found, 0.0, 1.0), dtype=np.float32)
