"""Convert a model to ncnn: pnnx converts the backbone, and the head is written behind it, with slots as inputs."""

# Why: docs/decisions/0129.

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from exporters.graph.reading import fixed_batch
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.converted import (
    conversion_failed,
    run_converter,
    unsupported_operators,
    write_sidecar,
)
from exporters.targets.head_parts import backbone_for_conversion, head_parts, head_tensors
from exporters.targets.ncnn_network import SCORES, Layer, parse_layers, serialize_layers, with_head
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.common.files import write_file
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.runtime.sessions.ncnn_session import import_ncnn


def find_pnnx() -> Path | None:
    """Return the program pnnx, of its wheel or on the path; `None` where there is none.

    The wheel's script imports torch to start this program; it is called itself.
    """
    spec = find_spec("pnnx")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).with_name("pnnx.exe" if os.name == "nt" else "pnnx")
        if program.is_file():
            return program
    on_path = shutil.which("pnnx")
    return None if on_path is None else Path(on_path)


def ncnn_obstacle() -> str | None:
    """Return why ncnn files cannot be written here, and what to install; `None` where they can."""
    if find_spec("ncnn") is None:
        return "ncnn is not installed: pip install 'icis-deploy[ncnn]'."
    if find_pnnx() is None:
        return "the converter pnnx is not there: pip install pnnx"
    return None


def write_ncnn(folder: Path, bundle: Bundle) -> Sequence[str]:
    """Convert a bundle's model to ncnn.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Returns:
        The model's two files and its sidecar, relative to the folder.

    Raises:
        IncompatibleError: If the model does not compute in float32, does not take float32 images, or fixes a batch.
        ExportError: If pnnx cannot convert the backbone; operators that ncnn lacks are named.
        StorageError: If the disk refuses.
    """
    program = find_pnnx()
    if program is None:
        raise ExportError("The converter pnnx has gone.", expected="pnnx", hint="Install it: pip install pnnx")
    backbone = backbone_for_conversion(folder, bundle)
    _require_one_float_image(backbone)
    head = head_parts(folder, bundle)
    with tempfile.TemporaryDirectory() as work:
        save_model(backbone, Path(work) / "model.onnx")
        printed = run_converter([str(program), "model.onnx", "fp16=0"], converter="pnnx", folder=Path(work))
        layers = _converted_layers(Path(work) / "model.ncnn.param", printed)
        _require_known(layers, backbone)
        input_name, features_name = _ends(layers)
        layers = with_head(layers, features_name, head)
        weights = (Path(work) / "model.ncnn.bin").read_bytes()
    parameters_name, weights_name = CONVERTED_FILES["ncnn"]
    (folder / parameters_name).parent.mkdir(exist_ok=True)
    write_file(folder / parameters_name, serialize_layers(layers).encode())
    write_file(folder / weights_name, weights + b"".join(layer.weights for layer in layers))
    (image, *slots), (scores, *others) = head_tensors(load_onnx_file(folder / MODEL_NAME), backbone, head)
    converter = f"pnnx {metadata.version('pnnx')}" if find_spec("pnnx") is not None else "pnnx"
    sidecar = write_sidecar(
        folder,
        bundle,
        "ncnn",
        converter=converter,
        inputs=(replace(image, runtime_name=input_name), *slots),
        outputs=(replace(scores, runtime_name=SCORES), *others),
    )
    return parameters_name, weights_name, sidecar


def _require_one_float_image(backbone: ir.Model) -> None:
    image = backbone.graph.inputs[0]
    dtype = "an unknown type" if image.dtype is None else str(image.dtype.numpy())
    batch = fixed_batch(image)
    if dtype != "float32" or batch != 1:
        raise IncompatibleError(
            f"ncnn takes one float32 image at a time; this model takes {batch} of {dtype}.",
            found=(batch, dtype),
            expected=(1, "float32"),
            where=str(image.name),
            hint="Export it with float images and a dynamic batch, or leave this target out.",
        )


def _converted_layers(path: Path, printed: str) -> list[Layer]:
    try:
        return parse_layers(path.read_text())
    except FileNotFoundError:
        raise conversion_failed("pnnx", printed) from None
    except (ValueError, IndexError) as error:
        raise ExportError(f"pnnx wrote no network: {error}.", found=str(error), where=path.name) from error


def _require_known(layers: Sequence[Layer], backbone: ir.Model) -> None:
    """Raise `ExportError` if ncnn has not all layers: pnnx writes operators that it has no layer for as they are."""
    ncnn = import_ncnn()
    unknown = {layer.kind: layer.name for layer in layers if ncnn.layer_to_index(layer.kind) < 0}
    if unknown:
        raise unsupported_operators("ncnn", backbone, list(unknown), converted=unknown)


def _ends(layers: Sequence[Layer]) -> tuple[str, str]:
    """Return the blob of the image and the one that no layer reads, the features."""
    read = {blob for layer in layers for blob in layer.inputs}
    written = [blob for layer in layers for blob in layer.outputs if blob not in read]
    images = [blob for layer in layers if layer.kind == "Input" for blob in layer.outputs]
    if len(written) != 1 or len(images) != 1:
        raise ExportError(
            f"pnnx made a network from {images} to {written}; expected one input and one output.",
            found=(images, written),
            expected=(1, 1),
            where=MODEL_NAME,
            hint="Leave this target out.",
        )
    return images[0], written[0]
