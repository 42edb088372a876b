"""Logistic regression of two balanced classes with an L2 penalty on standardised inputs, solved by Newton's method."""

from __future__ import annotations

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64
from icis_deploy.errors import IncompatibleError

L2 = 1e-3
"""Penalty on squared weights of standardised inputs, where the losses of all samples together weigh 1."""

_MAX_STEPS = 100


def fit_logistic(inputs: Float32, is_positive: Bool, *, l2: float = L2) -> tuple[Float64, float]:
    """Fit `log odds = inputs @ weights + bias`, both classes with half of the weight.

    Args:
        inputs: `(num_samples, num_inputs)`, in any units; one that is the same for all samples gets a weight of 0.
        is_positive: `(num_samples,)`.
        l2: Penalty; it makes the solution unique and finite, also where a plane parts the two classes.

    Returns:
        Weights `(num_inputs,)` float64 per unit of each input, and the bias.

    Raises:
        IncompatibleError: If all samples are of one class.
    """
    if is_positive.all() or not is_positive.any():
        raise IncompatibleError(f"All {len(is_positive)} samples of a logistic regression are of one class.")
    wide = inputs.astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, np.inf)
    design = np.concatenate([(wide - mean) / spread, np.ones((len(wide), 1))], axis=1)
    weight = np.where(is_positive, 0.5 / is_positive.sum(), 0.5 / (~is_positive).sum())
    penalty = np.append(np.full(wide.shape[1], l2), 0.0)
    solution = np.zeros(design.shape[1])
    value = _objective(design, is_positive, weight, penalty, solution)
    for _ in range(_MAX_STEPS):
        probability = 0.5 * (1.0 + np.tanh(0.5 * (design @ solution)))
        gradient = design.T @ (weight * (probability - is_positive)) + penalty * solution
        curvature = (design * (weight * probability * (1.0 - probability))[:, None]).T @ design + np.diag(penalty)
        curvature[-1, -1] += 1e-12  # where all probabilities are 0 or 1 to the bit
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        # A full step overshoots where the classes are nearly parted; half of it often enough goes down.
        while (new := _objective(design, is_positive, weight, penalty, solution - size * step)) > value and size > 1e-6:
            size /= 2.0
        solution, value = solution - size * step, new
        if np.abs(size * step).max() < 1e-10:
            break
    weights = solution[:-1] / spread
    return np.asarray(weights), float(solution[-1] - weights @ mean)


def _objective(design: Float64, is_positive: Bool, weight: Float64, penalty: Float64, solution: Float64) -> float:
    """Return the weighted logistic loss and half of the penalty."""
    signed = np.where(is_positive, -1.0, 1.0) * (design @ solution)
    return float(weight @ np.logaddexp(0.0, signed) + 0.5 * penalty @ solution**2)
