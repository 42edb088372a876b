"""Diagnose an exported head whose logits are not those of its rows.

A wrong logit does not say where to look. Each fault leaves its own pattern in the errors, and these are tried in
turn:

    order       the scores of a class are those that another one should have
    bias        every class is wrong by its own bias, on all images alike
    transposed  the scores are those of the weight with its numbers read column by column
    arbiter     the errors of new classes follow from the statistics of the image that their arbiters multiply
    rows        few classes are wrong, the others correct

A fault without such a pattern stays unnamed: a wrong name is worse than none.

Logits are compared as far as the model's scores determine them: a softmax removes what an image's classes share and
loses improbable classes, a sigmoid saturates on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.head.expanded_head import AnyHead, ExpandedHead
from exporters.head.score_kinds import LEAST_LOG, comparable_from_logits
from icis_deploy.common.arrays import Float64
from icis_deploy.head.class_names import quoted

SATURATED = 6.0
"""Magnitude of a logit beyond which a sigmoid's probability in float32 does not determine it: 0.0025 from 0 or 1."""

MAX_WEIGHT_SIZE = 1 << 26
"""Number of elements beyond which a weight is not read as a whole only to name a fault."""

_MARGIN = 20.0
"""Distance of a logarithm from `LEAST_LOG` from which a wrong row elsewhere does not push it below that."""

_MAX_SEARCHED = 64
"""Number of wrong classes whose scores are searched for among those of all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRun:
    """The logits that a head should give and those that it gives, on the same features."""

    features: NDArray[np.float32]
    """`(num_images, feature_dim)` float32, that both logits are computed from."""

    expected: Float64
    """`(num_images, num_classes)` float64: logits of `head`."""

    found: Float64
    """`(num_images, num_classes)` float64: logits of the exported model, or logarithms of a softmax's probabilities."""

    head: AnyHead
    """The rows that the exported model should have."""

    class_names: tuple[str, ...]
    """`(num_classes,)`, in the order of the logits."""

    num_seen: int
    """Number of classes of the original head, which may be computed apart from the others."""

    tolerance: float
    """Greatest absolute error of a logit that counts as none."""

    statistics: Float64 | None = None
    """`(num_images, 5)` float64: what the arbiters of the head multiply (`icis_deploy.head.arbiter.STATISTICS`); `None`
    where no row has one."""

    score_kind: str = "logits"
    """What the model makes of its logits; see `Bundle.score_kind`."""

    def offsets(self) -> Float64:
        """Return what arbiters add to the logits, `(num_images, num_classes)`."""
        offsets = np.zeros_like(self.expected)
        if self.statistics is not None and isinstance(self.head, ExpandedHead):
            self.head.add_offsets(offsets, self.statistics)
        return offsets

    def known(self, logits: Float64) -> Float64:
        """Return logits as far as the model's scores determine them, so that two classes can be compared."""
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
        # What is improbable on both sides may underflow on one of them.
        is_determined = np.maximum(found, expected) > LEAST_LOG + _MARGIN
        return np.nan_to_num(_centred(np.where(is_determined, found - expected, np.nan)))

    def agrees(self, logits: Float64) -> bool:
        """Say whether the scores are those of these logits."""
        return bool(np.abs(self.errors(logits)).max() <= self.tolerance)


def clipped(logits: Float64) -> Float64:
    """Return logits as far as a sigmoid's probabilities determine them."""
    return np.clip(logits, -SATURATED, SATURATED)


def _centred(values: Float64) -> Float64:
    """Subtract what all classes of an image share: a softmax does not determine it."""
    return np.asarray(values - np.nanmedian(values, axis=1, keepdims=True))


def name_fault(run: HeadRun) -> str | None:
    """Return what is wrong with a head, as a clause; `None` where nothing is, or its errors do not show it."""
    found = clipped(run.found) if run.score_kind == "sigmoid" else run.found
    if not len(found) or not np.isfinite(found).all():
        return None
    wrong = np.flatnonzero(np.abs(run.errors(run.expected)).max(axis=0) > run.tolerance)
    if not len(wrong):
        return None
    return (
        _order_fault(run, wrong)
        or _bias_fault(run, wrong)
        or _transposed_fault(run)
        or _arbiter_fault(run, wrong)
        or _row_fault(run, wrong)
    )


def _order_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    found, expected = run.known(run.found), run.known(run.expected)
    pairs = []
    for column in wrong[:_MAX_SEARCHED]:
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
    features, offsets = np.asarray(run.features, np.float64), run.offsets()
    for part in _parts(run):
        logits = np.array(run.expected)
        logits[:, part] = features @ weight[part].reshape(run.head.feature_dim, -1) + bias[part] + offsets[:, part]
        if run.agrees(logits):
            return f"the weight of {len(run.class_names[part])} classes is transposed"
    return None


def _arbiter_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    if run.statistics is None or not isinstance(run.head, ExpandedHead) or run.head.arbiter is None:
        return None
    arbiter = run.head.arbiter
    offsets, count = run.offsets(), int(np.count_nonzero(arbiter.any(axis=1)))
    for factor, what in ((1, "is missing"), (2, "has the wrong sign")):
        if run.agrees(run.expected - factor * offsets):
            return f"the arbiter of {count} classes {what}, such as that of {run.class_names[wrong[0]]!r}"
    if wrong[0] < run.num_seen or len(run.features) <= 2 * arbiter.shape[1]:
        return None
    errors = run.errors(run.expected)[:, wrong]
    differences = np.linalg.lstsq(run.statistics, errors, rcond=None)[0]
    if np.abs(run.statistics @ differences - errors).max() > run.tolerance:
        return None
    found = arbiter[wrong - run.num_seen] + differences.T
    distances = np.abs((found[0] - arbiter.astype(np.float64)) @ run.statistics.T).max(axis=1)
    first, nearest = wrong[0], int(distances.argmin())
    whose = f" has that of {run.class_names[run.num_seen + nearest]!r}" if distances[nearest] <= run.tolerance else ""
    return f"the arbiter of {len(wrong)} classes is wrong: {run.class_names[first]!r}{whose}"


def _row_fault(run: HeadRun, wrong: NDArray[np.intp]) -> str | None:
    if 2 * len(wrong) > len(run.class_names):
        return None
    return f"the rows of {len(wrong)} classes are wrong: {quoted([run.class_names[index] for index in wrong])}"


def _parts(run: HeadRun) -> Sequence[slice]:
    parts = [(0, len(run.class_names)), (0, run.num_seen), (run.num_seen, len(run.class_names))]
    return [slice(first, last) for first, last in dict.fromkeys(parts) if last > first]
