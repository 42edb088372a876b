"""What a device costs compared with a bare session of ONNX Runtime: per request, when it is opened, and in memory.

Rules:

1. Requests: `session.run` of the device's own session with the same images and slots, `Device.logits` and
   `Device.predict` take turns in random order. A second session would have weights of its own, and push those of the
   first out of the caches. Each call comes just after an inference, as in use; a loop over the device's part alone
   would find it many times as fast.
2. Opening and memory: a fresh process for every start, bare and device in turn. Both end with an answer.
3. Differences come from pairs measured next to each other (Hodges-Lehmann, with its 99 % interval).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.timing.comparison import pseudomedian
from benchmarks.timing.percentiles import Interval
from benchmarks.timing.rounds import garbage_collector_at_rest
from benchmarks.timing.startup import Start, start_once
from icis_deploy.bundle.manifest import MODEL_NAME, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import UsageError
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession

BARE, LOGITS, PREDICT = "session.run", "Device.logits", "Device.predict"
NUM_WARM_UP = 20
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadReport:
    """What one run found."""

    num_rounds: int
    """How often each request was measured."""

    median_ms: Mapping[str, float]
    """Median latency of a request in milliseconds, by what was called."""

    added_us: Mapping[str, Interval]
    """What a request takes longer than a bare `session.run`, in microseconds, by what was called."""

    num_starts: int
    """How often each was started."""

    bare_open_ms: float
    """Median time until a bare session is loaded, its imports included, in milliseconds."""

    device_open_ms: float
    """Median time until a device is open, its imports included, in milliseconds."""

    added_open_ms: Interval
    """What opening a device takes longer than a bare session, in milliseconds."""

    bare_peak_mb: float
    """Median peak memory of a process with a bare session after two answers, in 10^6 bytes."""

    added_peak_mb: Interval
    """How much more peak memory a device takes, in 10^6 bytes."""

    head_mb: float
    """All rows of the head, slots included, in 10^6 bytes."""


def measure_overhead(
    bundle_folder: Path, *, num_rounds: int = 500, num_starts: int = 15, num_threads: int = 1, seed: int = 0
) -> OverheadReport:
    """Measure an exported bundle as a device, and a bare session of the same file.

    Args:
        bundle_folder: The bundle; nothing is written to it.
        num_rounds: How often each request is measured.
        num_starts: How many processes are started of each kind.
        num_threads: Threads inside one operator.
        seed: Of the input and the order.

    Raises:
        UsageError: If there is nothing to measure.
        ICISDeployError: If the bundle or the runtime fails.
    """
    if num_rounds < 1 or num_starts < 1:
        raise UsageError(
            f"{num_rounds} rounds and {num_starts} starts cannot be measured; expected at least 1.",
            found=(num_rounds, num_starts),
            expected="at least 1",
        )
    device = Device.open(bundle_folder, num_threads=num_threads)
    bundle = device.bundle
    latencies_s = _requests(device, num_rounds, seed)
    folder, bare, opened = bundle_folder.resolve(), [], []
    for _ in range(num_starts):
        bare.append(_start("bare_session", model=str(folder / MODEL_NAME), num_threads=num_threads))
        opened.append(_start("opened_device", folder=str(folder), num_threads=num_threads))
    return OverheadReport(
        num_rounds=num_rounds,
        median_ms={name: 1e3 * float(np.median(values)) for name, values in latencies_s.items()},
        added_us={name: _added(latencies_s[name], latencies_s[BARE], 1e6) for name in (LOGITS, PREDICT)},
        num_starts=num_starts,
        bare_open_ms=float(np.median(_loads(bare))),
        device_open_ms=float(np.median(_loads(opened))),
        added_open_ms=_added(_loads(opened), _loads(bare), 1.0),
        bare_peak_mb=float(np.median(_peaks(bare))),
        added_peak_mb=_added(_peaks(opened), _peaks(bare), 1.0),
        head_mb=4 * (len(bundle.class_names) + bundle.capacity) * (bundle.feature_dim + 1) / _MEGABYTE,
    )


def _requests(device: Device, num_rounds: int, seed: int) -> dict[str, list[float]]:
    opened, buffers = session_of(device), state_of(device).buffers
    assert isinstance(opened, ONNXRuntimeSession), "the default runtime"
    session = opened.inference_session
    images = self_test_input(device.bundle, seed)
    feed = {session.get_inputs()[0].name: images}
    if buffers is not None:
        feed |= {SLOT_WEIGHT: buffers.weight, SLOT_BIAS: buffers.bias}
    names = [session.get_outputs()[0].name]
    calls: dict[str, Callable[[], object]] = {
        BARE: lambda: session.run(names, feed),
        LOGITS: lambda: device.logits(images),
        PREDICT: lambda: device.predict(images),
    }
    latencies_s: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(seed)
    with garbage_collector_at_rest():
        for index in range(-NUM_WARM_UP, num_rounds):
            for name in order.permutation(list(calls)):
                start = time.perf_counter()
                calls[name]()
                elapsed = time.perf_counter() - start
                if index >= 0:
                    latencies_s[name].append(elapsed)
    return latencies_s


def _start(factory: str, **arguments: object) -> Start:
    return start_once(factory, f"benchmarks.bench.opened_models:{factory}", arguments)[0]


def _added(values: list[float], bare: list[float], scale: float) -> Interval:
    return pseudomedian(scale * (np.array(values) - np.array(bare)))


def _loads(starts: list[Start]) -> list[float]:
    return [start.load_ms for start in starts]


def _peaks(starts: list[Start]) -> list[float]:
    return [
        float("nan") if start.memory_peak_bytes is None else start.memory_peak_bytes / _MEGABYTE for start in starts
    ]


def text_of(report: OverheadReport) -> str:
    """Return a report as a table for people."""
    lines = [f"{'one request':24}{'median':>12}{'more than session.run':>36}   ({report.num_rounds} rounds)"]
    for name, median_ms in report.median_ms.items():
        added = f"{_text(report.added_us[name], 'us')}" if name in report.added_us else ""
        lines.append(f"{name:24}{median_ms:>9.3f} ms{added:>36}")
    allowed_ms, allowed_mb = 0.15 * report.bare_open_ms + 50, 15 + report.head_mb
    return "\n".join(
        [
            *lines,
            "",
            f"{report.num_starts} starts each, in fresh processes and in turn",
            f"until open              {report.device_open_ms:.0f} ms; a bare session {report.bare_open_ms:.0f} ms",
            f"  more than that        {_text(report.added_open_ms, 'ms')}; 15 % + 50 ms are {allowed_ms:.0f} ms",
            f"peak memory of a bare session {report.bare_peak_mb:.1f} MB",
            f"  a device takes more   {_text(report.added_peak_mb, 'MB')}; 15 MB + head are {allowed_mb:.1f} MB",
        ]
    )


def _text(interval: Interval, unit: str) -> str:
    return f"{interval.value:+.1f} {unit} ({interval.low:+.1f} to {interval.high:+.1f})"
