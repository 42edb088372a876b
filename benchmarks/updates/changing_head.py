"""A head that changes again and again in a way that every answer can be checked: which version gave it, and wholly.

Each update replaces the classes of the one before by new ones, with names, rows and a scale of its own, so rows of one
version under the names of another are noticed. What a version answers on a few fixed inputs is computed from their
features and the update's rows in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.updates.bundle_copy import BundleCopy, slot_table
from icis_deploy.common.arrays import Float64, Images
from icis_deploy.errors import UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.answers import Prediction, top_predictions
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions.choice import Runtime

NUM_INPUTS = 8
TOP = 3
MAX_SEEDS = 64
PROBABILITY_TOLERANCE = 1e-3
"""Of a probability. Two versions differ by a tenth or more, and float32 by a ten-thousandth."""


@dataclass(slots=True, kw_only=True)
class ChangingHead:
    """A device of a bundle's copy, and the updates that were made for it."""

    device: Device
    copy: BundleCopy
    inputs: list[Images]
    """`NUM_INPUTS` of `(1, *input_shape)`."""

    features: Float64
    seen_logits: Float64
    num_new_classes: int
    exported: SlotTable
    updates: dict[int, ClassUpdate] = field(default_factory=dict)


def changing_head(copy: BundleCopy, runtime: Runtime | None, num_new_classes: int) -> ChangingHead:
    """Open a bundle, and choose the inputs that answers are checked on.

    Args:
        copy: The bundle.
        runtime: Where the model is loaded; `None` for one thread inside the runtime, since the requests are parallel.
        num_new_classes: Classes in each update.

    Raises:
        UsageError: If the model gives no features by which answers could be checked.
        ICISDeployError: As `Device.open`.
    """
    device = Device.open(copy.folder, runtime=Runtime(num_threads=1) if runtime is None else runtime)
    num_baked = len(device.bundle.class_names)
    inputs: list[Images] = []
    features, seen_logits = [], []
    for seed in range(MAX_SEEDS):
        images = self_test_input(device.bundle, seed)
        output = session_of(device).run(images, state_of(device).buffers, with_features=True)
        if output.features is not None and output.features.any():
            inputs.append(images)
            features.append(output.features)
            seen_logits.append(output.logits[:, :num_baked])
        if len(inputs) == NUM_INPUTS:
            break
    else:
        raise UsageError(
            "The model's features, by which answers are checked, are missing or zero.",
            hint="Export it again.",
        )
    return ChangingHead(
        device=device,
        copy=copy,
        inputs=inputs,
        features=np.concatenate(features).astype(np.float64),
        seen_logits=np.concatenate(seen_logits).astype(np.float64),
        num_new_classes=num_new_classes,
        exported=slot_table(device),
    )


def next_update(head: ChangingHead) -> bytes:
    """Return the next update, signed: for each input one class that wins by a margin of this version's own."""
    version = head.device.bundle.head_version + len(head.updates) + 1
    random = np.random.default_rng(version)
    towards = head.features[np.arange(head.num_new_classes) % NUM_INPUTS]
    aim = head.seen_logits.max(axis=1)[np.arange(head.num_new_classes) % NUM_INPUTS] + 0.25 * (version % 8)
    # Every class after the first of its input is weaker, by an amount that is drawn.
    aim -= np.where(np.arange(head.num_new_classes) < NUM_INPUTS, 0.0, random.uniform(1.0, 4.0, len(aim)))
    weight = towards * (aim / np.square(towards).sum(axis=1))[:, None]
    previous = head.updates.get(version - 1)
    update = ClassUpdate(
        base_fingerprint=head.device.bundle.base_fingerprint,
        rows=np.concatenate([weight, np.zeros((len(weight), 1))], axis=1).astype(np.float32),
        added=tuple(f"version {version} class {index}" for index in range(head.num_new_classes)),
        removed=head.exported.filled_names if previous is None else previous.added,
        version=version,
        self_test_seed=version,
    )
    head.updates[version] = update
    return head.copy.signed(update)


def expected_answer(head: ChangingHead, version: int, index: int) -> Prediction | None:
    """Return what a version must answer on an input; `None` if there is no such version."""
    if version in head.updates:
        added, rows = head.updates[version].added, head.updates[version].rows.astype(np.float64)
    elif version == head.device.bundle.head_version:
        added, rows = head.exported.filled_names, head.exported.rows().astype(np.float64)
    else:
        return None
    names = (*head.device.bundle.class_names, *added)
    logits = np.concatenate([head.seen_logits[index], rows[:, :-1] @ head.features[index] + rows[:, -1]])
    return top_predictions(logits[None].astype(np.float32), TOP, class_names=names, version=version)[0]


def count_wrong(head: ChangingHead, answers: Iterable[tuple[int, Prediction]]) -> tuple[int, int]:
    """Return how many answers are torn, and how many have a wrong first class.

    Args:
        head: The head that answered.
        answers: Each with the index of its input, `TOP` classes long.
    """
    num_torn = num_wrong = 0
    expected: dict[tuple[int, int], Prediction | None] = {}
    for index, found in answers:
        key = (found.version, index)
        if key not in expected:
            expected[key] = expected_answer(head, *key)
        own = expected[key]
        num_torn += own is None or not _is_of_version(found, own)
        num_wrong += own is not None and not has_expected_label(found, own)
    return num_torn, num_wrong


def has_expected_label(found: Prediction, expected: Prediction) -> bool:
    """Say whether the first class is a version's, or as probable as that one within the tolerance."""
    chances = dict(zip(expected.class_names, expected.probabilities, strict=True))
    return expected.probabilities[0] - chances.get(found.class_names[0], -1.0) <= PROBABILITY_TOLERANCE


def _is_of_version(found: Prediction, expected: Prediction) -> bool:
    """Say whether an answer is a version's: its classes, and their probabilities."""
    differences = np.abs(np.subtract(found.probabilities, expected.probabilities))
    if (differences > PROBABILITY_TOLERANCE).any():
        return False
    # Classes whose probabilities are as close as the tolerance may be in the other order.
    return all(
        name in expected.class_names or probability - expected.probabilities[-1] <= PROBABILITY_TOLERANCE
        for name, probability in zip(found.class_names, found.probabilities, strict=True)
    )
