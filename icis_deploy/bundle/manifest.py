"""A bundle: the folder that a device holds, and the manifest that says what is in it.

    model.onnx            the model, with its fused or updatable head
    slots.safetensors     updatable head: what the slots held when the bundle was exported
    injected.safetensors  fused head: the injected rows, by which `verify` checks the model against its original
    manifest.json         everything below; the hash of every other file

Rules:

1. A file that the manifest names must have the size and the SHA-256 that it states, or the bundle is refused.
2. What the manifest does not name is not read, except the folders of the runtime (`trust/`, `state/`).
3. A manifest of a newer schema is refused with a request to update icis-deploy; it is never half understood. One of an
   older schema is read; what it could not state yet takes the value that it implied.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from icis_deploy.common.files import path_from, read_plain, sha256_of_file
from icis_deploy.common.json_fields import (
    Reader,
    boolean_from_json,
    dataclass_from_json,
    integer_from_json,
    json_from_time,
    load_strict,
    mapping_from_json,
    names_from_json,
    number_from_json,
    object_from_json,
    text_from_json,
    time_from_json,
    tuple_from_json,
)
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import BundleError, ClassConflictError, CorruptFileError, ICISDeployError
from icis_deploy.head.class_names import check_unique
from icis_deploy.head.class_update import MAX_VERSION
from icis_deploy.images.preprocessing import Preprocessing, preprocessing_from_json

if TYPE_CHECKING:
    from icis_deploy.head.slots import SlotTable

SCHEMA_VERSION = 3
_READABLE_VERSIONS = (1, 2, 3)
_IMPLIED_BY_VERSION: Mapping[int, Mapping[str, Any]] = {
    1: {"precision": "fp32", "top": 0, "arbiter": False, "max_changed_answers": None},
    2: {"arbiter": False, "max_changed_answers": None},
}
"""For each older schema, what its manifests do not state."""

_LEFT_OUT: Mapping[str, Any] = {
    "created_by": {},
    "reference_source": None,
    "written_at": None,
    "head_precision": "fp32",
}
"""What a field means that a manifest does not state."""

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
SLOTS_NAME = "slots.safetensors"
ARBITER_NAME = "arbiter.safetensors"
"""What a device needs to compute the statistics of an arbiter itself: `row_lengths` `(num_seen,)` float32
(`icis_deploy.head.arbiter.deviation_lengths`)."""

REFERENCE_NAME = "reference.safetensors"
"""Features of known classes, on which a device looks for changed answers before it takes an update."""

FEW_SHOT_NAME = "few_shot.safetensors"
"""What a device needs to make a row of a few photos (`icis_deploy.bundle.few_shot`)."""

REFERENCE_SOURCES = ("seen images", "gate images", "pseudo-features", "neutral images")
"""Images of known classes that the owner gave for it, or among those of the parity gate; else features that stand in
for images of known classes, or those of images of nothing in particular."""

BACKBONE_NAME = "backbone.onnx"
"""The model without its head, of which each output row is a feature; with it goes `BAKED_ROWS_NAME`."""

BAKED_ROWS_NAME = "baked_rows.safetensors"
"""The rows of the classes that are baked into the model, for runtimes that run the backbone alone."""

# Why: docs/decisions/0006.
INJECTED_NAME = "injected.safetensors"
MAX_MANIFEST_BYTES = 1 << 26
"""Names and files of a million classes have half of that."""

MAX_INPUT_VALUES = 1 << 26
"""An image of 4,700 by 4,700 pixels; the self-test makes an input of this size before the model sees it."""

MAX_CAPACITY = 1 << 20
MAX_SLOTS_BYTES = 1 << 31
"""Of all slots of a head, empty ones included: a device has them in memory."""

_MAX_COUNT = (1 << 31) - 1
HEAD_KINDS = ("fused", "updatable")
PRECISIONS = ("fp32", "fp16", "int8")
HEAD_PRECISIONS = ("fp32", "fp16", "int8")
SCORE_KINDS = ("logits", "probabilities", "log-probabilities", "sigmoid")

# Inputs and outputs of a bundle's model, by which exporters write it and every runtime reads it.
SLOT_WEIGHT = "slot_weight"
"""Input `(capacity, feature_dim)` float32 of an updatable model: the weights of the slots."""

SLOT_BIAS = "slot_bias"
"""Input `(capacity,)` float32 of an updatable model: the biases of the slots."""

SLOT_ARBITER = "slot_arbiter"
"""Input `(capacity, 5)` float32 of an updatable model: what the slots' logits follow from statistics of the image."""

