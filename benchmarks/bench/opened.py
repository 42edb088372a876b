"""What is measured: a bundle, or the model that bundles were made from, open in a runtime and ready to answer.

A target answers as a user's program would be answered: through `Device.logits` for a bundle. The original model, which
is no bundle, runs in a bare session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.bench.gpu_phases import GPU_PROVIDERS, measure_phases
from benchmarks.bench.scale import head_bytes
from benchmarks.results.values import HeadKind, Phases
from icis_deploy.bundle.manifest import INJECTED_NAME, Bundle, ModelInput
from icis_deploy.bundle.slot_files import load_injected
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import BundleError, IncompatibleError, UsageError
from icis_deploy.head.arbiter import no_arbiter
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions.choice import Runtime, loaded_files
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession, load_session

ORIGINAL = "original"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTarget:
    """A model that is loaded."""

    name: str
    """What it is called in the result."""

    head_kind: HeadKind
    """What kind of head it has."""

    precision: str
    """Of the weights, such as `fp32` or `int8`."""

    runtime: str
    """The runtime's name, such as `onnxruntime`."""

    provider: str | None
    """What the runtime says that it really runs on."""

    num_threads: int | None
    """Threads inside one operator; None where the runtime was left to choose."""

    class_names: tuple[str, ...]
    """`(num_classes,)`, in the order of the logits."""

    num_seen: int
    """How many of them the original model knew; they come first."""

    capacity: int
    """Number of slots; 0 where the head has none."""

    files: tuple[Path, ...]
    """What opening it reads: of a bundle every file, as the manifest's hashes cover all."""

    model_files: tuple[Path, ...]
    """Those of them that the runtime loads for the model, and the slots."""

    added_bytes: int
    """Bytes of the head's rows that the original model does not have, empty slots included, in float32."""

    answer: Callable[[Images], Float32]
    """From a prepared batch to `(batch, num_classes)` logits."""

    bundle: Path | None
    """Its folder; None for a model that is no bundle."""

    phases: Callable[[Images], Phases] | None
    """Measures where the time of a batch goes; None where there is no device with memory of its own."""

    added_rows: Callable[[], Float32]
    """Gives `(num_classes - num_seen, feature_dim + 1)`, the rows that the original model does not have."""

    added_arbiter: Callable[[], Float32]
    """Gives `(num_classes - num_seen, 5)`, what their logits follow from the image's `head.arbiter.STATISTICS`."""

    score_kind: str
    """What the model's output holds; as `Bundle.score_kind`. `answer` gives logits whatever it is."""

    preprocessing: Preprocessing | None
    """How images are prepared; None where that is not known."""

    model_input: ModelInput
    """Shape and dtype of one prepared image."""

    factory: str
    """`module:function` that loads it in a fresh process and returns what answers one query."""

    arguments: Mapping[str, object]
    """Keyword arguments of the factory."""

    @property
    def size_bytes(self) -> int:
        """Size of the files that its runtime loads."""
        return sum(path.stat().st_size for path in self.model_files)


def open_bundle(folder: Path, *, name: str, runtime: Runtime) -> OpenTarget:
    """Open a bundle.

    Args:
        folder: The bundle.
        name: What it is called in the result.
        runtime: What runs it.

    Raises:
        ICISDeployError: As `Device.open`.
    """
    device = Device.open(folder, runtime=runtime)
    bundle = device.bundle
    return OpenTarget(
        name=name,
        head_kind="updatable" if bundle.capacity else "fused",
        precision=bundle.precision,
        runtime=runtime.name,
        provider=provider_of(session_of(device)),
        num_threads=runtime.num_threads,
        class_names=device.classes(),
        num_seen=bundle.num_seen,
        capacity=bundle.capacity,
        files=tuple(folder / file for file in bundle.files),
        model_files=tuple(folder / file for file in loaded_files(bundle, runtime)),
        added_bytes=head_bytes(len(bundle.class_names) + bundle.capacity - bundle.num_seen, bundle.feature_dim),
        answer=lambda images: device.logits(images).values,
        bundle=folder,
        phases=phases_of(device, name),
        added_rows=lambda: added_rows(folder, device),
        added_arbiter=lambda: added_arbiter(folder, device),
        score_kind=bundle.score_kind,
        preprocessing=bundle.preprocessing,
        model_input=bundle.model_input,
        factory="benchmarks.bench.opened:start_bundle",
        arguments={"folder": str(folder.resolve()), "runtime": runtime.name, "num_threads": runtime.num_threads},
    )


def open_original(path: Path, *, like: Bundle, num_threads: int | None) -> OpenTarget:
    """Open the model that a bundle was made from, in ONNX Runtime.

    Args:
        path: A `.onnx` file.
        like: The bundle, which says what its classes are called and how images are prepared.
        num_threads: Threads inside one operator; None lets the runtime choose.

    Raises:
        IncompatibleError: If it gives another number of logits than the bundle has seen classes.
        ICISDeployError: If it cannot be loaded or run.
    """
    session = load_session(path, num_threads=num_threads)
    model_input = float_input(like)
    num_logits = session.run(noise(model_input, 1)).logits.shape[1]
    if num_logits != like.num_seen:
        raise IncompatibleError(
            f"{path} gives {num_logits} logits; the bundle was made from a model of {like.num_seen} classes.",
            found=num_logits,
            expected=like.num_seen,
            where=path,
            hint="Give the model that it was exported from.",
        )
    return OpenTarget(
        name=ORIGINAL,
        head_kind="original",
        precision="fp32",
        runtime=Runtime().name,
        provider=provider_of(session),
        num_threads=num_threads,
        class_names=like.seen_names,
        num_seen=like.num_seen,
        capacity=0,
        files=(path,),
        model_files=with_data(path),
        added_bytes=0,
        answer=lambda images: as_logits(session.run(images).logits, like.score_kind),
        bundle=None,
        phases=None,
        added_rows=lambda: np.empty((0, like.feature_dim + 1), dtype=np.float32),
        added_arbiter=lambda: no_arbiter(0),
        score_kind=like.score_kind,
        preprocessing=like.preprocessing,
        model_input=model_input,
        factory="benchmarks.bench.opened:start_original",
        arguments={"path": str(path.resolve()), "model_input": asdict(model_input), "num_threads": num_threads},
    )


