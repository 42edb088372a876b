"""The gate of targets that are another form of `model.onnx`: both run on the same inputs, with the same slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from exporters.backbone.inputs import input_batches
from exporters.graph.reading import fixed_batch
from exporters.head.score_kinds import comparable_from_scores
from exporters.onnx_io.files import load_onnx_file
from icis_deploy.bundle.manifest import MAX_SLOTS_BYTES, MODEL_NAME, SLOTS_NAME, Bundle
from icis_deploy.bundle.slot_files import parse_slots
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.files import read_capped
from icis_deploy.errors import BundleError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.slots import SlotTable
from icis_deploy.metrics.parity import GATE_PROFILES, ParityReport, compare_logits
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.runtime.sessions.protocol import Session


def compare_in_onnxruntime(folder: Path, bundle: Bundle, name: str, compared_with: str) -> ParityReport:
    """Run `model.onnx` and another file of its bundle in ONNX Runtime, and compare their scores.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.
        name: The other file.
        compared_with: What the report says of it.

    Raises:
        ModelLoadError: If ONNX Runtime cannot load one of them.
    """
    return compare_scores(folder, bundle, lambda table: _runs(load_session(folder / name), table), compared_with)


def compare_scores(
    folder: Path, bundle: Bundle, runs_of: Callable[[SlotTable | None], Callable[[Images], Float32]], compared_with: str
) -> ParityReport:
    """Run `model.onnx` in ONNX Runtime, and compare its scores with another form of it.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.
        runs_of: Takes slots and returns what makes scores `(batch, num_outputs)` of a batch of images.
        compared_with: What the report says of it.
    """
    graph = load_onnx_file(folder / MODEL_NAME).graph
    inputs = input_batches(bundle.model_input, bundle.preprocessing, None, fixed_batch=fixed_batch(graph.inputs[0]))
    table = filled_table(folder, bundle)
    whole, other = _runs(load_session(folder / MODEL_NAME), table), runs_of(table)
    expected, found = [], []
    for batch in inputs:
        expected.append(whole(batch.given))
        found.append(other(batch.given))
    return compare_logits(
        comparable_from_scores(np.concatenate(expected), bundle.score_kind),
        comparable_from_scores(np.concatenate(found), bundle.score_kind),
        profile=GATE_PROFILES["fp32"],
        compared_with=compared_with,
    )


def filled_table(folder: Path, bundle: Bundle) -> SlotTable | None:
    """Return the slots of a bundle with random rows in the empty ones, of which all are alike; `None` for a fused head.

    An empty slot's bias would also be the scale that errors are measured on.
    """
    if not bundle.capacity:
        return None
    data = read_capped(folder / SLOTS_NAME, max_bytes=MAX_SLOTS_BYTES, what="slots", error_type=BundleError)
    exported = parse_slots(data, capacity=bundle.capacity, feature_dim=bundle.feature_dim)
    random, filled = np.random.default_rng(0), exported.filled
    weight = random.normal(scale=0.1, size=(bundle.capacity, bundle.feature_dim)).astype(np.float32)
    bias = random.normal(size=bundle.capacity).astype(np.float32)
    arbiter = random.normal(scale=0.1, size=(bundle.capacity, len(STATISTICS))).astype(np.float32)
    weight[filled], bias[filled], arbiter[filled] = (
        exported.weight[filled],
        exported.bias[filled],
        exported.coefficients[filled],
    )
    names = tuple(name or f"random row {slot}" for slot, name in enumerate(exported.class_names))
    return SlotTable(weight=weight, bias=bias, class_names=names, arbiter=arbiter if bundle.arbiter else None)


def _runs(session: Session, table: SlotTable | None) -> Callable[[Images], Float32]:
    slots = None if table is None else session.load_slots(table.weight, table.bias, table.arbiter)
    return lambda images: session.run(images, slots).logits
