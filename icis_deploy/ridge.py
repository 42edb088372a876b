"""Kernel ridge regression from descriptors to deviations from the mean row; the mean of a Gaussian process.

Rules:

1. Descriptors are centred on the mean seen descriptor and brought to unit length, so that squared distances are about 2
   whatever the descriptors are, and one grid of bandwidths serves all.
2. Bandwidth and noise are chosen by leave-one-out on the seen rows, in closed form, by the cosine between predicted and
   true deviation: lengths are the business of `icis_deploy.calibration`.
3. Up to `EXACT_LIMIT` seen classes the system is solved exactly, in cubic time. Above, the kernel is approximated from
   `EXACT_LIMIT` landmark classes (Nystrom, subset of regressors), in linear time and memory.
4. A class's row depends on its own descriptor and the seen classes only, not on which classes are predicted with it.

Sources: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006: eq. 2.25-2.26 (mean and variance),
eq. 5.12 (leave-one-out), eq. 8.14 (subset of regressors).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

INVERSE_WIDTHS = (0.5, 1.0, 2.0, 4.0)
NOISES = (0.03, 0.1, 0.3, 1.0)

EXACT_LIMIT = 2000
"""Seen classes up to which the kernel system is solved exactly, and landmarks above."""

SELECTION_LIMIT = 1500
"""Seen classes on which bandwidth and noise are chosen, drawn at random where there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeSettings:
    """Kernel `exp(-inverse_width * squared distance)` and the noise added to its diagonal."""

    inverse_width: float
    """Per squared distance between unit descriptors."""

    noise: float
    """Variance of what a descriptor does not say, in units of the kernel's variance, 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelPredictor:
    """A solved kernel ridge regression; the arrays are float64, since nearly equal descriptors cancel in float32."""

    settings: RidgeSettings
    """Bandwidth and noise."""

    descriptor_mean: Float64
    """`(descriptor_dim,)`, of the seen descriptors."""

    landmarks: Float64
    """`(num_landmarks, descriptor_dim)`, standardised descriptors: those of all seen classes, up to `EXACT_LIMIT`."""

    coefficients: Float64
    """`(num_landmarks, feature_dim + 1)`."""

    mean_row: Float64
    """`(feature_dim + 1,)`."""

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
    points = _standardised(descriptors, descriptors.mean(axis=0, dtype=np.float64))
    deviations = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    squared = _squared_distances(points, points)
    gram = (deviations @ deviations.T).astype(np.float32)
    scores = {}
    for inverse_width in INVERSE_WIDTHS:
        cosines = _left_out_cosines(np.exp(-inverse_width * squared), gram)
        scores.update({(inverse_width, noise): cosine for noise, cosine in zip(NOISES, cosines, strict=True)})
    best = max(scores, key=lambda setting: scores[setting])
    return RidgeSettings(inverse_width=best[0], noise=best[1])


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
        precision = _noisy_inverse(_kernel(points, points, settings), settings.noise)
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
    precision = _noisy_inverse(inner, 1e-6) - settings.noise * cho_solve(
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


def _left_out_cosines(kernel: Float64, gram: Float32) -> list[float]:
    """Return, for each of `NOISES`, the mean cosine between true deviations and those that leave-one-out predicts.

    `true - a_i / p_ii` is what it predicts of class i, with `P = (kernel + noise)^-1` and `a = P true`. Its products
    with itself and the true deviation follow from `P` and the Gram matrix of the deviations: the width of the rows
    does not matter. One eigendecomposition of the kernel serves all noises; what comes out is a mean of cosines, for
    which float32 is enough.

    Args:
        kernel: `(num_seen, num_seen)`.
        gram: `(num_seen, num_seen)`, inner products of the true deviations.
    """
    values, vectors = np.linalg.eigh(kernel)
    narrow, squares = vectors.astype(np.float32), vectors**2
    turned = narrow.T @ gram @ narrow  # the Gram matrix in the kernel's axes
    square = gram.diagonal().astype(np.float64)
    cosines = []
    for noise in NOISES:
        inverse = 1.0 / (values + noise)  # (num_seen,): P in the kernel's axes
        leverage = squares @ inverse
        half = narrow * inverse.astype(np.float32)
        product = half @ turned
        shared = np.einsum("ij,ij->i", product, narrow) / leverage  # (num_seen,): true times a_i / p_ii
        own = np.einsum("ij,ij->i", product, half) / leverage**2
        # A prediction a thousand times shorter than the truth is rounding, and has no direction.
        length = np.sqrt(np.maximum(square - 2.0 * shared + own, 1e-6 * square) * square)
        cosines.append(float(np.mean((square - shared) / np.maximum(length, np.finfo(np.float64).tiny))))
    return cosines


def _noisy_inverse(kernel: Float64, noise: float) -> Float64:
    """Return the inverse of a kernel matrix with noise on its diagonal.

    By numpy, as all the products are: scipy brings a BLAS of its own, and the threads of both, which wait busily, took
    six times as long together as one thread alone.
    """
    return np.asarray(np.linalg.inv(kernel + noise * np.eye(len(kernel))))
