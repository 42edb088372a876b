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

from icis_deploy.bundle.manifest import Bundle, known_names
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.sessions.protocol import Session, SlotBuffers


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
) -> HeadState:
    """Return the state of a head whose slots hold `table`.

    Args:
        bundle: The bundle that the model is from.
        session: Where the slots are loaded.
        table: `None` for a fused head.
        version: Version of the last class update in it.
        disabled: Classes that answers leave out.
        buffers: `table` as the session already has it; `None` loads it.
    """
    if table is not None and buffers is None:
        buffers = session.load_slots(table.weight, table.bias)
    columns, class_names = enabled_columns(bundle, table, frozenset(disabled))
    score_names = bundle.class_names if table is None else (*bundle.class_names, *table.class_names)
    return HeadState(
        version=version,
        class_names=class_names,
        columns=columns,
        score_names=score_names,
        max_model_top=_max_model_top(bundle.top, score_names, class_names),
        table=table,
        buffers=buffers,
    )


def _max_model_top(top: int, score_names: tuple[str | None, ...], class_names: tuple[str, ...]) -> int:
    num_empty = score_names.count(None)
    if len(class_names) + num_empty < len(score_names):  # the model knows nothing of disabled classes
        return 0
    return sys.maxsize if top == len(score_names) else top


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
