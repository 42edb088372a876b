"""How long a class update takes, from the file to the first answer with it, beside the other ways to change a head.

Measured in one run, in turn, on one model and with one set of rows:

    class update     what icis-deploy does: verify, write, test, commit, swap; split into its parts
    new session      the slots' initializers replaced in memory, and a new session made (ONNX Runtime `add_initializer`)
    LoRA adapter     the rows as an ONNX Runtime adapter file, loaded and activated; nothing is verified or kept
    export, reload   the original model exported again with the rows fused in, and loaded

Rules:

1. Every way ends with the first answer, and the answer is checked: all of them give the same logits.
2. Each round measures every way once that is due in it; slow ways are due in fewer rounds.
3. A percentile is stated only from the number of queries that `percentiles.py` asks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results.json_values import json_from_value
from benchmarks.timing.percentiles import Percentile, percentile_of
from benchmarks.timing.rounds import garbage_collector_at_rest
from benchmarks.updates.bundle_copy import BundleCopy, bundle_copy
from icis_deploy.bundle.manifest import MODEL_NAME, SLOT_BIAS, SLOT_WEIGHT, load_manifest
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import RuntimeFailureError, UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.onnxruntime_session import load_session, session_options

CLASS_UPDATE = "class update"
NEW_SESSION = "new session"
ADAPTER = "LoRA adapter"
REEXPORT = "export, reload"
PARTS = ("verify_ms", "journal_ms", "sync_ms", "swap_ms", "probe_ms", "inference_ms", "first_answer_ms")
_FIELDS = {"probe_ms": "self_test_ms"}
"""Fields of `ApplyTimings` that results know by another name, which they keep."""

SLOW_ROUNDS = 10
"""Slow ways are measured in every tenth round: their medians are far enough from the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Latencies of one way, or of one part of it."""

    num_queries: int
    """How many were measured."""

    median_ms: float
    """Their median."""

    p99: Percentile
    """Their 99th percentile, or how many queries it would take."""

    def to_json(self) -> dict[str, object]:
        """Return this distribution as values that `json.dumps` takes."""
        return {"num_queries": self.num_queries, "median_ms": self.median_ms, "p99": json_from_value(self.p99)}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one run found."""

    num_new_classes: int
    """Classes in each update; the classes of the update before are removed."""

    capacity: int
    """Slots of the head."""

    feature_dim: int
    """Width of a feature."""

    update_bytes: int
    """Size of an update's file."""

    ways: Mapping[str, Distribution]
    """From the file, or the rows, to the first answer, by way."""

    parts: Mapping[str, Distribution]
    """The class update's, by part: those of `ApplyTimings`, the whole without disk and model, and the first answer."""

    def times_faster(self, other: str) -> float:
        """Return how many times as long another way takes, by the medians."""
        return self.ways[other].median_ms / self.ways[CLASS_UPDATE].median_ms

    def to_json(self) -> dict[str, object]:
        """Return this report as values that `json.dumps` takes."""
        return {
            "num_new_classes": self.num_new_classes,
            "capacity": self.capacity,
            "feature_dim": self.feature_dim,
            "update_bytes": self.update_bytes,
            "ways": {name: each.to_json() for name, each in self.ways.items()},
            "parts": {name: each.to_json() for name, each in self.parts.items()},
            "times_faster": {name: self.times_faster(name) for name in self.ways if name != CLASS_UPDATE},
        }


@dataclass(slots=True, kw_only=True)
class _Run:
    """What the ways need, and what they measured so far."""

    device: Device
    copy: BundleCopy
    images: NDArray[np.generic]
    num_threads: int
    folder: Path
    reexport: Callable[[Path, ClassUpdate], None] | None
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    parts_ms: dict[str, list[float]] = field(default_factory=dict)
    update_bytes: int = 0

    def add(self, way: str, milliseconds: float) -> None:
        self.latencies_ms.setdefault(way, []).append(milliseconds)


