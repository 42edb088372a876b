"""Kernel ridge regression from descriptors to deviations from the mean row; the mean of a Gaussian process.

Rules:

1. Descriptors are centred on the mean seen descriptor and brought to unit length, so that squared distances are about 2
   whatever the descriptors are, and one grid of bandwidths serves all.
2. Bandwidth and noise are chosen by leave-one-out on the seen rows, in closed form, by the cosine between predicted and
   true deviation: `icis_deploy.injection.validation.operating_point` chooses lengths.
3. Predictions that only cross-validation needs are solved for directly (`predict_ridge`), without the inverse that a
   predictor keeps.
4. Up to `EXACT_LIMIT` seen classes the system is solved exactly, in cubic time. Above, the kernel is approximated from
   `EXACT_LIMIT` landmark classes (Nystrom, subset of regressors), in linear time and memory.
5. A class's row depends on its own descriptor and the seen classes only, not on which classes are predicted with it.

Sources: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006: eq. 2.25-2.26 (mean and variance),
eq. 5.12 (leave-one-out), eq. 8.14 (subset of regressors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.injection.rows.predictors import Prediction
from icis_deploy.injection.rows.spectrum import mean_row

Floats = TypeVar("Floats", Float32, Float64)

INVERSE_WIDTHS = (0.5, 1.0, 2.0, 4.0)
NOISES = (0.03, 0.1, 0.3, 1.0)

EXACT_LIMIT = 2000
"""Seen classes up to which the kernel system is solved exactly, and landmarks above."""

SELECTION_LIMIT = 1500
"""Seen classes on which bandwidth and noise are chosen, drawn at random where there are more."""

SMALL_SYSTEM = 64
"""Rows of a positive definite matrix that is not halved any more to be inverted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeSettings:
    """Kernel `exp(-inverse_width * squared distance)` and the noise added to its diagonal."""

    inverse_width: float
    """Factor of the squared distance between unit descriptors, above 0."""

    noise: float
    """Variance of what descriptors do not explain, in units of the kernel's variance, 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelPredictor:
    """A solved kernel ridge regression; the arrays are float64, since nearly equal descriptors cancel in float32."""

    settings: RidgeSettings
    """Bandwidth of the kernel and noise on its diagonal."""

    descriptor_mean: Float64
    """`(descriptor_dim,)`, of the seen descriptors."""

    landmarks: Float64
    """`(num_landmarks, descriptor_dim)`, standardised descriptors: those of all seen classes, up to `EXACT_LIMIT`."""

    coefficients: Float64
    """`(num_landmarks, feature_dim + 1)`: weights of the kernel values in a row's deviation from the mean row."""

    mean_row: Float64
    """`(feature_dim + 1,)`, of the seen rows."""

    precision: Float64
    """`(num_landmarks, num_landmarks)`: the variance of a class is 1 less the quadratic form of its kernel values."""

    def rows(self, descriptors: Float32) -> Float32:
        """Predict raw rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32.

        Deviations from the mean row shrink as the variance grows.
        """
        return np.asarray(self.mean_row + self._kernel(descriptors) @ self.coefficients, dtype=np.float32)

    def variance(self, descriptors: Float32) -> Float64:
        """Return the part of the prior variance that the seen classes leave, `(num_classes,)` in 0..1."""
        between = self._kernel(descriptors)
        return np.asarray(np.clip(1.0 - np.einsum("ij,ij->i", between @ self.precision, between), 0.0, 1.0))

    def _kernel(self, descriptors: Float32) -> Float64:
        return _kernel(_standardised(descriptors, self.descriptor_mean), self.landmarks, self.settings)


def choose_ridge(descriptors: Float32, rows: Float32, *, seed: int) -> RidgeSettings:
    """Choose bandwidth and noise by leave-one-out on seen classes.

    Args:
        descriptors: `(num_seen, descriptor_dim)`.
        rows: `(num_seen, feature_dim + 1)`.
        seed: Of the draw of classes, where there are more than `SELECTION_LIMIT`.
    """
    if len(rows) > SELECTION_LIMIT:
        chosen = np.random.default_rng(seed).choice(len(rows), SELECTION_LIMIT, replace=False)
        descriptors, rows = descriptors[chosen], rows[chosen]
    if len(rows) < 3:
        return RidgeSettings(inverse_width=INVERSE_WIDTHS[1], noise=NOISES[2])
    return tune_ridge(descriptors, rows)[0]


