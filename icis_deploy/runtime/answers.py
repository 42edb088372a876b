"""What a device answers, and how the most probable classes are found."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icis_deploy.runtime.session import TopOutput

_SAFE_EXPONENT = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """The logits of one batch, with the classes and the head that they belong to."""

    values: NDArray[np.float32]
    """`(batch, num_classes)` float32."""

    class_names: tuple[str, ...]
    """`(num_classes,)`."""

    version: int
    """Version of the head that answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The most probable classes of one image."""

    class_names: tuple[str, ...]
    """`(top,)`, the most probable first."""

    probabilities: tuple[float, ...]
    """`(top,)`, fractions of 1 over all classes of the head."""

    version: int
    """Version of the head that answered."""


def top_predictions(logits: Logits, top: int) -> list[Prediction]:
    """Return the `top` most probable classes of each image; fewer where the head has fewer.

    Classes with equal logits come in the order of the head, on every machine.
    """
    top = min(top, logits.values.shape[1])
    return [_top_prediction(row, logits, top) for row in logits.values]


def predictions_of_choice(
    chosen: TopOutput, class_names: tuple[str, ...], *, version: int, top: int
) -> list[Prediction]:
    """Return the classes that a model chose itself; fewer than `top` where the head has fewer.

    Args:
        chosen: From the model.
        class_names: Of its first outputs, in order; what comes after them are empty slots, which are left out.
        version: Of the head that answered.
        top: How many classes per image, at most as many as the model chose.
    """
    num_classes = len(class_names)
    predictions = []
    for probabilities, columns in zip(chosen.probabilities.tolist(), chosen.columns.tolist(), strict=True):
        known = [(p, column) for p, column in zip(probabilities, columns, strict=True) if column < num_classes][:top]
        predictions.append(
            Prediction(
                class_names=tuple([class_names[column] for _, column in known]),
                probabilities=tuple([probability for probability, _ in known]),
                version=version,
            )
        )
    return predictions


def _top_prediction(row: NDArray[np.float32], logits: Logits, top: int) -> Prediction:
    # Just after the model ran, the caches are cold and every call into numpy costs about ten microseconds: so there are
    # as few as can be, and none sorts all classes.
    values, indices = _greatest(row, top)
    # In float64, no logit between these bounds overflows or vanishes, so nothing needs to be subtracted first.
    shift = 0.0 if -_SAFE_EXPONENT < values[0] < _SAFE_EXPONENT else values[0]
    shifted = row if shift == 0.0 else row.astype(np.float64) - shift
    total = float(np.add.reduce(np.exp(shifted, dtype=np.float64)))
    return Prediction(
        class_names=tuple([logits.class_names[index] for index in indices]),
        probabilities=tuple([math.exp(value - shift) / total for value in values]),
        version=logits.version,
    )


def _greatest(row: NDArray[np.float32], top: int) -> tuple[list[float], list[int]]:
    """Return the `top` greatest values and their indices, the greatest first, equal ones by ascending index."""
    first = row.shape[0] - top - 1
    if first >= 0:
        # One more than is asked for: if it equals the last one, a partition does not say which of the two comes first.
        order = row.argpartition(first)[first:]
        next_best, *values = row.take(order).tolist()
        if next_best < min(values):
            ranked = sorted(zip(values, order.tolist()[1:], strict=True), key=_by_value_then_index)
            return [value for value, _ in ranked], [index for _, index in ranked]
    order = (-row).argsort(kind="stable")[:top]
    return row.take(order).tolist(), order.tolist()


def _by_value_then_index(ranked: tuple[float, int]) -> tuple[float, int]:
    return -ranked[0], ranked[1]
