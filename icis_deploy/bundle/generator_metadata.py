"""The metadata of a generator: which head its rows are for, and in which ranges rows and descriptors usually lie.

A generator is an ONNX model that makes calibrated rows from descriptors, `generator.onnx` in a bundle. Its metadata is
an entry of the ONNX file's own, so that it and the weights are one file with one hash.

Inputs and outputs:

    descriptor  (batch, descriptor_dim)   float32, the columns of all blocks; zero in a block that says nothing
    rows        (batch, feature_dim + 1)  float32, calibrated
    similarity  (batch,)                  float32, cosine with the most similar seen descriptor, both less the mean one;
                                          of several blocks, once these are standardised, weighed and joined
    nearest     (batch,)                  int64, index of that seen class
    mean_row    (feature_dim + 1,)        float32, of the seen rows
    made_row    (feature_dim + 1,)        float32, mean of the rows of the new classes that it was trained for
    made_length (1,)                      float32, mean length of their weights less those of `mean_row`

The last two say what its rows are like where photos move them; generators of earlier releases do not have them.
"""

# Why: docs/decisions/0042.

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np

from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.common.json_fields import (
    Reader,
    boolean_from_json,
    dataclass_from_json,
    integer_from_json,
    load_strict,
    number_from_json,
    object_from_json,
    text_from_json,
    tuple_from_json,
)
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import CorruptFileError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.class_update import MAX_ROW_VALUE

GENERATOR_NAME = "generator.onnx"
MAX_GENERATOR_BYTES = 1 << 31
METADATA_KEY = "icis_deploy.generator"
PLAIN_SCHEMA, ARBITER_SCHEMA, BLOCK_SCHEMA = 1, 2, 3
"""Schema of a generator whose rows have constant offsets, of one whose rows have an arbiter, and of one that takes
descriptors of several blocks, with or without an arbiter."""

DESCRIPTOR, ROWS, SIMILARITY, NEAREST, MEAN_ROW = "descriptor", "rows", "similarity", "nearest", "mean_row"
MADE_ROW, MADE_LENGTH = "made_row", "made_length"

LENGTH_SLACK = 1.25
"""A row or a descriptor may be this much longer than the longest usual one, or shorter than the shortest."""

COSINE_SLACK = 0.05
"""A row's cosine with the mean row may lie this far outside what is usual."""

NOVEL_QUANTILE = 0.01
"""Fraction of the seen classes that are farther from all others than a taught class may be."""

COLLIDING_COSINE = 0.98
"""Cosine from which two classes cannot be told apart, unless seen ones are closer to each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A closed range of what is usual; NaN is in none.

    Example:
        >>> 0.4 in icis_deploy.Limits(low=0.1, high=0.5)
        True
    """

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorBlock:
    """One block of the descriptors that a generator takes.

    Example:
        written = icis_deploy.export_generator(
            "model.onnx", classes="classes.txt", descriptors="descriptors.npz", out="generator.onnx"
        )
        for block in written.metadata.blocks:
            print(block.name, block.width)
    """

    name: str

    width: int
    """Number of columns."""

    is_used: bool
    """Whether rows depend on it; others take their place among the columns, and are not looked at."""

    length: Limits
    """Euclidean length of a class's part in the block, where it is not zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorMetadata:
    """What a device compares a generator, its descriptors and its rows with.

    Example:
        written = icis_deploy.export_generator(
            "model.onnx", classes="classes.txt", descriptors="descriptors.npz", out="generator.onnx"
        )
        print(written.metadata.method, written.metadata.descriptor_dim)
    """

    base_fingerprint: str
    """Fingerprint of the seen head that its rows are for."""

    method: str
    """Name of the injection method that trained it; see `injection.predictors.registry`."""

    descriptor_dim: int
    feature_dim: int

    row_length: Limits
    """Euclidean length of a row, its bias included."""

    row_cosine: Limits
    """Cosine between a row and the mean seen row."""

    descriptor_length: Limits
    """Euclidean length of a descriptor; with several blocks, the length of each counts instead."""

    similarity: Limits
    """Cosine with the most similar seen descriptor, both less the mean one. Below the range no seen class is like it;
    above it the two classes cannot be told apart."""

    arbiter: tuple[float, ...] | None = None
    """`(5,)`: the coefficients of every row that it makes, float32 numbers; `None` for constant offsets. The arbiter's
    constant is part of the rows' biases."""

    blocks: tuple[GeneratorBlock, ...] = ()
    """The blocks of a descriptor in the order of the columns; empty where there is one."""

    def __post_init__(self) -> None:
        if self.blocks and sum(block.width for block in self.blocks) != self.descriptor_dim:
            raise ValueError("the widths of its blocks do not sum to descriptor_dim")

    @property
    def coefficients(self) -> Float32 | None:
        """`arbiter` as an array, `(5,)` float32."""
        return None if self.arbiter is None else np.array(self.arbiter, dtype=np.float32)


class MeasuredLimits(TypedDict):
    """The ranges among the fields of `GeneratorMetadata`."""

    row_length: Limits
    row_cosine: Limits
    descriptor_length: Limits
    similarity: Limits


