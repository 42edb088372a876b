"""The bytes of a slot table: one safetensors file with the filled rows, and where they belong in one metadata entry.

Empty slots are not in the file, so that its size, and the time to write it, grow with the classes and not with the
capacity.
"""

from __future__ import annotations

import json
import struct

import numpy as np
from numpy.typing import NDArray

from icis_deploy.errors import CorruptFileError, ICISDeployError
from icis_deploy.json_fields import integer_from_json, list_from_json, names_from_json
from icis_deploy.slots import EMPTY_SLOT_BIAS, SlotTable

MAX_SLOTS_BYTES = 1 << 31
SCHEMA_VERSION = 1
_METADATA_KEY = "slot_table"


def serialize_slots(table: SlotTable) -> bytes:
    """Return the safetensors bytes of a slot table; equal tables give equal bytes."""
    from safetensors.numpy import save

    fields = {
        "schema_version": SCHEMA_VERSION,
        "capacity": table.capacity,
        "slots": table.filled.tolist(),
        "class_names": table.filled_names,
    }
    # One entry only: safetensors writes several in a random order, and equal tables must have equal hashes.
    metadata = {_METADATA_KEY: json.dumps(fields, sort_keys=True)}
    return bytes(save({"rows": table.rows()}, metadata=metadata))


def parse_slots(data: bytes) -> SlotTable:
    """Return the slot table that these bytes hold.

    Raises:
        CorruptFileError: If they are not a slot table of schema 1.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        (size,) = struct.unpack_from("<Q", data)
        fields = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_METADATA_KEY])
        if fields["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {fields['schema_version']!r}")
        return _table_from_rows(
            load(data)["rows"],
            capacity=integer_from_json(fields["capacity"]),
            slots=[integer_from_json(slot) for slot in list_from_json(fields["slots"])],
            class_names=names_from_json(fields["class_names"]),
        )
    except (SafetensorError, ICISDeployError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise CorruptFileError(f"The slot table is damaged: {error}. Fetch the bundle again.") from error


def _table_from_rows(
    rows: NDArray[np.generic], *, capacity: int, slots: list[int], class_names: tuple[str, ...]
) -> SlotTable:
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows) == len(slots) == len(class_names):
        raise ValueError(
            f"{len(slots)} slots and {len(class_names)} names go with rows of shape {rows.shape} and type {rows.dtype}"
        )
    if slots != sorted(set(slots)) or not all(0 <= slot < capacity for slot in slots):
        raise ValueError(f"its slots are not ascending numbers below its capacity of {capacity}")
    if capacity * rows.shape[1] * rows.itemsize > MAX_SLOTS_BYTES:
        raise ValueError(f"a capacity of {capacity} slots would take more than {MAX_SLOTS_BYTES} bytes")
    weight = np.zeros((capacity, rows.shape[1] - 1), dtype=np.float32)
    bias = np.full(capacity, EMPTY_SLOT_BIAS, dtype=np.float32)
    names: list[str | None] = [None] * capacity
    weight[slots], bias[slots] = rows[:, :-1], rows[:, -1]
    for slot, name in zip(slots, class_names, strict=True):
        names[slot] = name
    weight.flags.writeable = bias.flags.writeable = False  # so that the table takes them over without a copy
    return SlotTable(weight=weight, bias=bias, class_names=tuple(names))
