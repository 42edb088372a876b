"""ONNX Runtime's execution providers on a GPU: how they are asked for, and what a session really got.

Rules:

1. ONNX Runtime says which providers were compiled in, and falls back to the CPU with a log line. So the session that
   was made is asked which provider got each node, and one that computes on the CPU is refused.
2. The TensorRT provider finds an engine in its cache by the names in the graph, not by its weights (ONNX Runtime issue
   6455): two heads of one model would share the first one's engine. So each model has a cache folder of its own.
"""

# Why: docs/decisions/0036.

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.errors import MissingDependencyError, StorageError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

_INSTALLED = re.compile(r"(onnxruntime(?:[_-]gpu)?)-([^-]+)(?:-[^-]+)?\.(?:dist|egg)-info", re.IGNORECASE)
_ASK_FOR_NODES = "session.record_ep_graph_assignment_info"
_FORBID_CPU = "session.disable_cpu_ep_fallback"
_SHAPE_OPERATORS = frozenset(
    (
        *("Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Expand", "Cast"),
        *("Range", "ConstantOfShape", "Constant", "Identity", "Where", "Equal", "ReduceProd"),
        *("Add", "Sub", "Mul", "Div"),
    )
)
"""What sizes are computed with, on purpose on the CPU: a few integers would cost more to fetch from the GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChoice:
    """An execution provider, those that it falls back to, and where slots are kept."""

    name: str = CPU_PROVIDER
    """The provider that must compute, by ONNX Runtime's name."""

    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the provider, by ONNX Runtime's names."""

    helpers: tuple[str, ...] = ()
    """Providers that may take the operators that it leaves."""

    slots_memory: str | None = None
    """ONNX Runtime's name of the device that slots are copied to, once; `None` leaves them where they are."""

    @property
    def requested(self) -> list[tuple[str, dict[str, str]]]:
        """As `onnxruntime.InferenceSession` takes them."""
        return [(self.name, dict(self.options)), *((name, {}) for name in self.helpers)]


def cuda_choice() -> ProviderChoice:
    """Return the CUDA provider."""
    return ProviderChoice(name=CUDA_PROVIDER, slots_memory="cuda")


def tensorrt_choice(bundle: Bundle, cache_folder: Path | None) -> ProviderChoice:
    """Return the TensorRT provider with an engine cache for this one model.

    Args:
        bundle: What is opened.
        cache_folder: Where engines are cached; `None` for the user's cache folder.

    Raises:
        StorageError: If the folder cannot be made.
    """
    from icis_deploy.bundle.engine_sidecar import model_sha256
    from icis_deploy.common.user_folders import user_cache

    root = user_cache() / "engines" if cache_folder is None else cache_folder
    folder = root / f"head-{bundle.base_fingerprint[:16]}-model-{model_sha256(bundle)[:32]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The engine cache {folder} cannot be made: {error.strerror or error}.",
            found=error.strerror or str(error),
            where=folder,
            hint="Give another cache folder.",
        ) from error
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        # Timings are of kernels, not of weights: all models may share them.
        "trt_timing_cache_path": str(root),
    }
    return ProviderChoice(name=TENSORRT_PROVIDER, options=options, helpers=(CUDA_PROVIDER,), slots_memory="cuda")


@cache
def check_one_installation() -> None:
    """Refuse an environment with both distributions of ONNX Runtime: they are the same import package.

    Raises:
        MissingDependencyError: If both are installed, which overwrite each other's files.
    """
    # By the names of folders, as `importlib.metadata` looks for them: importing that takes longer than all of this.
    versions: dict[str, str] = {}
    for folder in sys.path:
        with suppress(OSError):
            found_here = filter(None, map(_INSTALLED.fullmatch, os.listdir(folder or os.curdir)))  # noqa: PTH208
            versions |= {match[1].replace("_", "-"): match[2] for match in found_here}
    if len(versions) > 1:
        found = " and ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        raise MissingDependencyError(
            f"{found} are both installed; each overwrites files of the other.",
            found=tuple(sorted(versions)),
            expected="one distribution of ONNX Runtime",
            hint=(
                "Keep one: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'icis-deploy[gpu]' (or "
                "'icis-deploy[cpu]')."
            ),
        )


def check_available(onnxruntime: Any, choice: ProviderChoice) -> None:
    """Refuse a provider that was not compiled in.

    Raises:
        MissingDependencyError: If this ONNX Runtime lacks it.
    """
    available = onnxruntime.get_available_providers()
    if choice.name not in available:
        raise MissingDependencyError(
            f"This ONNX Runtime {onnxruntime.__version__} has no {choice.name}, only {', '.join(available)}.",
            found=tuple(available),
            expected=choice.name,
            hint="For a GPU: pip uninstall -y onnxruntime, then pip install 'icis-deploy[gpu]'.",
        )


def forbid_silent_fallback(options: Any, inference_session_type: Any) -> None:
    """Let a session tell its providers, or forbid the CPU to a session that cannot tell (before 1.24)."""
    can_tell = hasattr(inference_session_type, "get_provider_graph_assignment_info")
    options.add_session_config_entry(_ASK_FOR_NODES if can_tell else _FORBID_CPU, "1")


def check_session(session: Any, choice: ProviderChoice) -> None:
    """Refuse a session that does not compute where it was asked to.

    Raises:
        MissingDependencyError: If the provider is not there on this machine, got nothing to do, or left operators to
            the CPU; the message names them.
    """
    found = session.get_providers()
    if found[0] != choice.name:
        raise MissingDependencyError(
            f"ONNX Runtime gave {found[0]} where {choice.name} was asked for: the GPU, its driver or a library of it "
            f"cannot be used.",
            found=found[0],
            expected=choice.name,
            hint="Check that 'icis-deploy[gpu]' fits the driver, or use `runtime='onnxruntime'`.",
        )
    if choice.name == CPU_PROVIDER or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    nodes: dict[str, list[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        nodes.setdefault(subgraph.ep_name, []).extend(node.op_type for node in subgraph.get_nodes())
    on_cpu = Counter(op_type for op_type in nodes.get(CPU_PROVIDER, []) if op_type not in _SHAPE_OPERATORS)
    if on_cpu:
        named = ", ".join(f"{count} {op_type}" for op_type, count in on_cpu.most_common(5))
        raise MissingDependencyError(
            f"ONNX Runtime would compute {named} on the CPU, where {choice.name} was asked for.",
            found=dict(on_cpu),
            expected=choice.name,
            hint="Export the model in a precision that the provider supports, or use `runtime='onnxruntime'`.",
        )
    if not nodes.get(choice.name):
        raise MissingDependencyError(
            f"ONNX Runtime left {choice.name} nothing to compute; it uses {', '.join(sorted(nodes))}.",
            found=tuple(sorted(nodes)),
            expected=choice.name,
            hint="Use that runtime.",
        )
