"""The bytes of a slot table: one safetensors file with the filled rows, and where they belong in one metadata entry.

Empty slots are not in the file, so that its size, and the time to write it, grow with the classes and not with the
capacity. A table in which a slot has an arbiter is of schema 2, with the coefficients in a second tensor `arbiter`; any
other one is of schema 1.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import (
    INJECTED_NAME,
    MAX_SLOTS_BYTES,
    MODEL_NAME,
    SLOTS_NAME,
    Bundle,
    check_file,
)
from icis_deploy.common.files import read_plain
from icis_deploy.common.json_fields import (
    integer_from_json,
    list_from_json,
    load_strict,
    names_from_json,
    object_from_json,
    text_from_json,
)
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable

PLAIN_SCHEMA, ARBITER_SCHEMA = 1, 2
"""Schema of a table without arbiters, and of one with them."""

_TENSORS_OF_SCHEMA = {PLAIN_SCHEMA: {"rows"}, ARBITER_SCHEMA: {"arbiter", "rows"}}
_METADATA_KEY = "slot_table"


def serialize_slots(table: SlotTable) -> bytes:
    """Return the safetensors bytes of a slot table; equal tables give equal bytes."""
    tensors = {"rows": table.rows()}
    if table.arbiter is not None:
        tensors = {"arbiter": table.arbiter[table.filled], **tensors}
    fields = {
        "schema_version": PLAIN_SCHEMA if table.arbiter is None else ARBITER_SCHEMA,
        "capacity": table.capacity,
        "slots": table.filled.tolist(),
        "class_names": table.filled_names,
    }
    # One entry only: safetensors writes several in a random order, and equal tables must have equal hashes. Its own
    # writer gives these very bytes, and copies the rows twice more on the way.
    header: dict[str, object] = {"__metadata__": {_METADATA_KEY: json.dumps(fields, sort_keys=True)}}
    parts, end = [], 0
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor, dtype="<f4")
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
        parts.append(array.data)
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def load_injected(folder: Path, bundle: Bundle) -> SlotTable | None:
    """Return the rows that were added to a bundle's fused head; `None` where the manifest names no such file.

    Raises:
        BundleError: If the file cannot be read.
        CorruptFileError: If it is no slot table with a row for each of these classes.
    """
    if INJECTED_NAME not in bundle.files:
        return None
    data = read_plain(folder / INJECTED_NAME, max_bytes=MAX_SLOTS_BYTES, what="injected rows", error_type=BundleError)
    table = parse_slots(data, capacity=len(bundle.class_names) - bundle.num_seen, feature_dim=bundle.feature_dim)
    if table.filled_names != bundle.class_names[bundle.num_seen :]:
        raise CorruptFileError(
            f"{folder / INJECTED_NAME} holds other classes than the manifest states.",
            found=table.filled_names,
            expected=bundle.class_names[bundle.num_seen :],
            where=folder / INJECTED_NAME,
            hint="Fetch the bundle again.",
        )
    return table


def exported_slots(folder: Path, bundle: Bundle) -> SlotTable | None:
    """Return what a bundle's slots held when it was exported; `None` for a fused head.

    Raises:
        BundleError: If the file cannot be read.
        CorruptFileError: If it does not have the hash that the manifest states, or is no slot table.
    """
    if bundle.capacity == 0:
        return None
    check_capacity(folder, bundle)
    path = folder / SLOTS_NAME
    check_file(path, bundle.files[SLOTS_NAME])
    data = read_plain(path, max_bytes=MAX_SLOTS_BYTES, what="slot table", error_type=BundleError)
    return parse_slots(data, capacity=bundle.capacity, feature_dim=bundle.feature_dim)


def check_capacity(folder: Path, bundle: Bundle) -> None:
    """Compare the slots that a manifest states with the model, before memory is taken for them.

    An updatable model holds a default for each slot, `feature_dim` float32 values, so that its file cannot be smaller.

    Raises:
        BundleError: If it is, or is not there.
    """
    stated = bundle.capacity * bundle.feature_dim * 4
    try:
        found = sum(os.stat(folder / name).st_size for name in bundle.files if name.startswith(MODEL_NAME))  # noqa: PTH116
    except OSError as error:
        raise BundleError(
            f"The bundle's model at {folder / MODEL_NAME} cannot be read: {error.strerror or error}.",
            found=error.strerror or str(error),
            where=folder / MODEL_NAME,
            hint="Fetch the bundle again.",
        ) from error
    if stated > found:
        raise BundleError(
            f"The manifest states {bundle.capacity} slots of {bundle.feature_dim} values, {stated} bytes; the model "
            f"that holds them has {found}.",
            found=found,
            expected=f"at least {stated} bytes",
            where=folder / MODEL_NAME,
            hint="Fetch the bundle again.",
        )


def parse_slots(data: bytes, *, capacity: int, feature_dim: int) -> SlotTable:
    """Return the slot table that these bytes hold.

    Args:
        data: The bytes.
        capacity: How many slots it must have; what it says itself is not believed, for it decides how much memory the
            table takes.
        feature_dim: How wide its rows must be, without their biases.

    Raises:
        CorruptFileError: If they are not a slot table of a schema that this release reads, and of these sizes.
    """
    try:
        tensors, metadata = load_tensors(data)
        fields = object_from_json(load_strict(text_from_json(metadata[_METADATA_KEY])))
        version = integer_from_json(fields["schema_version"])
        if version not in _TENSORS_OF_SCHEMA:
            raise ValueError(f"its schema version is {version}, this release reads {PLAIN_SCHEMA} and {ARBITER_SCHEMA}")
        stated = integer_from_json(fields["capacity"])
        if tensors.keys() != _TENSORS_OF_SCHEMA[version]:
            raise ValueError(
                f"it holds the tensors {shown(sorted(tensors))}; one of schema {version} has "
                f"{sorted(_TENSORS_OF_SCHEMA[version])}"
            )
        rows = tensors["rows"]
        if (stated, rows.shape[1:]) != (capacity, (feature_dim + 1,)):
            raise ValueError(
                f"it has {stated} slots and rows of shape {rows.shape}; expected {capacity} slots and rows of "
                f"{feature_dim + 1} values"
            )
        return _table_from_rows(
            rows,
            tensors.get("arbiter"),
            capacity=capacity,
            slots=[integer_from_json(slot) for slot in list_from_json(fields["slots"])],
            class_names=names_from_json(fields["class_names"]),
        )
    except (ICISDeployError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(
            f"The slot table is damaged: {reason_of(error)}.",
            found=reason_of(error),
            hint="Fetch the bundle again.",
        ) from error


def _table_from_rows(
    rows: NDArray[np.generic],
    arbiter: NDArray[np.generic] | None,
    *,
    capacity: int,
    slots: list[int],
    class_names: tuple[str, ...],
) -> SlotTable:
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows) == len(slots) == len(class_names):
        raise ValueError(
            f"{len(slots)} slots and {len(class_names)} names go with rows of shape {rows.shape} and type {rows.dtype}"
        )
    if arbiter is not None and (arbiter.dtype != np.float32 or arbiter.shape != (len(slots), len(STATISTICS))):
        raise ValueError(f"{len(slots)} slots go with an arbiter of shape {arbiter.shape} and type {arbiter.dtype}")
    if slots != sorted(set(slots)) or not all(0 <= slot < capacity for slot in slots):
        raise ValueError(f"its slots are not ascending numbers below its capacity of {capacity}")
    weight = np.zeros((capacity, rows.shape[1] - 1), dtype=np.float32)
    bias = np.full(capacity, EMPTY_SLOT_BIAS, dtype=np.float32)
    names: list[str | None] = [None] * capacity
    weight[slots], bias[slots] = rows[:, :-1], rows[:, -1]
    for slot, name in zip(slots, class_names, strict=True):
        names[slot] = name
    coefficients = None
    if arbiter is not None:
        coefficients = np.zeros((capacity, len(STATISTICS)), dtype=np.float32)
        coefficients[slots] = arbiter
        coefficients.flags.writeable = False
    weight.flags.writeable = bias.flags.writeable = False  # so that the table takes them over without a copy
    return SlotTable(weight=weight, bias=bias, arbiter=coefficients, class_names=tuple(names))
