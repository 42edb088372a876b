"""What a generator says of itself: which head its rows are for, and what rows and descriptors it knows to be usual.

A generator is an ONNX model that makes calibrated rows of descriptors, `generator.onnx` in a bundle. Its facts stand in
the file's metadata, so that they and the weights are one file with one hash.

Inputs and outputs:

    descriptor  (batch, descriptor_dim)   float32
    rows        (batch, feature_dim + 1)  float32, calibrated
    similarity  (batch,)                  float32, cosine with the most similar seen descriptor, both less the mean one
    nearest     (batch,)                  int64, index of that seen class
    mean_row    (feature_dim + 1,)        float32, of the seen rows
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32
from icis_deploy.common.json_fields import (
    Reader,
    dataclass_from_json,
    integer_from_json,
    load_strict,
    number_from_json,
    object_from_json,
    text_from_json,
)
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import CorruptFileError

GENERATOR_NAME = "generator.onnx"
MAX_GENERATOR_BYTES = 1 << 31
METADATA_KEY = "icis_deploy.generator"
SCHEMA_VERSION = 1
DESCRIPTOR, ROWS, SIMILARITY, NEAREST, MEAN_ROW = "descriptor", "rows", "similarity", "nearest", "mean_row"

LENGTH_SLACK = 1.25
"""A row or a descriptor may be this much longer than the longest usual one, or shorter than the shortest."""

COSINE_SLACK = 0.05
"""A row's cosine with the mean row may lie this far outside what is usual."""

NOVEL_QUANTILE = 0.01
"""Part of the seen classes that lie farther from all others than a class that is to be taught may."""

COLLIDING_COSINE = 0.98
"""Cosine from which two classes cannot be told apart, unless seen ones are closer to each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The least and the greatest value that is accepted."""

    low: float
    """The least."""

    high: float
    """The greatest."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high  # NaN is outside


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFacts:
    """What a generator says of itself."""

    base_fingerprint: str
    """Fingerprint of the seen head that its rows are for."""

    method: str
    """The method of the injector."""

    descriptor_dim: int
    """Width of a descriptor."""

    feature_dim: int
    """Width of a row without its bias."""

    row_length: Limits
    """Of `|row|`."""

    row_cosine: Limits
    """Of the cosine between a row and the mean seen row."""

    descriptor_length: Limits
    """Of `|descriptor|`."""

    similarity: Limits
    """Of the cosine with the most similar seen descriptor: below it nothing like it was seen, above it the two classes
    cannot be told apart."""


def measure_limits(seen_rows: Float32, made_rows: Float32, seen_descriptors: Float32) -> dict[str, Limits]:
    """Return what is usual: of seen rows and of those that an injector makes of known descriptors.

    Args:
        seen_rows: `(num_seen, feature_dim + 1)`.
        made_rows: `(num_known, feature_dim + 1)`, calibrated, of seen and unseen descriptors.
        seen_descriptors: `(num_seen, descriptor_dim)`.
    """
    mean = seen_rows.mean(axis=0, dtype=np.float64)
    rows = np.concatenate([seen_rows, made_rows]).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = rows @ mean / np.maximum(lengths * np.linalg.norm(mean), np.finfo(np.float64).tiny)
    nearest = nearest_similarity(seen_descriptors)
    return {
        "row_length": _widened(lengths),
        "row_cosine": Limits(low=float(cosines.min()) - COSINE_SLACK, high=float(cosines.max()) + COSINE_SLACK),
        "descriptor_length": _widened(np.linalg.norm(seen_descriptors.astype(np.float64), axis=1)),
        "similarity": Limits(
            low=float(np.quantile(nearest, NOVEL_QUANTILE)), high=max(COLLIDING_COSINE, float(nearest.max()))
        ),
    }


def nearest_similarity(descriptors: Float32) -> NDArray[np.float64]:
    """Return the cosine of each descriptor with the most similar other one, both less the mean, `(num_classes,)`."""
    centred = descriptors.astype(np.float64) - descriptors.mean(axis=0, dtype=np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    nearest = np.full(len(unit), -1.0)
    for start in range(0, len(unit), 1024):
        similarity = unit[start : start + 1024] @ unit.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -1.0
        nearest[start : start + 1024] = similarity.max(axis=1)
    return nearest


def _widened(values: NDArray[np.float64]) -> Limits:
    return Limits(low=float(values.min()) / LENGTH_SLACK, high=float(values.max()) * LENGTH_SLACK)


def serialize_facts(facts: GeneratorFacts) -> str:
    """Return the facts as JSON, for the metadata of an ONNX file."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(facts)}, sort_keys=True, allow_nan=False)


def parse_facts(text: str) -> GeneratorFacts:
    """Return the facts that this JSON holds.

    Raises:
        CorruptFileError: If it is anything else, or of another schema.
    """
    try:
        fields = object_from_json(load_strict(text))
        version = integer_from_json(fields.pop("schema_version"))
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version}, this release reads {SCHEMA_VERSION}")
        return dataclass_from_json(GeneratorFacts, fields, readers=_READERS)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptFileError(
            f"The generator's facts are damaged: {reason_of(error)}. Fetch the bundle again."
        ) from error


_limits = partial(dataclass_from_json, Limits, readers={"low": number_from_json, "high": number_from_json})
_READERS: dict[str, Reader[Any]] = {
    "base_fingerprint": text_from_json,
    "method": text_from_json,
    "descriptor_dim": integer_from_json,
    "feature_dim": integer_from_json,
    "row_length": _limits,
    "row_cosine": _limits,
    "descriptor_length": _limits,
    "similarity": _limits,
}
