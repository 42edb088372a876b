"""What a device answers, and how the most probable classes are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from icis_deploy.runtime.session import TopOutput

_SAFE_EXPONENT = 600.0
_MAX_PICKED = 32
"""More classes than this are found faster by sorting all of them."""


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
    """`(top,)`, fractions of 1 over all classes of the head; each by itself where the model ends in a sigmoid."""

    version: int
    """Version of the head that answered."""


def top_predictions(
    logits: NDArray[np.float32],
    top: int,
    *,
    class_names: Sequence[str],
    version: int,
    independent: bool = False,
) -> list[Prediction]:
    """Return the `top` most probable classes of each image; fewer where the head has fewer.

    Classes with equal logits come in the order of the head, on every machine.

    Args:
        logits: `(batch, num_classes)` float32.
        top: How many classes, at least 1.
        class_names: `(num_classes,)`.
        version: Version of the head that answered.
        independent: Whether the logits are logarithms of a probability for each class by itself.
    """
    top = min(top, logits.shape[1])
    return [_top_prediction(row, top, class_names, version, independent) for row in logits]


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


def _top_prediction(
    row: NDArray[np.float32], top: int, class_names: Sequence[str], version: int, independent: bool
) -> Prediction:
    # Just after the model ran, the caches are cold, and the first call of each numpy function costs tens of
    # microseconds. So there are three functions, `argmax`, `exp` and `dot`, called again where another would do.
    greatest = row.item(row.argmax())
    # In float64, no logit between these bounds overflows, so nothing needs to be subtracted first.
    if -_SAFE_EXPONENT < greatest < _SAFE_EXPONENT:
        exponentials = np.exp(row, dtype=np.float64)
    else:
        exponentials = np.exp(row.astype(np.float64) - greatest)
    total = 1.0 if independent else exponentials.dot(_ones(exponentials.size)).item()
    order, values = _pick(exponentials, top) or _sort(row, exponentials, top)
    return Prediction(
        class_names=tuple([class_names[index] for index in order]),
        probabilities=tuple([value / total for value in values]),
        version=version,
    )


@lru_cache(maxsize=8)
def _ones(size: int) -> NDArray[np.float64]:
    return np.ones(size)


def _pick(exponentials: NDArray[np.float64], top: int) -> tuple[list[int], list[float]] | None:
    """Return the indices of the `top` greatest values and the values, or `None` if some are equal or vanish.

    The logits then say which is the greater one. Without an answer, `exponentials` are as they were.
    """
    if top > _MAX_PICKED:
        return None
    order: list[int] = []
    values: list[float] = []
    least = math.inf
    while len(order) < top:
        index = int(exponentials.argmax())
        value = exponentials.item(index)
        if not 0.0 < value < least:
            break
        order.append(index)
        values.append(value)
        exponentials[index], least = 0.0, value
    if len(order) == top and exponentials.item(exponentials.argmax()) < least:
        return order, values
    exponentials[order] = values
    return None


def _sort(row: NDArray[np.float32], exponentials: NDArray[np.float64], top: int) -> tuple[list[int], list[float]]:
    order = (-row).argsort(kind="stable")[:top]
    return order.tolist(), exponentials.take(order).tolist()
