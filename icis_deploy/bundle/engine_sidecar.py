"""The sidecar of an engine: what a TensorRT engine was built from and where it runs, as JSON next to it.

Rules:

1. An engine runs in the version, on the GPU architecture and on the platform that it was built for, and nowhere else
   (TensorRT developer guide, "Serializing a Plan"). A runtime that is given another one fails with a code, or not at
   all; so every field is compared, and what differs is named, before the engine's bytes are read.
2. The sidecar also states the model and the head that went in: an engine of another head answers without an error.
3. It is parsed strictly: an unknown or missing field, or one of another type, is refused. One of an older schema is
   read; what it could not state yet takes the value that it implied.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from icis_deploy.bundle.manifest import MODEL_NAME, PRECISIONS, Bundle
from icis_deploy.common.json_fields import (
    Reader,
    dataclass_from_json,
    integer_from_json,
    load_strict,
    names_from_json,
    object_from_json,
    text_from_json,
    tuple_from_json,
)
from icis_deploy.common.terminal_text import MAX_REASON, printable, reason_of
from icis_deploy.errors import BundleError, EngineMismatchError

SCHEMA_VERSION = 2
_READABLE_VERSIONS = (1, 2)
_IMPLIED_BY_VERSION_1: Mapping[str, Any] = {"precision": "fp32"}
MAX_SIDECAR_BYTES = 1 << 20
HARDWARE_COMPATIBILITIES = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInput:
    """One input of an engine, with the range of shapes that it takes; all three are equal where the shape is fixed."""

    name: str

    dtype: str
    """numpy's name of it, such as `float32`."""

    min_shape: tuple[int, ...]
    """The smallest shape, batch included."""

    opt_shape: tuple[int, ...]
    """The shape that kernels were chosen for, batch included."""

    max_shape: tuple[int, ...]
    """The largest shape, batch included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutput:
    """One output of an engine."""

    name: str

    dtype: str
    """numpy's name of it, such as `float32`."""

    shape: tuple[int, ...]
    """Batch included, as -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSidecar:
    """What is stated of one engine.

    Raises:
        BundleError: On construction, if the hardware compatibility is none that TensorRT has, or the precision none of
            a bundle.
    """

    runtime: str
    """`tensorrt` or `tensorrt-rtx`."""

    runtime_version: str
    """Version of the runtime; an engine runs in no other."""

    platform: str
    """Operating system and processor, as `this_platform` gives them."""

    compute_capabilities: tuple[str, ...]
    """GPU architectures that it was built for, such as `8.6`."""

    hardware_compatibility: str
    """`none`; `ampere_plus`: every architecture from 8.0 on; `same_compute_capability`: every GPU of those stated."""

    model_sha256: str
    """SHA-256 of the bundle's model that it was built from, as the function `model_sha256` gives it."""

    engine_sha256: str
    """SHA-256 of the engine's bytes."""

    head_fingerprint: str
    """Fingerprint of the seen head; class updates must be made for it."""

    inputs: tuple[EngineInput, ...]
    """The input for images first, then those for slots, where slots are inputs."""

    outputs: tuple[EngineOutput, ...]
    """The scores first; then features and selected classes, where the model has these outputs."""

    refittable: tuple[str, ...]
    """Names of the weights that may be refitted; empty where slots are inputs."""

    precision: str
    """What its backbone computes in: `fp32`, `fp16` or `int8`."""

    created_by: str
    """Version of icis-deploy that built it."""

    def __post_init__(self) -> None:
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITIES:
            raise BundleError(
                f"The engine's sidecar states the hardware compatibility {self.hardware_compatibility[:40]!r}; "
                f"expected one of {HARDWARE_COMPATIBILITIES}.",
                found=self.hardware_compatibility[:40],
                expected=HARDWARE_COMPATIBILITIES,
            )
        if self.precision not in PRECISIONS:
            raise BundleError(
                f"The engine's sidecar states the precision {self.precision[:40]!r}; expected one of {PRECISIONS}.",
                found=self.precision[:40],
                expected=PRECISIONS,
            )


def engine_name(runtime: str) -> str:
    """Return the path of a runtime's engine relative to its bundle."""
    return f"engines/{runtime}.engine"


def sidecar_name(runtime: str) -> str:
    """Return the path of the sidecar of a runtime's engine relative to its bundle."""
    return f"engines/{runtime}.json"


def model_sha256(bundle: Bundle) -> str:
    """Return a hash of a bundle's model, which covers weights in files of their own."""
    hashes = {name: entry.sha256 for name, entry in bundle.files.items() if name.startswith(MODEL_NAME)}
    if len(hashes) == 1:
        return hashes[MODEL_NAME]
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()


