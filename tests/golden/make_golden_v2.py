"""Write the golden files of what came after the first formats: see `make_golden.py`, which wrote `v1`.

    python tests/golden/make_golden_v2.py

They hold what `v1` lacks: injected rows, a manifest of schema 2, a journal with taught classes, an engine's sidecar of
schema 2, and a generator's metadata. The sidecar of schema 1, which states no precision, is in `v1`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from icis_deploy.bundle.engine_sidecar import EngineInput, EngineOutput, EngineSidecar, serialize_sidecar
from icis_deploy.bundle.generator_metadata import GeneratorMetadata, Limits, serialize_metadata
from icis_deploy.bundle.manifest import Bundle, FileEntry, ModelInput, file_entry, serialize_manifest
from icis_deploy.bundle.slot_files import serialize_slots
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.runtime.state.journal import HistoryEntry, Journal, StateEntry, serialize_journal

FOLDER = Path(__file__).resolve().parent / "v2"
NAMES = ("okapi", "Bärtierchen 水熊")
TIME = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
INJECTED = SlotTable(
    weight=np.array([[0.5, -1.25, 3.0], [1e-3, 2.0, -7.5]], np.float32),
    bias=np.array([0.25, -6e4], np.float32),
    class_names=NAMES,
)
SIDECAR = EngineSidecar(
    runtime="tensorrt-rtx",
    runtime_version="1.1.1.26",
    platform="linux-x86_64",
    compute_capabilities=("8.6", "8.9"),
    hardware_compatibility="none",
    model_sha256="0" * 64,
    engine_sha256="1" * 64,
    head_fingerprint="2" * 64,
    inputs=(
        EngineInput(
            name="image", dtype="float32", min_shape=(1, 3, 8, 8), opt_shape=(2, 3, 8, 8), max_shape=(4, 3, 8, 8)
        ),
    ),
    outputs=(EngineOutput(name="logits", dtype="float32", shape=(-1, 5)),),
    refittable=("slot_weight",),
    precision="int8",
    created_by="0.1.0",
)
METADATA = GeneratorMetadata(
    base_fingerprint="2" * 64,
    method="ridge",
    descriptor_dim=300,
    feature_dim=1280,
    row_length=Limits(low=0.5, high=2.5),
    row_cosine=Limits(low=-0.25, high=0.75),
    descriptor_length=Limits(low=1.0, high=9.5),
    similarity=Limits(low=0.125, high=0.98),
)
JOURNAL = Journal(
    base_fingerprint="2" * 64,
    states=(
        StateEntry(version=3, slots=FileEntry(sha256="3" * 64, size_bytes=7)),
        StateEntry(version=3, slots=FileEntry(sha256="4" * 64, size_bytes=9), taught=("zebu", NAMES[1])),
    ),
    highest_version=(1 << 63) - 1,
    last_seen=TIME,
    disabled=(NAMES[0],),
    history=(HistoryEntry(sequence=9, time=TIME, action="teach", version=3, num_added=1, class_name=NAMES[1]),),
)


def golden_bundle(injected: FileEntry) -> Bundle:
    """The manifest that is in `manifest.json`: every field has a value of its own."""
    return Bundle(
        head_kind="fused",
        class_names=("cat", *NAMES),
        num_seen=1,
        feature_dim=3,
        capacity=0,
        base_fingerprint="2" * 64,
        head_version=3,
        model_input=ModelInput(name="image", shape=(224, 224, 3), dtype="uint8"),
        score_kind="sigmoid",
        preprocessing=Preprocessing(resize=256, crop=224, mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 1.0), color="BGR"),
        files={
            "model.onnx": FileEntry(sha256="5" * 64, size_bytes=11),
            "model.onnx.data": FileEntry(sha256="6" * 64, size_bytes=1 << 33),
            "injected.safetensors": injected,
        },
        parity=({"passed": True, "max_error": 1e-6},),
        updates=({"added": list(NAMES), "version": 3},),
        precision="int8",
        top=5,
        created_by={"icis-deploy": "0.1.0"},
    )


def main() -> None:
    """Write the files."""
    FOLDER.mkdir()
    (FOLDER / "injected.safetensors").write_bytes(serialize_slots(INJECTED))
    bundle = golden_bundle(file_entry(FOLDER / "injected.safetensors"))
    (FOLDER / "manifest.json").write_bytes(serialize_manifest(bundle))
    (FOLDER / "journal.json").write_bytes(serialize_journal(JOURNAL))
    (FOLDER / "sidecar.json").write_bytes(serialize_sidecar(SIDECAR))
    (FOLDER / "generator-facts.json").write_text(serialize_metadata(METADATA) + "\n")
    first = {name: value for name, value in asdict(SIDECAR).items() if name != "precision"} | {"schema_version": 1}
    (FOLDER.parent / "v1" / "sidecar.json").write_text(json.dumps(first, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        main()
    except FileExistsError:
        raise SystemExit(f"{FOLDER} is there already, and golden files are never replaced.") from None
    except BaseException:
        shutil.rmtree(FOLDER)
        raise