FEATURES = "features"
"""Output `(batch, feature_dim)` float32 of an updatable model: what the head multiplies."""

TOP_PROBABILITIES = "top_probabilities"
"""Output `(batch, top)` float32 of a model that selects classes itself: their probabilities, the greatest first."""

TOP_CLASS_IDS = "top_class_ids"
"""Output `(batch, top)` int64 of a model that selects classes itself: the column of each among its scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """The one input that images go into.

    Example:
        model_input = icis_deploy.load_bundle("bundle").model_input
        print(model_input.shape, model_input.dtype)
    """

    name: str

    shape: tuple[int, ...]
    """Shape of one image, without the batch; `(height, width, num_channels)` where it takes pixels."""

    dtype: str
    """`float32`: prepared images. `uint8`: pixels as a decoder gives them, resized and cropped; the rest is in the
    model."""

    @property
    def takes_pixels(self) -> bool:
        """Whether scale, mean, deviation, layout and colour order are the model's own work."""
        return self.dtype == "uint8"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What the manifest states of a file.

    Example:
        entry = icis_deploy.load_bundle("bundle").files["model.onnx"]
        print(entry.size_bytes, entry.sha256)
    """

    sha256: str
    """Lower-case hexadecimal."""

    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a manifest says.

    Example:
        bundle = icis_deploy.load_bundle("bundle")
        print(bundle.head_kind, bundle.num_seen, bundle.class_names[bundle.num_seen :])

    Raises:
        BundleError: On construction, if a field contradicts another.
    """

    head_kind: str
    """`fused` or `updatable`."""

    class_names: tuple[str, ...]
    """`(num_baked,)`: the classes baked into the model in the order of its logits, seen ones first."""

    num_seen: int
    """How many of them the original model knew."""

    feature_dim: int
    """Number of values of a feature, and of weights in a row."""

    capacity: int
    """Number of slots; 0 for a fused head."""

    base_fingerprint: str
    """Fingerprint of the seen head; class updates must be made for it."""

    head_version: int
    """Greatest version of the class updates that went into the export; 0 if none did."""

    model_input: ModelInput

    score_kind: str
    """What the model's first output holds: `logits`, or what its own last layer made of them. `sigmoid`: a probability
    for each class by itself, as a model gives that may see several classes at once."""

    preprocessing: Preprocessing | None
    """How images are prepared; `None` if the exporter was not told. Of a model that takes pixels, resize and crop are
    left to do."""

    files: Mapping[str, FileEntry]
    """Every file of the bundle but the manifest, by its path relative to the bundle."""

    parity: tuple[Mapping[str, Any], ...]
    """The reports of the parity gate, as JSON."""

    updates: tuple[Mapping[str, Any], ...] = ()
    """The class updates that went into the export: their names, version and provenance, as JSON."""

    precision: str = "fp32"
    """What the backbone computes in: `fp32`, `fp16` or `int8`. Slots are float32 in all of them."""

    head_precision: str = "fp32"
    """What the rows that were baked at the export are stored in: `fp16`, `int8`, or `fp32` where they were left as the
    model has them. Rows in slots, and those that `compact` baked, are float32 in all of them."""

    top: int = 0
    """How many classes per image the model selects itself, in addition to the scores of all; 0 if it selects none."""

    arbiter: bool = False
    """Whether the model adds an arbiter's offsets to the logits of classes that the original model did not know."""

    max_changed_answers: float | None = None
    """Share of the reference features whose answer a change may change, 0..1; `None` for bundles without a guard."""

    reference_source: str | None = None
    """What the reference features are of, one of `REFERENCE_SOURCES`; `None` for bundles without a guard, and where
    it was not noted."""

    written_at: datetime | None = None
    """When the bundle was written, by the clock of the machine that did, in UTC with a resolution of a second; `None`
    where it was not noted. A device believes no clock that says less."""

    created_by: Mapping[str, str] = field(default_factory=dict)
    """Versions of icis-deploy and the libraries that made the bundle, by name."""

    manifest_sha256: str | None = field(default=None, init=False, repr=False, compare=False)
    """SHA-256 of the file that it was read from, lower-case hexadecimal; `None` where it was not read from a file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name, value, allowed in (
            ("head kind", self.head_kind, HEAD_KINDS),
            ("score kind", self.score_kind, SCORE_KINDS),
            ("precision", self.precision, PRECISIONS),
            ("head precision", self.head_precision, HEAD_PRECISIONS),
        ):
            if value not in allowed:
                raise BundleError(
                    f"The bundle's {name} is {value!r}; expected one of {allowed}.",
                    found=shown(value),
                    expected=tuple(allowed),
                    where=name,
                )
        self._check_types()
        self._check_capacity()
        try:
            check_unique(self.class_names)
        except ClassConflictError as error:
            raise BundleError.at("The bundle's classes", error) from error
        if not 0 < self.num_seen <= len(self.class_names) or (self.head_kind == "updatable") != (self.capacity > 0):
            raise BundleError(
                f"The bundle states {self.num_seen} seen of {len(self.class_names)} classes and {self.capacity} slots "
                f"in a head that is {self.head_kind}; these do not fit together.",
                found=(self.num_seen, len(self.class_names), self.capacity, self.head_kind),
                expected="seen classes, classes, slots and a head kind that fit together",
            )
        if self.arbiter and self.score_kind == "sigmoid":
            raise BundleError(
                "The bundle states an arbiter for a model that ends in a sigmoid, where classes do not compete.",
                found="sigmoid",
                expected="logits, probabilities or log-probabilities",
                where="score kind",
                hint="Export it with `arbiter='off'`.",
            )
        required = {MODEL_NAME} | ({SLOTS_NAME} if self.capacity else set())
        required |= {ARBITER_NAME} if self.arbiter else set()
        required |= set() if self.max_changed_answers is None else {REFERENCE_NAME}
        if not required <= set(self.files):
            raise BundleError(
                f"The bundle's manifest does not name {sorted(required - set(self.files))}.",
                found=tuple(sorted(self.files)),
                expected=tuple(sorted(required)),
                hint="Copy the bundle again, or export it again.",
            )

    def _check_types(self) -> None:
        # A manifest comes from elsewhere: a float instead of a count would only fail in the middle of a prediction.
        least = {"num_seen": 1, "feature_dim": 1, "capacity": 0, "top": 0}
        wrong = [name for name, bound in least.items() if not _is_count(getattr(self, name), bound)]
        wrong += [] if _is_count(self.head_version, 0, most=MAX_VERSION) else ["head_version"]
        wrong += [] if isinstance(self.base_fingerprint, str) else ["base_fingerprint"]
        wrong += (
            [] if self.max_changed_answers is None or 0 <= self.max_changed_answers <= 1 else ["max_changed_answers"]
        )
        wrong += [] if self.reference_source in (None, *REFERENCE_SOURCES) else ["reference_source"]
        texts = (self.model_input.name, self.model_input.dtype)
        is_input = all(isinstance(text, str) for text in texts) and all(_is_count(n, 1) for n in self.model_input.shape)
        is_input = is_input and math.prod(self.model_input.shape) <= MAX_INPUT_VALUES and _is_numeric(texts[1])
        wrong += [] if is_input else ["model_input"]
        wrong += [
            name
            for name, values in (("parity", self.parity), ("updates", self.updates), ("created_by", (self.created_by,)))
            if not all(isinstance(value, Mapping) for value in values)
        ]
        entries = self.files.values()
        wrong += (
            []
            if all(isinstance(e.sha256, str) and _is_count(e.size_bytes, 0, most=1 << 62) for e in entries)
            else ["files"]
        )
        if wrong:
            raise BundleError(
                f"The bundle states something of the wrong type or out of range in {wrong}.",
                found=tuple(wrong),
                expected="fields of the right type and range",
                hint="Copy the bundle again, or export it again; a manifest is not edited by hand.",
            )

    def _check_capacity(self) -> None:
        most = max_capacity(self.feature_dim)
        if self.capacity > most:
            raise BundleError(
                f"The bundle states {self.capacity} slots; at most {most} with rows of {self.feature_dim + 1} values "
                f"are kept.",
                found=self.capacity,
                expected=f"at most {most}",
                where="capacity",
            )

    @property
    def is_reference_drawn(self) -> bool:
        """Whether the reference is of features that stand in for images of known classes, not of such images."""
        return self.reference_source in {"pseudo-features", "neutral images"}

    @property
    def seen_names(self) -> tuple[str, ...]:
        """`(num_seen,)`: the classes that the original model knew."""
        return self.class_names[: self.num_seen]


def target_digest(bundle: Bundle) -> str:
    """Return what a class update names a bundle by that may take it: a SHA-256, lower-case hexadecimal.

    It covers what makes a row mean what it meant where it was made: the model's own file (backbone, precision, head and
    what follows it), the width of its features and how images are prepared.
    """
    values = {
        "model_sha256": bundle.files[MODEL_NAME].sha256,
        "base_fingerprint": bundle.base_fingerprint,
        "feature_dim": bundle.feature_dim,
        "preprocessing": None if bundle.preprocessing is None else bundle.preprocessing.to_json(),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def known_names(bundle: Bundle, table: SlotTable | None) -> tuple[str, ...]:
    """Return all classes of a head, disabled ones included: those baked into the model, then those in slots.

    Args:
        bundle: What the manifest says.
        table: What the slots hold; `None` for a fused head.
    """
    return bundle.class_names if table is None else (*bundle.class_names, *table.filled_names)


def max_capacity(feature_dim: int) -> int:
    """Return how many slots a head of this width has at most."""
    return min(MAX_CAPACITY, MAX_SLOTS_BYTES // (4 * (feature_dim + 1)))


def _is_count(value: object, least: int, *, most: int = _MAX_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_numeric(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "uif"
    except (TypeError, ValueError):
        return False


def serialize_manifest(bundle: Bundle) -> bytes:
    """Return the bytes of `manifest.json`."""
    values = asdict(bundle)
    del values["manifest_sha256"]  # which no file can hold of itself
    written_at = values.pop("written_at")
    values |= {} if written_at is None else {"written_at": json_from_time(written_at)}
    if bundle.head_precision == "fp32":
        del values["head_precision"]  # so that earlier releases read what they understand
    values |= {
        "schema_version": SCHEMA_VERSION,
        "files": {name: asdict(entry) for name, entry in sorted(bundle.files.items())},
        "preprocessing": None if bundle.preprocessing is None else bundle.preprocessing.to_json(),
    }
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_manifest(data: bytes) -> Bundle:
    """Return what a manifest says.

    Raises:
        BundleError: If it is not a manifest of this schema.
    """
    try:
        values = object_from_json(load_strict(data))
        schema_version = values.pop("schema_version")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"The manifest is not a JSON object with a `schema_version`. Reading it failed: {reason_of(error)}.",
            found=reason_of(error),
            expected="a JSON object with a schema_version",
            hint="Copy the bundle again from where it was exported, or export it again.",
        ) from error
    if type(schema_version) is not int or schema_version not in _READABLE_VERSIONS:  # Python calls `true` equal to 1
        raise BundleError(
            f"The manifest has schema version {shown(schema_version)}; this release reads {_READABLE_VERSIONS}.",
            found=shown(schema_version),
            expected=_READABLE_VERSIONS,
            hint="Update icis-deploy, or export the bundle again.",
        )
    values = {**_IMPLIED_BY_VERSION.get(schema_version, {}), **values}
    try:
        return dataclass_from_json(Bundle, {**_LEFT_OUT, **values}, readers=_READERS)
    except ICISDeployError as error:
        raise BundleError(
            f"The manifest contradicts itself: {reason_of(error)}.",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise BundleError(
            f"The manifest lacks a field or has one of the wrong type: {reason_of(error)}.",
            found=reason_of(error),
            hint="Copy the bundle again, or export it again; a manifest is not edited by hand.",
        ) from error


def _preprocessing(value: object, *, where: str) -> Preprocessing | None:
    if value is None:
        return None
    return preprocessing_from_json(object_from_json(value, where=where), where="the manifest's preprocessing")


def _share(value: object, *, where: str) -> float | None:
    return None if value is None else number_from_json(value, where=where)


def _optional_text(value: object, *, where: str) -> str | None:
    return None if value is None else text_from_json(value, where=where)


def _optional_time(value: object, *, where: str) -> datetime | None:
    return None if value is None else time_from_json(text_from_json(value, where=where))


def _files(value: object, *, where: str) -> dict[str, FileEntry]:
    readers = {"sha256": text_from_json, "size_bytes": integer_from_json}
    entries = mapping_from_json(value, read=partial(dataclass_from_json, FileEntry, readers=readers), where=where)
    return {_checked_name(name): entry for name, entry in entries.items()}


def _checked_name(name: str) -> str:
    # A manifest from elsewhere must not make us read outside its own folder.
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name != str(path):
        raise BundleError(
            f"The manifest names the file {name!r}, which is not a plain path inside the bundle.",
            found=name,
            expected="a plain path inside the bundle",
            hint="Do not use this bundle: `export()` never writes such a name.",
        )
    return name


_MODEL_INPUT_READERS: dict[str, Reader[Any]] = {
    "name": text_from_json,
    "shape": partial(tuple_from_json, read=integer_from_json),
    "dtype": text_from_json,
}
_READERS: dict[str, Reader[Any]] = {
    "head_kind": text_from_json,
    "class_names": names_from_json,
    "num_seen": integer_from_json,
    "feature_dim": integer_from_json,
    "capacity": integer_from_json,
    "base_fingerprint": text_from_json,
    "head_version": integer_from_json,
    "model_input": partial(dataclass_from_json, ModelInput, readers=_MODEL_INPUT_READERS),
    "score_kind": text_from_json,
    "preprocessing": _preprocessing,
    "files": _files,
    "parity": partial(tuple_from_json, read=object_from_json),
    "updates": partial(tuple_from_json, read=object_from_json),
    "precision": text_from_json,
    "head_precision": text_from_json,
    "top": integer_from_json,
    "arbiter": boolean_from_json,
    "max_changed_answers": _share,
    "reference_source": _optional_text,
    "written_at": _optional_time,
    "created_by": partial(mapping_from_json, read=text_from_json),
}


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle's manifest and check every file that it names.

    Example:
        bundle = icis_deploy.load_bundle("bundle")
        print(bundle.precision, bundle.capacity)

    Raises:
        BundleError: If there is no valid manifest, or a file is missing.
        CorruptFileError: If a file has another size or hash than the manifest states.
    """
    folder = path_from(folder, name="folder")
    bundle = load_manifest(folder)
    check_files(folder, bundle)
    return bundle


