"""What a device answers, and how the most probable classes are found.

Just after the model ran, the caches are cold: the first call of a numpy function costs 10 to 30 us, of one in Python 2
to 5, and to make a frozen dataclass takes 19 us, a named tuple 10. So answers are named tuples, and calls are avoided.
Where the model selects classes itself, only their names are looked up (`predictions_from_topk`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.sessions.protocol import TopOutput

_SAFE_EXPONENT = 60.0
"""Up to here no sum of exponentials overflows in float32, and from its negative on none vanishes."""
_LEAST_EXACT = 1e-30
"""Far above the smallest normal float32, below which the last bits are lost."""
_MAX_ARGMAX_PASSES = 32
"""To find more classes than this, sorting all of them is faster."""
_new_tuple = tuple.__new__
"""What a named tuple's own constructor calls, without a function in Python around it."""


class Logits(NamedTuple):
    """The logits of one batch, with the classes and the head that they belong to.

    Example:
        device = icis_deploy.Device.open("bundle")
        logits = device.logits(device.prepare(["okapi.jpg"]))
        print(logits.class_names[logits.values[0].argmax()])
    """

    values: Float32
    """`(batch, num_classes)` float32."""

    class_names: tuple[str, ...]
    """`(num_classes,)`."""

    version: int
    """Version of the head that answered."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: `version`, `classes`, and `logits` with a list for each image."""
        return {"version": self.version, "classes": list(self.class_names), "logits": self.values.tolist()}


class Prediction(NamedTuple):
    """The most probable classes of one image.

    Example:
        (prediction,) = icis_deploy.Device.open("bundle").predict(["okapi.jpg"], top=3)
        print(prediction.class_names, prediction.probabilities, prediction.version)
    """

    class_names: tuple[str, ...]
    """`(top,)`, the most probable first."""

    probabilities: tuple[float, ...]
    """`(top,)`, fractions of 1 over all classes of the head; each by itself where the model ends in a sigmoid."""

    version: int
    """Version of the head that answered."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: `version`, and `classes`, each with `name` and `probability`."""
        return {
            "version": self.version,
            "classes": [
                {"name": name, "probability": probability}
                for name, probability in zip(self.class_names, self.probabilities, strict=True)
            ],
        }

    def rows(self, image: object = None) -> list[dict[str, Any]]:
        """Return a row of a table for each class, which `pandas.DataFrame` takes as it is.

        Args:
            image: What the first column says of the image, such as its path.

        Example:
            predictions = device.predict(paths)
            table = pandas.DataFrame([row for path, one in zip(paths, predictions) for row in one.rows(path)])
        """
        return [
            {"image": image, "rank": rank, "class": name, "probability": probability, "version": self.version}
            for rank, (name, probability) in enumerate(zip(self.class_names, self.probabilities, strict=True), 1)
        ]


def top_predictions(
    logits: Float32,
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
    predictions = []
    for row in logits:
        order, probabilities = _top_by_argmax(row, top, independent) or _top_by_sorting(row, top, independent)
        predictions.append(Prediction(tuple([class_names[index] for index in order]), tuple(probabilities), version))
    return predictions


def predictions_from_topk(
    topk: TopOutput, score_names: Sequence[str | None], version: int, top: int
) -> list[Prediction] | None:
    """Return the classes that a model selected itself; fewer than `top` where the head has fewer.

    `None` where empty slots were selected instead of classes: in runtimes that give equal scores in an order of their
    own, they may come before classes whose probabilities are too small to be told from theirs.

    Args:
        topk: What the model gave.
        score_names: `(num_outputs,)`: the class of each of its scores, `None` for an empty slot, which is left out.
        version: Of the head that answered.
        top: How many classes per image, at most as many as the model selected.
    """
    # Loops and tuples alone: a map, a strict zip or a named tuple's own constructor takes 6 to 10 us more, see above.
    predictions: list[Prediction] = []
    all_probabilities, all_columns = topk
    all_values = all_probabilities.tolist()
    for columns in all_columns.tolist():
        values, names = all_values[len(predictions)], []
        if values[0] != values[0]:  # NaN, of which a softmax makes all of an image's
            raise _no_numbers(values[0])
        for column in columns:
            name = score_names[column]
            if name is None:
                break
            names.append(name)
        if not len(names) == len(columns) == top:
            known = [index for index, column in enumerate(columns) if score_names[column] is not None][:top]
            if len(known) < min(top, len(score_names) - score_names.count(None)):
                return None
            names, values = [score_names[columns[index]] for index in known], [values[index] for index in known]
        predictions.append(_new_tuple(Prediction, (tuple(names), tuple(values), version)))
    return predictions


def _top_by_argmax(row: Float32, top: int, independent: bool) -> tuple[list[int], list[float]] | None:
    """Return the indices of the `top` greatest logits and their probabilities, in float32.

    `None` where that does not tell them apart: if exponentials are equal, or too small to be exact.
    """
    # Three functions of numpy, `argmax`, `exp` and `dot`, do everything; see above for why.
    greatest = row.item(row.argmax())
    size = row.size
    if top > _MAX_ARGMAX_PASSES or not -_SAFE_EXPONENT < greatest < _SAFE_EXPONENT:
        return None
    exponentials = np.exp(row)
    item, argmax = exponentials.item, exponentials.argmax
    total = 1.0 if independent else exponentials.dot(_ones(size)).item()
    order: list[int] = []
    probabilities: list[float] = []
    least = math.inf
    for _ in range(min(top, size)):
        index = int(argmax())
        value = item(index)
        if not _LEAST_EXACT < value < least:
            return None
        order.append(index)
        probabilities.append(value / total)
        exponentials[index], least = 0.0, value
    return (order, probabilities) if item(argmax()) < least else None


def _no_numbers(score: float) -> RuntimeFailureError:
    return RuntimeFailureError(
        f"The model gave the score {score} for an image, which is no answer.",
        found=str(score),
        expected="finite scores",
        hint="Check that the image is finite: NaN, or values out of the model's range, give such scores.",
    )


@lru_cache(maxsize=8)
def _ones(size: int) -> Float32:
    return np.ones(size, dtype=np.float32)


def _top_by_sorting(row: Float32, top: int, independent: bool) -> tuple[list[int], list[float]]:
    """Return what `_top_by_argmax` does, of any logits: in their own order, equal ones in the order of the head."""
    greatest = row.max()
    if not greatest < math.inf:  # numpy's maximum of numbers and NaN is NaN
        raise _no_numbers(greatest)
    exponentials = np.exp(row.astype(np.float64) - (0.0 if independent else greatest))
    total = 1.0 if independent else exponentials.sum()
    order = (-row).argsort(kind="stable")[:top]
    return order.tolist(), (exponentials.take(order) / total).tolist()
