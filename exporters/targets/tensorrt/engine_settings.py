"""Which of the settings of an engine each of TensorRT's libraries takes.

An option that a library does not take is refused with the reason, and not ignored: who asks for a timing cache relies
on it.
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
        "A timing cache",
        "tensorrt",
        "TensorRT-RTX times no kernels, but compiles them on the device that loads the engine",
    ),
    "hardware_compatibility": (
        "A hardware compatibility",
        "tensorrt",
        "an engine of TensorRT-RTX runs on the compute capabilities that it is built for",
    ),
    "compute_capabilities": (
        "A compute capability",
        "tensorrt-rtx",
        "TensorRT builds for the GPU of this machine; a hardware compatibility lets its engine run on others",
    ),
}
"""By setting: what it is called, the only target that takes it, and why the other one does not."""


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
            "Options of engines were given, but no engine is built.",
            found=tuple(targets),
            expected=ENGINE_TARGETS,
            hint="Give `targets=['tensorrt']` or `targets=['tensorrt-rtx']`, or leave them out.",
        )
    for name, (what, only, reason) in _ONLY_FOR.items():
        if getattr(settings, name) != _DEFAULTS[name] and only not in engines:
            raise UsageError(
                f"{what} is for the target {only} alone: {reason}.",
                found=tuple(engines),
                expected=only,
                where=name,
                hint=f"Leave `{name}` out, or add `targets=['{only}']`.",
            )
    if settings.refit and head_kind == "fused":
        raise UsageError(
            "A fused head has no slots that could be refitted.",
            found=head_kind,
            expected="updatable",
            hint="Give `refit` with `head='updatable'`, or leave it out.",
        )
