"""Outcomes of inputs on a device.

`outcomes_of` is a function of one batch: the same on one machine, and on a cluster, whose workers have a device each.
`measure` calls it for a source of any length. Each thread prepares its own batch and runs the model on it: what Pillow,
numpy and the runtimes do leaves Python's lock to the others, and small batches, whose activations stay in a core's
cache, one for each core, use less time than one large batch on all cores.

Outcomes are the same to the bit whatever the batches are, so batches are even: ONNX Runtime computes the last row of an
odd number of them by another kernel, which rounds otherwise (MLAS, sgemm).
"""

# Why: docs/decisions/0152, 0153.

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Literal, Protocol, TypeAlias

import numpy as np

from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.common.ahead import map_ahead
from icis_deploy.common.arrays import Images
from icis_deploy.errors import ImageError, IncompatibleError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.inputs import BatchMemory, InputForm, prepare
from icis_deploy.images.sources import InputItem, InputStream, InputValue
from icis_deploy.metrics.accuracy import checked_logits
from icis_deploy.metrics.averages import Logits
from icis_deploy.metrics.outcomes import OutcomeHead, Outcomes, Skipped, measure_outcomes, merge
from icis_deploy.runtime.device import Device, runtime_of, state_of
from icis_deploy.runtime.open_bundle import input_form
from icis_deploy.runtime.sessions.choice import loaded_files

ACCELERATOR_BATCH_SIZE = 32
"""Inputs that the model is run on at once where that is not on a CPU: an accelerator is not full with less."""

_LARGEST_BATCH = 16
_INPUT_BYTES_OF_A_BATCH = 1 << 20
_WEIGHT_BYTES_OF_AN_INPUT = 1 << 23
"""Of batches on a CPU: what is gained with more inputs is less than their memory is worth; how many bytes of small
inputs are worth a run; and how many bytes of weights are read once for each input of a batch."""

INPUTS_OF_A_PIECE = 32
"""Inputs whose outcomes are found together: that takes some sixty calls of numpy, however many they are."""