def tune_ridge(descriptors: Float32, rows: Float32) -> tuple[RidgeSettings, Float64]:
    """Return the settings under which leave-one-out predicts the best directions, and their cosines with the true ones.

    Args:
        descriptors: `(num_seen, descriptor_dim)`, of at least 3 classes.
        rows: `(num_seen, feature_dim + 1)`.

    Returns:
        Bandwidth and noise, and of each class the cosine between its deviation and the one that the other classes
        predict, `(num_seen,)`.
    """
    points = _standardised(descriptors, descriptors.mean(axis=0, dtype=np.float64))
    deviations = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    squared = _squared_distances(points, points)
    gram = (deviations @ deviations.T).astype(np.float32)
    cosines = {}
    for inverse_width in INVERSE_WIDTHS:
        kernel = np.exp(-inverse_width * squared).astype(np.float32)
        cosines.update(
            {(inverse_width, noise): _left_out_cosines(_with_noise(kernel, noise), gram) for noise in NOISES}
        )
    best = max(cosines, key=lambda setting: float(np.mean(cosines[setting])))
    return RidgeSettings(inverse_width=best[0], noise=best[1]), cosines[best]


def fit_ridge(descriptors: Float32, rows: Float32, *, settings: RidgeSettings, seed: int = 0) -> KernelPredictor:
    """Solve the regression.

    Args:
        descriptors: `(num_seen, descriptor_dim)`.
        rows: `(num_seen, feature_dim + 1)`.
        settings: Bandwidth and noise.
        seed: Of the draw of landmarks, where there are more than `EXACT_LIMIT` seen classes.
    """
    descriptor_mean = descriptors.mean(axis=0, dtype=np.float64)
    points = _standardised(descriptors, descriptor_mean)
    mean = rows.mean(axis=0, dtype=np.float64)
    if len(points) <= EXACT_LIMIT:
        landmarks = points
        precision = _inverse(_with_noise(_kernel(points, points, settings), settings.noise))
        coefficients = precision @ (rows - mean)
    else:
        chosen = np.sort(np.random.default_rng(seed).choice(len(points), EXACT_LIMIT, replace=False))
        landmarks = points[chosen]
        coefficients, precision = _solve_by_landmarks(landmarks, points, rows - mean, settings)
    return KernelPredictor(
        settings=settings,
        descriptor_mean=descriptor_mean,
        landmarks=landmarks,
        coefficients=coefficients,
        mean_row=mean,
        precision=precision,
    )


def predict_ridge(
    descriptors: Float32, rows: Float32, queries: Float32, *, settings: RidgeSettings, seed: int = 0
) -> Prediction:
    """Return what the predictor of `fit_ridge` predicts of a few classes, but for rounding, in a third of the time.

    Args:
        descriptors: `(num_seen, descriptor_dim)`.
        rows: `(num_seen, feature_dim + 1)`.
        queries: `(num_classes, descriptor_dim)`, of the classes to predict.
        settings: Bandwidth and noise.
        seed: Of the draw of landmarks, where there are more than `EXACT_LIMIT` seen classes.
    """
    if len(descriptors) > EXACT_LIMIT:
        predictor = fit_ridge(descriptors, rows, settings=settings, seed=seed)
        return Prediction(rows=predictor.rows(queries), variance=predictor.variance(queries))
    descriptor_mean = descriptors.mean(axis=0, dtype=np.float64)
    points = _standardised(descriptors, descriptor_mean)
    between = _kernel(points, _standardised(queries, descriptor_mean), settings)
    system = _with_noise(_kernel(points, points, settings), settings.noise)
    weights = np.linalg.solve(system, between)  # (num_seen, num_classes)
    mean = mean_row(rows)
    # The weights are where nearly equal descriptors would cancel; what they weigh is float32 anyway.
    predicted = mean + weights.T.astype(np.float32) @ (rows - mean)
    variance = np.clip(1.0 - np.einsum("ij,ij->j", weights, between), 0.0, 1.0)
    return Prediction(rows=np.asarray(predicted, dtype=np.float32), variance=variance)


