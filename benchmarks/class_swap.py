"""ClassSwap: threads ask a device all the time while its classes change many times a second.

Blocks without updates and blocks with them take turns, so that a machine that becomes slower is slower in both. In
both, `num_threads` threads predict on a few fixed inputs, one after the other without a pause. In the blocks with
updates, one more thread applies a signed class update at fixed moments, as a device does: verified, written, tested,
committed.

Rules:

1. Every answer is checked afterwards against what its version must give: the classes and their probabilities, computed
   from the input's features and the update's rows in float64. Each update has names, rows and a scale of its own, so
   rows of one version under the names of another show.
2. A request without an answer is dropped; an answer that fits no version is torn; one whose first class is not its
   version's is wrongly labelled.
3. Checking, making and signing updates is outside the blocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bundle_copy import BundleCopy, bundle_copy
from benchmarks.json_values import json_from_value
from benchmarks.percentiles import Percentile, percentile_of
from benchmarks.rounds import garbage_collector_at_rest
from icis_deploy.bundle import load_manifest
from icis_deploy.class_update import ClassUpdate
from icis_deploy.errors import UsageError
from icis_deploy.runtime.answers import Prediction, top_predictions
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.probe import probe_input
from icis_deploy.runtime.runtimes import Runtime
from icis_deploy.slots import SlotTable

NUM_INPUTS = 8
TOP = 3
MAX_SEEDS = 64
MAX_FAILURES = 5
PROBABILITY_TOLERANCE = 1e-3
"""Of a probability. Two versions differ by a tenth or more, and float32 by a ten-thousandth."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSwapReport:
    """What one run found."""

    num_threads: int
    """Threads that asked."""

    num_new_classes: int
    """Classes that each update added; those of the update before were removed."""

    seconds: float
    """How long updates were applied, and how long none were."""

    num_updates: int
    """Updates applied."""

    updates_per_second: float
    """What was achieved, not what was asked for."""

    num_answers: int
    """Requests answered while updates were applied."""

    num_versions_seen: int
    """Different versions among these answers."""

    num_torn: int
    """Answers that fit no version."""

    num_wrong_labels: int
    """Answers whose first class is not the one of their version."""

    num_dropped: int
    """Requests that ended without an answer."""

    failures: tuple[str, ...]
    """What the first of them said instead."""

    median_ms: float
    """Median latency with updates."""

    median_without_ms: float
    """Median latency without."""

    p99: Percentile
    """99th percentile of the latency with updates."""

    p99_without: Percentile
    """99th percentile without."""

    @property
    def p99_ratio(self) -> float | None:
        """How many times as slow p99 is with updates; `None` where one of the two does not exist."""
        if self.p99.value_ms is None or self.p99_without.value_ms is None:
            return None
        return self.p99.value_ms / self.p99_without.value_ms

    @property
    def is_clean(self) -> bool:
        """Whether every request got one answer that belongs to one version."""
        return not (self.num_torn or self.num_wrong_labels or self.num_dropped)

    def to_json(self) -> dict[str, object]:
        """Return this report as values that `json.dumps` takes."""
        values: dict[str, object] = json_from_value(self)
        return values | {"p99_ratio": self.p99_ratio, "is_clean": self.is_clean}


@dataclass(frozen=True, slots=True)
class _Answer:
    index: int
    latency_ms: float
    prediction: Prediction


@dataclass(slots=True)
class _Block:
    """What the asking threads of a block share."""

    answers: list[_Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, kw_only=True)
class _Run:
    device: Device
    copy: BundleCopy
    inputs: list[NDArray[np.generic]]
    features: Float64
    seen_logits: Float64
    num_new_classes: int
    exported: SlotTable
    updates: dict[int, ClassUpdate] = field(default_factory=dict)


