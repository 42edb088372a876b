"""From raw predicted rows to rows that compete with the seen ones; all of it becomes part of the rows.

A loss of cosines sets no row's length and a regression makes rows too short: left alone, injected classes always lose
against seen ones, or always win. `icis_deploy.injection.validation.operating_point` chooses the numbers; here they are
applied, one class at a time: what a class's row becomes depends on no other class.
"""

# Why: docs/decisions/0038 (one length, scale and offset), docs/decisions/0040 (plain arrays).

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.injection.rows.predictors import RowPredictor
from icis_deploy.injection.rows.spectrum import amplify, at_length


class RowCalibration(Protocol):
    """What brings raw rows into competition with the seen ones.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        raw = injection.injector.predictor.rows(icis_deploy.load_descriptors("more.npz").values)
        calibrated = injection.injector.calibration.apply(raw)
    """

    def apply(self, rows: Float32) -> Float32:
        """Return calibrated rows; both `(num_classes, feature_dim + 1)` float32."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFactor:
    """One factor for all rows; 1 leaves them raw."""

    factor: float
    """Factor that every row is multiplied by, above 0."""

    def apply(self, rows: Float32) -> Float32:
        """Return calibrated rows; both `(num_classes, feature_dim + 1)` float32."""
        return np.asarray(rows * np.float32(self.factor), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviationCalibration:
    """Deviations from the mean row at one length, and one offset of the bias.

    deviation = row - mean row;  deviation += ((deviation @ axes.T) * axis_gain) @ axes
    calibrated = mean row + length * deviation / |deviation|;  bias += offset

    With a law of the biases the length is that of the weights, and the deviation of the bias follows from theirs.
    """

    mean_row: Float32
    """`(feature_dim + 1,)`, of the seen rows."""

    axes: Float32
    """`(num_axes, feature_dim + 1)`, orthonormal: the principal axes of the seen rows."""

    axis_gain: Float32
    """`(num_axes,)`: what is added along each axis, as a part of what a deviation has there."""

    length: float
    """Length of every calibrated deviation; with a law of the biases, of its weights."""

    offset: float
    """Added to the bias, in logits."""

    bias_law: Float32 | None = None
    """`(feature_dim,)`: what weights' deviations are multiplied by to give the bias's
    (`icis_deploy.injection.rows.spectrum`)."""

    def apply(self, rows: Float32) -> Float32:
        """Return calibrated rows; both `(num_classes, feature_dim + 1)` float32."""
        calibrated = self.mean_row + self.deviations(rows - self.mean_row)
        calibrated[:, -1] += np.float32(self.offset)
        return np.asarray(calibrated, dtype=np.float32)

    def deviations(self, raw: Float32) -> Float32:
        """Return calibrated deviations of raw ones; both `(num_classes, feature_dim + 1)` float32."""
        amplified = amplify(raw, self.axes, self.axis_gain)
        if self.bias_law is None:
            return at_length(amplified, self.length)
        weights = at_length(amplified[:, :-1], self.length)
        return np.concatenate([weights, (weights @ self.bias_law)[:, None]], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Injector:
    """A trained predictor and its calibration: from a descriptor to a calibrated row, in plain arrays.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        rows = injection.injector.rows(icis_deploy.load_descriptors("more.npz").values)
    """

    predictor: RowPredictor
    """Trained predictor, from descriptors to raw rows."""

    calibration: RowCalibration
    """Calibration, from raw rows to calibrated ones."""

    def rows(self, descriptors: Float32) -> Float32:
        """Return calibrated rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32."""
        return self.calibration.apply(self.predictor.rows(descriptors))


def matching_length(rows: Float32, seen_rows: Float32) -> LengthFactor:
    """Return the factor that gives rows the mean length of the seen ones.

    Args:
        rows: `(num_unseen, feature_dim + 1)`, not all zero.
        seen_rows: `(num_seen, feature_dim + 1)`.
    """
    wanted = np.linalg.norm(seen_rows.astype(np.float64), axis=1).mean()
    found = np.linalg.norm(rows.astype(np.float64), axis=1).mean()
    return LengthFactor(factor=float(wanted / max(found, np.finfo(np.float64).tiny)))