_ROWS_OF_A_PIECE = 1 << 14

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of inputs that are done."""

OnError: TypeAlias = Literal["stop", "skip"]

Engine: TypeAlias = "Callable[[Iterable[Sequence[InputItem]]], Iterator[Done]]"
"""Measures batches of inputs, in any order, and takes them one by one."""


class Checkpoint(Protocol):
    """What keeps outcomes while others are measured."""

    def is_done(self, items: Sequence[InputItem]) -> Sequence[bool]:
        """Say which inputs have outcomes."""

    def add(self, outcomes: Outcomes, keys: Sequence[str]) -> None:
        """Keep outcomes of inputs."""

    def outcomes(self) -> Iterator[Outcomes]:
        """Yield all outcomes that are kept, those that were there before too."""


def piece_size(batch_size: int) -> int:
    """Return how many inputs a thread is given at once: whole batches."""
    return batch_size * max(1, INPUTS_OF_A_PIECE // batch_size)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def default_batch_size(device: Device) -> int:
    """Return how many inputs a thread runs a device's model on at once.

    It follows from the bundle and the runtime alone: a choice by measurement would be another one every time, and not
    every runtime gives the same bits for every batch.
    """
    runtime, bundle = runtime_of(device), device.bundle
    if not runtime.computes_on_cpu:
        return ACCELERATOR_BATCH_SIZE
    weight_bytes = sum(bundle.files[name].size_bytes for name in loaded_files(bundle, runtime))
    return cpu_batch_size(weight_bytes=weight_bytes, num_values=math.prod(bundle.model_input.shape))


def cpu_batch_size(*, weight_bytes: int, num_values: int) -> int:
    """Return how many inputs one core runs a model on at once, a power of two from 2 to 16.

    What a run costs, by itself and for reading the weights, is shared by the inputs of a batch; but the more there are,
    the less of their activations stays in the core's cache.

    Args:
        weight_bytes: What the runtime loads.
        num_values: Numbers of one input.
    """
    # Activations are float32 whatever the input is.
    wanted = max(_INPUT_BYTES_OF_A_BATCH / (4 * num_values), weight_bytes / _WEIGHT_BYTES_OF_AN_INPUT)
    return 1 << math.ceil(math.log2(min(max(2, wanted), _LARGEST_BATCH)))


def outcome_head(device: Device, unseen: Collection[str] | None = None) -> OutcomeHead:
    """Return the classes that inputs are measured on, with the state of the device that they come from.

    Args:
        device: With the head that answers now.
        unseen: The classes that count as unseen; by default those that the original model lacks. One that the head
            lacks counts as never recognised.
    """
    state, original = state_of(device), frozenset(device.bundle.seen_names)
    unseen_names = frozenset(set(state.class_names) - original if unseen is None else unseen)
    names = (*state.class_names, *sorted(unseen_names - set(state.class_names)))
    table = state.table
    return OutcomeHead(
        class_names=names,
        is_seen=np.array([name not in unseen_names for name in names]),
        is_original=np.array([name in original for name in names]),
        has_original=True,
        version=state.version,
        digest=_digest(device.bundle, table),
    )


def _digest(bundle: Bundle, table: SlotTable | None) -> str:
    """Return what tells one model with its classes from another, 64 hexadecimal digits."""
    model = bundle.files.get(MODEL_NAME)
    parts = (bundle.base_fingerprint, "" if model is None else model.sha256, "" if table is None else table.digest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def outcomes_of(
    device: Device, inputs: Sequence[InputValue], *, labels: Sequence[str], keys: Sequence[str], head: OutcomeHead
) -> Outcomes:
    """Return the outcomes of one batch.

    Args:
        device: Runs the model.
        inputs: At least one: files, bytes of files, pictures or arrays.
        labels: `(num_inputs,)`, the names of the classes that they show.
        keys: `(num_inputs,)`, what each is called; no two inputs of an evaluation have the same.
        head: From `outcome_head` of the same device.

    Raises:
        ImageError: If one cannot be read, or shows a class that the head does not have.
        IncompatibleError: If the device has changed its classes since `head` was made, or gives NaN.
        RuntimeFailureError: If the runtime fails.
    """
    return outcomes_of_prepared(device, prepare(inputs, input_form(device.bundle), keys=keys), labels, keys, head)


def outcomes_of_prepared(
    device: Device, prepared: Images, labels: Sequence[str], keys: Sequence[str], head: OutcomeHead
) -> Outcomes:
    """Return the outcomes of one batch `(num_inputs, *input_shape)`; otherwise as `outcomes_of`."""
    return _outcomes_of_scores(_scores(device, prepared, head), labels, keys, head)


def _scores(device: Device, prepared: Images, head: OutcomeHead) -> Logits:
    """Return `(num_inputs, num_classes)` logits of a device that still has the classes of a head."""
    num_inputs = len(prepared)
    if num_inputs % 2:
        prepared = np.concatenate([prepared, prepared[-1:]])
    answer = device.logits(prepared)
    if answer.version != head.version or answer.class_names != head.class_names[: len(answer.class_names)]:
        raise IncompatibleError(
            f"The device changed its classes while it was evaluated: it had version {head.version}, and has "
            f"{answer.version}.",
            found=answer.version,
            expected=head.version,
            hint="Evaluate a device that takes no updates meanwhile, or a copy of its bundle.",
        )
    return checked_logits(answer.values[:num_inputs], name="logits")


def _outcomes_of_scores(scores: Logits, labels: Sequence[str], keys: Sequence[str], head: OutcomeHead) -> Outcomes:
    unknown = sorted({label for label in labels if label not in head.columns})
    if unknown:
        raise ImageError(
            f"{keys[0]} and what follows show {quoted(unknown)}, which the bundle's head does not know.",
            found=tuple(unknown),
            expected="classes of the bundle's head",
            where=keys[0],
            hint="Name them in `unseen` if they count as classes it should know, or leave their images out.",
        )
    # A class that the head lacks gets a logit that never wins.
    absent = len(head.class_names) - scores.shape[1]
    scores = np.pad(scores, ((0, 0), (0, absent)), constant_values=-np.inf)
    return measure_outcomes(
        scores,
        np.array([head.columns[label] for label in labels], dtype=np.int64),
        head,
        keys=keys,
        original_scores=np.where(head.is_original & head.is_seen, scores, -np.inf),
    )


def measure(
    source: InputStream,
    engine: Engine,
    *,
    piece_size: int,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> tuple[Outcomes, tuple[Skipped, ...]]:
    """Return the outcomes of all inputs of a source, with those that were left out.

    Memory holds a row of 57 bytes for each input, and a few batches; a checkpoint keeps what is done.

    Args:
        source: Labelled inputs, of which each is taken once, unless one is there twice.
        engine: Measures pieces of it, in any order.
        piece_size: How many inputs the engine is given at once.
        checkpoint: Where outcomes are kept.
        progress: Is told how many are done.

    Raises:
        ImageError: As `outcomes_of`, unless such inputs are skipped; if none is left; if an input has no label.
        IncompatibleError: As `outcomes_of`, and if an input comes twice.
        RuntimeFailureError: If the runtime fails.
    """
    waiting = _Waiting(source, piece_size, checkpoint)
    kept: Checkpoint = _Memory() if checkpoint is None else checkpoint
    skipped: list[Skipped] = []
    num_done = 0
    for done in engine(waiting):
        skipped += done.skipped
        if done.outcomes is not None:
            kept.add(done.outcomes, done.keys)
        num_done += done.num_inputs
        if progress is not None:
            progress(num_done + waiting.num_done_before)
    parts = list(kept.outcomes())
    _check_complete(sum(map(len, parts)), num_done + waiting.num_done_before, skipped, source.where)
    return merge(parts, keys=(item.key for item in source)), tuple(skipped)


def threads(worker: Worker, *, workers: int) -> Engine:
    """Return an engine of this process's threads."""
    return partial(_on_threads, worker, workers)