def this_platform() -> str:
    """Return operating system and processor of this machine, such as `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine().lower()}"


def verify_engine(
    sidecar: EngineSidecar,
    *,
    runtime: str,
    runtime_version: str,
    model_sha256: str,
    head_fingerprint: str,
    engine_sha256: str,
) -> None:
    """Compare an engine with the runtime, the platform and the bundle that it is to be used in.

    Raises:
        EngineMismatchError: Naming every field that differs.
    """
    expected = {
        "runtime": runtime,
        "runtime_version": runtime_version,
        "platform": this_platform(),
        "model_sha256": model_sha256,
        "engine_sha256": engine_sha256,
        "head_fingerprint": head_fingerprint,
    }
    _raise_mismatch({name: value for name, value in expected.items() if getattr(sidecar, name) != value}, sidecar)


def verify_gpu(sidecar: EngineSidecar, compute_capability: str) -> None:
    """Compare an engine with the GPU that it is to run on.

    Args:
        sidecar: The engine's.
        compute_capability: Architecture of the GPU, such as `8.6`.

    Raises:
        EngineMismatchError: If it was built for other architectures.
    """
    runs = compute_capability in sidecar.compute_capabilities
    if sidecar.hardware_compatibility == "ampere_plus":
        runs = runs or _version_tuple(compute_capability) >= (8, 0)
    if not runs:
        _raise_mismatch({"compute_capabilities": compute_capability}, sidecar)


def serialize_sidecar(sidecar: EngineSidecar) -> bytes:
    """Return the bytes of a sidecar."""
    values = {"schema_version": SCHEMA_VERSION, **asdict(sidecar)}
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_sidecar(data: bytes) -> EngineSidecar:
    """Return what a sidecar states.

    Raises:
        BundleError: If it is not a sidecar of this schema.
    """
    try:
        values = object_from_json(load_strict(data))
        version = integer_from_json(values.pop("schema_version"))
        if version not in _READABLE_VERSIONS:
            raise BundleError(
                f"The engine's sidecar has schema version {version}; this release reads {_READABLE_VERSIONS}.",
                found=version,
                expected=_READABLE_VERSIONS,
                hint="Build the engine again with this release.",
            )
        if version == 1:
            values = {**_IMPLIED_BY_VERSION_1, **values}
        return dataclass_from_json(EngineSidecar, values, readers=_READERS)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"the field {reason_of(error)}" if isinstance(error, KeyError) else reason_of(error)
        raise BundleError(
            f"The engine's sidecar is not one: {reason}.",
            found=reason,
            expected="the sidecar of an engine",
            hint="Build the engine again.",
        ) from error


def _raise_mismatch(differing: Mapping[str, str], sidecar: EngineSidecar) -> None:
    if not differing:
        return
    texts = [f"{name} is {_shown(getattr(sidecar, name))}, here {value}" for name, value in differing.items()]
    raise EngineMismatchError(
        f"The {sidecar.runtime} engine was not built for this use: {'; '.join(texts)}.",
        found={name: _shown(getattr(sidecar, name)) for name in differing},
        expected=dict(differing),
        hint=f"Build it here and from this model: `export(targets=['{sidecar.runtime}'])`.",
    )


def _shown(value: object) -> str:
    return printable(", ".join(value) if isinstance(value, tuple) else str(value), max_length=MAX_REASON)


def _version_tuple(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))


_shape = partial(tuple_from_json, read=integer_from_json)
_input = partial(
    dataclass_from_json,
    EngineInput,
    readers={
        "name": text_from_json,
        "dtype": text_from_json,
        "min_shape": _shape,
        "opt_shape": _shape,
        "max_shape": _shape,
    },
)
_output = partial(
    dataclass_from_json, EngineOutput, readers={"name": text_from_json, "dtype": text_from_json, "shape": _shape}
)
_READERS: dict[str, Reader[Any]] = {
    "runtime": text_from_json,
    "runtime_version": text_from_json,
    "platform": text_from_json,
    "compute_capabilities": names_from_json,
    "hardware_compatibility": text_from_json,
    "model_sha256": text_from_json,
    "engine_sha256": text_from_json,
    "head_fingerprint": text_from_json,
    "inputs": partial(tuple_from_json, read=_input),
    "outputs": partial(tuple_from_json, read=_output),
    "refittable": names_from_json,
    "precision": text_from_json,
    "created_by": text_from_json,
}
