"""Say what is wrong with an exported head whose logits are not those of its rows.

That a logit is off does not tell whoever reads it where to look. Each fault leaves its own trace in the errors, and
they are tried in turn:

    order       the scores of a class are those that another one should have
    bias        every class is off by its own bias, on all images alike
    transposed  the scores are those of the weight with its numbers read column by column
    rows        few classes are off, the others are right

What leaves no such trace stays unnamed: a wrong name is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.expanded_head import AnyHead
from icis_deploy.class_names import quoted

MAX_WEIGHT_SIZE = 1 << 26
"""Numbers in a weight beyond which it is not read as a whole only to name a fault."""

_MAX_LOOKED_AT = 64
"""Classes that are looked for among all others."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRun:
    """What a head should give and what it gives, on the same features."""

    features: NDArray[np.float32]
    """`(num_images, feature_dim)`."""

    expected: Float64
    """`(num_images, num_classes)` logits, or logarithms of probabilities."""

    found: Float64
    """The same, of the exported model."""

    head: AnyHead
    """The rows that it should have."""

    class_names: tuple[str, ...]
    """`(num_classes,)`."""

    num_seen: int
    """How many of them the original head has; they may be computed apart from the others."""

    tolerance: float
    """Greatest error that counts as none, in the unit of the scores."""


def name_fault(run: HeadRun) -> str | None:
    """Return what is wrong with a head, or `None` where nothing is, or it cannot be told."""
    if not np.isfinite(run.found).all() or not len(run.found):
        return None
    errors = _centred(run.found - run.expected)
    wrong = np.flatnonzero(np.abs(errors).max(axis=0) > run.tolerance)
    if not len(wrong):
        return None
    return (
        _order_fault(run, wrong) or _bias_fault(run, errors, wrong) or _transposed_fault(run) or _row_fault(run, wrong)
    )


def _centred(values: Float64) -> Float64:
    """Take out what all classes of an image share: a softmax does not know it."""
    return np.asarray(values - np.median(values, axis=1, keepdims=True))


def _order_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    found, expected = _centred(run.found), _centred(run.expected)
    pairs = []
    for column in wrong[:_MAX_LOOKED_AT]:
        distances = np.abs(expected - found[:, [column]]).max(axis=0)
        nearest = int(distances.argmin())
        if nearest == column or distances[nearest] > run.tolerance:
            return None
        pairs.append((run.class_names[column], run.class_names[nearest]))
    name, other = pairs[0]
    return f"the order of {len(wrong)} classes is wrong: {name!r} has the scores of {other!r}"


def _bias_fault(run: HeadRun, errors: Float64, wrong: NDArray[np.intp]) -> str | None:
    # Of all classes, and of the seen or the others alone, which may be computed apart.
    for first, last in _parts(run):
        lost = np.zeros(len(run.class_names))
        lost[first:last] = -np.asarray(run.head.bias, dtype=np.float64)[first:last]
        if np.abs(errors - _centred(lost[None])).max() <= run.tolerance:
            return f"the bias of {last - first} classes is missing, such as that of {run.class_names[wrong[0]]!r}"
    return None


def _transposed_fault(run: HeadRun) -> str | None:
    if run.head.num_classes * run.head.feature_dim > MAX_WEIGHT_SIZE:
        return None
    weight, bias = np.asarray(run.head.weight, np.float64), np.asarray(run.head.bias, np.float64)
    features, found = np.asarray(run.features, np.float64), run.found
    for first, last in _parts(run):
        turned = weight[first:last].reshape(run.head.feature_dim, last - first)
        logits = features @ turned + bias[first:last]
        if np.abs(_centred(found[:, first:last]) - _centred(logits)).max() <= run.tolerance:
            return f"the weight of {last - first} classes is transposed"
    return None


def _row_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    if 2 * len(wrong) > len(run.class_names):
        return None
    return f"the rows of {len(wrong)} classes are wrong: {quoted([run.class_names[index] for index in wrong])}"


def _parts(run: HeadRun) -> Sequence[tuple[int, int]]:
    parts = [(0, len(run.class_names)), (0, run.num_seen), (run.num_seen, len(run.class_names))]
    return [(first, last) for first, last in dict.fromkeys(parts) if last > first]
