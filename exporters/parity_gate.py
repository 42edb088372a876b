"""The parity gate: run a finished bundle beside what it was made from, and compare.

Three comparisons, each of which catches what the others cannot:

1. *The expanded head in float64.* The original backbone's features, times all rows, against the bundle's logits: a
   transposed, dropped, reordered or stale row, in whatever way the head was rewritten.
2. *The original model in its own runtime.* Its logits against the bundle's logits of the seen classes: a conversion
   that changed the backbone, which the first comparison would follow into the error.
3. *Slots.* The defaults baked into the model must be the slots that the bundle states, and no empty slot may win.

The bundle is run in the runtime that is asked for, its references in ONNX Runtime on the CPU and in the original's own.

Everything is run first, then compared; an input is prepared once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.head_finding import HeadLocation
from exporters.head_surgery import SLOT_BIAS, SLOT_WEIGHT, add_features_output
from exporters.model_loading import LoadedModel
from exporters.onnx_files import load_initializers, serialize_model
from exporters.scores import comparable, log_softmax
from icis_deploy.bundle import MODEL_NAME, Bundle
from icis_deploy.head import Head
from icis_deploy.images import iterate_batches
from icis_deploy.neutral_images import neutral_images
from icis_deploy.parity import GATE_PROFILES, ParityReport, compare_logits
from icis_deploy.preprocessing import Preprocessing
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.onnxruntime_session import load_session
from icis_deploy.runtime.runtimes import Runtime
from icis_deploy.slots import SlotTable

NUM_SEEDED_INPUTS = 64
BATCH_SIZE = 16
SEED = 20230810
EXPANDED_HEAD = "features of the original backbone and the expanded head in float64"
ORIGINAL_MODEL = "logits of the original model in its own runtime, seen classes only"

Float64 = NDArray[np.float64]


def gate_inputs(
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    images: Sequence[Path] | None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[NDArray[np.float32]]:
    """Yield the batches that both sides of a comparison are run on.

    Args:
        shape: Shape of one input, without the batch.
        preprocessing: How images are prepared; also what gives the seeded inputs the range of real ones.
        images: Image files to use; `None` for seeded inputs.
        batch_size: Inputs in a batch; the last one may be smaller.

    Yields:
        `(batch, *shape)` float32.
    """
    if images is not None and preprocessing is not None:
        yield from iterate_batches(images, preprocessing, batch_size=batch_size)
        return
    inputs = seeded_inputs(shape, preprocessing, num_inputs=NUM_SEEDED_INPUTS, seed=SEED)
    for start in range(0, len(inputs), batch_size):
        yield inputs[start : start + batch_size]


def seeded_inputs(
    shape: tuple[int, ...], preprocessing: Preprocessing | None, *, num_inputs: int, seed: int
) -> NDArray[np.float32]:
    """Return inputs as a model might get them: procedural pictures for an image model, noise for any other.

    Args:
        shape: Shape of one input, without the batch.
        preprocessing: Applied to the pictures; without it they are scaled to -1..1.
        num_inputs: How many.
        seed: The same seed gives the same inputs.

    Returns:
        `(num_inputs, *shape)` float32.
    """
    if not is_image_input(shape, preprocessing):
        return np.random.default_rng(seed).uniform(-1, 1, (num_inputs, *shape)).astype(np.float32)
    channels, *size = _channels_first(shape, preprocessing)
    pictures = neutral_images(num_inputs, size[0], size[1], seed=seed)[:, :channels]
    if preprocessing is None:
        return np.asarray(2 * pictures - 1, dtype=np.float32)
    return preprocessing.normalize(pictures.transpose(0, 2, 3, 1))


def is_image_input(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> bool:
    """Say whether one input of this shape, without the batch, can be a picture in the layout that is expected."""
    if len(shape) != 3:
        return False
    channels, *size = _channels_first(shape, preprocessing)
    return channels in {1, 3} and min(size) >= 8


def _channels_first(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> tuple[int, ...]:
    is_last = preprocessing is not None and preprocessing.layout == "NHWC"
    return (shape[-1], *shape[:-1]) if is_last else shape


def check_bundle(
    folder: Path,
    bundle: Bundle,
    *,
    loaded: LoadedModel,
    location: HeadLocation,
    expanded: Head,
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
    device = Device.from_parts(folder, bundle, runtime=runtime)
    reference_model = load_session(serialize_model(add_features_output(loaded.model, location)))
    reference: list[Float64] = []
    original: list[Float64] = []
    exported: list[Float64] = []
    slot_failures = _baked_slot_failures(folder / MODEL_NAME, device.state.table)
    fixed = loaded.input_shape[0]
    batch_size = fixed if isinstance(fixed, int) else BATCH_SIZE
    for batch in gate_inputs(bundle.model_input.shape, bundle.preprocessing, images, batch_size=batch_size):
        # A model with a fixed batch takes no smaller last one: it is filled up, and what that gives is not counted.
        inputs = np.resize(batch, (fixed, *batch.shape[1:])) if isinstance(fixed, int) else batch
        features = reference_model.run(inputs, with_features=True).features
        assert features is not None, "add_features_output adds it"
        reference.append(expanded.logits(features)[: len(batch)])
        original.append(np.asarray(loaded.original_logits(inputs, location.output_name), np.float64)[: len(batch)])
        exported.append(device.logits(inputs).values.astype(np.float64)[: len(batch)])
        slot_failures |= _empty_slot_failures(device, inputs)
    kind, profile = bundle.score_kind, GATE_PROFILES["fp32"]
    where = "" if runtime is None or runtime.is_reference else f"; the bundle in {runtime.name}"
    expected, ours = np.concatenate(reference), np.concatenate(exported)
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
