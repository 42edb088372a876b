"""Convert a model to LiteRT by onnx2tf: in float32 with slots as inputs, in int8 the backbone alone.

onnx2tf needs TensorFlow and releases of numpy and onnx that contradict ours: it lives in an environment of its own, and
runs as a program. Only what it writes comes here.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.conversion.int8 import CalibratedBackbone
from exporters.onnx_io.files import save_model
from exporters.targets.converted import (
    conversion_failed,
    graph_for_conversion,
    keep_converted,
    run_converter,
    tensors_of,
    unsupported_operators,
    write_sidecar,
)
from exporters.targets.quantized import (
    Quantizable,
    backbone_to_quantize,
    keep_former,
    write_calibration,
    write_host_rows,
)
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, ConvertedTensor
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.user_folders import user_cache
from icis_deploy.errors import ExportError
from icis_deploy.runtime.sessions.litert_session import import_litert

CONVERTER_PACKAGES = (
    "onnx2tf==1.29.24", "tensorflow-cpu==2.19.*", "tf_keras==2.19.*", "onnx==1.19.*", "numpy==1.26.*",
    "onnx_graphsurgeon", "ai-edge-litert", "sng4onnx", "onnxsim-prebuilt", "psutil",
)  # fmt: skip
"""What was installed and tried together; 2.6 GB."""

_UNSUPPORTED = re.compile(r"(?:ERROR:|\[31mERROR:).*?([A-Za-z]+) OP is not yet implemented")


def converter_folder() -> Path:
    """Return the environment that onnx2tf is looked for in where it is not on the path; it may not exist."""
    return user_cache() / "converters" / "onnx2tf"


def find_converter() -> Path | None:
    """Return the program onnx2tf, on the path or in an environment of its own; `None` where there is none."""
    on_path = shutil.which("onnx2tf")
    own = converter_folder() / ("Scripts/onnx2tf.exe" if os.name == "nt" else "bin/onnx2tf")
    return Path(on_path) if on_path is not None else own if own.is_file() else None


def litert_obstacle() -> str | None:
    """Return why LiteRT files cannot be written here, and what to install; `None` where they can."""
    if find_spec("ai_edge_litert") is None:
        return "LiteRT is not installed: pip install 'icis-deploy[litert]'."
    if find_converter() is None:
        folder = converter_folder()
        packages = " ".join(f"'{package}'" for package in CONVERTER_PACKAGES)
        return (
            f"the converter onnx2tf is not there. It needs an environment of its own, of 2.6 GB: "
            f"python3.11 -m venv {folder} && {folder}/bin/pip install {packages}"
        )
    return None


def write_litert(folder: Path, bundle: Bundle, quantizable: Quantizable) -> Sequence[str]:
    """Convert a bundle's model to LiteRT: all of it in float32, or its backbone in int8.

    In int8, weights are rounded per channel and activations per tensor, on the export's calibration images; the
    features come out as floats, and rows and slots are multiplied with them on the host.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.
        quantizable: The backbone and the images of an int8 bundle.

    Returns:
        The model, its sidecar and, for int8, the rows of the head, relative to the folder.

    Raises:
        IncompatibleError: If the model computes in float16, or in int8 and cannot be quantized again.
        ExportError: If onnx2tf cannot convert the model, or gives it other inputs or outputs.
        StorageError: If the disk refuses.
    """
    (name,) = CONVERTED_FILES["litert"]
    if bundle.precision != "int8":
        return [name, _convert(graph_for_conversion(folder, bundle), folder, bundle)]
    if quantizable.former is not None:
        return keep_former(quantizable.former, folder, bundle, "litert", [name])
    backbone = backbone_to_quantize(quantizable, bundle)
    return [name, _convert(backbone.model, folder, bundle, calibrated=backbone), write_host_rows(folder, bundle)]


def _convert(model: ir.Model, folder: Path, bundle: Bundle, *, calibrated: CalibratedBackbone | None = None) -> str:
    """Run onnx2tf and keep its model; return the sidecar's path relative to the bundle."""
    (name,) = CONVERTED_FILES["litert"]
    converter = find_converter()
    if converter is None:
        raise ExportError("The converter onnx2tf has gone.", expected="onnx2tf", where=converter_folder())
    inputs = [str(value.name) for value in model.graph.inputs]
    with tempfile.TemporaryDirectory() as work:
        save_model(model, Path(work) / "model.onnx")
        quantizing = [] if calibrated is None else _quantizing(inputs[0], calibrated, Path(work))
        printed = run_converter(
            # Inputs keep their shape: by itself it turns images round to channels last, and weights with them.
            [str(converter), "-i", "model.onnx", "-o", "converted", "-nuo", *quantizing, "-kat", *inputs],
            converter="onnx2tf",
            folder=Path(work),
        )
        kind = "float32" if calibrated is None else "integer_quant"
        written = Path(work) / "converted" / f"model_{kind}.tflite"
        if (found := _UNSUPPORTED.search(printed)) is not None:
            raise unsupported_operators("onnx2tf", model, [found[1]])
        if not written.is_file():
            raise conversion_failed("onnx2tf", printed)
        keep_converted(written, folder / name)
    converted_inputs, converted_outputs = _tensors(folder / name, model)
    return write_sidecar(
        folder, bundle, "litert", converter=_stated(converter), inputs=converted_inputs, outputs=converted_outputs
    )


