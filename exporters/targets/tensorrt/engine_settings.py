"""Which of the settings of an engine concerns which of TensorRT's libraries.

What a library cannot take is refused with the reason, and not left out: who asks for a timing cache counts on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from icis_deploy.bundle.target_options import EngineSettings
from icis_deploy.errors import UsageError

ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")


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
    """Return the settings with the default for each that does not concern a target."""
    return replace(settings, **{name: _DEFAULTS[name] for name, (_, only, _) in _ONLY_FOR.items() if only != target})


def require_used(settings: EngineSettings, targets: Sequence[str], *, head_kind: str) -> None:
    """Refuse settings that none of the targets takes.

    Args:
        settings: What the user said.
        targets: What is built.
        head_kind: For which head.

    Raises:
        UsageError: If a setting would be left out everywhere.
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
