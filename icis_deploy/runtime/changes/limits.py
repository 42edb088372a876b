"""What a bundle lets a change take from the classes that a device knows, read with the first change that is judged.

The reference of the guard says how many answers a change takes, and what the bundle holds for photos how far classes
that are taught by them may be favoured. Both are files of the bundle that a device which only answers never reads.
"""

# Why: docs/decisions/0066, docs/decisions/0088.

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.journal import HistoryEntry, Journal

if TYPE_CHECKING:
    from icis_deploy.bundle.few_shot import FewShot
    from icis_deploy.runtime.changes.guard import Guard
    from icis_deploy.runtime.changes.teaching_rules import TaughtRows


class Limits:
    """The limits of one open bundle. Not safe for several threads; a device asks while it changes nothing else."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._folder, self._bundle = folder, bundle
        self._guard: Guard | None = None
        self._few_shot: FewShot | None = None

    def judged(
        self,
        entry: HistoryEntry,
        held: SlotTable | None,
        table: SlotTable,
        *,
        written: tuple[str, ...],
        before: Journal,
        allowed: bool,
    ) -> HistoryEntry:
        """Return a change's line in the history, or refuse the change for the answers that it changes.

        Args:
            entry: The line.
            held: The slots that the change starts from.
            table: What it makes of them.
            written: Classes whose rows it writes.
            before: The journal before it.
            allowed: Whether the operator takes it anyway.

        Raises:
            GuardError: If it changes more answers than the bundle allows, and the operator does not.
            BundleError, CorruptFileError: If the bundle's reference cannot be read.
        """
        if self._bundle.max_changed_answers is None or held is None:
            return entry
        changed = self._loaded_guard().changed_answers(held, table, written=written, disabled=before.disabled)
        if not allowed:
            changed.require_few()
        return replace(entry, changed_answers=changed.share, allowed_past_guard=changed.is_refused)

    def with_photo_offset(
        self, before: Journal, held: SlotTable | None, class_name: str, row: Float32, photos_sha256: tuple[str, ...]
    ) -> TaughtRows:
        """Return the rows of all classes that were taught by photos, with the offset that they have together.

        Args:
            before: The journal before the change.
            held: The slots that it starts from; `None` for a fused head.
            class_name: The class that is taught.
            row: `(feature_dim + 1,)`, its row without an offset.
            photos_sha256: Of its photos.

        Raises:
            IncompatibleError: If there are no slots, or no image of the reference counts.
            BundleError, CorruptFileError: If what the bundle brings cannot be read.
        """
        from icis_deploy.runtime.changes.teaching_rules import (
            TaughtRows,
            check_has_slots,
            photo_offset,
            rows_without_offset,
        )

        held = check_has_slots(held)
        names, rows = rows_without_offset(before, class_name, row, held)
        guard = self._loaded_guard()
        leads, answers = guard.leads(
            row,
            held,
            class_name=class_name,
            companions=frozenset(names[1:]),
            raised_by=before.current.photo_offset,
            disabled=before.disabled,
        )
        offset = photo_offset(leads, answers, self.few_shot(), limit=guard.limit)
        rows[:, -1] -= np.float32(offset)
        return TaughtRows(class_names=names, rows=rows, photo_offset=offset, photos_sha256=photos_sha256)

    def few_shot(self) -> FewShot:
        """Return what the bundle holds for photos, which is read when it is first asked for.

        Raises:
            ICISDeployError: As `load_few_shot`.
        """
        if self._few_shot is None:
            from icis_deploy.bundle.few_shot import load_few_shot

            self._few_shot = load_few_shot(self._folder, self._bundle)
        return self._few_shot

    def _loaded_guard(self) -> Guard:
        """Return the guard of a bundle that has a reference, which is read with the first change."""
        if self._guard is None:
            from icis_deploy.runtime.changes.guard import load_guard

            self._guard = load_guard(self._folder, self._bundle)
        return self._guard