def measure_update(
    bundle_folder: Path,
    *,
    original: Path | None = None,
    num_new_classes: int = 50,
    num_updates: int = 700,
    num_threads: int = 1,
    seed: int = 0,
) -> UpdateReport:
    """Measure class updates on a copy of a bundle, beside the other ways.

    Args:
        bundle_folder: An exported bundle with an updatable head; it is copied, not changed.
        original: The model it was made from, `.onnx` or `.pt2`; without it, exporting again is not measured.
        num_new_classes: Classes in each update.
        num_updates: Updates to apply; from 662 on there is a p99.
        num_threads: Threads of the runtime.
        seed: Of the rows.

    Raises:
        UsageError: If the head is fused, or has too few slots.
        RuntimeFailureError: If a way gives other logits than the class update.
        ICISDeployError: If a bundle, a model or a runtime fails.
    """
    bundle = load_manifest(bundle_folder)
    if not 0 < num_new_classes <= bundle.capacity or num_updates < 1:
        raise UsageError(
            f"{num_updates} updates of {num_new_classes} classes cannot be measured on {bundle.capacity} slots."
        )
    with bundle_copy(bundle_folder) as copy, garbage_collector_at_rest():
        device = Device.open(copy.folder, num_threads=num_threads)
        run = _Run(
            device=device,
            copy=copy,
            images=self_test_input(bundle, seed),
            num_threads=num_threads,
            folder=copy.folder.parent,
            reexport=None if original is None else _exporter(original, bundle.class_names[: bundle.num_seen]),
        )
        random, removed = np.random.default_rng(seed), device.classes()[len(bundle.class_names) :]
        for index in range(num_updates):
            update = _make_update(device, random, index=index, num_classes=num_new_classes, removed=removed)
            removed = update.added
            _measure_round(run, update, is_slow=index % SLOW_ROUNDS == 0)
    return UpdateReport(
        num_new_classes=num_new_classes,
        capacity=bundle.capacity,
        feature_dim=bundle.feature_dim,
        update_bytes=run.update_bytes,
        ways={way: _distribution(values) for way, values in run.latencies_ms.items()},
        parts={part: _distribution(values) for part, values in run.parts_ms.items()},
    )


def _make_update(
    device: Device, random: np.random.Generator, *, index: int, num_classes: int, removed: tuple[str, ...]
) -> ClassUpdate:
    rows = random.normal(scale=device.bundle.feature_dim**-0.5, size=(num_classes, device.bundle.feature_dim + 1))
    return ClassUpdate(
        base_fingerprint=device.bundle.base_fingerprint,
        rows=rows.astype(np.float32),
        added=tuple(f"update {index} class {number}" for number in range(num_classes)),
        removed=removed,
        version=device.version + 1,
        self_test_seed=index,
    )


def _measure_round(run: _Run, update: ClassUpdate, *, is_slow: bool) -> None:
    _apply_update(run, update)
    table = run.device.state.table
    assert table is not None
    expected = run.device.session.run(run.images, run.device.state.buffers).logits
    if is_slow:
        found = {
            ADAPTER: _activate_adapter(run, table.weight, table.bias),
            NEW_SESSION: _make_new_session(run, table.weight, table.bias),
        }
        if run.reexport is not None:
            answers = run.device.logits(run.images)
            _check(REEXPORT, _export_and_reload(run, update), answers.values)
        for way, logits in found.items():
            _check(way, logits, expected)


def _apply_update(run: _Run, update: ClassUpdate) -> None:
    path = run.folder / "update.icis"
    path.write_bytes(run.copy.signed(update))
    run.update_bytes = path.stat().st_size
    start = time.perf_counter()
    timings = run.device.apply(path).timings
    applied = time.perf_counter()
    run.device.logits(run.images)
    end = time.perf_counter()
    run.add(CLASS_UPDATE, 1e3 * (end - start))
    parts = {name: getattr(timings, _FIELDS.get(name, name)) for name in PARTS[:-1]}
    parts |= {"first_answer_ms": 1e3 * (end - applied), "work_ms": timings.work_ms}
    for name, value in parts.items():
        run.parts_ms.setdefault(name, []).append(value)


