"""ClassSwap: threads predict on a device without a pause while its classes change many times a second.

A round has two blocks without updates and one with them, in random order, so that a machine that becomes slower is
slower in all. In each, `num_threads` threads predict on a few fixed inputs, one after the other without a pause. In the
block with updates, one more thread applies a signed class update at fixed moments, as a device does: verified, written,
tested, committed.

Rules:

1. Every answer is checked afterwards against what its version must give: the classes and their probabilities, computed
   from the input's features and the update's rows in float64. Each update has names, rows and a scale of its own, so
   rows of one version under the names of another are noticed.
2. A request without an answer is dropped; an answer that fits no version is torn; one whose first class is not its
   version's is wrongly labelled, unless both are as probable.
3. Checking, making and signing updates is outside the blocks.
4. The ratio of the latencies is reported with an interval, and so is that of the two blocks without updates: with more
   threads than cores p99 depends on how the system schedules them, and this shows how well it can be measured at all.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.machine.monitor import read_others_s
from benchmarks.machine.system_files import Unavailable
from benchmarks.timing.percentiles import percentile_of, percentile_ratio
from benchmarks.timing.rounds import garbage_collector_at_rest
from benchmarks.updates.bundle_copy import bundle_copy
from benchmarks.updates.changing_head import NUM_INPUTS, TOP, ChangingHead, changing_head, count_wrong, next_update
from benchmarks.updates.reports import ClassSwapReport
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.common.arrays import Float64
from icis_deploy.errors import RuntimeFailureError, UsageError
from icis_deploy.runtime.answers import Prediction
from icis_deploy.runtime.sessions.choice import Runtime

MAX_FAILURES = 5


@dataclass(frozen=True, slots=True)
class _Answer:
    index: int
    latency_ms: float
    prediction: Prediction


@dataclass(slots=True)
class _Block:
    """What the predicting threads of a block share, and their answers."""

    answers: list[_Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    apply_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def latencies_ms(self) -> Float64:
        return np.array([answer.latency_ms for answer in self.answers])


def measure_class_swap(
    bundle_folder: Path,
    *,
    seconds: float = 30.0,
    num_threads: int = 4,
    updates_per_second: float = 10.0,
    num_new_classes: int = 50,
    num_rounds: int = 15,
    runtime: Runtime | None = None,
) -> ClassSwapReport:
    """Let threads predict on a copy of a bundle while its classes change.

    Args:
        bundle_folder: An exported bundle with an updatable head whose model gives logits; it is copied, not changed.
        seconds: How long updates are applied; twice as long, none are.
        num_threads: Threads that predict.
        updates_per_second: How often the classes change.
        num_new_classes: Classes in each update.
        num_rounds: Into how many rounds this is cut.
        runtime: Where the model is loaded; `None` for one thread inside the runtime, since the requests are parallel.

    Raises:
        UsageError: If the head has too few slots, or what is asked for is no run.
        RuntimeFailureError: If no request gets an answer.
        ICISDeployError: If a bundle fails, or an update is refused.
    """
    bundle = load_manifest(bundle_folder)
    if not 1 <= num_new_classes <= bundle.capacity or bundle.score_kind != "logits":
        raise UsageError(
            f"ClassSwap needs new classes that fit the bundle's {bundle.capacity} slots, and a model that gives "
            f"logits; found {num_new_classes} classes and {bundle.score_kind}.",
            found=(num_new_classes, bundle.score_kind),
            expected=f"at most {bundle.capacity} classes, and logits",
        )
    if seconds <= 0 or updates_per_second <= 0 or num_threads < 1 or num_rounds < 1:
        raise UsageError(
            "ClassSwap needs a time, a rate, threads and rounds that are greater than 0.",
            found=(seconds, updates_per_second, num_threads, num_rounds),
            expected="greater than 0",
        )
    with bundle_copy(bundle_folder) as copy:
        run = changing_head(copy, runtime, num_new_classes)
        start, others = time.perf_counter(), read_others_s()
        num_updates, random = max(1, round(seconds / num_rounds * updates_per_second)), np.random.default_rng(0)
        rounds = []
        for _ in range(num_rounds):
            blocks = {
                "without": partial(_wait, seconds=seconds / num_rounds),
                "without again": partial(_wait, seconds=seconds / num_rounds),
                "with": partial(_apply_all, run, _next_updates(run, num_updates), updates_per_second),
            }
            with garbage_collector_at_rest():
                rounds.append(
                    {name: _predict_during(run, num_threads, blocks[name]) for name in random.permutation(list(blocks))}
                )
        others_share = _share_since(others, start)
    return _report(run, rounds, num_threads=num_threads, others_share=others_share)


def _share_since(others_before: float | Unavailable, start: float) -> float | None:
    """Return which share of the processors' time others had since then."""
    others, elapsed = read_others_s(), time.perf_counter() - start
    if isinstance(others, Unavailable) or isinstance(others_before, Unavailable):
        return None
    return max(0.0, others - others_before) / (elapsed * (os.cpu_count() or 1))


