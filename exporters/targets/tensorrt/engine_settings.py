"""How engines of TensorRT are built, and which library takes which option.

An option that a library does not take is refused with the reason, and not ignored: who asks for a timing cache relies
on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from icis_deploy.errors import UsageError

ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How engines are built.

    Raises:
        UsageError: On construction, if the batches are not in order.
    """

    min_batch: int = 1
    """Smallest batch that the engine takes, in images."""

    opt_batch: int = 1
    """Batch that kernels are chosen for, in images."""

    max_batch: int = 32
    """Largest batch that the engine takes, in images."""

    compute_capabilities: tuple[str, ...] = ()
    """GPU architectures, such as `8.6`, for TensorRT-RTX; by default all from 8.0 on that it knows. TensorRT itself
    builds for the GPU of this machine."""

    hardware_compatibility: str = "none"
    """For TensorRT: `ampere_plus` lets the engine run on every architecture from 8.0 on, somewhat slower."""

    workspace_bytes: int | None = None
    """Memory that a layer may use while it runs; `None` for all of the GPU's."""

    timing_cache: Path | None = None
    """For TensorRT: a file of kernel timings, read if it is there and written afterwards. A rebuild takes seconds."""

    refit: bool = False
    """Whether slots are weights that are refitted, instead of inputs."""

    @property
    def batches_were_chosen(self) -> bool:
        """Whether the batches are others than the default."""
        return any(getattr(self, name) != _DEFAULTS[name] for name in ("min_batch", "opt_batch", "max_batch"))

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                f"The batches {self.min_batch}, {self.opt_batch}, {self.max_batch} are not in order: expected 1 <= "
                f"least <= usual <= greatest."
            )


_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(EngineSettings)}

_ONLY_FOR: Mapping[str, tuple[str, str, str]] = {
    "timing_cache": (
        "--timing-cache",
        "tensorrt",
        "TensorRT-RTX times no kernels, but compiles them on the device that loads the engine",
    ),
    "hardware_compatibility": (
        "--hardware-compatibility",
        "tensorrt",
        "an engine of TensorRT-RTX runs on what --compute-capability names",
    ),
    "compute_capabilities": (
        "--compute-capability",
        "tensorrt-rtx",
        "TensorRT builds for the GPU of this machine; --hardware-compatibility lets its engine run on others",
    ),
}
"""By setting: its option, the only target that takes it, and why the other one does not."""


def settings_for(target: str, settings: EngineSettings) -> EngineSettings:
    """Return the settings with the default for each that a target does not take."""
    return replace(settings, **{name: _DEFAULTS[name] for name, (_, only, _) in _ONLY_FOR.items() if only != target})


def require_used(settings: EngineSettings, targets: Sequence[str], *, head_kind: str) -> None:
    """Refuse settings that none of the targets takes.

    Args:
        settings: The user's settings.
        targets: Names of the targets that are built.
        head_kind: `fused` or `updatable`.

    Raises:
        UsageError: If no target that is built takes a setting.
    """
    if settings == EngineSettings():
        return
    engines = [name for name in targets if name in ENGINE_TARGETS]
    if not engines:
        raise UsageError(
            "Options of engines were given, but no engine is built: give --target tensorrt or tensorrt-rtx, or leave "
            "them out."
        )
    for name, (option, only, reason) in _ONLY_FOR.items():
        if getattr(settings, name) != _DEFAULTS[name] and only not in engines:
            raise UsageError(
                f"{option} is for the target {only} alone: {reason}. Leave it out, or add --target {only}."
            )
    if settings.refit and head_kind == "fused":
        raise UsageError(
            "A fused head has no slots that could be refitted: give --refit with --head updatable, or leave it out."
        )
