"""Which runtime a bundle is opened in, and the session that it gets there.

    onnxruntime             model.onnx on the CPU: the default
    onnxruntime-cuda        model.onnx on an NVIDIA GPU
    onnxruntime-tensorrt    the same through ONNX Runtime's TensorRT provider, which builds an engine on first use
    openvino                model.onnx, or the bundle's openvino/ where it has one, on the CPU
    litert                  the bundle's litert/, on the CPU
    mnn                     the bundle's mnn/, on the CPU
    executorch              the bundle's executorch/, on the CPU
    ncnn                    the bundle's ncnn/, on the CPU
    split                   the bundle's backbone.onnx on the CPU, its head in numpy
    qnn                     the bundle's qnn/ on a Qualcomm NPU, its head in numpy
    qnn-emulated            the same on the CPU
    tensorrt, tensorrt-rtx  the bundle's engine, on an NVIDIA GPU

Rules:

1. What was asked for is what runs. A runtime that would quietly use another device is refused.
2. Libraries are imported when their runtime is chosen, so that a device needs the one that it uses. This module itself
   imports nothing heavy, as the command line offers its names.
"""

# Why: docs/decisions/0026.

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_choice, check_flag, whole_number
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import UsageError

if TYPE_CHECKING:
    from icis_deploy.bundle.manifest import Bundle
    from icis_deploy.runtime.sessions.protocol import Session

MAX_THREADS = 1024
"""A runtime starts every thread that it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Which runtime a model is loaded in, and how.

    Example:
        >>> icis_deploy.Runtime(name="openvino", num_threads=2).is_reference
        False

    Raises:
        UsageError: On construction, if there is no such runtime, a number is not positive, or a setting does nothing in
            this runtime.
    """

    name: str = "onnxruntime"
    """One of `RUNTIME_NAMES`."""

    num_threads: int | None = None
    """Threads inside one operator on the CPU; `None` lets the runtime use every core."""

    cache_folder: Path | None = None
    """Of `onnxruntime-tensorrt`: where it caches the engines that it builds, a folder for each model; `None` for the
    user's cache folder."""

    num_streams: int = 1
    """Of an engine and of OpenVINO: how many requests may run at the same time, each with buffers of its own on the
    GPU, or with `num_threads` threads of its own; others wait."""

    cuda_graph: bool = False
    """Of an engine: whether requests replay captured graphs, which saves the CPU the launch of each kernel."""

    def __post_init__(self) -> None:
        check_choice(self.name, RUNTIME_NAMES, what="runtime", name="runtime")
        for what in ("threads", "streams"):
            name = f"num_{what}"
            given = getattr(self, name)
            if given is None and what == "threads":
                continue
            number = whole_number(given, name=name)
            object.__setattr__(self, name, number)
            if not 1 <= number <= MAX_THREADS:
                raise UsageError(
                    f"{number} {what} were asked for; expected at least 1, and at most {MAX_THREADS}.",
                    found=number,
                    expected=f"1 to {MAX_THREADS}",
                    where=what,
                    hint=f"Give another `{name}`.",
                )
        check_flag(self.cuda_graph, name="cuda_graph")
        if self.cache_folder is not None:
            path_from(self.cache_folder, name="cache_folder")
        for setting, is_given, owners in (
            ("num_streams", self.num_streams != 1, STREAM_RUNTIMES),
            ("cuda_graph", self.cuda_graph, ENGINE_RUNTIMES),
            ("cache_folder", self.cache_folder is not None, ("onnxruntime-tensorrt",)),
        ):
            if is_given and self.name not in owners:
                raise UsageError(
                    f"{setting} does nothing in the runtime {self.name!r}: it is for {', '.join(owners)}.",
                    found=self.name,
                    expected=owners,
                    where=setting,
                    hint="Leave it out, or choose another runtime.",
                )

    @property
    def is_reference(self) -> bool:
        """Whether this is the runtime that every bundle was checked in when it was exported."""
        return self.name == "onnxruntime"

    @property
    def computes_on_cpu(self) -> bool:
        """Whether the model runs on the cores that read images too."""
        return self.name in CPU_RUNTIMES