def measure_class_swap(
    bundle_folder: Path,
    *,
    seconds: float = 30.0,
    num_threads: int = 4,
    updates_per_second: float = 10.0,
    num_new_classes: int = 50,
    num_blocks: int = 6,
    runtime: Runtime | None = None,
) -> ClassSwapReport:
    """Let threads predict on a copy of a bundle while its classes change.

    Args:
        bundle_folder: An exported bundle with an updatable head whose model gives logits; it is copied, not changed.
        seconds: How long updates are applied; as long again, none are.
        num_threads: Threads that predict.
        updates_per_second: How often the classes change.
        num_new_classes: Classes in each update.
        num_blocks: Into how many blocks each half is cut; they take turns.
        runtime: Where the model is loaded; `None` for one thread inside the runtime, since the requests are parallel.

    Raises:
        UsageError: If the head has too few slots, or what is asked for is no run.
        ICISDeployError: If a bundle or the runtime fails, or an update is refused.
    """
    bundle = load_manifest(bundle_folder)
    if not 1 <= num_new_classes <= bundle.capacity or bundle.score_kind != "logits":
        raise UsageError(
            f"ClassSwap needs new classes that fit the bundle's {bundle.capacity} slots, and a model that gives "
            f"logits; found {num_new_classes} classes and {bundle.score_kind}."
        )
    if seconds <= 0 or updates_per_second <= 0 or num_threads < 1 or num_blocks < 1:
        raise UsageError("ClassSwap needs a time, a rate, threads and blocks that are greater than 0.")
    with bundle_copy(bundle_folder) as copy:
        run = _prepared(copy, runtime, num_new_classes)
        plain, swapped, swap_seconds = _Block(), _Block(), 0.0
        for _ in range(num_blocks):
            files = [_next_update(run) for _ in range(max(1, round(seconds / num_blocks * updates_per_second)))]
            with garbage_collector_at_rest():
                _ask(run, plain, num_threads, partial(time.sleep, seconds / num_blocks))
                swap_seconds += _ask(run, swapped, num_threads, partial(_apply_all, run, files, updates_per_second))
    return _report(run, plain, swapped, num_threads=num_threads, seconds=swap_seconds)


def _prepared(copy: BundleCopy, runtime: Runtime | None, num_new_classes: int) -> _Run:
    device = Device.open(copy.folder, runtime=Runtime(num_threads=1) if runtime is None else runtime)
    assert device.state.table is not None, "a head with a capacity has slots"
    num_baked = len(device.bundle.class_names)
    inputs: list[NDArray[np.generic]] = []
    features, seen_logits = [], []
    for seed in range(MAX_SEEDS):
        images = probe_input(device.bundle, seed)
        output = device.session.run(images, device.state.buffers, with_features=True)
        if output.features is not None and output.features.any():
            inputs.append(images)
            features.append(output.features)
            seen_logits.append(output.logits[:, :num_baked])
        if len(inputs) == NUM_INPUTS:
            break
    else:
        raise UsageError("The model's features, by which answers are checked, are missing or zero. Export it again.")
    return _Run(
        device=device,
        copy=copy,
        inputs=inputs,
        features=np.concatenate(features).astype(np.float64),
        seen_logits=np.concatenate(seen_logits).astype(np.float64),
        num_new_classes=num_new_classes,
        exported=device.state.table,
    )


def _next_update(run: _Run) -> bytes:
    """Return the next update, signed: for each input one class that wins by a margin of this version's own."""
    version = run.device.bundle.head_version + len(run.updates) + 1
    random = np.random.default_rng(version)
    towards = run.features[np.arange(run.num_new_classes) % NUM_INPUTS]
    aim = run.seen_logits.max(axis=1)[np.arange(run.num_new_classes) % NUM_INPUTS] + 0.25 * (version % 8)
    # Every class after the first of its input is weaker, by an amount that is drawn.
    aim -= np.where(np.arange(run.num_new_classes) < NUM_INPUTS, 0.0, random.uniform(1.0, 4.0, len(aim)))
    weight = towards * (aim / np.square(towards).sum(axis=1))[:, None]
    previous = run.updates.get(version - 1)
    update = ClassUpdate(
        base_fingerprint=run.device.bundle.base_fingerprint,
        rows=np.concatenate([weight, np.zeros((len(weight), 1))], axis=1).astype(np.float32),
        added=tuple(f"version {version} class {index}" for index in range(run.num_new_classes)),
        removed=run.exported.filled_names if previous is None else previous.added,
        version=version,
        probe_seed=version,
    )
    run.updates[version] = update
    return run.copy.signed(update)


def _apply_all(run: _Run, files: list[bytes], updates_per_second: float) -> None:
    start = time.perf_counter()
    for number, data in enumerate(files, start=1):
        run.device.apply(data)
        time.sleep(max(0.0, start + number / updates_per_second - time.perf_counter()))


