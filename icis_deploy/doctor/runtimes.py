"""What each runtime really does on this machine: a small bundle is opened in it, answers, and takes a class update."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from icis_deploy.common.terminal_text import reason_of
from icis_deploy.doctor.tiny_bundle import (
    NEW_CLASS,
    class_update,
    expected_logits,
    head,
    inputs,
    new_row,
    write_tiny_bundle,
)
from icis_deploy.errors import ICISDeployError, MissingDependencyError
from icis_deploy.extras import install_command
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import ENGINE_RUNTIMES, RUNTIME_NAMES, Runtime
from icis_deploy.updates.envelope import save_update

MAX_ERROR = 2e-3
"""Largest difference of a logit: GPUs compute convolutions in TF32 by default, which is off by 1e-3."""

_OF_FILES = {
    "litert": "ai_edge_litert",
    "mnn": "MNN",
    "executorch": "executorch",
    "ncnn": "ncnn",
    "split": "onnxruntime",
    "qnn": "onnxruntime_qnn",
    "qnn-emulated": "onnxruntime",
}
"""Runtimes that the small bundle has no files for, and the libraries that they need."""

_TARGETS = {"split": "backbone", "qnn-emulated": "qnn"}
"""Of runtimes that are called otherwise than the target that they run."""

State = Literal["works", "not tried", "missing", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeState:
    """What a runtime does here."""

    name: str

    state: State
    """`works`: it was run. `not tried`: its libraries and its GPU are there, and it takes an engine or files to run.
    `missing`: a library or the hardware is not there. `broken`: it is there, and fails."""

    detail: str
    """What was seen, or what is missing or wrong."""

    hint: str | None = None
    """What to do, where it does not work."""


def runtimes() -> tuple[RuntimeState, ...]:
    """Return what each runtime does, the default first."""
    return tuple(_runtime_state(name) for name in RUNTIME_NAMES)


def _installation(name: str) -> str:
    """Return the command that installs a runtime's library."""
    if name == "qnn":  # on arm64 with such a chip; elsewhere its wheels, where there are any, run nothing
        return "pip install onnxruntime-qnn"
    return install_command("cpu" if _OF_FILES[name] == "onnxruntime" else name)


def _runtime_state(name: str) -> RuntimeState:
    if name in ENGINE_RUNTIMES:
        return _engine_state(name)
    if name in _OF_FILES:
        found = find_spec(_OF_FILES[name]) is not None
        return RuntimeState(
            name=name,
            state="not tried" if found else "missing",
            detail="it runs files that an export makes" if found else "its library is not installed",
            hint=f"Give a bundle that was exported with `targets=['{_TARGETS.get(name, name)}']`."
            if found
            else f"Install it: {_installation(name)}.",
        )
    return _state(name)


def _state(name: str) -> RuntimeState:
    with tempfile.TemporaryDirectory(prefix="icis-deploy-doctor-") as folder:
        try:
            detail = _tried(name, Path(folder))
        except MissingDependencyError as error:
            return RuntimeState(name=name, state="missing", detail=reason_of(error), hint=error.hint)
        except ICISDeployError as error:
            return RuntimeState(name=name, state="broken", detail=reason_of(error), hint=error.hint)
        except Exception as error:  # a runtime's own, which this is to find out about
            detail = f"{type(error).__name__}: {reason_of(error)}"
            return RuntimeState(name=name, state="broken", detail=detail, hint="Install the runtime again.")
    if detail is None:
        return RuntimeState(
            name=name, state="broken", detail="it computes something else", hint="Install another version of it."
        )
    return RuntimeState(name=name, state="works", detail=detail)


def _tried(name: str, folder: Path) -> str | None:
    """Run the small bundle; return what was seen, and `None` if an answer is wrong.

    Raises:
        ICISDeployError: As `Device.open` and `Device.apply`.
    """
    bundle, update, cache = folder / "bundle", folder / "new.icis", folder / "cache"
    bundle.mkdir()
    write_tiny_bundle(bundle)
    save_update(class_update(), update)
    started = time.perf_counter()
    chosen = Runtime(name=name, cache_folder=cache) if name == "onnxruntime-tensorrt" else Runtime(name=name)
    with Device.open(bundle, runtime=chosen) as device:
        opened = time.perf_counter()
        seen_error = np.abs(device.logits(inputs()).values - expected_logits(head().rows)).max()
        device.apply(update, allow_unsigned=True)
        logits = device.logits(inputs())
    if NEW_CLASS not in logits.class_names:
        return None
    rows = np.concatenate([head().rows, new_row()])
    error = max(float(seen_error), float(np.abs(logits.values - expected_logits(rows)).max()))
    if not error <= MAX_ERROR:
        return None
    return (
        f"{_version(name)}: opened a small bundle in {1e3 * (opened - started):.0f} ms, answered, took a class update; "
        f"logits within {error:.0e}"
    )


def _version(name: str) -> str:
    if name == "openvino":
        import openvino

        return f"OpenVINO {openvino.get_version().partition('-')[0]}"
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}"


def _engine_state(name: str) -> RuntimeState:
    from icis_deploy.runtime.sessions.cuda_calls import load_cuda
    from icis_deploy.runtime.sessions.tensorrt_library import load_tensorrt

    try:
        library = load_tensorrt(name)
        capability = load_cuda().compute_capability()
    except ICISDeployError as error:
        state: State = "missing" if isinstance(error, MissingDependencyError) else "broken"
        return RuntimeState(name=name, state=state, detail=reason_of(error), hint=error.hint)
    return RuntimeState(
        name=name,
        state="not tried",
        detail=f"version {library.__version__}, a GPU of compute capability {capability}",
        hint=f"It runs engines: give a bundle that was exported with `targets=['{name}']`.",
    )
