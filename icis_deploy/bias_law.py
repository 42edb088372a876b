"""Heads whose biases follow from their weights, and what that means for injected rows.

Of nearest class means the bias is `-|w|^2 / 2`, of a linear discriminant `-w' S w / 2`: classes are compared by
distance, and a bias is what is left of it. A method that predicts a bias as one coordinate among others gets it wrong,
and where biases are large that decides more than all weights. With deviations `d` from the mean weights `m`, all of one
length,

    bias = constant + slope |m + scale d|^2 = other constant + scale (2 slope m . d)

so that the law is linear in the deviation, and its constant part of the offset that calibration chooses.

Of 27 heads (`scripts/experiments/other_heads.py`) `|w|^2` explains 100 % of the biases of nearest means and 66 to 90 % of those of
discriminants; of others at most 27 %, but 52 % where training stopped early and all biases are nearly zero. All seven
that obey got better: T by 7 to 40 points, H by 8 to 16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

EXPLAINED = 0.6
"""Part of the variance of the biases that must follow from the weights."""


def bias_law(rows: Float32) -> Float32 | None:
    """Return what a deviation of weights is multiplied by to give that of the bias, `(feature_dim,)`, or `None`.

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
