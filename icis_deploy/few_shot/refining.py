"""Rows of new classes from a few photos: predicted rows are the prior, and photos move them.

    direction = unit(prior_photos * prior direction + sum of the photos' directions)

A photo's direction is that of its feature, less the mean feature of seen classes. The prior's direction is that of the
predicted weights, less the mean seen weights: it counts as a number of photos, so that what it says fades as photos
come in. A class without a prior is imprinted: the direction is that of its photos alone (Qi, Brown and Lowe, "Low-Shot
Learning with Imprinted Weights", CVPR 2018).

Rules:

1. Row of a class: mean seen weights plus `length` times its direction. With a prior the length is that of the prior's
   deviation, so that refined and predicted rows stay comparable.
2. The bias is such that at the mean seen feature the row scores, above the mean seen row, its `level`: the prior's own,
   moved towards that of all predicted rows as far as photos move the direction.
3. A class without a photo keeps its row, to the last bit. What becomes of a class depends on its own photos alone.
4. Closed form, float64 inside: the same inputs give the same rows. numpy alone, so that a device can run it.
"""

# Why: docs/decisions/0075 (closed form and how much a prior counts).

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64, Int64, frozen_float32
from icis_deploy.errors import IncompatibleError

DEFAULT_PRIOR_PHOTOS = 1.0
"""Photos that a predicted row counts as where no image of a known class says it (docs/results/few-photos.md)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FewShotContext:
    """What refining needs to know of a head: all that a device has to store.

    Raises:
        IncompatibleError: On construction, if shapes disagree, or a number is out of range or not finite.
    """

    mean_row: Float32
    """`(feature_dim + 1,)` float32, read-only: mean of the seen rows."""

    feature_mean: Float32
    """`(feature_dim,)` float32, read-only: mean feature of images of seen classes, each class counting the same; else
    of what stands in for them."""

    length: float
    """Length of the weights' deviation of a row without a prior, above 0."""

    level: float
    """What a row without a prior scores at the mean feature, in logits above the mean seen row; it holds the offset
    that lets new classes compete."""

    prior_photos: float = DEFAULT_PRIOR_PHOTOS
    """How many photos a prior counts as, 0 or more."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean_row", frozen_float32(self.mean_row, name="mean row", ndim=1))
        object.__setattr__(self, "feature_mean", frozen_float32(self.feature_mean, name="mean feature", ndim=1))
        if len(self.mean_row) != len(self.feature_mean) + 1:
            raise IncompatibleError(
                f"The mean feature is {len(self.feature_mean)} wide and the mean row {len(self.mean_row)}; expected a "
                f"row one wider.",
                found=len(self.mean_row),
                expected=len(self.feature_mean) + 1,
            )
        is_possible = np.isfinite([self.length, self.level, self.prior_photos]).all()
        if not is_possible or self.length <= 0.0 or self.prior_photos < 0.0:
            raise IncompatibleError(
                f"Rows cannot have the length {self.length}, the level {self.level} and a prior of "
                f"{self.prior_photos} photos.",
                found=(self.length, self.level, self.prior_photos),
                expected="finite numbers: a length above 0, and 0 photos or more",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhotoFeatures:
    """Features of photos of new classes.

    Raises:
        IncompatibleError: On construction, if there is not one finite feature for each class index, or one is negative.
    """

    features: Float32
    """`(num_photos, feature_dim)` float32, read-only."""

    classes: Int64
    """`(num_photos,)`: which of the new classes each shows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", frozen_float32(self.features, name="features of photos", ndim=2))
        if self.classes.shape != (len(self.features),) or (self.classes < 0).any():
            raise IncompatibleError(
                f"There are {len(self.features)} photos, and classes of shape {self.classes.shape}; expected the index "
                f"of a new class for each photo.",
                found=self.classes.shape,
                expected=(len(self.features),),
            )


