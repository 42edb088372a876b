"""The rows that are baked into a bundle's model, in a file of their own: `baked_rows.safetensors`.

A runtime that runs the backbone alone multiplies features with them itself. The manifest states the file's SHA-256, as
of every file. The one tensor is `rows`, `(num_baked, feature_dim + 1)` float32, biases last: those that `model.onnx`
multiplies with, in the order of the manifest's classes, so rounded where they are stored in fewer bits there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import BAKED_ROWS_NAME, Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.common.files import read_plain
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import BundleError, CorruptFileError

_TENSOR = "rows"
_MAX_HEADER_BYTES = 1 << 12
"""safetensors' header of one tensor has 100 bytes."""


def serialize_baked_rows(rows: Float32) -> bytes:
    """Return the bytes of `baked_rows.safetensors`; equal rows give equal bytes.

    Args:
        rows: `(num_baked, feature_dim + 1)` float32.
    """
    from safetensors.numpy import save

    return bytes(save({_TENSOR: np.ascontiguousarray(rows, dtype=np.float32)}))


def load_baked_rows(folder: Path, bundle: Bundle) -> Float32:
    """Return the rows of a bundle's baked classes, `(num_baked, feature_dim + 1)` float32.

    Args:
        folder: The bundle's files, which the caller has compared with the manifest.
        bundle: What its manifest says; not more is read than rows of its sizes take.

    Raises:
        BundleError: If the file cannot be read, or is larger.
        CorruptFileError: If it does not hold rows of these sizes.
    """
    path, expected = folder / BAKED_ROWS_NAME, (len(bundle.class_names), bundle.feature_dim + 1)
    most = 4 * expected[0] * expected[1] + _MAX_HEADER_BYTES
    data = read_plain(path, max_bytes=most, what="file of baked rows", error_type=BundleError)
    try:
        tensors, _metadata = load_tensors(data)
        rows = tensors[_TENSOR] if tensors.keys() == {_TENSOR} else None
        if rows is None or rows.shape != expected or rows.dtype != np.float32:
            raise ValueError(f"it holds { ({name: (each.shape, str(each.dtype)) for name, each in tensors.items()}) }")
    except ValueError as error:
        raise CorruptFileError(
            f"{path} does not hold float32 rows of shape {expected}: {reason_of(error)}.",
            found=reason_of(error),
            expected=expected,
            where=path,
            hint="Fetch the bundle again.",
        ) from error
    return np.asarray(rows, dtype=np.float32)