def _next_updates(run: ChangingHead, num_updates: int) -> list[bytes]:
    return [next_update(run) for _ in range(num_updates)]


def _wait(_block: _Block, *, seconds: float) -> None:
    time.sleep(seconds)


def _apply_all(run: ChangingHead, files: list[bytes], updates_per_second: float, block: _Block) -> None:
    start = time.perf_counter()
    for number, data in enumerate(files, start=1):
        before = time.perf_counter()
        run.device.apply(data, allow_changed_answers=True)
        now = time.perf_counter()
        block.apply_ms.append(1e3 * (now - before))
        time.sleep(max(0.0, start + number / updates_per_second - now))


def _predict_during(run: ChangingHead, num_threads: int, work: Callable[[_Block], None]) -> _Block:
    """Let threads predict until `work` returns."""
    block = _Block()
    threads = [threading.Thread(target=_predict, args=(run, block, first)) for first in range(num_threads)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    try:
        work(block)
        block.seconds = time.perf_counter() - start
    finally:
        block.done.set()
        for thread in threads:
            thread.join()
    return block


def _predict(run: ChangingHead, block: _Block, index: int) -> None:
    while not block.done.is_set():
        index = (index + 1) % NUM_INPUTS
        start = time.perf_counter()
        try:
            (prediction,) = run.device.predict(run.inputs[index], top=TOP)
        except Exception as error:  # a thread cannot raise to its caller: the report has it
            block.failures.append(f"{type(error).__name__}: {error}")
            continue
        block.answers.append(_Answer(index, 1e3 * (time.perf_counter() - start), prediction))


def _report(
    run: ChangingHead, rounds: list[dict[str, _Block]], *, num_threads: int, others_share: float | None
) -> ClassSwapReport:
    first, second, swapped = ([each[name] for each in rounds] for name in ("without", "without again", "with"))
    latencies, without = [block.latencies_ms for block in swapped], []
    for block, again in zip(first, second, strict=True):
        without.append(np.concatenate([block.latencies_ms, again.latencies_ms]))
    answers = [answer for block in swapped for answer in block.answers]
    failures = [failure for block in (*first, *second, *swapped) for failure in block.failures]
    seconds = sum(block.seconds for block in swapped)
    if not answers or not any(map(len, without)):
        reason = failures[0] if failures else "a request takes longer than the run; give it more seconds"
        raise RuntimeFailureError(
            f"No request was answered in a run of ClassSwap: {reason}",
            found=str(reason),
        )
    num_torn, num_wrong = count_wrong(run, [(answer.index, answer.prediction) for answer in answers])
    return ClassSwapReport(
        num_threads=num_threads,
        num_new_classes=run.num_new_classes,
        num_rounds=len(rounds),
        seconds=seconds,
        num_updates=len(run.updates),
        updates_per_second=len(run.updates) / seconds,
        apply_median_ms=float(np.median([apply_ms for block in swapped for apply_ms in block.apply_ms])),
        num_answers=len(answers),
        num_versions_seen=len({answer.prediction.version for answer in answers}),
        num_torn=num_torn,
        num_wrong_labels=num_wrong,
        num_dropped=len(failures),
        failures=tuple(failures[:MAX_FAILURES]),
        median_ms=float(np.median(np.concatenate(latencies))),
        median_without_ms=float(np.median(np.concatenate(without))),
        p90=percentile_of(np.concatenate(latencies), 90.0),
        p99=percentile_of(np.concatenate(latencies), 99.0),
        p99_without=percentile_of(np.concatenate(without), 99.0),
        p99_ratio=percentile_ratio(latencies, without, 99.0),
        p99_ratio_of_same=percentile_ratio(
            [block.latencies_ms for block in second], [block.latencies_ms for block in first], 99.0
        ),
        others_share=others_share,
    )
