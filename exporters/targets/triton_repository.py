"""A model repository for Triton Inference Server: backbone and head as two models, and an ensemble of both.

    triton/classifier/            the ensemble: what a client asks
    triton/classifier_backbone/   images -> features; does not change with the classes
    triton/classifier_head/       features -> scores; labels.txt, one line per score

Rules:

1. A class change is a new version of the head alone: its version folder is the head version of the bundle, so that the
   head of a later export goes next to the earlier one, and Triton serves the latest.
2. The number of classes is no part of the ensemble's configuration (`dims: [ -1 ]`), so that it need not change.
3. A model that takes any batch is batched dynamically, up to `MAX_BATCH_SIZE`; one with a fixed batch is not.

Source: Triton's model repository and model configuration, `model_config.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.backbone.inputs import input_batches
from exporters.graph.reading import fixed_batch
from exporters.head.score_kinds import comparable_from_scores
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.triton_split import split_model
from icis_deploy.bundle.manifest import MAX_SLOTS_BYTES, MODEL_NAME, SLOTS_NAME, Bundle
from icis_deploy.bundle.slot_files import parse_slots
from icis_deploy.common.files import read_capped, write_file
from icis_deploy.errors import BundleError, ExportError
from icis_deploy.metrics.parity import GATE_PROFILES, ParityReport, compare_logits
from icis_deploy.runtime.sessions.onnxruntime_session import load_session

TRITON_FOLDER = "triton"
ENSEMBLE, BACKBONE, HEAD = "classifier", "classifier_backbone", "classifier_head"
CONFIG_NAME, LABELS_NAME, PLACEHOLDER_NAME = "config.pbtxt", "labels.txt", "version.txt"
ENSEMBLE_NAME = f"{TRITON_FOLDER}/{ENSEMBLE}/{CONFIG_NAME}"
"""Path of the ensemble's configuration in a bundle."""

MAX_BATCH_SIZE = 32
"""Largest batch that Triton makes of single requests: on a CPU and on small GPUs nothing is gained beyond."""

COMPARED_WITH = "outputs of model.onnx; backbone and head as two models, one after the other"
_TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.UINT8: "TYPE_UINT8",
    ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT64: "TYPE_INT64",
}
_ONNX_RUNTIME, _ENSEMBLE = "onnxruntime_onnx", "ensemble"


def write_triton_repository(folder: Path, bundle: Bundle) -> tuple[str, ...]:
    """Write a model repository from a bundle's `model.onnx`.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Returns:
        The files that were written, relative to `folder`.

    Raises:
        ExportError: If the model cannot be cut in two, or has a type that Triton does not know.
        StorageError: If the disk refuses.
    """
    model = load_onnx_file(folder / MODEL_NAME)
    parts = split_model(model, num_classes=len(bundle.class_names), feature_dim=bundle.feature_dim)
    version = str(max(1, bundle.head_version))
    root = folder / TRITON_FOLDER
    written: list[Path] = []
    for name, part, number in ((BACKBONE, parts.backbone, "1"), (HEAD, parts.head, version)):
        (root / name / number).mkdir(parents=True)
        written += save_model(part, root / name / number / MODEL_NAME)
        labels = LABELS_NAME if name == HEAD else None
        written.append(_write(root / name / CONFIG_NAME, model_config(name, part, labels=labels)))
    written.append(_write(root / HEAD / LABELS_NAME, "\n".join(score_labels(folder, bundle)) + "\n"))
    (root / ENSEMBLE / "1").mkdir(parents=True)
    # Triton requires a version folder of an ensemble too, and an empty folder is lost when files are copied.
    written.append(_write(root / ENSEMBLE / "1" / PLACEHOLDER_NAME, "An ensemble has no file of its own.\n"))
    written.append(_write(root / ENSEMBLE / CONFIG_NAME, ensemble_config(parts.backbone, parts.head)))
    return tuple(path.relative_to(folder).as_posix() for path in written)


def compare_parts(folder: Path, bundle: Bundle) -> ParityReport:
    """Run both parts of a repository in ONNX Runtime, one after the other, and compare with the bundle's model."""
    version = str(max(1, bundle.head_version))
    root = folder / TRITON_FOLDER
    whole, backbone, head = (
        load_session(path)
        for path in (folder / MODEL_NAME, root / BACKBONE / "1" / MODEL_NAME, root / HEAD / version / MODEL_NAME)
    )
    expected, found = [], []
    graph = load_onnx_file(root / BACKBONE / "1" / MODEL_NAME).graph
    inputs = input_batches(bundle.model_input, bundle.preprocessing, None, fixed_batch=fixed_batch(graph.inputs[0]))
    for batch in inputs:
        expected.append(whole.run(batch.given).logits)
        found.append(head.run(backbone.run(batch.given).logits).logits)
    kind = bundle.score_kind
    # Between two models features are float16; within one, ONNX Runtime omits that rounding on a CPU.
    precision = "fp16" if graph.outputs[0].dtype == ir.DataType.FLOAT16 else "fp32"
    return compare_logits(
        comparable_from_scores(np.concatenate(expected), kind),
        comparable_from_scores(np.concatenate(found), kind),
        profile=GATE_PROFILES[precision],
        compared_with=COMPARED_WITH,
    )


