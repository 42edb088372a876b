"""What the seen rows share: principal axes and the spread along them, and biases that follow from the weights.

Axes that many classes share are easy to predict, those that tell siblings apart are not. A regression therefore puts
too much of a predicted deviation along the leading axes: its classes are told from far ones and not from near ones. How
much too much is measured on held-out seen rows, and half of it (in the logarithm) is taken back; all would be noise.
This brings predicted deviations back to the spread that rows have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpectrum:
    """Principal axes of centred rows."""

    axes: Float32
    """`(num_axes, feature_dim + 1)`, orthonormal, most variance first; without those that have none."""

    variance: Float64
    """`(num_axes,)`: variance of the rows along each axis."""


def mean_row(rows: Float32) -> Float32:
    """Return the mean row, `(feature_dim + 1,)` float32."""
    return np.asarray(rows.mean(axis=0, dtype=np.float64), dtype=np.float32)


def mean_deviation_length(rows: Float32) -> float:
    """Return the mean length of the rows' deviations from their mean."""
    return float(np.linalg.norm(rows - mean_row(rows), axis=1).mean(dtype=np.float64))


def at_length(deviations: Float32, length: float) -> Float32:
    """Return deviations, each at the same length; one that is zero but for rounding, as the mean row's, becomes zero.

    Args:
        deviations: `(num_classes, feature_dim + 1)`.
        length: The length that each gets.
    """
    found = np.linalg.norm(deviations, axis=1, keepdims=True)
    negligible = max(1e-6 * length, float(np.finfo(np.float32).tiny))
    factor = np.where(found > negligible, length / np.maximum(found, negligible), 0.0)
    return np.asarray(deviations * factor, dtype=np.float32)


def principal_axes(rows: Float32) -> RowSpectrum:
    """Return the principal axes of rows, by whichever of the two second moments is smaller.

    Args:
        rows: `(num_seen, feature_dim + 1)`.
    """
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    has_few_classes = len(centred) <= centred.shape[1]
    moment = centred @ centred.T if has_few_classes else centred.T @ centred
    values, vectors = np.linalg.eigh(moment)
    kept = np.flatnonzero(values > 1e-6 * max(values[-1], np.finfo(np.float64).tiny))[::-1]
    values, vectors = values[kept], vectors[:, kept]
    axes = (centred.T @ vectors / np.sqrt(values)).T if has_few_classes else vectors.T
    return RowSpectrum(axes=np.ascontiguousarray(axes, dtype=np.float32), variance=values / len(rows))


def restoring_exponent(deviations: Float32, spectrum: RowSpectrum) -> float:
    """Return the exponent for `restoring_gain`, from predictions of held-out seen rows.

    With `variance of predictions / variance of rows ~ (variance of rows)^q` along the axes, it is `q / 4`: half of the
    `q / 2` that would give predictions the spread of rows; never negative, and 1/4 at most.

    Args:
        deviations: `(num_held_out, feature_dim + 1)`, of predicted rows from the mean row.
        spectrum: Of the seen rows.
    """
    if len(spectrum.variance) < 3 or not deviations.any():
        return 0.0
    predicted = np.mean((deviations @ spectrum.axes.T).astype(np.float64) ** 2, axis=0)  # (num_axes,)
    floor = spectrum.variance.mean()
    size = np.log(spectrum.variance + floor)
    excess = np.log(np.maximum(predicted, 1e-9 * floor) / spectrum.variance)
    weight = spectrum.variance / spectrum.variance.sum()
    size, excess = size - weight @ size, excess - weight @ excess
    spread = float(weight @ size**2)
    slope = float(weight @ (size * excess)) / spread if spread > 1e-12 else 0.0
    return float(np.clip(slope, 0.0, 1.0)) / 4.0


def restoring_gain(spectrum: RowSpectrum, exponent: float) -> Float32:
    """Return what `amplify` adds along each axis to multiply it by `(second moment of rows + its mean)^-exponent`.

    Relative to what lies outside all axes, which keeps its length.

    Args:
        spectrum: Of the seen rows.
        exponent: From `restoring_exponent`; zero gives no gain.

    Returns:
        `(num_axes,)` float32.
    """
    floor = max(float(spectrum.variance.mean()), np.finfo(np.float64).tiny) if len(spectrum.variance) else 1.0
    return np.asarray(((spectrum.variance + floor) / floor) ** -exponent - 1.0, dtype=np.float32)


def amplify(deviations: Float32, axes: Float32, gain: Float32) -> Float32:
    """Return deviations with a part more of what they have along each axis.

    Args:
        deviations: `(num_classes, feature_dim + 1)`, from the mean row.
        axes: `(num_axes, feature_dim + 1)`, orthonormal.
        gain: `(num_axes,)`; 0 leaves an axis as it is, -1 takes it away.
    """
    if not gain.any():
        return deviations
    return np.asarray(deviations + ((deviations @ axes.T) * gain) @ axes, dtype=np.float32)


# Why: docs/decisions/0052.
EXPLAINED = 0.6
"""Part of the variance of the biases that must follow from the weights."""


def bias_law(rows: Float32) -> Float32 | None:
    """Return what a deviation of weights is multiplied by to give that of the bias, `(feature_dim,)`, or `None`.

    Of nearest class means the bias is `-|w|^2 / 2`, of a linear discriminant `-w' S w / 2`: classes are compared by
    distance, and a bias is what is left of it. A method that predicts a bias as one coordinate among others gets it
    wrong, and where biases are large that decides more than all weights. With deviations `d` from the mean weights `m`,
    all of one length,

        bias = constant + slope |m + scale d|^2 = other constant + scale (2 slope m . d)

    so that the law is linear in the deviation, and its constant part of the offset that calibration chooses.

    Of 27 heads (`scripts/experiments/other_heads.py`) `|w|^2` explains 100 % of the biases of nearest means and 66 to
    90 % of those of discriminants; of others at most 27 %, but 52 % where training stopped early and all biases are
    nearly zero. All seven for which the law holds got better: T by 7 to 40 points, H by 8 to 16.

    Args:
        rows: `(num_seen, feature_dim + 1)`, at least three.

    Returns:
        `None` where biases do not follow from the weights' lengths, or where longer weights have larger biases.
    """
    weights, bias = rows[:, :-1].astype(np.float64), rows[:, -1].astype(np.float64)
    square = (weights**2).sum(axis=1)
    square, bias = square - square.mean(), bias - bias.mean()
    together, of_square, of_bias = square @ bias, square @ square, bias @ bias
    if together >= 0.0 or together**2 < EXPLAINED * of_square * of_bias:
        return None
    return np.asarray(2.0 * together / of_square * weights.mean(axis=0), dtype=np.float32)