def check_files(folder: Path, bundle: Bundle) -> None:
    """Compare every file that a manifest names with what it states; no runtime may find others.

    Raises:
        BundleError: If one cannot be read, or a runtime would open a file that the manifest does not name: one in which
            a model keeps weights, or one in the folder of a target.
        CorruptFileError: If one has another size or hash.
    """
    from icis_deploy.bundle.opened_files import check_external_weights, check_target_folders

    for name, entry in bundle.files.items():
        check_file(folder / name, entry)
    for name in bundle.files:
        if name.endswith(".onnx"):
            check_external_weights(folder, name, bundle.files)
    check_target_folders(folder, bundle.files)


def load_manifest(folder: Path) -> Bundle:
    """Read a bundle's manifest; the files that it names are not touched.

    Raises:
        BundleError: If there is no valid manifest.
    """
    # os.path and not pathlib, which raises where the system refuses to look (a name that is too long, a closed folder).
    if not os.path.isdir(folder):  # noqa: PTH112
        raise BundleError(
            f"There is no bundle at {folder}.",
            where=folder,
            hint="`export()` makes one.",
        )
    path = folder / MANIFEST_NAME
    try:
        data = read_plain(path, max_bytes=MAX_MANIFEST_BYTES, what="manifest", error_type=BundleError)
    except BundleError as error:
        hint = "Name a folder that `export()` wrote."
        raise BundleError(error.what, found=error.found, expected=error.expected, where=folder, hint=hint) from error
    try:
        bundle = parse_manifest(data)
    except BundleError as error:
        raise BundleError.at(path, error) from error
    object.__setattr__(bundle, "manifest_sha256", hashlib.sha256(data).hexdigest())
    return bundle


def check_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with what the manifest states of it.

    Raises:
        BundleError: If it cannot be read.
        CorruptFileError: If it has another size or hash.
    """
    try:
        found = file_entry(path)
    except OSError as error:
        raise BundleError(
            f"The manifest names {path}, which cannot be read: {error.strerror or error}.",
            found=error.strerror or str(error),
            where=path,
            hint="Copy the whole folder of the bundle again.",
        ) from error
    if found != entry:
        raise CorruptFileError(
            f"{path} has {found.size_bytes} bytes and SHA-256 {found.sha256[:16]}…; the manifest states "
            f"{entry.size_bytes} bytes and {entry.sha256[:16]}…. The file was changed or damaged.",
            found=(found.size_bytes, found.sha256),
            expected=(entry.size_bytes, entry.sha256),
            where=path,
            hint="Fetch the bundle again.",
        )


def file_entry(path: Path) -> FileEntry:
    """Return the size and hash of a file, as a manifest states them.

    Raises:
        OSError: If it cannot be read.
    """
    return FileEntry(sha256=sha256_of_file(path), size_bytes=path.stat().st_size)
