"""What a device's state must be whenever it is read, whoever wrote it: of this bundle, and with a class to choose.

What a change must be is in `update_rules.py`, which a device that only answers never imports.
"""

from __future__ import annotations

from collections.abc import Sequence

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.errors import CorruptFileError, IncompatibleError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.journal import Journal, StateEntry


def check_bundle(journal: Journal, bundle: Bundle) -> None:
    """Raise `IncompatibleError` if a journal belongs to another bundle than the one it lies in."""
    if journal.base_fingerprint != bundle.base_fingerprint:
        raise IncompatibleError(
            f"The bundle's state/ folder is of another head ({journal.base_fingerprint[:16]}…; this bundle's is "
            f"{bundle.base_fingerprint[:16]}…). Delete it if the bundle was replaced."
        )


def check_table(bundle: Bundle, state: StateEntry, table: SlotTable | None) -> None:
    """Raise `CorruptFileError` if the slots of a state do not go with the head, or with what the journal says."""
    filled = () if table is None else table.filled_names
    twice, absent = set(filled) & set(bundle.class_names), set(state.taught) - set(filled)
    if twice or absent:
        problem = "hold baked classes" if twice else "lack taught classes"
        raise CorruptFileError(
            f"The slots of the device {problem} ({quoted(sorted(twice or absent))}): its journal was not written by "
            f"icis-deploy. `icis-deploy rollback` goes to the state before, or fetch the bundle again."
        )


def check_disabled(journal: Journal, known_names: Sequence[str]) -> None:
    """Raise `CorruptFileError` if a journal leaves no class to choose, which rule 10 never lets happen."""
    if journal.disabled and set(known_names) <= set(journal.disabled):
        raise CorruptFileError(
            f"The journal of the device disables every class of it ({quoted(journal.disabled)}), so it was not written "
            f"by icis-deploy. Delete the bundle's state/ folder to start again from the classes it was exported with, "
            f"or fetch the bundle again."
        )