def _on_threads(worker: Worker, workers: int, batches: Iterable[Sequence[InputItem]]) -> Iterator[Done]:
    return map_ahead(worker, batches, workers=workers)


class _Memory:
    """Outcomes in memory, in few large pieces: what many small ones leave behind is not given back to the system."""

    def __init__(self) -> None:
        self._pieces: list[Outcomes] = []
        self._small: list[Outcomes] = []

    def is_done(self, items: Sequence[InputItem]) -> Sequence[bool]:
        return [False] * len(items)

    def add(self, outcomes: Outcomes, keys: Sequence[str]) -> None:  # noqa: ARG002 - a digest of each is in its row
        self._small.append(outcomes)
        if len(self._small) * len(outcomes) >= _ROWS_OF_A_PIECE:
            self._join()

    def outcomes(self) -> Iterator[Outcomes]:
        if self._small:
            self._join()
        return iter(self._pieces)

    def _join(self) -> None:
        rows = np.concatenate([outcomes.rows for outcomes in self._small])
        self._pieces.append(Outcomes(head=self._small[0].head, rows=rows))
        self._small = []


class _Waiting:
    """The inputs of a source that are to be measured, in pieces."""

    def __init__(self, source: InputStream, piece_size: int, checkpoint: Checkpoint | None) -> None:
        self._source, self._piece_size, self._checkpoint = source, piece_size, checkpoint
        self.num_done_before = 0
        """Inputs that were passed over, as they have outcomes."""

    def __iter__(self) -> Iterator[Sequence[InputItem]]:
        items = iter(self._source)
        while part := list(islice(items, self._piece_size)):
            if self._checkpoint is not None:
                is_done = self._checkpoint.is_done(part)
                self.num_done_before += sum(is_done)
                part = [item for item, done in zip(part, is_done, strict=True) if not done]
            if part:
                yield part


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of one batch."""

    outcomes: Outcomes | None
    """`None` where every input was left out."""

    keys: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    num_inputs: int
    """Measured and left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Measures some inputs, batch by batch; called by several threads at once."""

    device: Device
    head: OutcomeHead
    batch_size: int
    """Inputs that the model is run on at once; one more where that is odd."""

    on_error: OnError = "stop"
    reduced_decode: bool = False
    """Whether JPEG files are decoded at a part of their size; see `Preprocessing.crop_image`."""

    _of_thread: threading.local = field(default_factory=threading.local, init=False, repr=False, compare=False)
    """Holds the memory of each thread's batch."""

    def __call__(self, items: Sequence[InputItem]) -> Done:
        """Return what became of some inputs; errors as `outcomes_of`."""
        left: list[InputItem] = []
        skipped: list[Skipped] = []
        scores: list[Logits] = []
        form = replace(input_form(self.device.bundle), reduced_decode=self.reduced_decode)
        even = self.batch_size + self.batch_size % 2
        for start in range(0, len(items), even):
            taken, prepared, others = self._prepared(items[start : start + even], form)
            left += taken
            skipped += others
            if taken:
                scores.append(_scores(self.device, prepared, self.head))
        keys, outcomes = tuple(item.key for item in left), None
        if left:
            labels = [_label(item) for item in left]
            outcomes = _outcomes_of_scores(np.concatenate(scores), labels, keys, self.head)
        return Done(outcomes=outcomes, keys=keys, skipped=tuple(skipped), num_inputs=len(items))

    def _prepared(
        self, items: Sequence[InputItem], form: InputForm
    ) -> tuple[Sequence[InputItem], Images, tuple[Skipped, ...]]:
        """Return the inputs of a batch that can be read, prepared, and the others with the reason."""
        try:
            values, keys = [item.value for item in items], [item.key for item in items]
            return items, prepare(values, form, keys=keys, memory=self._memory()), ()
        except ImageError:
            if self.on_error == "stop":
                raise
            return _prepared_or_skipped(items, form)

    def _memory(self) -> BatchMemory:
        if not hasattr(self._of_thread, "memory"):
            self._of_thread.memory = BatchMemory()
        memory: BatchMemory = self._of_thread.memory
        return memory