def score_labels(folder: Path, bundle: Bundle) -> tuple[str, ...]:
    """Return a label for every score, in order: classes, and for an updatable head its empty slots.

    Raises:
        ExportError: If a class's name has a line break, which a label file cannot hold.
        BundleError: If the slots cannot be read.
    """
    names = bundle.class_names
    if bundle.capacity:
        data = read_capped(folder / SLOTS_NAME, max_bytes=MAX_SLOTS_BYTES, what="slot table", error_type=BundleError)
        slots = parse_slots(data, capacity=bundle.capacity, feature_dim=bundle.feature_dim).class_names
        names = (*names, *(name or f"(empty slot {index})" for index, name in enumerate(slots)))
    broken = [name for name in names if len(name.splitlines()) != 1]
    if broken:
        raise ExportError(
            f"Triton's label file has one class a line; {broken[0]!r} has more.",
            found=broken[0],
            hint="Rename the class.",
        )
    return names


def model_config(name: str, model: ir.Model, *, labels: str | None) -> str:
    """Return the config.pbtxt of a model that ONNX Runtime runs.

    Args:
        name: Its folder.
        model: The model.
        labels: Name of the label file of its first output, if it has one.
    """
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    batch = _max_batch_size(inputs[0])
    described = [_tensor(value, batch) for value in outputs]
    if labels is not None:
        described[0]["label_filename"] = labels
    fields: dict[str, Any] = {
        "name": name,
        "platform": _ONNX_RUNTIME,
        "max_batch_size": batch,
        "input": [_tensor(value, batch) for value in inputs],
        "output": described,
        "version_policy": {"latest": {"num_versions": 1}},
    }
    return _pbtxt(fields | ({"dynamic_batching": {}} if batch else {}))


def ensemble_config(backbone: ir.Model, head: ir.Model) -> str:
    """Return the config.pbtxt of the ensemble of a backbone and a head."""
    batch = _max_batch_size(backbone.graph.inputs[0])
    outputs = [_tensor(value, batch) for value in head.graph.outputs]
    outputs[0]["dims"] = [*outputs[0]["dims"][:-1], -1]
    steps = [
        {
            "model_name": name,
            "model_version": -1,
            "input_map": [{"key": str(value.name), "value": str(value.name)} for value in part.graph.inputs],
            "output_map": [{"key": str(value.name), "value": str(value.name)} for value in part.graph.outputs],
        }
        for name, part in ((BACKBONE, backbone), (HEAD, head))
    ]
    return _pbtxt(
        {
            "name": ENSEMBLE,
            "platform": _ENSEMBLE,
            "max_batch_size": batch,
            "input": [_tensor(value, batch) for value in backbone.graph.inputs],
            "output": outputs,
            "ensemble_scheduling": {"step": steps},
        }
    )


def _max_batch_size(images: ir.Value) -> int:
    return MAX_BATCH_SIZE if fixed_batch(images) is None else 0


def _tensor(value: ir.Value, max_batch_size: int) -> dict[str, Any]:
    """Return an input or output as a configuration states it: without its batch axis where Triton batches."""
    if value.dtype not in _TYPES or value.shape is None:
        raise ExportError(
            f"Triton cannot hold {value.name!r} of type {value.dtype} and shape {value.shape}.",
            found=(str(value.dtype), str(value.shape)),
            where=value.name,
        )
    dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    return {
        "name": str(value.name),
        "data_type": _Word(_TYPES[value.dtype]),
        "dims": dims[1:] if max_batch_size else dims,
    }


class _Word(str):
    """The name of an enumeration's value, which stands without quotes."""

    __slots__ = ()


def _write(path: Path, text: str) -> Path:
    write_file(path, text.encode())
    return path


def _pbtxt(fields: Mapping[str, Any], indent: str = "") -> str:
    """Return fields in protobuf's text format."""
    lines = []
    for name, value in fields.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for each in values:
            if isinstance(each, Mapping):
                lines.append(f"{indent}{name} {{\n{_pbtxt(each, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(each)}\n")
    return "".join(lines)


def _scalar(value: str | int) -> str:
    if isinstance(value, _Word) or not isinstance(value, str):
        return str(value)
    # Bytes as octal escapes: whatever a tensor is called, the file stays plain ASCII.
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode()
    )
    return f'"{escaped}"'