def _solve_by_landmarks(
    landmarks: Float64, points: Float64, deviations: Float64, settings: RidgeSettings
) -> tuple[Float64, Float64]:
    """Return coefficients and precision of the subset of regressors."""
    from scipy.linalg import cho_factor, cho_solve

    cross = _kernel(landmarks, points, settings)
    inner = _kernel(landmarks, landmarks, settings)
    target = cross @ deviations
    # The last term keeps the system positive definite in float64; landmarks of nearly equal descriptors do not.
    system = cross @ cross.T + settings.noise * inner + 1e-9 * len(points) * np.eye(len(landmarks))
    del cross
    factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
    # The variance is noise k' precision k, and what no landmark explains: 1 - k' inner^-1 k.
    precision = _inverse(_with_noise(inner, 1e-6)) - settings.noise * cho_solve(
        factor, np.eye(len(landmarks)), check_finite=False
    )
    return cho_solve(factor, target, check_finite=False), precision


def _standardised(descriptors: Float32, mean: Float64) -> Float64:
    """Return descriptors less the mean seen one and of unit length, `(num_classes, descriptor_dim)`."""
    centred = descriptors.astype(np.float64) - mean
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(length, np.finfo(np.float32).tiny))


def _squared_distances(left: Float64, right: Float64) -> Float64:
    """Return `(num_left, num_right)` squared distances between vectors of unit length, or zero."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :]
    return np.asarray(np.maximum(squares - 2.0 * (left @ right.T), 0.0))


def _kernel(left: Float64, right: Float64, settings: RidgeSettings) -> Float64:
    """Return the kernel matrix `(num_left, num_right)`."""
    return np.asarray(np.exp(-settings.inverse_width * _squared_distances(left, right)))


def _left_out_cosines(system: Float32, gram: Float32) -> Float64:
    """Return the cosine between each true deviation and the one that leave-one-out predicts, `(num_seen,)`.

    `true - a_i / p_ii` is what it predicts of class i, with `P = system^-1` and `a = P true`. Its products with itself
    and the true deviation follow from `P` and the Gram matrix of the deviations: the width of the rows does not matter.
    What comes out are cosines, for which float32 is enough.

    Args:
        system: `(num_seen, num_seen)`, the kernel with noise on its diagonal.
        gram: `(num_seen, num_seen)`, inner products of the true deviations.
    """
    inverse = _inverse(system)
    product = inverse @ gram
    square, leverage = (matrix.diagonal().astype(np.float64) for matrix in (gram, inverse))
    shared = product.diagonal() / leverage  # (num_seen,): true times a_i / p_ii
    own = np.einsum("ij,ij->i", product, inverse) / leverage**2
    # A prediction a thousand times shorter than the truth is rounding, and has no direction.
    length = np.sqrt(np.maximum(square - 2.0 * shared + own, 1e-6 * square) * square)
    return np.asarray((square - shared) / np.maximum(length, np.finfo(np.float64).tiny))


def _with_noise(kernel: Floats, noise: float) -> Floats:
    """Return a kernel matrix with noise on its diagonal."""
    noisy: Floats = kernel.copy()
    noisy[np.diag_indices_from(noisy)] += noise
    return noisy


def _inverse(system: Floats) -> Floats:
    """Return the inverse of a positive definite matrix, in its own precision.

    Of the inverse of its Cholesky factor, in a third of the time of `np.linalg.inv`, and by numpy, as all the products
    are: scipy, which has this, brings a BLAS of its own, and the threads of both, which wait busily, took six times as
    long together as one thread alone.
    """
    inverse = np.zeros_like(system)
    _invert_factor(system, inverse)
    product: Floats = inverse.T @ inverse
    return product


def _invert_factor(system: Floats, inverse: Floats) -> None:
    """Write the inverse of the Cholesky factor into zeros, by halves, so that nearly all of it is products."""
    if len(system) <= SMALL_SYSTEM:
        inverse[:] = np.linalg.inv(np.linalg.cholesky(system))
        return
    half = len(system) // 2
    upper, lower = inverse[:half, :half], inverse[half:, half:]
    _invert_factor(system[:half, :half], upper)
    below = system[half:, :half] @ upper.T  # of the factor itself
    _invert_factor(system[half:, half:] - below @ below.T, lower)
    inverse[half:, :half] = -(lower @ (below @ upper))
