"""The sidecar of a converted model: what another runtime's file was made from, and what its tensors are called there.

Converters rename tensors and fix the batch, and some runtimes cannot be asked about it. So inputs
and outputs are stated at export, beside the file: a device reads them, and never guesses by shapes.

Rules:

1. The sidecar states the hash of the bundle's model that was converted: a file made of another one answers without an
   error.
2. It is parsed strictly: an unknown or missing field, or one of another type, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from icis_deploy.bundle.engine_sidecar import model_sha256
from icis_deploy.bundle.manifest import FEATURES, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT, Bundle
from icis_deploy.common.json_fields import (
    Reader,
    dataclass_from_json,
    integer_from_json,
    load_strict,
    object_from_json,
    text_from_json,
    tuple_from_json,
)
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import BundleError, EngineMismatchError

SCHEMA_VERSION = 1
MAX_SIDECAR_BYTES = 1 << 20
DTYPES = ("float32", "uint8", "int64", "int32")

CONVERTED_FILES: Mapping[str, tuple[str, ...]] = {
    "mnn": ("mnn/model.mnn",),
    "litert": ("litert/model.tflite",),
    "executorch": ("executorch/model.pte",),
    "ncnn": ("ncnn/model.param", "ncnn/model.bin"),
    "qnn": ("qnn/backbone.onnx",),
}
"""By runtime, the files that it loads, relative to a bundle; its sidecar is `model.json` next to them."""

SLOT_INPUTS = (SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedTensor:
    """One input or output of a converted model."""

    name: str
    """What the bundle's `model.onnx` calls it."""

    runtime_name: str
    """What the converted model calls it."""

    dtype: str
    """numpy's name of it, one of `DTYPES`, in the converted model."""

    shape: tuple[int, ...]
    """Its shape in `model.onnx`, batch included; that of slots has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedSidecar:
    """What is stated of one converted model.

    Raises:
        BundleError: On construction, if a tensor has a type that no model here has, or no size.
    """

    runtime: str
    """The runtime that the file is for, a key of `CONVERTED_FILES`."""

    converter: str
    """What converted it, with its version, such as `MNN 3.6.1`."""

    model_sha256: str
    """SHA-256 of the bundle's model that was converted, as `icis_deploy.bundle.engine_sidecar.model_sha256` gives
    it."""

    inputs: tuple[ConvertedTensor, ...]
    """The input for images first, then those for slots, where it has any."""

    outputs: tuple[ConvertedTensor, ...]
    """The scores first; then features and selected classes, where the model has these outputs. Or features alone."""

    created_by: str
    """Version of icis-deploy that converted it."""

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise BundleError(
                f"The {shown(self.runtime)} sidecar states {len(self.inputs)} inputs and {len(self.outputs)} outputs.",
                found=(len(self.inputs), len(self.outputs)),
                expected="at least one of each",
            )
        for tensor in (*self.inputs, *self.outputs):
            if tensor.dtype not in DTYPES or not tensor.shape or min(tensor.shape) < 1:
                raise BundleError(
                    f"The {shown(self.runtime)} sidecar states {shown(tensor.dtype)} of shape {tensor.shape} for "
                    f"{shown(tensor.name)}.",
                    found=(tensor.dtype, tensor.shape),
                    expected=(DTYPES, "sizes of at least 1"),
                    where=tensor.name,
                    hint="Convert the model again.",
                )

    @property
    def batch(self) -> int:
        """The only batch that the model takes."""
        return self.inputs[0].shape[0]

    @property
    def ends_in_features(self) -> bool:
        """Whether it is the backbone alone, whose features the host multiplies with rows and slots."""
        return self.outputs[0].name == FEATURES

    @property
    def slots(self) -> tuple[ConvertedTensor, ...]:
        """Its inputs for slots; empty for a fused head."""
        return tuple(tensor for tensor in self.inputs[1:] if tensor.name in SLOT_INPUTS)


def converted_sidecar_name(runtime: str) -> str:
    """Return the path of the sidecar of a runtime's converted model relative to its bundle."""
    return f"{runtime}/model.json"


def serialize_converted_sidecar(sidecar: ConvertedSidecar) -> bytes:
    """Return the bytes of a sidecar."""
    values = {"schema_version": SCHEMA_VERSION, **asdict(sidecar)}
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_converted_sidecar(data: bytes) -> ConvertedSidecar:
    """Return what a sidecar states.

    Raises:
        BundleError: If it is not a sidecar of this schema.
    """
    try:
        values = object_from_json(load_strict(data))
        version = integer_from_json(values.pop("schema_version"))
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"The sidecar has schema version {version}; this release reads {SCHEMA_VERSION}.",
                found=version,
                expected=SCHEMA_VERSION,
                hint="Convert the model again with this release.",
            )
        return dataclass_from_json(ConvertedSidecar, values, readers=_READERS)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"the field {reason_of(error)}" if isinstance(error, KeyError) else reason_of(error)
        raise BundleError(
            f"The sidecar of a converted model is not one: {reason}.",
            found=reason,
            expected="the sidecar of a converted model",
            hint="Convert the model again.",
        ) from error


def verify_converted(sidecar: ConvertedSidecar, bundle: Bundle, runtime: str) -> None:
    """Compare a converted model with the bundle that it is to be used in.

    Raises:
        EngineMismatchError: If it was made for another runtime, or of another model.
    """
    expected = {"runtime": runtime, "model_sha256": model_sha256(bundle)}
    differing = {name: value for name, value in expected.items() if getattr(sidecar, name) != value}
    if differing:
        texts = [f"{name} is {shown(getattr(sidecar, name))}, here {value}" for name, value in differing.items()]
        raise EngineMismatchError(
            f"The model for {runtime} was not converted from this bundle's: {'; '.join(texts)}.",
            found={name: shown(getattr(sidecar, name)) for name in differing},
            expected=differing,
            hint=f"Convert it again: `export(targets=['{runtime}'])`.",
        )


_integers = partial(tuple_from_json, read=integer_from_json)
_tensor = partial(
    dataclass_from_json,
    ConvertedTensor,
    readers={
        "name": text_from_json,
        "runtime_name": text_from_json,
        "dtype": text_from_json,
        "shape": _integers,
    },
)
_READERS: dict[str, Reader[Any]] = {
    "runtime": text_from_json,
    "converter": text_from_json,
    "model_sha256": text_from_json,
    "inputs": partial(tuple_from_json, read=_tensor),
    "outputs": partial(tuple_from_json, read=_tensor),
    "created_by": text_from_json,
}
