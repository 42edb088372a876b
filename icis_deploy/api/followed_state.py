"""The state that a class update follows, from whatever says it: a bundle, what was noted of one, or an update."""

from __future__ import annotations

import os
from pathlib import Path

from icis_deploy.api.bundle_slots import slots_of
from icis_deploy.bundle.manifest import target_digest
from icis_deploy.common.files import read_plain
from icis_deploy.common.json_fields import integer_from_json, load_strict, object_from_json, text_from_json
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import CorruptFileError, ICISDeployError, LoadError, UsageError
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.head.slots import SlotTable
from icis_deploy.updates.envelope import MAX_ENVELOPE_BYTES, parse_content, parse_envelope
from icis_deploy.updates.signing import Binding

_ENVELOPE_FIELD = "payloadType"


def binding_to(source: Path, *, complete: bool) -> Binding:
    """Return what an update is bound to.

    Args:
        source: A bundle in the state that the update follows; what `classes` printed of one, as JSON; or the complete
            update after which it comes, which is for every bundle of its head.
        complete: Whether the update follows nothing, so that only the bundles which may take it are said.

    Raises:
        BundleError, CorruptFileError, IncompatibleError: If a bundle's manifest, journal or slots cannot be read.
        LoadError, CorruptFileError: If a file cannot be read, or says nothing of a state.
        UsageError: If an update does not say which classes there are after it.
    """
    if os.path.isdir(source):  # noqa: PTH112 - a name that is too long is none
        described, journal, table = slots_of(source, purpose="for a class update")
        digest = table.digest(leaving_out=journal.current.taught)
        state = FollowedState(version=journal.current.version, digest=digest)
        return _binding(state, (target_digest(described),), journal.highest_version, complete=complete)
    data = read_plain(source, max_bytes=MAX_ENVELOPE_BYTES, what="state", error_type=LoadError)
    try:
        fields = object_from_json(load_strict(data))
        if _ENVELOPE_FIELD in fields:
            state = _state_after(data, source)
            return _binding(state, (), state.version, complete=complete)
        state = FollowedState(version=integer_from_json(fields["version"]), digest=text_from_json(fields["digest"]))
        highest = integer_from_json(fields["highest_version"])
        return _binding(state, (text_from_json(fields["target"]),), highest, complete=complete)
    except UsageError:
        raise
    except (ICISDeployError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(
            f"{source} says nothing of the state that an update could follow: {reason_of(error)}.",
            found=reason_of(error),
            expected="what `classes` prints of an updatable bundle as JSON, or a complete class update",
            where=source,
            hint="Give the bundle itself.",
        ) from error


def _binding(state: FollowedState, targets: tuple[str, ...], highest_version: int, *, complete: bool) -> Binding:
    return Binding(
        follows=None if complete else state, complete=complete, targets=targets, highest_version=highest_version
    )


def _state_after(data: bytes, source: Path) -> FollowedState:
    content = parse_content(parse_envelope(data))
    if not (isinstance(content, ClassUpdate) and content.complete):
        raise UsageError(
            f"{source} does not say which classes a device has after it: it is no complete class update.",
            found="trusted keys" if not isinstance(content, ClassUpdate) else "a change of some classes",
            expected="a complete class update",
            where=source,
            hint="Give a bundle in the state that the update follows.",
        )
    table = SlotTable(
        weight=content.rows[:, :-1], bias=content.rows[:, -1], class_names=content.class_names, arbiter=content.arbiter
    )
    return FollowedState(version=content.version, digest=table.digest())