def with_data(path: Path) -> tuple[Path, ...]:
    """Return a `.onnx` file, and the file of its external weights where there is one."""
    data = path.with_name(f"{path.name}.data")
    return (path, data) if data.is_file() else (path,)


def phases_of(device: Device, name: str) -> Callable[[Images], Phases] | None:
    """Return what measures the phases of a device; None unless ONNX Runtime runs it on a GPU."""
    session = session_of(device)
    if not isinstance(session, ONNXRuntimeSession) or provider_of(session) not in GPU_PROVIDERS:
        return None
    return lambda images: measure_phases(session.inference_session, images, state_of(device).buffers, target=name)


def added_rows(folder: Path, device: Device) -> Float32:
    """Return the rows of a bundle's classes that the original model does not have, `(num_added, feature_dim + 1)`.

    Raises:
        BundleError: If a fused bundle does not have the file that holds them.
    """
    rows = [table.rows() for table in added_tables(folder, device)]
    return np.concatenate([np.empty((0, device.bundle.feature_dim + 1), dtype=np.float32), *rows])


def added_arbiter(folder: Path, device: Device) -> Float32:
    """Return what the logits of these classes follow from statistics of the image, `(num_added, 5)`.

    Raises:
        BundleError: As `added_rows`.
    """
    found = [table.coefficients[table.filled] for table in added_tables(folder, device)]
    return np.concatenate([no_arbiter(0), *found])


def added_tables(folder: Path, device: Device) -> list[SlotTable]:
    """Return what holds the classes of a bundle that the original model does not have: baked ones first, then slots."""
    tables = []
    if len(device.bundle.class_names) > device.bundle.num_seen:
        table = load_injected(folder, device.bundle)
        if table is None:
            raise BundleError(
                f"The bundle {folder} has no {INJECTED_NAME}.",
                expected=INJECTED_NAME,
                where=folder,
                hint="Export it again.",
            )
        tables.append(table)
    slots = state_of(device).table
    if slots is not None:
        tables.append(slots)
    return tables


def as_logits(scores: Float32, score_kind: str) -> Float32:
    """Return scores as logits: logarithms where the model ends in a softmax; see `Device.logits`."""
    return np.log(np.maximum(scores, np.finfo(np.float32).tiny)) if score_kind == "probabilities" else scores


def float_input(bundle: Bundle) -> ModelInput:
    """Return the input of the model that a bundle was made from: prepared images in float32."""
    if not bundle.model_input.takes_pixels:
        return bundle.model_input
    assert bundle.preprocessing is not None, "a bundle that takes pixels states the rest"
    return ModelInput(name=bundle.model_input.name, shape=bundle.preprocessing.input_shape, dtype="float32")


def noise(model_input: ModelInput, batch_size: int, *, seed: int = 0) -> Images:
    """Return a seeded batch in the range of prepared images: uniform in -1..1, or over the range of whole numbers.

    Returns:
        `(batch_size, *shape)` in the input's dtype.
    """
    random, dtype = np.random.default_rng(seed), np.dtype(model_input.dtype)
    size = (batch_size, *model_input.shape)
    if dtype.kind in "ui":
        return random.integers(0, np.iinfo(dtype).max, size, dtype=dtype, endpoint=True)
    return np.asarray(random.uniform(-1, 1, size), dtype=dtype)


def provider_of(session: object) -> str | None:
    """Return what a session says that it runs on, None where its runtime does not tell."""
    providers = getattr(session, "providers", None)
    return providers[0] if providers else None


def names_of_bundles(folders: Sequence[Path]) -> list[str]:
    """Return a name for each bundle: its folder's, with as many of the folders above it as tell it from the others.

    Raises:
        UsageError: If a bundle is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UsageError(
            "A bundle is given twice.",
            hint="Give each one once.",
        )
    depth = 1
    while len({part[-depth:] for part in parts} | {(ORIGINAL,)}) < len(parts) + 1:
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def start_bundle(folder: str, runtime: str, num_threads: int | None) -> Callable[[], object]:
    """Open a bundle in a fresh process, and return what answers one image; see `startup.py`."""
    device = Device.open(folder, runtime=runtime, num_threads=num_threads)
    images = noise(device.bundle.model_input, 1)
    return lambda: device.logits(images)


def start_original(path: str, model_input: Mapping[str, object], num_threads: int | None) -> Callable[[], object]:
    """Load a model in a fresh process, and return what answers one image; see `startup.py`."""
    session = load_session(Path(path), num_threads=num_threads)
    images = noise(ModelInput(**model_input), 1)  # type: ignore[arg-type]
    return lambda: session.run(images)