def runtime_from(runtime: Runtime | str, *, num_threads: int | None = None) -> Runtime:
    """Return a runtime from its name, or as it is.

    Args:
        runtime: A name of `RUNTIME_NAMES`, or a runtime.
        num_threads: Overrides what the runtime says, unless `None`.

    Raises:
        UsageError: If there is no such runtime.
    """
    found = Runtime(name=runtime) if isinstance(runtime, str) else runtime
    if not isinstance(found, Runtime):
        raise UsageError(
            f"The runtime is of type {shown(type(found).__name__)}; expected a name, or a Runtime.",
            found=type(found).__name__,
            expected=RUNTIME_NAMES,
            hint="Give `runtime` as a name, such as 'onnxruntime'.",
        )
    return found if num_threads is None else replace(found, num_threads=num_threads)


def open_session(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    """Load a bundle's model in a runtime.

    Args:
        folder: The bundle's files, which the caller has compared with the manifest.
        bundle: What its manifest says, or will say.
        runtime: Where to load it.

    Raises:
        MissingDependencyError: If the runtime, or the device that it needs, is not there.
        IncompatibleError: If the bundle holds nothing for this runtime, or an engine for another machine.
        ModelLoadError: If it cannot load the model.
    """
    return _OPENERS[runtime.name](folder, bundle, runtime)


def import_library(runtime: Runtime) -> None:
    """Import a runtime's library early, so that something else can be done meanwhile.

    That it is missing is for `open_session` to say; an engine's is left to it, as other things are checked before, and
    so is one that prints when it is imported.
    """
    if _OPENERS[runtime.name] is not _open_engine and runtime.name not in CONVERTED_RUNTIMES:
        with suppress(ImportError):
            import_module("openvino" if runtime.name == "openvino" else "onnxruntime")


def loaded_files(bundle: Bundle, runtime: Runtime) -> tuple[str, ...]:
    """Return the files of a bundle that a runtime loads, by their paths in it: the model, its weights, and the slots.

    A bundle may hold more: rows that were baked, a generator, models for other runtimes.
    """
    from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
    from icis_deploy.bundle.engine_sidecar import engine_name
    from icis_deploy.bundle.manifest import BACKBONE_NAME, BAKED_ROWS_NAME, MODEL_NAME, SLOTS_NAME
    from icis_deploy.runtime.sessions.openvino_session import OPENVINO_NAME

    if runtime.name in CONVERTED_RUNTIMES:
        # In int8 the backbone alone is converted, and the head is on the host.
        rows = {BAKED_ROWS_NAME} if bundle.precision == "int8" else set()
        return tuple(name for name in bundle.files if name in {*CONVERTED_FILES[runtime.name], SLOTS_NAME, *rows})
    if runtime.name in ENGINE_RUNTIMES:
        model = engine_name(runtime.name)
    elif runtime.name == "openvino" and OPENVINO_NAME in bundle.files:
        model = OPENVINO_NAME.removesuffix("xml")  # and model.bin
    elif runtime.name == "split":
        model = BACKBONE_NAME
    elif runtime.name in HOST_HEAD_RUNTIMES:
        (model,) = CONVERTED_FILES["qnn"]
    else:
        model = MODEL_NAME  # and model.onnx.data, where it is large
    others = {SLOTS_NAME, BAKED_ROWS_NAME} if runtime.name in HOST_HEAD_RUNTIMES else {SLOTS_NAME}
    return tuple(name for name in bundle.files if name.startswith(model) or name in others)


def _open_onnxruntime(folder: Path, _bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.bundle.manifest import MODEL_NAME
    from icis_deploy.runtime.sessions.onnxruntime_session import load_session

    return load_session(folder / MODEL_NAME, num_threads=runtime.num_threads)


def _open_onnxruntime_cuda(folder: Path, _bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.bundle.manifest import MODEL_NAME
    from icis_deploy.runtime.sessions.onnxruntime_providers import cuda_choice
    from icis_deploy.runtime.sessions.onnxruntime_session import load_session

    return load_session(folder / MODEL_NAME, num_threads=runtime.num_threads, provider=cuda_choice())


def _open_onnxruntime_tensorrt(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.bundle.manifest import MODEL_NAME
    from icis_deploy.runtime.sessions.onnxruntime_providers import tensorrt_choice
    from icis_deploy.runtime.sessions.onnxruntime_session import load_session

    provider = tensorrt_choice(bundle, runtime.cache_folder)
    return load_session(folder / MODEL_NAME, num_threads=runtime.num_threads, provider=provider)


def _open_openvino(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.bundle.manifest import MODEL_NAME
    from icis_deploy.runtime.sessions.openvino_session import OPENVINO_NAME, load_openvino_session

    model = folder / (OPENVINO_NAME if OPENVINO_NAME in bundle.files else MODEL_NAME)
    return load_openvino_session(model, num_threads=runtime.num_threads, num_streams=runtime.num_streams)


def _open_litert(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.litert_session import load_litert_session

    return load_litert_session(folder, bundle, num_threads=runtime.num_threads)


def _open_mnn(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.mnn_session import load_mnn_session

    return load_mnn_session(folder, bundle, num_threads=runtime.num_threads)


def _open_executorch(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.executorch_session import load_executorch_session

    return load_executorch_session(folder, bundle, num_threads=runtime.num_threads)


def _open_ncnn(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.ncnn_session import load_ncnn_session

    return load_ncnn_session(folder, bundle, num_threads=runtime.num_threads)


def _open_split(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.split_session import load_split_session

    return load_split_session(folder, bundle, num_threads=runtime.num_threads)


def _open_qnn(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.qnn_session import load_qnn_session

    is_emulated = runtime.name == "qnn-emulated"
    return load_qnn_session(folder, bundle, num_threads=runtime.num_threads, is_emulated=is_emulated)


def _open_engine(folder: Path, bundle: Bundle, runtime: Runtime) -> Session:
    from icis_deploy.runtime.sessions.tensorrt_engine import load_engine_session

    return load_engine_session(
        folder, bundle, runtime.name, num_streams=runtime.num_streams, cuda_graph=runtime.cuda_graph
    )


_OPENERS: dict[str, Callable[[Path, Bundle, Runtime], Session]] = {
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-cuda": _open_onnxruntime_cuda,
    "onnxruntime-tensorrt": _open_onnxruntime_tensorrt,
    "openvino": _open_openvino,
    "litert": _open_litert,
    "mnn": _open_mnn,
    "executorch": _open_executorch,
    "ncnn": _open_ncnn,
    "split": _open_split,
    "qnn": _open_qnn,
    "qnn-emulated": _open_qnn,
    "tensorrt": _open_engine,
    "tensorrt-rtx": _open_engine,
}

RUNTIME_NAMES = tuple(_OPENERS)
"""Every runtime that a bundle can be opened in, the default first."""

ENGINE_RUNTIMES = tuple(name for name, opener in _OPENERS.items() if opener is _open_engine)
"""Those that run an engine which the bundle holds."""

STREAM_RUNTIMES = ("openvino", *ENGINE_RUNTIMES)
"""Those that are told how many requests run at the same time; others take as many as there are."""

CONVERTED_RUNTIMES = ("litert", "mnn", "executorch", "ncnn")
"""Those that run a model which was converted for them when the bundle was exported."""

HOST_HEAD_RUNTIMES = ("split", "qnn", "qnn-emulated")
"""Those whose head is always on the host."""

CPU_RUNTIMES = ("onnxruntime", "openvino", *CONVERTED_RUNTIMES, "split", "qnn-emulated")
