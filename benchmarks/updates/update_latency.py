"""How long a class update takes, from the file to the first answer, compared with other ways to change a head.

Measured in one run, in turn, on one model and with one set of rows:

    class update     what icis-deploy does: verify, write, test, commit, swap; split into its parts
    new session      the slots' initializers replaced in memory, and a new session made (ONNX Runtime `add_initializer`)
    LoRA adapter     the rows as an ONNX Runtime adapter file, loaded and activated; nothing is verified or kept
    export, reload   the original model exported again with the rows fused in, and loaded

Rules:

1. Every way ends with the first answer, and the answer is checked: all of them give the same logits.
2. Each round measures a class update once; the other, slow ways are measured in every tenth round.
3. A percentile is stated only from the number of queries that `percentiles.py` asks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.results.values import CLASS_UPDATE, PART_NAMES, UpdateLatency, timing_from_latencies
from benchmarks.timing.rounds import garbage_collector_at_rest
from benchmarks.updates.bundle_copy import BundleCopy, bundle_copy, slot_table
from icis_deploy.bundle.manifest import MODEL_NAME, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT, load_manifest
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import RuntimeFailureError, UsageError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions.onnxruntime_session import load_session, session_options

NEW_SESSION = "new session"
ADAPTER = "LoRA adapter"
REEXPORT = "export, reload"
PARTS = ("verify_ms", "journal_ms", "sync_ms", "swap_ms", "probe_ms", "inference_ms", "first_answer_ms")
SLOW_ROUNDS = 10
"""Slow ways are measured in every tenth round: their medians are far enough from the rest."""


Reexport = Callable[[Path, ClassUpdate], None]
"""Writes the original model with the rows of an update fused into its head to a path."""


@dataclass(slots=True, kw_only=True)
class _Run:
    """What measuring the ways needs, and the latencies so far."""

    device: Device
    copy: BundleCopy
    images: Images
    num_threads: int
    folder: Path
    reexport: Reexport | None
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
) -> UpdateLatency:
    """Measure class updates on a copy of a bundle, and the other ways to change its head.

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
            f"{num_updates} updates of {num_new_classes} classes cannot be measured on {bundle.capacity} slots.",
            found=(num_updates, num_new_classes),
            expected=f"at least 1 update of 1 to {bundle.capacity} classes",
            hint="Measure fewer classes, or a bundle with `head='updatable'` and more slots.",
        )
    with bundle_copy(bundle_folder) as copy, garbage_collector_at_rest():
        device = Device.open(copy.folder, num_threads=num_threads)
        run = _Run(
            device=device,
            copy=copy,
            images=self_test_input(bundle, seed),
            num_threads=num_threads,
            folder=copy.folder.parent,
            reexport=None if original is None else _exporter(original),
        )
        random, removed = np.random.default_rng(seed), device.classes()[len(bundle.class_names) :]
        for index in range(num_updates):
            update = _make_update(device, random, index=index, num_classes=num_new_classes, removed=removed)
            removed = update.added
            _measure_round(run, update, is_slow=index % SLOW_ROUNDS == 0)
    return UpdateLatency(
        num_new_classes=num_new_classes,
        capacity=bundle.capacity,
        feature_dim=bundle.feature_dim,
        update_bytes=run.update_bytes,
        ways={way: timing_from_latencies(values) for way, values in run.latencies_ms.items()},
        parts={part: timing_from_latencies(values) for part, values in run.parts_ms.items()},
    )


def _make_update(
    device: Device, random: np.random.Generator, *, index: int, num_classes: int, removed: tuple[str, ...]
) -> ClassUpdate:
    rows = random.normal(scale=device.bundle.feature_dim**-0.5, size=(num_classes, device.bundle.feature_dim + 1))
    coefficients = random.normal(scale=0.1, size=(num_classes, len(STATISTICS)))
    return ClassUpdate(
        base_fingerprint=device.bundle.base_fingerprint,
        rows=rows.astype(np.float32),
        arbiter=coefficients.astype(np.float32) if device.bundle.arbiter else None,
        added=tuple(f"update {index} class {number}" for number in range(num_classes)),
        removed=removed,
        version=device.version + 1,
        self_test_seed=index,
    )