def _ask(run: _Run, block: _Block, num_threads: int, meanwhile: Callable[[], None]) -> float:
    """Let threads predict until `meanwhile` returns; return how long that took, in seconds."""
    block.done.clear()
    threads = [threading.Thread(target=_predict, args=(run, block, first)) for first in range(num_threads)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    try:
        meanwhile()
        return time.perf_counter() - start
    finally:
        block.done.set()
        for thread in threads:
            thread.join()


def _predict(run: _Run, block: _Block, index: int) -> None:
    while not block.done.is_set():
        index = (index + 1) % NUM_INPUTS
        start = time.perf_counter()
        try:
            (prediction,) = run.device.predict(run.inputs[index], top=TOP)
        except Exception as error:  # a thread has nobody to tell: the report does
            block.failures.append(f"{type(error).__name__}: {error}")
            continue
        block.answers.append(_Answer(index, 1e3 * (time.perf_counter() - start), prediction))


def _expected(run: _Run, version: int, index: int) -> Prediction | None:
    """Return what a version must answer on an input; `None` if there is no such version."""
    if version in run.updates:
        added, rows = run.updates[version].added, run.updates[version].rows.astype(np.float64)
    elif version == run.device.bundle.head_version:
        added, rows = run.exported.filled_names, run.exported.rows().astype(np.float64)
    else:
        return None
    names = (*run.device.bundle.class_names, *added)
    logits = np.concatenate([run.seen_logits[index], rows[:, :-1] @ run.features[index] + rows[:, -1]])
    return top_predictions(logits[None].astype(np.float32), TOP, class_names=names, version=version)[0]


def _report(run: _Run, plain: _Block, swapped: _Block, *, num_threads: int, seconds: float) -> ClassSwapReport:
    num_torn = num_wrong = 0
    expected: dict[tuple[int, int], Prediction | None] = {}
    for answer in swapped.answers:
        found, key = answer.prediction, (answer.prediction.version, answer.index)
        if key not in expected:
            expected[key] = _expected(run, *key)
        right = expected[key]
        num_torn += right is None or not _belongs(found, right)
        num_wrong += right is not None and found.class_names[0] != right.class_names[0]
    latencies, without = (np.array([answer.latency_ms for answer in block.answers]) for block in (swapped, plain))
    return ClassSwapReport(
        num_threads=num_threads,
        num_new_classes=run.num_new_classes,
        seconds=seconds,
        num_updates=len(run.updates),
        updates_per_second=len(run.updates) / seconds,
        num_answers=len(swapped.answers),
        num_versions_seen=len({answer.prediction.version for answer in swapped.answers}),
        num_torn=num_torn,
        num_wrong_labels=num_wrong,
        num_dropped=len(plain.failures) + len(swapped.failures),
        failures=tuple([*plain.failures, *swapped.failures][:MAX_FAILURES]),
        median_ms=float(np.median(latencies)),
        median_without_ms=float(np.median(without)),
        p99=percentile_of(latencies, 99.0),
        p99_without=percentile_of(without, 99.0),
    )


def _belongs(found: Prediction, right: Prediction) -> bool:
    """Say whether an answer is a version's: its classes, and their probabilities."""
    differences = np.abs(np.subtract(found.probabilities, right.probabilities))
    if (differences > PROBABILITY_TOLERANCE).any():
        return False
    # Classes whose probabilities are as close as the tolerance may have changed places.
    return all(
        name in right.class_names or probability - right.probabilities[-1] <= PROBABILITY_TOLERANCE
        for name, probability in zip(found.class_names, found.probabilities, strict=True)
    )


def text_of(report: ClassSwapReport) -> str:
    """Return a report as text for people."""
    ratio = "p99 ratio unknown" if report.p99_ratio is None else f"p99 x {report.p99_ratio:.2f}"
    return "\n".join(
        [
            f"{report.num_threads} threads, {report.num_updates} updates of {report.num_new_classes} classes in "
            f"{report.seconds:.1f} s ({report.updates_per_second:.1f} a second)",
            f"{report.num_answers} answers of {report.num_versions_seen} versions: {report.num_torn} torn, "
            f"{report.num_wrong_labels} wrong labels, {report.num_dropped} dropped",
            f"median {report.median_ms:.3f} ms, without updates {report.median_without_ms:.3f} ms",
            f"p99 {report.p99.text}, without updates {report.p99_without.text}: {ratio}",
            *(f"dropped: {failure}" for failure in report.failures),
        ]
    )
