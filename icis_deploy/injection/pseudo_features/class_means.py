"""What the rows of a head and neutral images say about the features that its images have.

- *Directions.* Class means deviate from their centre as weights do, along an axis `variance ^ exponent` times as much.
  A head fitted on given features and one trained with its backbone have different exponents: 0 where features and rows
  agree (neural collapse, nearest class means), -1 where rows divide by the spread of features (least squares), 1 where
  rows play down what similar classes share. `spread_slope` measures it: features of neutral images spread along the
  axes of the rows nearly as class means do. What is not class is in the measure too, so that it counts by the share of
  classes in the spread, and `UNMEASURED_EXPONENT` for the rest. A head recognises its own class means: the exponent is
  lowered until it does.
- *Centre.* Neutral images are not the average image, and a head can favour a few classes strongly where their mean
  lies. On its own average image a trained head favours none: the centre is moved there, as far as the rows determine
  it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.injection.rows.spectrum import RowSpectrum, amplify, mean_row, principal_axes

UNMEASURED_EXPONENT = 1.0
"""Exponent where nothing is measured of it: that of rows that play down what similar classes share."""

FLOOR = 0.01
"""Variance below which an axis counts as one that rows do not use, in units of the mean over all axes."""

FAVOUR = 0.1
"""By how much a class may be favoured at the centre, as a part of the largest deviation logit that a feature's spread
can make. Heads of rendered images have 0.05 to 0.2 there."""

EXPONENT_STEP, MIN_EXPONENT = 0.25, -0.5
"""Steps in which an exponent is lowered, and where that ends."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureLaw:
    """How features follow from rows."""

    spectrum: RowSpectrum
    """Principal axes of the weights, `(num_axes, feature_dim)`, biases left out, and the variance along them."""

    slope: float | None
    """Slope of neutral features' logarithmic variance over that of the weights along the axes, -1 to 3; `None` where
    there are no neutral features."""

    exponent: float
    """Power of the weights' variance along an axis by which the axis is stretched from weights to class means."""


def principal_law(rows: Float32, neutral_features: Float32 | None) -> FeatureLaw:
    """Return the law if all spread of neutral features were spread of classes.

    Args:
        rows: `(num_seen, feature_dim + 1)`.
        neutral_features: `(num_neutral, feature_dim)`, or `None`.
    """
    spectrum = principal_axes(rows[:, :-1])
    if neutral_features is None or len(neutral_features) < 2 or len(spectrum.variance) < 3:
        return FeatureLaw(spectrum=spectrum, slope=None, exponent=UNMEASURED_EXPONENT)
    slope = spread_slope(spectrum, neutral_features)
    return FeatureLaw(spectrum=spectrum, slope=slope, exponent=0.5 * (slope - 1.0))


def mixed_law(law: FeatureLaw, class_share: float) -> FeatureLaw:
    """Return the law with its measured exponent weighted by the share of classes in the spread, 0..1."""
    return FeatureLaw(
        spectrum=law.spectrum,
        slope=law.slope,
        exponent=class_share * law.exponent + (1.0 - class_share) * UNMEASURED_EXPONENT,
    )


def spread_slope(spectrum: RowSpectrum, features: Float32) -> float:
    """Return the slope of features' logarithmic variance over that of the weights; each axis has its variance's weight.

    Args:
        spectrum: Of the weights, at least three axes.
        features: `(num_features, feature_dim)`, at least two.
    """
    around = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    found = np.mean((around @ spectrum.axes.T).astype(np.float64) ** 2, axis=0)  # (num_axes,)
    size = np.log(spectrum.variance + FLOOR * spectrum.variance.mean())
    log_found = np.log(found + 1e-9 * found.mean() + np.finfo(np.float64).tiny)
    weight = spectrum.variance / spectrum.variance.sum()
    size, log_found = size - weight @ size, log_found - weight @ log_found
    spread = float(weight @ size**2)
    # Rows that spread alike in all directions say nothing about the slope: features then follow them whatever it is.
    return float(np.clip(weight @ (size * log_found) / spread, -1.0, 3.0)) if spread > 1e-6 else 1.0


def recognising_law(rows: Float32, law: FeatureLaw, *, classes: Int64, share: float) -> FeatureLaw:
    """Return the law with its exponent lowered until the head recognises its own class means.

    Directions that are stretched too much along the leading axes make classes look like others that share them: no
    head that recognises images of its classes has features of that kind.

    Args:
        rows: `(num_seen, feature_dim + 1)`.
        law: Of these rows.
        classes: `(num_classes,)`, those whose means are classified.
        share: Part of them that the head is to recognise, biases aside.
    """
    weights = rows[:, :-1] - mean_row(rows[:, :-1])
    while True:
        means = class_directions(rows, law, classes=classes)
        is_known = (means @ weights.T).argmax(axis=1) == classes
        if is_known.mean() >= share or law.exponent <= MIN_EXPONENT:
            return law
        law = replace(law, exponent=max(law.exponent - EXPONENT_STEP, MIN_EXPONENT))


def class_directions(
    rows: Float32, law: FeatureLaw, *, classes: Int64 | slice = slice(None), equal_lengths: bool = True
) -> Float32:
    """Return the directions of class means of features, `(num_classes, feature_dim)`, of length 1 each or on average.

    Args:
        rows: `(num_seen, feature_dim + 1)`.
        law: Of these rows.
        classes: Indices of rows; all by default.
        equal_lengths: Whether all are of length 1, or on average.
    """
    variance = law.spectrum.variance
    gain = (variance + FLOOR * variance.mean()) ** law.exponent if len(variance) else variance
    weights = rows[:, :-1]
    relative = np.asarray(gain / gain.mean() - 1.0 if len(gain) else gain, dtype=np.float32)
    directions = amplify(weights[classes] - mean_row(weights), law.spectrum.axes, relative)
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    if not equal_lengths:
        length = length.mean()
    return np.asarray(directions / np.maximum(length, np.finfo(np.float32).tiny), dtype=np.float32)


def balanced_centre(rows: Float32, spectrum: RowSpectrum, centre: Float32) -> Float32:
    """Move the mean of neutral features towards where the head favours no class, `(feature_dim,)`.

    The most likely centre, if each of its coordinates is as uncertain as a feature's and a class's favour there is
    about `FAVOUR`: a ridge regression, solved along the principal axes. The spread of features is in both and cancels.

    Args:
        rows: `(num_seen, feature_dim + 1)`.
        spectrum: Of the weights.
        centre: `(feature_dim,)`, mean of neutral features.
    """
    deviations = rows - mean_row(rows)
    favoured = deviations[:, :-1] @ centre + deviations[:, -1]  # (num_seen,)
    allowed = FAVOUR**2 * len(centre) * float(np.linalg.norm(deviations[:, :-1], axis=1).mean()) ** 2
    noise = max(allowed, np.finfo(np.float32).tiny)
    pull = spectrum.axes @ (deviations[:, :-1].T @ favoured)  # (num_axes,)
    step = (pull / (len(rows) * spectrum.variance + noise)) @ spectrum.axes
    return np.asarray(centre - step, dtype=np.float32)
