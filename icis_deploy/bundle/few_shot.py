"""What a device needs to make a row of a few photos: `few_shot.safetensors` of a bundle.

    mean_row      (feature_dim + 1,) float32: of the seen rows
    feature_mean  (feature_dim,) float32: of images of seen classes, or of what stands in for them
    few_shot      metadata, JSON: schema_version, length, level, prior_photos, max_seen_loss, seen_accuracy,
                  has_generator

The rule is `icis_deploy.few_shot.refining`. The offset is set on the bundle's reference
(`icis_deploy.bundle.reference`), on the device, for all classes that were taught by photos at once.
"""

# Why: docs/decisions/0087.

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import FEW_SHOT_NAME, Bundle, check_file
from icis_deploy.common.files import read_plain
from icis_deploy.common.json_fields import (
    boolean_from_json,
    integer_from_json,
    load_strict,
    number_from_json,
    object_from_json,
    text_from_json,
)
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError, IncompatibleError
from icis_deploy.few_shot.refining import FewShotContext

SCHEMA_VERSION = 1
MAX_FEW_SHOT_BYTES = 1 << 24
"""Of features two million wide."""

_METADATA_KEY = "few_shot"
_NUMBERS = ("length", "level", "prior_photos", "max_seen_loss", "seen_accuracy")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FewShot:
    """What a device needs to make a row of a few photos.

    Raises:
        IncompatibleError: On construction, if a number is out of range.
    """

    context: FewShotContext
    """Of the seen head and of what the generator makes."""

    max_seen_loss: float
    """How much accuracy the seen classes may lose to all classes that are taught by photos, fraction of 1."""

    seen_accuracy: float
    """Accuracy of the original head on the images that the reference was chosen from, above 0, at most 1: the reference
    has those that it was right on."""

    has_generator: bool
    """Whether length and level are those of rows that the bundle's generator makes, so that its rows can be moved."""

    def __post_init__(self) -> None:
        if not (0.0 <= self.max_seen_loss <= 1.0 and 0.0 < self.seen_accuracy <= 1.0):
            raise IncompatibleError(
                f"A loss of {self.max_seen_loss} of the accuracy {self.seen_accuracy} cannot be kept.",
                found=(self.max_seen_loss, self.seen_accuracy),
                expected="a loss from 0 to 1, and an accuracy above 0 and at most 1",
            )


def serialize_few_shot(few_shot: FewShot) -> bytes:
    """Return the safetensors bytes; equal values give equal bytes."""
    from safetensors.numpy import save

    context = few_shot.context
    values = {
        "schema_version": SCHEMA_VERSION,
        "length": context.length,
        "level": context.level,
        "prior_photos": context.prior_photos,
        "max_seen_loss": few_shot.max_seen_loss,
        "seen_accuracy": few_shot.seen_accuracy,
        "has_generator": few_shot.has_generator,
    }
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    tensors = {
        "mean_row": np.ascontiguousarray(context.mean_row),
        "feature_mean": np.ascontiguousarray(context.feature_mean),
    }
    return bytes(save(tensors, metadata={_METADATA_KEY: text}))


def load_few_shot(folder: Path, bundle: Bundle) -> FewShot:
    """Return what a bundle holds for photos.

    Raises:
        IncompatibleError: If the bundle holds nothing for them.
        BundleError: If the file cannot be read.
        CorruptFileError: If it is not the one that the manifest states, or not for this head.
    """
    if FEW_SHOT_NAME not in bundle.files or bundle.max_changed_answers is None:
        raise IncompatibleError(
            f"The bundle {folder} has no {FEW_SHOT_NAME}, so it cannot be taught by photos: it was exported by an "
            f"earlier release, or without its guard.",
            found=tuple(sorted(bundle.files)),
            expected=FEW_SHOT_NAME,
            where=folder,
            hint="Export it again with `head='updatable'`, `preprocess` and `seen_images`.",
        )
    path = folder / FEW_SHOT_NAME
    check_file(path, bundle.files[FEW_SHOT_NAME])
    data = read_plain(path, max_bytes=MAX_FEW_SHOT_BYTES, what="constants for photos", error_type=BundleError)
    try:
        return parse_few_shot(data, feature_dim=bundle.feature_dim)
    except CorruptFileError as error:
        raise CorruptFileError.at(path, error) from error


def parse_few_shot(data: bytes, *, feature_dim: int) -> FewShot:
    """Return what these bytes hold.

    Args:
        data: The bytes.
        feature_dim: How wide features must be.

    Raises:
        CorruptFileError: If they are damaged, of another schema or of another width.
    """
    try:
        tensors, metadata = load_tensors(data)
        fields = object_from_json(load_strict(text_from_json(metadata[_METADATA_KEY]).encode()))
        version = integer_from_json(fields["schema_version"])
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version}, this release reads {SCHEMA_VERSION}")
        if fields.keys() != {"schema_version", "has_generator", *_NUMBERS}:
            raise ValueError(f"it has the fields {sorted(fields)}")
        found = {name: (tensor.dtype.type, tensor.shape) for name, tensor in tensors.items()}
        expected = {"mean_row": (np.float32, (feature_dim + 1,)), "feature_mean": (np.float32, (feature_dim,))}
        if found != expected:
            raise ValueError(f"it has other tensors than a mean row and a mean feature of {feature_dim} float32 values")
        numbers = {name: number_from_json(fields[name]) for name in _NUMBERS}
        return FewShot(
            context=FewShotContext(
                mean_row=tensors["mean_row"],
                feature_mean=tensors["feature_mean"],
                length=numbers["length"],
                level=numbers["level"],
                prior_photos=numbers["prior_photos"],
            ),
            max_seen_loss=numbers["max_seen_loss"],
            seen_accuracy=numbers["seen_accuracy"],
            has_generator=boolean_from_json(fields["has_generator"]),
        )
    except (ICISDeployError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptFileError(
            f"The constants for photos are damaged: {reason_of(error)}.",
            found=reason_of(error),
            hint="Fetch the bundle again.",
        ) from error
