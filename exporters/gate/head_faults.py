"""Say what is wrong with an exported head whose logits are not those of its rows.

That a logit is off does not tell whoever reads it where to look. Each fault leaves its own trace in the errors, and
they are tried in turn:

    order       the scores of a class are those that another one should have
    bias        every class is off by its own bias, on all images alike
    transposed  the scores are those of the weight with its numbers read column by column
    rows        few classes are off, the others are right

What leaves no such trace stays unnamed: a wrong name is worse than none.

Logits are compared, as far as the model's scores tell them: a softmax takes out what an image's classes share and loses
what is improbable, a sigmoid is cut off on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.head.expanded_head import AnyHead
from exporters.head.score_kinds import LEAST_LOG, comparable_from_logits
from icis_deploy.common.arrays import Float64
from icis_deploy.head.class_names import quoted

SATURATED = 6.0
"""A logit beyond which a sigmoid's probability in float32 tells no more about it; 0.0025 is left of it."""

MAX_WEIGHT_SIZE = 1 << 26
"""Numbers in a weight beyond which it is not read as a whole only to name a fault."""

_MARGIN = 20.0
"""How much more probable than the least a class is whose logarithm a wrong row elsewhere does not push below that."""

_MAX_LOOKED_AT = 64
"""Classes that are looked for among all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRun:
    """What a head should give and what it gives, on the same features."""

    features: NDArray[np.float32]
    """`(num_images, feature_dim)`."""

    expected: Float64
    """`(num_images, num_classes)` logits."""

    found: Float64
    """The same, of the exported model; logarithms of a softmax's probabilities do as well."""

    head: AnyHead
    """The rows that it should have."""

    class_names: tuple[str, ...]
    """`(num_classes,)`."""

    num_seen: int
    """How many of them the original head has; they may be computed apart from the others."""

    tolerance: float
    """Greatest error that counts as none, in the unit of the logits."""

    score_kind: str = "logits"
    """What the model makes of its logits; see `Bundle.score_kind`."""

    def known(self, logits: Float64) -> Float64:
        """Return what the model's scores tell of logits, so that two classes can be compared."""
        if self.score_kind == "sigmoid":
            return clipped(logits)
        return (
            comparable_from_logits(logits, self.score_kind) if self.score_kind == "probabilities" else _centred(logits)
        )

    def errors(self, logits: Float64) -> Float64:
        """Return how far the scores are from those of these logits, `(num_images, num_classes)`."""
        if self.score_kind == "sigmoid":
            return clipped(self.found) - clipped(logits)
        if self.score_kind != "probabilities":
            return _centred(self.found - logits)
        found, expected = self.known(self.found), self.known(logits)
        # What is improbable on both sides may be cut off on one of them.
        told = np.maximum(found, expected) > LEAST_LOG + _MARGIN
        return np.nan_to_num(_centred(np.where(told, found - expected, np.nan)))

    def agrees(self, logits: Float64) -> bool:
        """Say whether the scores are those of these logits."""
        return bool(np.abs(self.errors(logits)).max() <= self.tolerance)


def clipped(logits: Float64) -> Float64:
    """Return logits as far as a sigmoid's probabilities tell them."""
    return np.clip(logits, -SATURATED, SATURATED)


def _centred(values: Float64) -> Float64:
    """Take out what all classes of an image share: a softmax does not know it."""
    return np.asarray(values - np.nanmedian(values, axis=1, keepdims=True))


def name_fault(run: HeadRun) -> str | None:
    """Return what is wrong with a head, or `None` where nothing is, or it cannot be told."""
    found = clipped(run.found) if run.score_kind == "sigmoid" else run.found
    if not len(found) or not np.isfinite(found).all():
        return None
    wrong = np.flatnonzero(np.abs(run.errors(run.expected)).max(axis=0) > run.tolerance)
    if not len(wrong):
        return None
    return _order_fault(run, wrong) or _bias_fault(run, wrong) or _transposed_fault(run) or _row_fault(run, wrong)


def _order_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    found, expected = run.known(run.found), run.known(run.expected)
    pairs = []
    for column in wrong[:_MAX_LOOKED_AT]:
        distances = np.abs(expected - found[:, [column]]).max(axis=0)
        nearest = int(distances.argmin())
        if nearest == column or distances[nearest] > run.tolerance:
            return None
        pairs.append((run.class_names[column], run.class_names[nearest]))
    name, other = pairs[0]
    return f"the order of {len(wrong)} classes is wrong: {name!r} has the scores of {other!r}"


def _bias_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    # Of all classes, and of the seen or the others alone, which may be computed apart.
    for part in _parts(run):
        lost = np.zeros(len(run.class_names))
        lost[part] = np.asarray(run.head.bias, dtype=np.float64)[part]
        if run.agrees(run.expected - lost):
            count = len(run.class_names[part])
            return f"the bias of {count} classes is missing, such as that of {run.class_names[wrong[0]]!r}"
    return None


def _transposed_fault(run: HeadRun) -> str | None:
    if run.head.num_classes * run.head.feature_dim > MAX_WEIGHT_SIZE:
        return None
    weight, bias = np.asarray(run.head.weight, np.float64), np.asarray(run.head.bias, np.float64)
    features = np.asarray(run.features, np.float64)
    for part in _parts(run):
        logits = np.array(run.expected)
        logits[:, part] = features @ weight[part].reshape(run.head.feature_dim, -1) + bias[part]
        if run.agrees(logits):
            return f"the weight of {len(run.class_names[part])} classes is transposed"
    return None


def _row_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    if 2 * len(wrong) > len(run.class_names):
        return None
    return f"the rows of {len(wrong)} classes are wrong: {quoted([run.class_names[index] for index in wrong])}"


def _parts(run: HeadRun) -> Sequence[slice]:
    parts = [(0, len(run.class_names)), (0, run.num_seen), (run.num_seen, len(run.class_names))]
    return [slice(first, last) for first, last in dict.fromkeys(parts) if last > first]
