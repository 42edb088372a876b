"""Inject: predict the rows of unseen classes from a head and descriptors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.arrays import frozen_float32
from icis_deploy.calibration import match_mean_length
from icis_deploy.descriptors import Descriptors
from icis_deploy.errors import ClassConflictError, DescriptorError, IncompatibleError, UsageError
from icis_deploy.head import Head

Progress = Callable[[int, float], None]
"""Called after each epoch of a training with its number, from 1, and its mean loss."""

METHODS = ("icis",)
CALIBRATIONS = ("length", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """Predicted rows of unseen classes, and how they were made.

    Raises:
        IncompatibleError: On construction, if there is not one finite row for each name.
    """

    rows: NDArray[np.float32]
    """`(num_unseen, feature_dim + 1)` float32, read-only: `[weight | bias]`, calibrated."""

    class_names: tuple[str, ...]
    """`(num_unseen,)`, unique."""

    method: str
    """The method that predicted the rows."""

    seed: int
    """Of everything drawn at random."""

    provenance: Mapping[str, Any]
    """How the rows were made; JSON values only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", frozen_float32(self.rows, name="injected rows", ndim=2))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.rows) != len(self.class_names):
            raise IncompatibleError(f"There are {len(self.rows)} injected rows but {len(self.class_names)} names.")


def inject(
    head: Head,
    descriptors: Descriptors,
    *,
    unseen: Sequence[str] | None = None,
    method: str = "icis",
    seed: int = 0,
    calibration: str = "length",
    progress: Progress | None = None,
) -> Injection:
    """Predict rows of unseen classes.

    Args:
        head: The classifier's head: the seen classes.
        descriptors: Of every seen class and of every unseen one.
        unseen: The classes to predict; every described class that the head lacks, in file order, by default.
        method: How to predict.
        seed: Of everything drawn at random.
        calibration: How to bring the rows into competition with the seen ones; "none" keeps raw rows.
        progress: Called after each epoch, by methods that train.

    Raises:
        DescriptorError: If a class has no descriptor, or there is no unseen class.
        ClassConflictError: If the head already has an unseen class, or one is asked for twice.
        UsageError: If there is no such method or calibration.
    """
    if method not in METHODS or calibration not in CALIBRATIONS:
        raise UsageError(f"No method {method!r} with calibration {calibration!r}; there are {METHODS}, {CALIBRATIONS}.")
    names = unseen_classes(head, descriptors, unseen)
    seen, new = descriptors.select(head.class_names), descriptors.select(names)
    from icis_deploy.icis import fit_icis, predict_rows

    fit = fit_icis(seen.values, head.rows, new.values, seed=seed, progress=progress)
    rows = predict_rows(fit.model, new.values)
    if calibration == "length":
        rows = match_mean_length(rows, head.rows)
    return Injection(
        rows=rows,
        class_names=names,
        method=method,
        seed=seed,
        provenance={"method": method, "seed": seed, "calibration": calibration},
    )


def unseen_classes(head: Head, descriptors: Descriptors, unseen: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes to predict.

    Raises:
        DescriptorError: If there are none.
        ClassConflictError: If the head already has one, or one stands twice.
    """
    known = set(head.class_names)
    names = tuple(n for n in descriptors.class_names if n not in known) if unseen is None else tuple(unseen)
    if not names:
        raise DescriptorError(
            f"There is no unseen class: all {descriptors.num_classes} described classes are already in the head. Add "
            f"descriptors of the classes to inject."
        )
    conflicts = [name for name in names if name in known] or [n for n in set(names) if names.count(n) > 1]
    if conflicts:
        raise ClassConflictError(f"Cannot inject {conflicts[:5]}: already in the head, or asked for twice.")
    return names
