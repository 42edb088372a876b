"""The bytes of a class update.

The payload is one safetensors file: the tensor `rows`, float32, and one metadata entry `class_update`, canonical JSON.
One entry only, because safetensors keeps metadata in a hash map: two would be written in a random order, and equal
updates must have equal bytes to be signed and compared. The entry states the SHA-256 of each tensor, so that a damaged
file is noticed before anybody has signed it. `envelope.py` wraps the payload for signing.

An update that says what it follows, or which bundles may take it, is of schema 3, whose tensor `arbiter` is there where
its hash is. Any other one is of schema 2 if its rows have an arbiter, with a second tensor, and else of schema 1, which
older releases read as well; they refuse what is newer. All are frozen: every later release reads them (tests/golden
holds some of each).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.common.json_fields import (
    boolean_from_json,
    integer_from_json,
    json_from_time,
    list_from_json,
    load_strict,
    names_from_json,
    object_from_json,
    text_from_json,
    time_from_json,
)
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import CorruptFileError, ICISDeployError
from icis_deploy.head.class_update import ClassUpdate, FollowedState

PLAIN_SCHEMA, ARBITER_SCHEMA, BOUND_SCHEMA = 1, 2, 3
"""Schema of an update without an arbiter, of one with it, and of one that says what it follows."""

PAYLOAD_TYPE = "application/vnd.icis-deploy.class-update.v1+safetensors"
MAX_PAYLOAD_BYTES = 1 << 30
"""21,000 rows of 2048 features are 172 MB; a gigabyte is a mistake or an attack."""

MAX_HEADER_BYTES = 1 << 24
_METADATA_KEY = "class_update"
_FIELDS = frozenset(
    {
        "schema_version",
        "base_fingerprint",
        "rows_sha256",
        "added",
        "replaced",
        "removed",
        "version",
        "expires",
        "probe_seed",
        "provenance",
    }
)
_FIELDS_OF_SCHEMA = {
    PLAIN_SCHEMA: _FIELDS,
    ARBITER_SCHEMA: _FIELDS | {"arbiter_sha256"},
    BOUND_SCHEMA: _FIELDS | {"arbiter_sha256", "follows", "complete", "targets"},
}


def serialize_payload(update: ClassUpdate) -> bytes:
    """Return the safetensors bytes of an update; equal updates give equal bytes."""
    from safetensors.numpy import save

    fields = {
        "schema_version": PLAIN_SCHEMA,
        "base_fingerprint": update.base_fingerprint,
        "rows_sha256": _sha256(update.rows),
        "added": update.added,
        "replaced": update.replaced,
        "removed": update.removed,
        "version": update.version,
        "expires": None if update.expires is None else json_from_time(update.expires),
        "probe_seed": update.self_test_seed,  # the format's own name, which is frozen
        "provenance": dict(update.provenance),
    }
    tensors = {"rows": np.ascontiguousarray(update.rows)}
    if update.arbiter is not None:
        fields |= {"schema_version": ARBITER_SCHEMA, "arbiter_sha256": _sha256(update.arbiter)}
        tensors["arbiter"] = np.ascontiguousarray(update.arbiter)
    if update.is_bound:
        follows = update.follows
        fields |= {
            "schema_version": BOUND_SCHEMA,
            "arbiter_sha256": None if update.arbiter is None else _sha256(update.arbiter),
            "follows": None if follows is None else {"version": follows.version, "digest": follows.digest},
            "complete": update.complete,
            "targets": update.targets,
        }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return bytes(save(tensors, metadata={_METADATA_KEY: text}))


def parse_payload(payload: bytes, *, is_verified: bool = False) -> ClassUpdate:
    """Return the update that these bytes hold.

    Args:
        payload: One safetensors file.
        is_verified: Whether a trusted signature over these bytes was checked, so that the tensors' own SHA-256, which
            finds damage in what nobody signed, would say nothing new.

    Raises:
        CorruptFileError: If the bytes are too many, not safetensors, of another schema, or break a rule of an update.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise CorruptFileError(
            f"The class update is {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are read.",
            found=len(payload),
            expected=MAX_PAYLOAD_BYTES,
        )
    header, start = _read_header(payload)
    fields = _fields_of(header)
    names = ("rows",) if fields.get("arbiter_sha256") is None else ("arbiter", "rows")  # in the order of their bytes
    tensors = _tensors_in_place(payload, header, start, names)
    if tensors is None:
        tensors = _load_tensors(payload, names)
    if not is_verified:
        _check_hashes(tensors, fields)
    try:
        return ClassUpdate(
            base_fingerprint=fields["base_fingerprint"],
            rows=tensors["rows"],
            arbiter=tensors.get("arbiter"),
            added=names_from_json(fields["added"]),
            replaced=names_from_json(fields["replaced"]),
            removed=names_from_json(fields["removed"]),
            version=integer_from_json(fields["version"]),
            expires=None if fields["expires"] is None else time_from_json(fields["expires"]),
            self_test_seed=integer_from_json(fields["probe_seed"]),
            follows=_followed_state(fields.get("follows")),
            complete=boolean_from_json(fields.get("complete", False)),
            targets=tuple(list_from_json(fields.get("targets", []))),
            provenance=object_from_json(fields["provenance"]),
        )
    except ICISDeployError as error:
        raise CorruptFileError(
            f"The class update breaks its own rules: {reason_of(error)}.",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from error
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"The class update breaks its own rules: {reason_of(error)}.",
            hint="Fetch it again; if it is the same again, inject again.",
        ) from error