def _make_new_session(run: _Run, weight: Float32, bias: Float32) -> Float32:
    import onnxruntime

    start = time.perf_counter()
    options = session_options(run.num_threads)
    # The session reads these values for as long as it lives; they must not be collected before it.
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in (weight, bias)]
    for name, value in zip((SLOT_WEIGHT, SLOT_BIAS), values, strict=True):
        options.add_initializer(name, value)
    session = onnxruntime.InferenceSession(_model_path(run), options, providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: run.images})[0]
    run.add(NEW_SESSION, 1e3 * (time.perf_counter() - start))
    return np.asarray(logits)


def _activate_adapter(run: _Run, weight: Float32, bias: Float32) -> Float32:
    import onnxruntime

    path = run.folder / "rows.onnx_adapter"
    adapter_format = onnxruntime.AdapterFormat()
    adapter_format.set_parameters(
        {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in ((SLOT_WEIGHT, weight), (SLOT_BIAS, bias))
        }
    )
    adapter_format.export_adapter(str(path))
    options = session_options(run.num_threads)
    session = onnxruntime.InferenceSession(_model_path(run), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: run.images}
    session.run(None, feed)
    start = time.perf_counter()
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(path))
    run_options = onnxruntime.RunOptions()
    run_options.add_active_adapter(adapter)
    logits = session.run(None, feed, run_options)[0]
    run.add(ADAPTER, 1e3 * (time.perf_counter() - start))
    return np.asarray(logits)


def _export_and_reload(run: _Run, update: ClassUpdate) -> Float32:
    assert run.reexport is not None
    path = run.folder / "exported.onnx"
    start = time.perf_counter()
    run.reexport(path, update)
    logits = load_session(path, num_threads=run.num_threads).run(run.images).logits
    run.add(REEXPORT, 1e3 * (time.perf_counter() - start))
    return logits


def _exporter(original: Path, seen_names: tuple[str, ...]) -> Callable[[Path, ClassUpdate], None]:
    """Return what exports the original again, with the rows of an update fused into its head."""
    from exporters.head.finding import find_head, read_head
    from exporters.head.surgery import fuse_head
    from exporters.loading.models import load_model
    from exporters.onnx_io.files import save_model

    def export(path: Path, update: ClassUpdate) -> None:
        model = load_model(str(original)).model
        location = find_head(model)
        seen: Head = read_head(model, location, seen_names)
        save_model(fuse_head(model, location, seen.expand(update.rows, update.added)), path)

    return export


def _model_path(run: _Run) -> str:
    return str(run.copy.folder / MODEL_NAME)


def _check(way: str, found: Float32, expected: Float32) -> None:
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise RuntimeFailureError(
            f"The way {way!r} gave other logits than the class update: shape {found.shape}, expected {expected.shape}. "
            f"Its time means nothing."
        )


def _distribution(latencies_ms: list[float]) -> Distribution:
    values = np.array(latencies_ms)
    return Distribution(num_queries=len(values), median_ms=float(np.median(values)), p99=percentile_of(values, 99.0))


def text_of(report: UpdateReport) -> str:
    """Return a report as a table for people."""
    lines = [
        f"{report.num_new_classes} new classes of {report.capacity} slots, {report.feature_dim} features, "
        f"{report.update_bytes / 1e3:.0f} kB",
        "",
        f"{'from file to first answer':28}{'median':>12}{'p99':>16}{'':>4}",
    ]
    for way, each in report.ways.items():
        times = "" if way == CLASS_UPDATE else f"  {report.times_faster(way):.1f} x"
        lines.append(f"{way:28}{each.median_ms:>9.3f} ms{each.p99.text:>16}{times}")
    lines += ["", "the class update's parts"]
    lines += [f"  {part:26}{each.median_ms:>9.3f} ms{each.p99.text:>16}" for part, each in report.parts.items()]
    return "\n".join(lines)
