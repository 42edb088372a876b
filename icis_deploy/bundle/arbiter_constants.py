"""What a device needs to compute an arbiter's statistics and offsets itself: constants of the model, in two files.

    arbiter.safetensors   how far each seen row lies from the mean seen row, which the statistic `top_deviation` is of
    injected.safetensors  the coefficients of the new classes that are baked into the model

A device answers without them: the model computes its own offsets. They are read when a self-test or a disabled class
first asks for them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import ARBITER_NAME, INJECTED_NAME, Bundle, FileEntry, check_file
from icis_deploy.bundle.slot_files import load_injected
from icis_deploy.common.arrays import Float32, frozen_float32
from icis_deploy.common.files import read_plain
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError
from icis_deploy.head.arbiter import no_arbiter

MAX_ARBITER_BYTES = 1 << 28
"""Of a head of sixty million classes; a greater file is a mistake."""

_LENGTHS = "row_lengths"


class ArbiterConstants:
    """The constants of one bundle, each read when it is first asked for and kept.

    Safe for several threads: two that ask at once may both read, and get equal arrays.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._folder, self._bundle = folder, bundle
        self._row_lengths: Float32 | None = None
        self._baked: Float32 | None = None

    def row_lengths(self) -> Float32:
        """Return `deviation_lengths` of the seen rows, `(num_seen,)` float32, read-only.

        Raises:
            BundleError: If the bundle has no such file, or it cannot be read.
            CorruptFileError: If it is not the file that the manifest states, or does not hold these lengths.
        """
        if self._row_lengths is None:
            self._row_lengths = load_row_lengths(self._folder, self._bundle)
        return self._row_lengths

    def baked_coefficients(self) -> Float32:
        """Return the coefficients of the new classes that are baked, `(num_baked - num_seen, 5)` float32, read-only.

        Raises:
            BundleError: If their file cannot be read.
            CorruptFileError: If it is not the file that the manifest states, or does not hold these classes.
        """
        if self._baked is None:
            if INJECTED_NAME in self._bundle.files:
                check_file(self._folder / INJECTED_NAME, self._bundle.files[INJECTED_NAME])
            table = load_injected(self._folder, self._bundle)
            num_new = len(self._bundle.class_names) - self._bundle.num_seen
            self._baked = no_arbiter(num_new) if table is None else table.coefficients
        return self._baked


def serialize_row_lengths(lengths: Float32) -> bytes:
    """Return the bytes of `arbiter.safetensors`; equal lengths give equal bytes.

    Args:
        lengths: `(num_seen,)` float32, from `icis_deploy.head.arbiter.deviation_lengths`.
    """
    from safetensors.numpy import save

    return bytes(save({_LENGTHS: np.ascontiguousarray(lengths, dtype=np.float32)}))


def load_row_lengths(folder: Path, bundle: Bundle) -> Float32:
    """Read `arbiter.safetensors`; see `ArbiterConstants.row_lengths`."""
    path = folder / ARBITER_NAME
    if ARBITER_NAME not in bundle.files:
        raise BundleError(
            f"The bundle {folder} has no {ARBITER_NAME}, so a device cannot compute its arbiter's statistics.",
            expected=ARBITER_NAME,
            where=folder,
            hint="Export it again.",
        )
    data = read_plain(path, max_bytes=MAX_ARBITER_BYTES, what="constants of the arbiter", error_type=BundleError)
    found = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    if found != bundle.files[ARBITER_NAME]:
        raise _damaged(path, "it does not have the SHA-256 that the manifest states", found.sha256)
    try:
        tensors, _ = load_tensors(data)
        if tensors.keys() != {_LENGTHS} or tensors[_LENGTHS].dtype != np.float32:
            raise ValueError(f"expected one float32 tensor {_LENGTHS!r}")
        lengths = frozen_float32(tensors[_LENGTHS], name="row lengths", ndim=1)
        if lengths.shape != (bundle.num_seen,) or lengths.min() < 0:
            raise ValueError(f"expected a length for each of {bundle.num_seen} seen classes, found {lengths.shape}")
    except (ICISDeployError, ValueError) as error:
        raise _damaged(path, reason_of(error), reason_of(error)) from error
    return lengths


def _damaged(path: Path, reason: str, found: str) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is damaged: {reason}.",
        found=found,
        expected="the file that `export()` wrote",
        where=path,
        hint="Fetch the bundle again.",
    )
