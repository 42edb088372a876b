"""Latency and memory of a head against its number of classes, and the time that reading its rows takes.

Rules:

1. The head alone is measured, features in and logits out: the backbone in front of it costs the same for every head.
2. The updatable head is the fused one with slots added by the same surgery that makes bundles, fed with rows, whose
   logits follow an arbiter as those of a bundle do.
3. The roofline is the bytes of all rows over the memory bandwidth measured just before, with as many threads. A head
   that fits into a cache can be faster; one that is read from memory cannot.
4. Memory is that of a fresh process that has loaded the head and answered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine.bandwidth import memory_bandwidth
from benchmarks.machine.environment import read_environment
from benchmarks.results.result import Result
from benchmarks.results.values import ScalePoint, ScaleSeries
from benchmarks.timing.latency import Plan, measure
from benchmarks.timing.percentiles import num_queries_needed
from benchmarks.timing.startup import measure_startup
from icis_deploy.common.json_fields import json_from_time
from icis_deploy.errors import UsageError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.runtime.sessions.onnxruntime_session import load_session

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_HEAD_BYTES = 8 << 30

Progress = Callable[[str], None]
Kind = Literal["fused", "updatable"]
KINDS: tuple[Kind, ...] = ("fused", "updatable")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """What the heads of one series have in common.

    Raises:
        UsageError: On construction, if a number is not positive.
    """

    feature_dim: int = 1280
    """Width of a feature."""

    capacity: int = 256
    """Slots of the updatable head, in addition to its classes."""

    batch_size: int = 1
    """Features in a query."""

    num_threads: int = 1
    """Threads of the runtime, and of the measurement of the memory bandwidth."""

    budget_s: float = 5.0
    """Seconds for the latency of one head."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise UsageError(
                    f"{name} is {value}; expected a positive number.",
                    found=value,
                    expected="a positive number",
                    where=name,
                )


def measure_scale(num_classes: Sequence[int], settings: HeadSettings, *, progress: Progress = lambda _: None) -> Result:
    """Measure heads of so many classes, fused and updatable.

    Args:
        num_classes: Classes of each head.
        settings: What they have in common.
        progress: Called with what is measured next, in words.

    Raises:
        UsageError: If a head would be larger than 8 GiB, or have no class.
        MissingDependencyError: If onnx or ONNX Runtime is not installed.
    """
    largest = head_bytes(max(num_classes) + settings.capacity, settings.feature_dim)
    if min(num_classes) < 1 or largest > MAX_HEAD_BYTES:
        raise UsageError(
            f"Heads of {min(num_classes)} to {max(num_classes)} classes and {settings.feature_dim} features cannot be "
            f"measured: they have at least one class, and at most {MAX_HEAD_BYTES >> 30} GiB.",
            found=tuple(num_classes),
            expected=f"at least one class, and at most {MAX_HEAD_BYTES} bytes",
        )
    environment = read_environment()
    progress("memory bandwidth")
    bandwidth = memory_bandwidth(settings.num_threads)
    points: dict[Kind, list[ScalePoint]] = {kind: [] for kind in KINDS}
    for number in sorted(set(num_classes)):
        with saved_heads(number, settings.feature_dim, settings.capacity) as paths:
            for kind, path in paths.items():
                progress(f"{kind} head of {number} classes")
                points[kind].append(measure_point(path, kind, number, settings, bandwidth))
    return Result(
        command="bench-scale",
        created=json_from_time(datetime.now(timezone.utc)),
        settings=asdict(settings),
        environment=environment,
        scale=tuple(series(kind, points[kind], settings, bandwidth) for kind in KINDS),
    )


def series(kind: Kind, points: Sequence[ScalePoint], settings: HeadSettings, bandwidth: float) -> ScaleSeries:
    """Return the points of one kind of head with what they have in common."""
    return ScaleSeries(
        head_kind=kind,
        feature_dim=settings.feature_dim,
        batch_size=settings.batch_size,
        num_threads=settings.num_threads,
        bandwidth_bytes_per_s=bandwidth,
        points=tuple(points),
    )