def _label(item: InputItem) -> str:
    if item.label is None:
        raise ImageError(
            f"Nothing says which class {item.key} shows.",
            found="no label",
            expected="the name of its class",
            where=item.key,
        )
    return item.label


def _prepared_or_skipped(
    items: Sequence[InputItem], form: InputForm
) -> tuple[list[InputItem], Images, tuple[Skipped, ...]]:
    """Return the inputs that can be read, prepared, and the others with the reason."""
    left, prepared, skipped = [], [], []
    for item in items:
        try:
            prepared.append(prepare([item.value], form, keys=[item.key]))
            left.append(item)
        except ImageError as error:
            skipped.append(Skipped(key=item.key, reason=error.what))
    return left, np.concatenate(prepared) if prepared else np.zeros(0), tuple(skipped)


def _check_complete(num_outcomes: int, num_inputs: int, skipped: Sequence[Skipped], where: str) -> None:
    """Refuse nothing at all, and outcomes of more inputs than there are."""
    if not num_outcomes:
        raise ImageError(
            f"None of the {len(skipped)} inputs of {where} could be read. {skipped[0].reason}"
            if skipped
            else f"{where} holds no input.",
            found=0,
            expected="at least 1 input that can be read",
            where=where,
            hint="Check the first of them by itself, and how the list names them.",
        )
    expected = num_inputs - len(skipped)
    if num_outcomes > expected:
        raise IncompatibleError(
            f"The checkpoint holds outcomes of {num_outcomes - expected} inputs that {where} does not name.",
            found=num_outcomes,
            expected=expected,
            where=where,
            hint="Keep a folder for each list; a list that became shorter is another one.",
        )
