"""The bytes of a slot table: one safetensors file with the filled rows, and where they belong in one metadata entry.

Empty slots are not in the file, so that its size, and the time to write it, grow with the classes and not with the
capacity.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import INJECTED_NAME, Bundle
from icis_deploy.common.files import read_plain
from icis_deploy.common.json_fields import integer_from_json, list_from_json, load_strict, names_from_json
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable

MAX_SLOTS_BYTES = 1 << 31
SCHEMA_VERSION = 1
_METADATA_KEY = "slot_table"


def serialize_slots(table: SlotTable) -> bytes:
    """Return the safetensors bytes of a slot table; equal tables give equal bytes."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "capacity": table.capacity,
        "slots": table.filled.tolist(),
        "class_names": table.filled_names,
    }
    # One entry only: safetensors writes several in a random order, and equal tables must have equal hashes. Its own
    # writer gives these very bytes, and copies the rows twice more on the way.
    rows = np.ascontiguousarray(table.rows(), dtype="<f4")
    header = {
        "__metadata__": {_METADATA_KEY: json.dumps(fields, sort_keys=True)},
        "rows": {"dtype": "F32", "shape": rows.shape, "data_offsets": (0, rows.nbytes)},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, rows.data])


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


def parse_slots(data: bytes, *, capacity: int, feature_dim: int) -> SlotTable:
    """Return the slot table that these bytes hold.

    Args:
        data: The bytes.
        capacity: How many slots it must have; what it says itself is not believed, for it decides how much memory the
            table takes.
        feature_dim: How wide its rows must be, without their biases.

    Raises:
        CorruptFileError: If they are not a slot table of schema 1 and of these sizes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        (size,) = struct.unpack_from("<Q", data)
        fields = load_strict(load_strict(data[8 : 8 + size])["__metadata__"][_METADATA_KEY])
        version = integer_from_json(fields["schema_version"])
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version}, this release reads {SCHEMA_VERSION}")
        stated, rows = integer_from_json(fields["capacity"]), load(data)["rows"]
        if (stated, rows.shape[1:]) != (capacity, (feature_dim + 1,)):
            raise ValueError(
                f"it has {stated} slots and rows of shape {rows.shape}; expected {capacity} slots and rows of "
                f"{feature_dim + 1} values"
            )
        return _table_from_rows(
            rows,
            capacity=capacity,
            slots=[integer_from_json(slot) for slot in list_from_json(fields["slots"])],
            class_names=names_from_json(fields["class_names"]),
        )
    except (SafetensorError, ICISDeployError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise CorruptFileError(
            f"The slot table is damaged: {reason_of(error)}.",
            found=reason_of(error),
            hint="Fetch the bundle again.",
        ) from error


def _table_from_rows(
    rows: NDArray[np.generic], *, capacity: int, slots: list[int], class_names: tuple[str, ...]
) -> SlotTable:
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows) == len(slots) == len(class_names):
        raise ValueError(
            f"{len(slots)} slots and {len(class_names)} names go with rows of shape {rows.shape} and type {rows.dtype}"
        )
    if slots != sorted(set(slots)) or not all(0 <= slot < capacity for slot in slots):
        raise ValueError(f"its slots are not ascending numbers below its capacity of {capacity}")
    weight = np.zeros((capacity, rows.shape[1] - 1), dtype=np.float32)
    bias = np.full(capacity, EMPTY_SLOT_BIAS, dtype=np.float32)
    names: list[str | None] = [None] * capacity
    weight[slots], bias[slots] = rows[:, :-1], rows[:, -1]
    for slot, name in zip(slots, class_names, strict=True):
        names[slot] = name
    weight.flags.writeable = bias.flags.writeable = False  # so that the table takes them over without a copy
    return SlotTable(weight=weight, bias=bias, class_names=tuple(names))
