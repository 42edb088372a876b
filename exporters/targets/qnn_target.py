"""Quantize a bundle's backbone for Qualcomm NPUs: activations of 16 bits, weights of 8, as a graph with Q and DQ nodes.

ONNX Runtime's QNN provider compiles such a graph on the device. The converter of Qualcomm's own SDK is on no package
index. With activations of 8 bits and slots inside the graph, a fifth of the answers changed; the head is on the host.

Source: onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, "Generating a quantized model".
"""

# Why: docs/decisions/0146.

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

from exporters.conversion.int8 import CalibratedBackbone, calibration_reader, quantizing_quietly
from exporters.onnx_io.files import first_line, save_model
from exporters.targets.converted import keep_converted, tensors_of, write_sidecar
from exporters.targets.quantized import Quantizable, backbone_to_quantize, keep_former, write_host_rows
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.files import write_file
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.runtime.sessions.qnn_session import QNN_OPTIONS, QNN_PROVIDER, QNN_SESSION_ENTRIES

OPTIONS_NAME = "qnn/session.json"
"""What whoever loads the graph without icis-deploy tells ONNX Runtime."""


def write_qnn(folder: Path, bundle: Bundle, quantizable: Quantizable) -> Sequence[str]:
    """Write a bundle's backbone for ONNX Runtime's QNN provider.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.
        quantizable: The backbone and the images of an int8 bundle.

    Returns:
        The graph, what a session of it is told, its sidecar and the rows of the head, relative to the folder.

    Raises:
        IncompatibleError: If the bundle is not int8, or takes pixels.
        ExportError: If ONNX Runtime cannot quantize the backbone.
        StorageError: If the disk refuses.
    """
    if bundle.precision != "int8":
        raise IncompatibleError(
            f"The model computes in {bundle.precision}; a Qualcomm NPU takes integers.",
            found=bundle.precision,
            expected="int8",
            hint="Export it with `precision='int8'` and `calibration_images`, or leave this target out.",
        )
    (name,) = CONVERTED_FILES["qnn"]
    if quantizable.former is not None:
        return keep_former(quantizable.former, folder, bundle, "qnn", [name, OPTIONS_NAME])
    backbone = backbone_to_quantize(quantizable, bundle)
    _quantize(backbone, folder / name)
    options = {
        "execution_provider": QNN_PROVIDER,
        "provider_options": dict(QNN_OPTIONS),
        "session_config_entries": dict(QNN_SESSION_ENTRIES),
    }
    write_file(folder / OPTIONS_NAME, (json.dumps(options, indent=1) + "\n").encode())
    sidecar = write_sidecar(
        folder,
        bundle,
        "qnn",
        converter=f"onnxruntime {metadata.version('onnxruntime')}, activations uint16, weights int8",
        inputs=tensors_of(backbone.model.graph.inputs),
        outputs=tensors_of(backbone.model.graph.outputs),
    )
    return [name, OPTIONS_NAME, sidecar, write_host_rows(folder, bundle)]


def _quantize(backbone: CalibratedBackbone, path: Path) -> None:
    """Write the quantized graph; weights are rounded per channel, as its biases were corrected for."""
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

    image = str(backbone.model.graph.inputs[0].name)
    with tempfile.TemporaryDirectory(prefix="icis-qnn-") as work, quantizing_quietly():
        source, prepared, written = (Path(work) / name for name in ("float.onnx", "prepared.onnx", "qnn.onnx"))
        save_model(backbone.model, source)
        try:
            model = prepared if qnn_preprocess_model(str(source), str(prepared)) else source
            settings = get_qnn_qdq_config(
                str(model),
                calibration_reader(image, backbone.calibration()),
                activation_type=QuantType.QUInt16,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
            quantize(str(model), str(written), settings)
            _without_notes(written)
        except Exception as error:  # onnxruntime.quantization raises any type
            raise ExportError(
                f"ONNX Runtime cannot quantize this backbone for QNN: {first_line(error)}.", found=first_line(error)
            ) from error
        keep_converted(written, path)


def _without_notes(path: Path) -> None:
    """Take off what exporters note of a node: the lines of a developer's files that it came of."""
    model = ir.load(path)
    for node in model.graph:
        node.metadata_props.clear()
    save_model(model, path)