def refine_rows(
    prior: Float32, photos: PhotoFeatures, context: FewShotContext, *, has_prior: Bool | None = None
) -> Float32:
    """Move predicted rows to where photos of their classes are.

    Args:
        prior: `(num_new, feature_dim + 1)`, calibrated rows; those of classes without a prior are not looked at.
        photos: Of some of these classes, or all.
        context: Of the head that the rows are for.
        has_prior: `(num_new,)`, which rows were predicted; all by default.

    Returns:
        `(num_new, feature_dim + 1)` float32; rows of classes without photos are those of `prior`.

    Raises:
        IncompatibleError: If widths disagree, a photo is of none of these classes, a class has neither prior nor photo,
            or the photos of a class without a prior have no direction.
    """
    is_predicted = np.ones(len(prior), dtype=bool) if has_prior is None else has_prior
    num_photos = _counts(prior, photos, context, is_predicted)
    has_photos = num_photos > 0
    sums = _summed_directions(photos, context, num_new=len(prior))
    mean, centre = context.mean_row.astype(np.float64), context.feature_mean.astype(np.float64)
    rows = np.array(prior, dtype=np.float32)
    for index in np.flatnonzero(has_photos):
        pull, length, level = sums[index], context.length, context.level
        if is_predicted[index]:
            deviation = prior[index].astype(np.float64) - mean
            found = float(np.linalg.norm(deviation[:-1]))
            if found > 0.0:
                pull, length = pull + context.prior_photos * deviation[:-1] / found, found
            own = float(deviation[:-1] @ centre + deviation[-1])
            share = context.prior_photos / (context.prior_photos + float(num_photos[index]))
            level = share * own + (1.0 - share) * level
        size = float(np.linalg.norm(pull))
        if not size > 0.0:
            raise IncompatibleError(
                f"The photos of new class {index} have no direction: their features are the mean feature of seen "
                f"classes, or cancel out.",
                found=int(num_photos[index]),
                expected="photos that differ from the mean of seen classes",
                hint="Give other photos, or a descriptor of the class.",
            )
        weights = length * pull / size
        rows[index, :-1] = mean[:-1] + weights
        rows[index, -1] = mean[-1] + level - weights @ centre
    return rows


def levels(rows: Float32, mean_row: Float32, feature_mean: Float32) -> Float64:
    """Return what rows score at the mean feature, above the mean row, `(num_rows,)` in logits."""
    deviations = rows.astype(np.float64) - mean_row
    return np.asarray(deviations[:, :-1] @ feature_mean.astype(np.float64) + deviations[:, -1])


def _counts(prior: Float32, photos: PhotoFeatures, context: FewShotContext, is_predicted: Bool) -> Int64:
    """Return the number of photos of each class, `(num_new,)`, once all is known to fit."""
    width = len(context.feature_mean)
    if prior.ndim != 2 or prior.shape[1] != width + 1 or photos.features.shape[1] != width:
        raise IncompatibleError(
            f"Rows have shape {prior.shape} and features of photos {photos.features.shape}; expected (num_new, "
            f"{width + 1}) and (num_photos, {width}).",
            found=(prior.shape, photos.features.shape),
            expected=f"features {width} wide",
        )
    if len(photos.classes) and photos.classes.max() >= len(prior):
        raise IncompatibleError(
            f"A photo is of new class {int(photos.classes.max())}; there are {len(prior)}.",
            found=int(photos.classes.max()),
            expected=f"0 to {len(prior) - 1}",
        )
    counts = np.bincount(photos.classes, minlength=len(prior)).astype(np.int64)
    absent = np.flatnonzero(~is_predicted & (counts == 0))
    if len(absent):
        raise IncompatibleError(
            f"New class {int(absent[0])} has neither a predicted row nor a photo.",
            found=0,
            expected="a descriptor or a photo of each new class",
        )
    return counts


def _summed_directions(photos: PhotoFeatures, context: FewShotContext, *, num_new: int) -> Float64:
    """Return the sum of the photos' unit directions from the mean feature, `(num_new, feature_dim)`."""
    centred = photos.features.astype(np.float64) - context.feature_mean
    sizes = np.linalg.norm(centred, axis=1, keepdims=True)
    units = centred / np.where(sizes > 0.0, sizes, 1.0)
    sums = np.zeros((num_new, centred.shape[1]))
    np.add.at(sums, photos.classes, units)
    return sums