def measure_point(path: Path, kind: Kind, num_classes: int, settings: HeadSettings, bandwidth: float) -> ScalePoint:
    """Measure one head: its latency here, its memory in a fresh process."""
    capacity = settings.capacity if kind == "updatable" else 0
    arguments = {
        "path": str(path),
        "feature_dim": settings.feature_dim,
        "capacity": capacity,
        "batch_size": settings.batch_size,
        "num_threads": settings.num_threads,
    }
    startup = measure_startup(kind, "benchmarks.bench.scale:start_head", arguments, files=[path], num_runs=1)
    memory = startup.medians["memory_peak_bytes"]
    plan = Plan(num_queries=num_queries_needed(90.0), budget_s=settings.budget_s)
    measurement = measure({kind: start_head(**arguments)}, plan=plan)  # type: ignore[arg-type]
    size = head_bytes(num_classes + capacity, settings.feature_dim)
    return ScalePoint(
        num_classes=num_classes,
        head_bytes=size,
        latency_ms=measurement.latencies[0].median_ms,
        roofline_ms=1000 * size / bandwidth,
        memory_bytes=None if memory is None else int(memory),
    )


def head_bytes(num_rows: int, feature_dim: int) -> int:
    """Return the bytes of so many float32 rows."""
    return 4 * num_rows * (feature_dim + 1)


def start_head(path: str, feature_dim: int, capacity: int, batch_size: int, num_threads: int) -> Callable[[], object]:
    """Load a head, and return what answers one query; runs in a fresh process as well, see `startup.py`."""
    session = load_session(Path(path), num_threads=num_threads)
    random = np.random.default_rng(0)
    features = random.random((batch_size, feature_dim), dtype=np.float32)
    if capacity == 0:
        return lambda: session.run(features)
    slots = session.load_slots(*random_rows(capacity, feature_dim, seed=1), random_arbiter(capacity))
    return lambda: session.run(features, slots)


def random_rows(num_rows: int, feature_dim: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weights `(num_rows, feature_dim)` and biases `(num_rows,)`, float32."""
    random = np.random.default_rng(seed)
    return random.random((num_rows, feature_dim), dtype=np.float32), random.random(num_rows, dtype=np.float32)


def random_arbiter(capacity: int) -> NDArray[np.float32]:
    """Return coefficients of slots, `(capacity, 5)` float32, the same for all of them as an injection has them."""
    coefficients = np.random.default_rng(2).random(len(STATISTICS), dtype=np.float32)
    return np.tile(coefficients, (capacity, 1))


@contextmanager
def saved_heads(num_classes: int, feature_dim: int, capacity: int) -> Iterator[dict[Kind, Path]]:
    """Give the files of both heads, which are gone afterwards.

    Raises:
        MissingDependencyError: If onnx is not installed.
    """
    from exporters.graph.edits import apply_passes
    from exporters.head.expanded_head import seen_row_lengths
    from exporters.head.finding import find_head
    from exporters.head.surgery import AddSlotsPass
    from exporters.onnx_io.files import save_model

    model = head_model(num_classes, feature_dim)
    with tempfile.TemporaryDirectory() as name:
        paths: dict[Kind, Path] = {"fused": Path(name) / "fused.onnx", "updatable": Path(name) / "updatable.onnx"}
        save_model(model, paths["fused"])
        location = find_head(model)
        slots = AddSlotsPass(location, capacity, seen_row_lengths(model, location))
        save_model(apply_passes(model, slots), paths["updatable"])
        del model
        yield paths


def head_model(num_classes: int, feature_dim: int) -> ir.Model:
    """Return an ONNX model that is a head and nothing else, with random rows."""
    import onnx_ir as ir

    weight, bias = random_rows(num_classes, feature_dim, seed=0)
    float32 = ir.TensorType(ir.DataType.FLOAT)
    image = ir.Value(name="image", shape=ir.Shape(["batch", feature_dim]), type=float32)
    rows = [
        ir.Value(name=name, shape=ir.Shape(values.shape), type=float32, const_value=ir.tensor(values, name=name))
        for name, values in (("weight", weight), ("bias", bias))
    ]
    # A backbone of one operator, since features that are the input itself could not be a second output.
    backbone = ir.node("Relu", [image], name="backbone")
    head = ir.node("Gemm", [backbone.outputs[0], *rows], attributes={"transB": 1}, name="head")
    logits = head.outputs[0]
    logits.name, logits.shape, logits.type = "logits", ir.Shape(["batch", num_classes]), float32
    backbone.outputs[0].shape, backbone.outputs[0].type = image.shape, float32
    graph = ir.Graph(
        [image], [logits], nodes=[backbone, head], initializers=rows, opset_imports={"": 20}, name="head_alone"
    )
    return ir.Model(graph, ir_version=10)
