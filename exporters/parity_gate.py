"""The parity gate: run a finished bundle beside what it was made from, and compare.

Three comparisons, each of which catches what the others cannot:

1. *The expanded head in float64.* The original backbone's features, times all rows, against the bundle's logits: a
   transposed, dropped, reordered or stale row, in whatever way the head was rewritten.
2. *The original model in its own runtime.* Its logits against the bundle's logits of the seen classes: a conversion
   that changed the backbone, which the first comparison would follow into the error.
3. *Slots.* The defaults baked into the model must be the slots that the bundle states, and no empty slot may win.

The bundle is run in the runtime that is asked for, its references in ONNX Runtime on the CPU and in the original's own.

Everything is run first, then compared. Models run one after the other, each gone before the next is loaded, and the
rows of the expanded head are read in blocks: so the gate takes what a runtime takes to load the head once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.expanded_head import AnyHead
from exporters.gate_inputs import BATCH_SIZE, SpooledBatches, gate_inputs
from exporters.head_finding import HeadLocation
from exporters.head_surgery import SLOT_BIAS, SLOT_WEIGHT, backbone
from exporters.model_loading import LoadedModel
from exporters.onnx_files import load_initializers, save_model
from exporters.scores import comparable, log_softmax
from icis_deploy.bundle import MODEL_NAME, Bundle
from icis_deploy.parity import GATE_PROFILES, ParityReport, compare_logits
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.onnxruntime_session import load_session
from icis_deploy.runtime.runtimes import Runtime
from icis_deploy.slots import SlotTable

EXPANDED_HEAD = "features of the original backbone and the expanded head in float64"
ORIGINAL_MODEL = "logits of the original model in its own runtime, seen classes only"


def check_bundle(
    folder: Path,
    bundle: Bundle,
    *,
    loaded: LoadedModel,
    location: HeadLocation,
    expanded: AnyHead,
    images: Sequence[Path] | None = None,
    runtime: Runtime | None = None,
) -> tuple[ParityReport, ...]:
    """Run a bundle and what it was made from on the same inputs, and compare.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        loaded: The original model.
        location: Its head.
        expanded: The original head's rows and the injected ones, in the order of the bundle's classes.
        images: Image files to compare on; `None` for seeded inputs.
        runtime: Where the bundle is run; `None` for the default.

    Returns:
        A report for each comparison.

    Raises:
        ModelLoadError: If a runtime cannot load the exported model.
        RuntimeFailureError: If a runtime cannot run it.
    """
    fixed = loaded.input_shape[0]
    batch_size = fixed if isinstance(fixed, int) else BATCH_SIZE
    with closing(
        SpooledBatches(gate_inputs(bundle.model_input.shape, bundle.preprocessing, images, batch_size=batch_size))
    ) as batches:
        inputs = _Inputs(batches=batches, fixed=fixed if isinstance(fixed, int) else None)
        features = _backbone_features(loaded, location, inputs)
        original = [
            np.asarray(loaded.original_logits(filled, location.output_name)[:count]) for filled, count in inputs
        ]
        loaded.release()
        exported, slot_failures = _run_bundle(folder, bundle, inputs, runtime)
    kind, profile = bundle.score_kind, GATE_PROFILES["fp32"]
    where = "" if runtime is None or runtime.is_reference else f"; the bundle in {runtime.name}"
    expected, ours = expanded.logits(features), np.concatenate(exported).astype(np.float64)
    first = compare_logits(
        expected if kind == "logits" else log_softmax(expected),
        ours,
        profile=profile,
        compared_with=EXPANDED_HEAD + where,
    )
    # The device gives logits, or their logarithms; over fewer classes the latter have to be normalised again.
    seen = ours[:, : bundle.num_seen] if kind == "logits" else log_softmax(ours[:, : bundle.num_seen])
    second = compare_logits(
        comparable(np.concatenate(original), kind), seen, profile=profile, compared_with=ORIGINAL_MODEL + where
    )
    return replace(first, failures=(*first.failures, *sorted(slot_failures))), second


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """The gate's batches as a model takes them."""

    batches: SpooledBatches
    """Each `(batch, *input_shape)`."""

    fixed: int | None
    """The only batch size that the model takes, if there is one."""

    def __iter__(self) -> Iterator[tuple[NDArray[Any], int]]:
        """Yield batches and how many of their inputs count; the rest fills up what a fixed batch asks for."""
        for batch in self.batches:
            filled = batch if self.fixed is None else np.resize(batch, (self.fixed, *batch.shape[1:]))
            yield filled, len(batch)


def _backbone_features(loaded: LoadedModel, location: HeadLocation, inputs: _Inputs) -> NDArray[np.float32]:
    """Return the features of the original backbone, `(num_inputs, feature_dim)`, from a model without its head."""
    with tempfile.TemporaryDirectory() as folder:  # a file, and not bytes: a backbone may be larger than a protobuf
        path = Path(folder) / "backbone.onnx"
        save_model(backbone(loaded.model, location), path)
        session = load_session(path)
        features = []
        for filled, count in inputs:
            output = session.run(filled, with_features=True).features
            assert output is not None, "a backbone gives nothing else"
            features.append(output[:count])
    return np.concatenate(features)


def _run_bundle(
    folder: Path, bundle: Bundle, inputs: _Inputs, runtime: Runtime | None
) -> tuple[list[NDArray[np.float32]], set[str]]:
    """Return what a device with the bundle gives, and what is wrong with its slots."""
    device = Device.from_parts(folder, bundle, runtime=runtime)
    exported, slot_failures = [], _baked_slot_failures(folder / MODEL_NAME, device.state.table)
    for filled, count in inputs:
        exported.append(device.logits(filled).values[:count].copy())
        slot_failures |= _empty_slot_failures(device, filled)
    return exported, slot_failures


def _baked_slot_failures(model: Path, table: SlotTable | None) -> set[str]:
    """Return whether a model's slots hold something else than the table where no slots are fed."""
    if table is None:
        return set()
    baked = load_initializers(model, (SLOT_WEIGHT, SLOT_BIAS))
    if all(np.array_equal(found, stated) for found, stated in zip(baked, (table.weight, table.bias), strict=True)):
        return set()
    return {"the slots baked into model.onnx are not those of slots.safetensors"}


def _empty_slot_failures(device: Device, inputs: NDArray[Any]) -> set[str]:
    """Return whether an empty slot comes near a class on these inputs; a fused head has none."""
    state = device.state
    if state.table is None:
        return set()
    given = device.session.run(inputs, state.buffers).logits
    is_empty = np.ones(given.shape[1], dtype=bool)
    is_empty[state.columns] = False
    if is_empty.any() and not (given[:, is_empty].max() < given[:, ~is_empty].min()):
        return {"an empty slot has a greater logit than a class"}
    return set()