def _quantizing(image: str, calibrated: CalibratedBackbone, work: Path) -> list[str]:
    """Write the calibration images, and return the options of onnx2tf that quantize on them as they are."""
    write_calibration(work / "images.npy", calibrated)
    unchanged = ("[0.0]", "[1.0]")  # their mean and their deviation, by which it would standardise them
    return ["-oiqt", "-iqd", "float32", "-oqd", "float32", "-cind", image, "images.npy", *unchanged]


def _stated(converter: Path) -> str:
    """Return the converter with its version, from the folder of its distribution; starting it takes TensorFlow."""
    found = sorted(converter.resolve().parent.parent.glob("[Ll]ib/**/site-packages/onnx2tf-*.dist-info"))
    return f"onnx2tf {found[-1].name.split('-')[1].removesuffix('.dist')}" if found else "onnx2tf"


def _tensors(path: Path, model: ir.Model) -> tuple[tuple[ConvertedTensor, ...], tuple[ConvertedTensor, ...]]:
    """Return inputs and outputs with the names that they have in the converted model, which its signature maps."""
    try:
        interpreter = import_litert()(model_path=str(path))
        (signature,) = interpreter.get_signature_list()
        runner = interpreter.get_signature_runner(signature)
        found = runner.get_input_details(), runner.get_output_details()
    except ValueError as error:
        raise ExportError(
            f"LiteRT cannot read what onnx2tf made: {error}.", found=str(error), where=path.name
        ) from error
    return (
        _renamed(tensors_of(model.graph.inputs), found[0]),
        _renamed(tensors_of(model.graph.outputs), found[1]),
    )


def _renamed(
    tensors: Sequence[ConvertedTensor], details: Mapping[str, Mapping[str, Any]]
) -> tuple[ConvertedTensor, ...]:
    renamed = []
    for tensor in tensors:
        # A quantized model has lost the names of its outputs; one alone is no other's.
        detail = next(iter(details.values())) if len(tensors) == len(details) == 1 else details.get(tensor.name)
        if detail is None or tuple(detail["shape"]) != tensor.shape:
            found = {name: tuple(int(size) for size in each["shape"]) for name, each in details.items()}
            raise ExportError(
                f"onnx2tf made no {tensor.name!r} of shape {tensor.shape}; it made {found}.",
                found=found,
                expected=(tensor.name, tensor.shape),
                where=tensor.name,
            )
        dtype = np.dtype(detail["dtype"]).name
        renamed.append(replace(tensor, runtime_name=str(detail["name"]), dtype=dtype))
    return tuple(renamed)