def measure_limits(
    seen_rows: Float32, made_rows: Float32, seen_descriptors: Float32, *, joined: Float32 | None = None
) -> MeasuredLimits:
    """Return what is usual: of seen rows and of those that an injector makes of known descriptors.

    Args:
        seen_rows: `(num_seen, feature_dim + 1)`.
        made_rows: `(num_known, feature_dim + 1)`, calibrated, of seen and unseen descriptors.
        seen_descriptors: `(num_seen, descriptor_dim)`.
        joined: `(num_seen, columns)`: these, as their blocks are joined to be compared; as given by default.
    """
    mean = seen_rows.mean(axis=0, dtype=np.float64)
    rows = np.concatenate([seen_rows, made_rows]).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = rows @ mean / np.maximum(lengths * np.linalg.norm(mean), np.finfo(np.float64).tiny)
    nearest = nearest_similarity(seen_descriptors if joined is None else joined)
    return {
        "row_length": _widened(lengths),
        "row_cosine": Limits(low=float(cosines.min()) - COSINE_SLACK, high=float(cosines.max()) + COSINE_SLACK),
        "descriptor_length": _widened(np.linalg.norm(seen_descriptors.astype(np.float64), axis=1)),
        "similarity": Limits(
            low=float(np.quantile(nearest, NOVEL_QUANTILE)), high=max(COLLIDING_COSINE, float(nearest.max()))
        ),
    }


def measure_block(name: str, columns: Float32, *, is_used: bool) -> GeneratorBlock:
    """Return what a device knows of a block.

    Args:
        name: Name of the block.
        columns: `(num_seen, width)`, of the seen classes; zero rows are missing ones.
        is_used: Whether rows depend on it.
    """
    lengths = np.linalg.norm(columns.astype(np.float64), axis=1)
    known = lengths[lengths > 0.0]
    usual = _widened(known) if len(known) else Limits(low=0.0, high=0.0)
    return GeneratorBlock(name=name, width=int(columns.shape[1]), is_used=is_used, length=usual)


def nearest_similarity(descriptors: Float32) -> Float64:
    """Return the cosine of each descriptor with the most similar other one, both less the mean, `(num_classes,)`."""
    centred = descriptors.astype(np.float64) - descriptors.mean(axis=0, dtype=np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    nearest = np.full(len(unit), -1.0)
    for start in range(0, len(unit), 1024):
        similarity = unit[start : start + 1024] @ unit.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -1.0
        nearest[start : start + 1024] = similarity.max(axis=1)
    return nearest


def _widened(values: Float64) -> Limits:
    return Limits(low=float(values.min()) / LENGTH_SLACK, high=float(values.max()) * LENGTH_SLACK)


def serialize_metadata(metadata: GeneratorMetadata) -> str:
    """Return the metadata as JSON, for an ONNX file's entry `METADATA_KEY`."""
    values = {"schema_version": BLOCK_SCHEMA, **asdict(metadata)}
    if not metadata.blocks:  # earlier releases read it
        del values["blocks"]
        values["schema_version"] = ARBITER_SCHEMA
        if metadata.arbiter is None:
            del values["arbiter"]
            values["schema_version"] = PLAIN_SCHEMA
    return json.dumps(values, sort_keys=True, allow_nan=False)


def parse_metadata(text: str) -> GeneratorMetadata:
    """Return the metadata that an ONNX file's entry holds.

    Raises:
        CorruptFileError: If it is anything else, or of another schema.
    """
    try:
        fields = object_from_json(load_strict(text))
        version = integer_from_json(fields.pop("schema_version"))
        if version not in _READERS_OF_SCHEMA:
            *others, last = _READERS_OF_SCHEMA
            readable = f"{', '.join(map(str, others))} and {last}"
            raise ValueError(f"its schema version is {version}, this release reads {readable}")
        return dataclass_from_json(GeneratorMetadata, fields, readers=_READERS_OF_SCHEMA[version])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptFileError(
            f"The generator's metadata is damaged: {reason_of(error)}.",
            found=reason_of(error),
            hint="Fetch the bundle again.",
        ) from error


def _arbiter(value: object, *, where: str) -> tuple[float, ...]:
    coefficients = tuple_from_json(value, read=number_from_json, where=where)
    if len(coefficients) != len(STATISTICS) or not max(map(abs, coefficients), default=0.0) <= MAX_ROW_VALUE:
        raise ValueError(f"{where} has not {len(STATISTICS)} numbers of at most {MAX_ROW_VALUE:.0e}")
    return coefficients


def _arbiter_or_none(value: object, *, where: str) -> tuple[float, ...] | None:
    return None if value is None else _arbiter(value, where=where)


def _blocks(value: object, *, where: str) -> tuple[GeneratorBlock, ...]:
    blocks = tuple_from_json(value, read=_block, where=where)
    names = [block.name for block in blocks]
    if len(blocks) < 2 or len(set(names)) != len(names) or min(block.width for block in blocks) < 1:
        raise ValueError(f"{where} are not two or more blocks with names of their own")
    return blocks


_limits = partial(dataclass_from_json, Limits, readers={"low": number_from_json, "high": number_from_json})
_block = partial(
    dataclass_from_json,
    GeneratorBlock,
    readers={"name": text_from_json, "width": integer_from_json, "is_used": boolean_from_json, "length": _limits},
)
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
_READERS_OF_SCHEMA: dict[int, dict[str, Reader[Any]]] = {
    PLAIN_SCHEMA: _READERS,
    ARBITER_SCHEMA: {**_READERS, "arbiter": _arbiter},
    BLOCK_SCHEMA: {**_READERS, "arbiter": _arbiter_or_none, "blocks": _blocks},
}
