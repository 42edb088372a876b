"""Backbones that another runtime's own quantizer makes int8, with the head on the host.

A quantizer takes ranges of everything in its graph: with slots inside, those of the slots that it saw. So it is given
the backbone alone, up to float32 features, and a device multiplies rows and slots with them (`SplitSession`). The
backbone's biases are corrected for rounded weights first, as for ONNX Runtime's own int8.
"""

# Why: docs/decisions/0145.

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from exporters.conversion.int8 import CalibratedBackbone
from exporters.graph.edits import apply_passes
from exporters.graph.fixed_batch import FixBatchPass
from exporters.onnx_io.files import load_onnx_file
from exporters.targets.backbone_target import rows_of
from icis_deploy._version import __version__
from icis_deploy.bundle.baked_rows import serialize_baked_rows
from icis_deploy.bundle.converted_sidecar import (
    MAX_SIDECAR_BYTES,
    converted_sidecar_name,
    parse_converted_sidecar,
    serialize_converted_sidecar,
)
from icis_deploy.bundle.engine_sidecar import model_sha256
from icis_deploy.bundle.manifest import BAKED_ROWS_NAME, MODEL_NAME, Bundle
from icis_deploy.common.files import read_plain, write_file
from icis_deploy.errors import BundleError, IncompatibleError, StorageError

MAX_CALIBRATION_IMAGES = 128
"""Of those that were given, spread over all: a quantizer runs them several times, in seconds each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizable:
    """What a target can quantize by itself, or take over; with neither, the bundle is not int8."""

    backbone: Callable[[], CalibratedBackbone] | None = None
    """Returns that of the model that is exported in int8."""

    former: Path | None = None
    """The bundle that is compacted: its backbone stays, bit for bit, and so does what was made of it."""


def backbone_to_quantize(quantizable: Quantizable, bundle: Bundle) -> CalibratedBackbone:
    """Return the backbone that a quantizer is given, for batches of 1 where the model fixes no other.

    Raises:
        IncompatibleError: If the bundle takes pixels, or was not exported with calibration images.
    """
    if bundle.model_input.dtype != "float32":
        raise IncompatibleError(
            f"The model takes {bundle.model_input.dtype}; another runtime's quantizer is given prepared images.",
            found=bundle.model_input.dtype,
            expected="float32",
            where=bundle.model_input.name,
            hint="Export it with `model_input='float32'`, or leave this target out.",
        )
    if quantizable.backbone is None:
        raise IncompatibleError(
            "There is no float backbone that could be quantized, and no calibration images.",
            expected="an export with `precision='int8'`",
            hint="Export the model itself.",
        )
    backbone = quantizable.backbone()
    return replace(backbone, model=apply_passes(backbone.model, FixBatchPass(1)))


def write_calibration(path: Path, backbone: CalibratedBackbone) -> int:
    """Write the calibration images as one `.npy` file, `(num_images, *input_shape)` float32; return their number.

    Raises:
        StorageError: If the disk refuses.
    """
    sizes = [len(batch) for batch in backbone.calibration()]
    size, number = sizes[0], min(len(sizes), max(1, MAX_CALIBRATION_IMAGES // sizes[0]))
    chosen = {round(index) for index in np.linspace(0, len(sizes) - 1, number)}
    batches = (batch for index, batch in enumerate(backbone.calibration()) if index in chosen)
    try:
        written: NDArray[np.float32] | None = None
        for index, batch in enumerate(batches):
            if written is None:
                written = open_memmap(path, "w+", np.float32, (number * size, *batch.shape[1:]))
            written[index * size : (index + 1) * size] = batch
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}.", found=str(error), where=path, hint="Free some space."
        ) from error
    return number * size


def write_host_rows(folder: Path, bundle: Bundle) -> str:
    """Write the rows that the host multiplies features with; return their path relative to the bundle.

    Raises:
        StorageError: If the disk refuses.
    """
    write_file(folder / BAKED_ROWS_NAME, serialize_baked_rows(rows_of(load_onnx_file(folder / MODEL_NAME), bundle)))
    return BAKED_ROWS_NAME


def keep_former(former: Path, folder: Path, bundle: Bundle, runtime: str, files: Sequence[str]) -> list[str]:
    """Take files of a runtime over from the bundle that is compacted, with a sidecar for the new model.

    Returns:
        The files, the sidecar and the new rows, relative to the bundle.

    Raises:
        BundleError: If the former sidecar cannot be read.
        StorageError: If the disk refuses.
    """
    name = converted_sidecar_name(runtime)
    data = read_plain(former / name, max_bytes=MAX_SIDECAR_BYTES, what="sidecar", error_type=BundleError)
    sidecar = replace(parse_converted_sidecar(data), model_sha256=model_sha256(bundle), created_by=__version__)
    try:
        (folder / name).parent.mkdir(exist_ok=True)
        for file in files:
            shutil.copyfile(former / file, folder / file)
    except OSError as error:
        raise StorageError(
            f"Cannot write to {folder / name}: {error.strerror or error}.",
            found=str(error),
            where=folder,
            hint="Free some space.",
        ) from error
    write_file(folder / name, serialize_converted_sidecar(sidecar))
    return [*files, name, write_host_rows(folder, bundle)]
