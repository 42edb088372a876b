"""Read safetensors files that come from elsewhere, with a header of bounded size.

The header is JSON. safetensors reads up to 100 MB of it and makes an array for each of its entries, which need no
bytes; what the entries state of the tensors' own bytes it compares with the file.
"""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray

from icis_deploy.common.json_fields import load_strict, object_from_json

MAX_HEADER_BYTES = 1 << 24
MAX_TENSORS = 64


def load_tensors(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors of a safetensors file, and its metadata.

    Raises:
        ValueError: If it is none, or its header is larger than `MAX_HEADER_BYTES` or names more than `MAX_TENSORS`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header = read_header(data)
        return load(data), object_from_json(header.get("__metadata__", {}), where="__metadata__")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def read_header(data: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file, an object with an entry for each tensor.

    Raises:
        ValueError: As `load_tensors`.
    """
    (size,) = struct.unpack_from("<Q", data) if len(data) >= 8 else (len(data),)
    if size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"its header claims {size} bytes, of {len(data)} and at most {MAX_HEADER_BYTES}")
    try:
        header = object_from_json(load_strict(data[8 : 8 + size]))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if len(header) > MAX_TENSORS + 1:  # the metadata
        raise ValueError(f"it names {len(header)} tensors; at most {MAX_TENSORS} are read")
    return header
