"""The kind of scores that a model gives: its logits, or what its own last operators make of them.

A bundle keeps what follows the head, so that it can replace the original. To compare two models whose outputs are
probabilities, logarithms are taken: these differ from logits by one number per image only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float64
from icis_deploy.errors import ModelLoadError

# Why: docs/decisions/0055.
LEAST_LOG = -60.0
"""Logarithm below which a probability counts as 0: a softmax in float32 underflows at -87, and probabilities are
renormalised over fewer classes before they are compared."""

_NEUTRAL = frozenset(
    {"Cast", "Dropout", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""What moves scores; of Gather and Slice those alone are followed that take the only entry of an axis."""
_SCORE_KINDS = {
    (): "logits",
    ("Softmax",): "probabilities",
    ("LogSoftmax",): "log-probabilities",
    ("Sigmoid",): "sigmoid",
}


def are_scores(followed_by: Sequence[str]) -> bool:
    """Say whether what these operators make of logits is of a kind that a bundle can hold."""
    return tuple(op_type for op_type in followed_by if op_type not in _NEUTRAL) in _SCORE_KINDS


def score_kind(head: str, followed_by: Sequence[str]) -> str:
    """Return `logits`, `probabilities`, `log-probabilities` or `sigmoid`.

    Args:
        head: What to call the head in a message.
        followed_by: The operators between the logits and the scores, in order.

    Raises:
        ModelLoadError: If something else follows the head, so that outputs cannot be compared.
    """
    operators = tuple(op_type for op_type in followed_by if op_type not in _NEUTRAL)
    kind = _SCORE_KINDS.get(operators)
    if kind is None:
        hint = "Export the model without what comes after."
        if "QuantizeLinear" in operators:
            hint = "Give the float model that it was made from, with `precision='int8'`."
        raise ModelLoadError(
            f"The head {head} is followed by {', '.join(operators)}; a bundle can hold a model that "
            f"ends in its logits, a Softmax, a LogSoftmax or a Sigmoid.",
            found=operators,
            expected=tuple(_SCORE_KINDS),
            where=head,
            hint=hint,
        )
    return kind


def comparable_from_scores(scores: NDArray[np.floating[Any]], kind: str) -> Float64:
    """Return scores of one kind in the form in which they are compared, `(batch, num_classes)` float64.

    Logits and sigmoids stay as they are; others become logarithms of probabilities, renormalised over the given
    classes, so that a softmax over more classes can be compared with one over fewer.
    """
    values = np.asarray(scores, dtype=np.float64)
    if kind in {"logits", "sigmoid"}:
        return values
    if kind == "probabilities":
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    return _log_probabilities(values, kind)


def comparable_from_logits(logits: Float64, kind: str) -> Float64:
    """Return the scores that a model of one kind makes of logits, as `comparable_from_scores` returns them."""
    if kind == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
    return logits if kind == "logits" else _log_probabilities(logits, kind)


def log_softmax(logits: Float64) -> Float64:
    """Return logarithms of probabilities, `(batch, num_classes)`."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def probabilities_from_scores(scores: NDArray[np.floating[Any]], kind: str) -> Float64:
    """Return the probabilities that scores of one kind stand for, `(batch, num_classes)` float64."""
    values = np.asarray(scores, dtype=np.float64)
    if kind == "logits":
        return np.exp(log_softmax(values))
    return np.exp(values) if kind == "log-probabilities" else values


def comparable_from_device(values: NDArray[np.floating[Any]], kind: str) -> Float64:
    """Return a device's values, as `comparable_from_scores` returns scores.

    A device gives logits, or logarithms of other scores.
    """
    logits = np.asarray(values, dtype=np.float64)
    if kind == "sigmoid":
        return np.asarray(np.exp(logits))
    return logits if kind == "logits" else _log_probabilities(logits, kind)


def _log_probabilities(logits: Float64, kind: str) -> Float64:
    values = log_softmax(logits)
    return np.maximum(values, LEAST_LOG) if kind == "probabilities" else values


def logits_from_device(values: NDArray[np.floating[Any]], kind: str) -> Float64:
    """Return the logits behind a device's values, up to a number shared by all classes of an image after a softmax.

    Those of a sigmoid are infinite where it has reached 0 or 1.
    """
    logits = np.asarray(values, dtype=np.float64)
    if kind != "sigmoid":
        return logits
    with np.errstate(divide="ignore"):
        return np.asarray(logits - np.log(-np.expm1(logits)))
