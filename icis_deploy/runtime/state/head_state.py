"""The head as a device holds it at one moment.

A request takes the state once, when it starts, and uses nothing else: the classes, the slots and the version that it
answers with belong together. The device replaces the whole state by one assignment.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.manifest import Bundle, known_names
from icis_deploy.common.arrays import Float32
from icis_deploy.head.arbiter import statistics_change
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.sessions.protocol import Session, SlotBuffers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArbiterCorrection:
    """What disabled seen classes change in the logits of new ones that have an arbiter.

    The model knows nothing of disabled classes, so they take part in the statistics that it computes.
    """

    row_lengths: Float32
    """`(num_seen,)` float32, from `icis_deploy.head.arbiter.deviation_lengths`."""

    enabled: NDArray[np.intp]
    """Indices of the seen classes that are enabled."""

    coefficients: Float32
    """`(num_outputs - num_seen, 5)` float32: of the new classes, baked ones first, then every slot."""

    def corrected(self, logits: Float32) -> Float32:
        """Return logits as a model without the disabled classes would give them; seen ones keep their bits.

        Args:
            logits: `(batch, num_outputs)` float32, shifted by any number for each image.
        """
        num_seen = len(self.row_lengths)
        change = statistics_change(logits[:, :num_seen], self.row_lengths, self.enabled)
        corrected: Float32 = logits.copy()
        corrected[:, num_seen:] += change @ self.coefficients.T
        return corrected


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadState:
    """Classes, slots and version that belong together."""

    version: int
    """Version of the last class update in this state; 0 for the bare original head."""

    class_names: tuple[str, ...]
    """`(num_classes,)`: the classes that an answer chooses among, in the order of `columns`."""

    columns: NDArray[np.intp] | slice
    """Which of the model's outputs belong to them; a slice where they are consecutive, which needs no copy."""

    score_names: tuple[str | None, ...]
    """`(num_outputs,)`: the class of each of the model's scores, `None` for an empty slot."""

    max_model_top: int
    """Up to this `top` the model selects classes itself; 0 where it does not, or could select a disabled class."""

    table: SlotTable | None
    """What the slots hold; `None` for a fused head."""

    buffers: SlotBuffers | None
    """`table` in the runtime's memory; `None` for a fused head."""

    correction: ArbiterCorrection | None = None
    """What is added to the model's logits; `None` where no seen class is disabled, or no new one has an arbiter."""

    @property
    def slots(self) -> tuple[SlotTable, SlotBuffers] | None:
        """What the slots hold, and the same in the runtime's memory; `None` for a fused head."""
        return None if self.table is None or self.buffers is None else (self.table, self.buffers)


def make_head_state(
    bundle: Bundle,
    session: Session,
    *,
    table: SlotTable | None,
    version: int,
    disabled: Collection[str] = (),
    buffers: SlotBuffers | None = None,
    constants: ArbiterConstants | None = None,
) -> HeadState:
    """Return the state of a head whose slots hold `table`.

    Args:
        bundle: The bundle that the model is from.
        session: Where the slots are loaded.
        table: `None` for a fused head.
        version: Version of the last class update in it.
        disabled: Classes that answers leave out.
        buffers: `table` as the session already has it; `None` loads it.
        constants: The bundle's, which are read where a seen class is disabled; `None` where none is.

    Raises:
        RuntimeFailureError: If the session refuses the slots.
        BundleError, CorruptFileError: If the constants cannot be read.
    """
    if table is not None and buffers is None:
        buffers = session.load_slots(table.weight, table.bias, table.arbiter)
    columns, class_names = enabled_columns(bundle, table, frozenset(disabled))
    score_names = bundle.class_names if table is None else (*bundle.class_names, *table.class_names)
    return HeadState(
        version=version,
        class_names=class_names,
        columns=columns,
        score_names=score_names,
        max_model_top=_max_model_top(bundle, table, num_enabled=len(class_names)),
        table=table,
        buffers=buffers,
        correction=None if constants is None else _correction(bundle, table, frozenset(disabled), constants),
    )


def _correction(
    bundle: Bundle, table: SlotTable | None, disabled: frozenset[str], constants: ArbiterConstants
) -> ArbiterCorrection | None:
    if not bundle.arbiter or disabled.isdisjoint(bundle.seen_names):
        return None
    has_baked = len(bundle.class_names) > bundle.num_seen
    parts = [constants.baked_coefficients()] if has_baked else []
    parts += [] if table is None else [table.coefficients]
    if not any(part.any() for part in parts):
        return None
    enabled = [index for index, name in enumerate(bundle.seen_names) if name not in disabled]
    return ArbiterCorrection(
        row_lengths=constants.row_lengths(),
        enabled=np.array(enabled, dtype=np.intp),
        coefficients=np.concatenate(parts),
    )


def _max_model_top(bundle: Bundle, table: SlotTable | None, *, num_enabled: int) -> int:
    num_known = len(bundle.class_names) + (0 if table is None else table.filled.size)
    if num_enabled < num_known:  # the model knows nothing of disabled classes
        return 0
    num_scores = len(bundle.class_names) + (0 if table is None else table.capacity)
    return sys.maxsize if bundle.top == num_scores else bundle.top


def enabled_columns(
    bundle: Bundle, table: SlotTable | None, disabled: frozenset[str]
) -> tuple[NDArray[np.intp] | slice, tuple[str, ...]]:
    """Return which of the model's outputs are classes to choose among, and their names."""
    num_baked = len(bundle.class_names)
    filled = np.empty(0, dtype=np.intp) if table is None else table.filled
    names = known_names(bundle, table)
    if not disabled and (table is None or table.fills_first_slots):
        return slice(0, num_baked + filled.size), names
    columns = np.concatenate([np.arange(num_baked, dtype=np.intp), num_baked + filled])
    enabled = [index for index, name in enumerate(names) if name not in disabled]
    columns, names = columns[enabled], tuple([names[index] for index in enabled])
    if columns.size == columns[-1] + 1:
        return slice(0, columns.size), names
    return columns, names