def _followed_state(value: object) -> FollowedState | None:
    if value is None:
        return None
    fields = object_from_json(value)
    if set(fields) != {"version", "digest"}:
        raise ValueError(f"what it follows has the fields {shown(sorted(fields))}")
    return FollowedState(version=integer_from_json(fields["version"]), digest=text_from_json(fields["digest"]))


def _check_hashes(tensors: Mapping[str, Float32], fields: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        stated, found = fields[f"{name}_sha256"], _sha256(tensor)
        if found != stated:
            what = "rows have" if name == "rows" else f"{name} has"
            raise CorruptFileError(
                f"The class update's {what} another SHA-256 than it states; the file is damaged.",
                found=found,
                expected=shown(stated),
                hint="Fetch it again.",
            )


def _sha256(tensor: Float32) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor, dtype="<f4").data).hexdigest()


def _tensors_in_place(
    payload: bytes, header: dict[str, Any], start: int, names: tuple[str, ...]
) -> dict[str, Float32] | None:
    """Return the tensors as views of the payload, where its header is like those that `serialize_payload` writes.

    Of anything else, valid or not, nothing is returned: it is left to safetensors, which copies the tensors twice.
    """
    if header.keys() != {"__metadata__", *names} or header["__metadata__"].keys() != {_METADATA_KEY} or start % 4:
        return None
    tensors: dict[str, Float32] = {}
    end = 0
    for name in names:
        entry = header[name]
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
            return None
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _are_two_counts(shape) or not _are_two_counts(offsets):
            return None
        count = shape[0] * shape[1]
        if not count or offsets != [end, end + 4 * count] or start + offsets[1] > len(payload):
            return None
        tensors[name] = np.frombuffer(payload, dtype="<f4", count=count, offset=start + end).reshape(shape)
        end = offsets[1]
    return tensors if start + end == len(payload) else None


def _are_two_counts(values: object) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(type(value) is int and value >= 0 for value in values)


def _load_tensors(payload: bytes, names: tuple[str, ...]) -> dict[str, Float32]:
    try:
        tensors, _ = load_tensors(payload)
    except ValueError as error:
        raise CorruptFileError(
            f"The class update is not a valid safetensors file: {reason_of(error)}.",
            found=reason_of(error),
            expected="a safetensors file",
            hint="Fetch it again.",
        ) from error
    if set(tensors) != set(names) or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        found = shown({name: str(tensor.dtype) for name, tensor in tensors.items()})
        expected = str(dict.fromkeys(names, "float32"))
        raise CorruptFileError(
            f"The class update holds the tensors {found}; expected {expected} alone.",
            found=found,
            expected=expected,
        )
    return {name: tensors[name] for name in names}


def _read_header(payload: bytes) -> tuple[dict[str, Any], int]:
    """Return a safetensors header, and where the tensors start; safetensors' numpy reader hands out no metadata."""
    if len(payload) < 8:
        raise CorruptFileError(
            f"The class update is only {len(payload)} bytes; it is truncated.",
            found=len(payload),
            expected="at least 8 bytes",
            hint="Fetch it again.",
        )
    (size,) = struct.unpack_from("<Q", payload)
    if size > min(MAX_HEADER_BYTES, len(payload) - 8):
        raise CorruptFileError(
            f"The class update's header claims {size} bytes; the file is truncated or not an update.",
            found=size,
            expected=min(MAX_HEADER_BYTES, len(payload) - 8),
            hint="Fetch it again.",
        )
    try:
        header = object_from_json(load_strict(payload[8 : 8 + size]))
    except (ValueError, TypeError, RecursionError) as error:
        raise _no_update(error) from error
    return header, 8 + size


def _no_update(error: Exception) -> CorruptFileError:
    return CorruptFileError(
        f"The file has no class update in its header ({reason_of(error)}); it is another kind of file.",
        found=reason_of(error),
        expected="a class update in the header",
        hint="Give the .icis file that `inject()` and `sign()` made.",
    )


def _fields_of(header: dict[str, Any]) -> dict[str, Any]:
    try:
        fields = object_from_json(load_strict(text_from_json(header["__metadata__"][_METADATA_KEY])))
        schema_version = integer_from_json(fields["schema_version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_update(error) from error
    if schema_version not in _FIELDS_OF_SCHEMA:
        raise CorruptFileError(
            f"The class update has schema version {schema_version}; this release reads {PLAIN_SCHEMA} to "
            f"{BOUND_SCHEMA}.",
            found=schema_version,
            expected=tuple(_FIELDS_OF_SCHEMA),
            hint="Update icis-deploy.",
        )
    expected = _FIELDS_OF_SCHEMA[schema_version]
    if set(fields) != expected:
        difference = shown(sorted(set(fields) ^ expected))
        raise CorruptFileError(
            f"The class update's fields differ from schema {schema_version} in {difference}.",
            found=difference,
        )
    if schema_version == ARBITER_SCHEMA and fields["arbiter_sha256"] is None:
        raise CorruptFileError("The class update states no SHA-256 of its arbiter.", found=None, expected="a SHA-256")
    return fields
