"""Trained predictors of rows: plain arrays, and how a descriptor becomes a raw row with them.

Lengths of raw rows mean nothing: `icis_deploy.injection.rows.calibration` sets them. A predictor holds arrays only, so
that it can be kept, compared and exported; none needs the library that trained it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.injection.rows.spectrum import at_length

BATCH_SIZE = 4096
"""Classes whose rows are predicted at once where a prediction has a wide intermediate; bounds its memory."""

Weigh = Callable[[Float32, Float32], Float32]
"""From unseen and seen descriptors to weights `(num_unseen, num_seen)`."""


Progress = Callable[[int, float], None]
"""Called after each epoch of a training with its number, from 1, and its mean loss."""


class RowPredictor(Protocol):
    """A trained method.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        raw = injection.injector.predictor.rows(icis_deploy.load_descriptors("more.npz").values)
    """

    def rows(self, descriptors: Float32) -> Float32:
        """Predict raw rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32."""
        ...


@runtime_checkable
class Uncertain(Protocol):
    """A predictor that also knows the variance of its predictions."""

    def variance(self, descriptors: Float32) -> Float64:
        """Return the part of the variance that stays unexplained, `(num_classes,)` in 0..1."""
        ...


Fit = Callable[[Float32, Float32, Float32], RowPredictor]
"""Train: from seen descriptors, seen rows and the descriptors of the classes to come to a predictor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Predicted rows of a few classes, and how certain they are."""

    rows: Float32
    """`(num_classes, feature_dim + 1)`, not calibrated."""

    variance: Float64
    """`(num_classes,)`: of each prediction, 0..1; zeros where the predictor does not know."""


Predict = Callable[[Float32, Float32, Float32], Prediction]
"""Train and predict: from seen descriptors, seen rows and the descriptors of classes to what is predicted of them."""


def predict_by(fit: Fit) -> Predict:
    """Return a function that trains a predictor and predicts with it."""

    def predict(seen_descriptors: Float32, seen_rows: Float32, descriptors: Float32) -> Prediction:
        predictor = fit(seen_descriptors, seen_rows, descriptors)
        return Prediction(rows=predictor.rows(descriptors), variance=prediction_variance(predictor, descriptors))

    return predict


def prediction_variance(predictor: RowPredictor, descriptors: Float32) -> Float64:
    """Return the variance of each prediction, `(num_classes,)`; zeros where the predictor does not know."""
    return predictor.variance(descriptors) if isinstance(predictor, Uncertain) else np.zeros(len(descriptors))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedPredictor:
    """The mean row and a weighted sum of the seen rows' deviations from it."""

    weigh: Weigh
    """From unseen and seen descriptors to the weights of the seen classes."""

    descriptors: Float32
    """`(num_seen, descriptor_dim)`, of the seen classes."""

    mean_row: Float32
    """`(feature_dim + 1,)`, of the seen rows."""

    deviations: Float32
    """`(num_seen, feature_dim + 1)`, of the seen rows from the mean row."""

    def rows(self, descriptors: Float32) -> Float32:
        """Predict raw rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32."""
        weights = self.weigh(descriptors, self.descriptors)  # (num_classes, num_seen)
        return np.asarray(self.mean_row + weights @ self.deviations, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentPredictor:
    """An encoder of descriptors and a decoder of rows, those of ICIS: `origin + decode(relu(encode(descriptor)))`."""

    encoder_weight: Float32
    """`(latent_dim, descriptor_dim)` float32."""

    encoder_bias: Float32
    """`(latent_dim,)`."""

    decoder_weight: Float32
    """`(feature_dim + 1, latent_dim)`."""

    decoder_bias: Float32
    """`(feature_dim + 1,)`."""

    origin: Float32
    """`(feature_dim + 1,)`: the mean row where the model learnt deviations from it, else zero."""

    def rows(self, descriptors: Float32) -> Float32:
        """Predict raw rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32."""
        parts = []
        for start in range(0, len(descriptors), BATCH_SIZE):
            batch = descriptors[start : start + BATCH_SIZE]
            latent = np.maximum(batch @ self.encoder_weight.T + self.encoder_bias, 0.0)  # (batch, latent_dim)
            parts.append(latent @ self.decoder_weight.T + self.decoder_bias + self.origin)
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AveragePredictor:
    """The mean row and the average direction in which several predictors deviate from it."""

    members: tuple[RowPredictor, ...]
    """Predictors that are averaged, at least one."""

    mean_row: Float32
    """`(feature_dim + 1,)`, of the seen rows."""

    def rows(self, descriptors: Float32) -> Float32:
        """Predict raw rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32."""
        directions = [at_length(member.rows(descriptors) - self.mean_row, 1.0) for member in self.members]
        return np.asarray(self.mean_row + np.mean(directions, axis=0), dtype=np.float32)