def _measure_round(run: _Run, update: ClassUpdate, *, is_slow: bool) -> None:
    _apply_update(run, update)
    expected = session_of(run.device).run(run.images, state_of(run.device).buffers).logits
    if is_slow:
        values = _slot_values(run.device)
        found = {ADAPTER: _activate_adapter(run, values), NEW_SESSION: _make_new_session(run, values)}
        if run.reexport is not None:
            answers = run.device.logits(run.images)
            _check(REEXPORT, _export_and_reload(run, run.reexport, update), answers.values)
        for way, logits in found.items():
            _check(way, logits, expected)


def _apply_update(run: _Run, update: ClassUpdate) -> None:
    path = run.folder / "update.icis"
    path.write_bytes(run.copy.signed(update))
    run.update_bytes = path.stat().st_size
    start = time.perf_counter()
    timings = run.device.apply(path, allow_changed_answers=True).timings
    applied = time.perf_counter()
    run.device.logits(run.images)
    end = time.perf_counter()
    run.add(CLASS_UPDATE, 1e3 * (end - start))
    parts = {name: getattr(timings, PART_NAMES.get(name, name)) for name in PARTS[:-1]}
    parts |= {"first_answer_ms": 1e3 * (end - applied), "work_ms": timings.work_ms}
    for name, value in parts.items():
        run.parts_ms.setdefault(name, []).append(value)


def _slot_values(device: Device) -> dict[str, Float32]:
    """Return what the inputs of the slots hold, by name: rows, and their arbiter where the model takes one."""
    table = slot_table(device)
    values = {SLOT_WEIGHT: table.weight, SLOT_BIAS: table.bias}
    if device.bundle.arbiter:
        values[SLOT_ARBITER] = table.coefficients
    return {name: np.ascontiguousarray(value) for name, value in values.items()}


def _make_new_session(run: _Run, slots: dict[str, Float32]) -> Float32:
    import onnxruntime

    start = time.perf_counter()
    options = session_options(run.num_threads)
    # The session reads these values for as long as it lives; they must not be collected before it.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in slots.items()}
    for name, value in values.items():
        options.add_initializer(name, value)
    session = onnxruntime.InferenceSession(_model_path(run), options, providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: run.images})[0]
    run.add(NEW_SESSION, 1e3 * (time.perf_counter() - start))
    return np.asarray(logits)


def _activate_adapter(run: _Run, slots: dict[str, Float32]) -> Float32:
    import onnxruntime

    path = run.folder / "rows.onnx_adapter"
    adapter_format = onnxruntime.AdapterFormat()
    adapter_format.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in slots.items()}
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


def _export_and_reload(run: _Run, reexport: Reexport, update: ClassUpdate) -> Float32:
    path = run.folder / "exported.onnx"
    start = time.perf_counter()
    reexport(path, update)
    logits = load_session(path, num_threads=run.num_threads).run(run.images).logits
    run.add(REEXPORT, 1e3 * (time.perf_counter() - start))
    return logits


def _exporter(original: Path) -> Reexport:
    """Return what exports the original again, with the rows of an update fused into its head."""
    from exporters.graph.edits import apply_passes
    from exporters.head.expanded_head import ExpandedHead, seen_row_lengths
    from exporters.head.finding import find_head
    from exporters.head.surgery import FuseHeadPass
    from exporters.loading.models import load_model
    from exporters.onnx_io.files import save_model

    def export(path: Path, update: ClassUpdate) -> None:
        model = load_model(str(original)).model
        location = find_head(model)
        head = ExpandedHead(
            model=model,
            location=location,
            injected=update.rows,
            arbiter=update.arbiter,
            lengths=np.empty(0, np.float32) if update.arbiter is None else seen_row_lengths(model, location),
        )
        save_model(apply_passes(model, FuseHeadPass(location, head)), path)

    return export


def _model_path(run: _Run) -> str:
    return str(run.copy.folder / MODEL_NAME)


def _check(way: str, found: Float32, expected: Float32) -> None:
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise RuntimeFailureError(
            f"The way {way!r} gave other logits than the class update: shape {found.shape}, expected "
            f"{expected.shape}. Its latency cannot be compared.",
            found=found.shape,
            expected=expected.shape,
            where=str(way),
        )


def text_of(report: UpdateLatency) -> str:
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
    lines += [
        f"  {PART_NAMES.get(part, part):26}{each.median_ms:>9.3f} ms{each.p99.text:>16}"
        for part, each in report.parts.items()
    ]
    return "\n".join(lines)
