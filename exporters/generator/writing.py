"""Write a trained injector as a generator: an ONNX model with which a device makes rows itself.

A generator is compared with the injector before it is written: on the descriptors of all seen and unseen classes,
and on as many means of two of them; of several blocks also without one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporters.bundles.writing import HeadPlan
from exporters.generator.graph import OPSET, GraphBuilder, add_calibration, add_predictor, add_similarity, add_space
from exporters.onnx_io.files import check_model, serialize_model
from icis_deploy._version import __version__
from icis_deploy.bundle.generator_metadata import (
    DESCRIPTOR,
    MADE_LENGTH,
    MADE_ROW,
    MAX_GENERATOR_BYTES,
    MEAN_ROW,
    METADATA_KEY,
    NEAREST,
    ROWS,
    SIMILARITY,
    GeneratorBlock,
    GeneratorMetadata,
    measure_block,
    measure_limits,
    serialize_metadata,
)
from icis_deploy.common.arrays import Float32
from icis_deploy.common.files import read_capped, write_file
from icis_deploy.errors import GateFailedError, ModelLoadError
from icis_deploy.head.head import Head
from icis_deploy.injection.predictors.block_space import BlockPredictor, BlockSpace
from icis_deploy.injection.rows.calibration import Injector
from icis_deploy.runtime.teaching.generator import Generator, check_base, load_generator

MAX_ROW_ERROR = {"fp32": 1e-4, "fp16": 1e-2}
"""By precision, the greatest distance of a generator's row from the injector's, as a fraction of the row's length."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeRows:
    """What the rows are like that a generator makes of the new classes that it was trained for."""

    mean: Float32
    """`(feature_dim + 1,)`: the mean of these rows."""

    length: float
    """Mean length of their weights less the mean seen weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenGenerator:
    """A generator that passed its comparison.

    Example:
        written = icis_deploy.export_generator(
            "model.onnx", classes="classes.txt", descriptors="descriptors.npz", out="generator.onnx"
        )
        print(written.size_bytes, written.max_row_error)
    """

    metadata: GeneratorMetadata
    """Its metadata: what it was made for, and the usual ranges of its rows and descriptors."""

    size_bytes: int
    """Size of the file."""

    max_row_error: float
    """Greatest distance of a row from the injector's, as a fraction of the row's length."""

    num_compared: int
    """Number of descriptors for which rows were compared."""


def write_generator(
    path: Path,
    injector: Injector,
    *,
    head: Head,
    seen_descriptors: Float32,
    unseen_descriptors: Float32,
    method: str,
    arbiter: Float32 | None = None,
    precision: str = "fp32",
) -> WrittenGenerator:
    """Write an injector as a generator, if the two make the same rows.

    Args:
        path: The file; what is there is replaced.
        injector: Trained on `head`.
        head: The seen classes.
        seen_descriptors: `(num_seen, descriptor_dim)`, in the order of the head.
        unseen_descriptors: `(num_unseen, descriptor_dim)`, those that the injector was trained with.
        method: The method's name.
        arbiter: `(5,)`, the coefficients of all rows; `None` for constant offsets.
        precision: `fp32`, or `fp16` to store matrices in half the size.

    Raises:
        IncompatibleError: If the method has no closed form.
        GateFailedError: If the rows differ; nothing is written.
        StorageError: If the disk refuses; what was there before still is.
    """
    known = np.concatenate([seen_descriptors, unseen_descriptors])
    space = injector.predictor.space if isinstance(injector.predictor, BlockPredictor) else None
    joined = seen_descriptors if space is None else space.apply(seen_descriptors)
    rows = injector.rows(known)
    made = _made_rows(rows[len(seen_descriptors) :] if len(unseen_descriptors) else rows, head)
    metadata = GeneratorMetadata(
        base_fingerprint=head.fingerprint,
        method=method,
        descriptor_dim=int(known.shape[1]),
        feature_dim=head.feature_dim,
        arbiter=None if arbiter is None else tuple(float(one) for one in arbiter),
        blocks=() if space is None else _blocks(space, seen_descriptors),
        **measure_limits(head.rows, rows, seen_descriptors, joined=joined),
    )
    model = generator_model(injector, head, joined, metadata=metadata, made=made, precision=precision)
    check_model(model)
    data = serialize_model(model)
    compared = np.concatenate([known, (known + np.roll(known, 1, axis=0)) / 2])
    if space is not None:
        compared = np.concatenate([compared, _with_gaps(space, known)])
    error = _max_row_error(load_generator(data), injector, compared)
    if not error <= MAX_ROW_ERROR[precision]:
        raise GateFailedError(
            f"The generator's rows are up to {error:.2g} of their length off the injector's; {precision} may be "
            f"{MAX_ROW_ERROR[precision]:.0e}. Nothing was written to {path}.",
            found=float(error),
            expected=MAX_ROW_ERROR[precision],
            where=path,
            hint="Choose another `method`, or descriptors whose numbers are neither huge nor tiny."
            if precision == "fp32"
            else "Write it as `precision='fp32'`, or with another `method`.",
        )
    write_file(path, data)
    return WrittenGenerator(metadata=metadata, size_bytes=len(data), max_row_error=error, num_compared=len(compared))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFile:
    """A generator as a file, which is one."""

    data: bytes
    """The file's bytes."""

    metadata: GeneratorMetadata
    """For which head it is."""


def read_generator(path: Path) -> GeneratorFile:
    """Read a generator's file.

    Raises:
        LoadError, CorruptFileError: If it is no generator.
        MissingDependencyError: If ONNX Runtime is not installed.
    """
    data = read_capped(path, max_bytes=MAX_GENERATOR_BYTES, what="generator", error_type=ModelLoadError)
    return GeneratorFile(data=data, metadata=load_generator(data, where=str(path)).metadata)


def with_generator(plan: HeadPlan, generator: GeneratorFile | None) -> HeadPlan:
    """Return the plan of an updatable head whose bundle also gets a generator, if there is one.

    Raises:
        WrongBaseError: If the generator was made for another head.
    """
    if generator is None:
        return plan
    check_base(generator.metadata, plan.base_fingerprint, plan.table.feature_dim)
    return replace(plan, generator=generator.data)


def made_rows_of(generator: bytes) -> MadeRows | None:
    """Return what the rows of a generator are like; `None` of one that an earlier release wrote.

    Raises:
        ModelLoadError, CorruptFileError: If it is no generator.
    """
    loaded = load_generator(generator)
    if not {MADE_ROW, MADE_LENGTH} <= {output.name for output in loaded.session.get_outputs()}:
        return None
    nothing = np.zeros((1, loaded.metadata.descriptor_dim), dtype=np.float32)
    row, length = loaded.session.run([MADE_ROW, MADE_LENGTH], {DESCRIPTOR: nothing})
    return MadeRows(mean=row, length=float(length[0]))


def _made_rows(rows: Float32, head: Head) -> MadeRows:
    deviations = rows.astype(np.float64) - head.rows.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(deviations[:, :-1], axis=1).mean())
    return MadeRows(mean=rows.mean(axis=0, dtype=np.float64).astype(np.float32), length=length)


def generator_model(
    injector: Injector,
    head: Head,
    seen_descriptors: Float32,
    *,
    metadata: GeneratorMetadata,
    made: MadeRows,
    precision: str,
) -> ir.Model:
    """Return a generator's graph; see `icis_deploy.bundle.generator_metadata` for its inputs and outputs.

    Args:
        injector: What the graph computes.
        head: The seen classes.
        seen_descriptors: `(num_seen, columns)`; of several blocks, joined.
        metadata: What devices read.
        made: What its rows are like.
        precision: `fp32` or `fp16`.
    """
    graph = GraphBuilder(stores_float16_matrices=precision == "fp16")
    descriptor = ir.Value(
        name=DESCRIPTOR, shape=ir.Shape(["batch", metadata.descriptor_dim]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    predictor, point = injector.predictor, descriptor
    if isinstance(predictor, BlockPredictor):
        point = add_space(graph, predictor.space, descriptor)
        predictor = predictor.predictor
    rows = add_calibration(graph, injector.calibration, add_predictor(graph, predictor, point))
    cosines = add_similarity(graph, point, seen_descriptors)
    mean = graph.constant(head.rows.mean(axis=0, dtype=np.float64))
    made_row, made_length = graph.constant(made.mean), graph.constant(np.array([made.length]))
    outputs: dict[str, tuple[ir.Value, list[int | str], ir.DataType]] = {
        ROWS: (graph.op("Identity", rows), ["batch", metadata.feature_dim + 1], ir.DataType.FLOAT),
        SIMILARITY: (graph.op("ReduceMax", cosines, axes=[1], keepdims=0), ["batch"], ir.DataType.FLOAT),
        NEAREST: (graph.op("ArgMax", cosines, axis=1, keepdims=0), ["batch"], ir.DataType.INT64),
        MEAN_ROW: (graph.op("Identity", mean), [metadata.feature_dim + 1], ir.DataType.FLOAT),
        MADE_ROW: (graph.op("Identity", made_row), [metadata.feature_dim + 1], ir.DataType.FLOAT),
        MADE_LENGTH: (graph.op("Identity", made_length), [1], ir.DataType.FLOAT),
    }
    for name, (value, shape, dtype) in outputs.items():
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
    built = ir.Graph(
        [descriptor],
        [value for value, _, _ in outputs.values()],
        nodes=graph.nodes,
        initializers=graph.constants,
        opset_imports={"": OPSET},
        name="generator",
    )
    properties = {METADATA_KEY: serialize_metadata(metadata)}
    return ir.Model(
        built, ir_version=8, producer_name="icis-deploy", producer_version=__version__, metadata_props=properties
    )


def _with_gaps(space: BlockSpace, descriptors: Float32) -> Float32:
    """Return descriptors of which each lacks one of the blocks that count, in turn, where another is left."""
    gapped, start = descriptors.copy(), 0
    used = [index for index, weight in enumerate(space.weights) if weight > 0.0]
    for index, block in enumerate(space.blocks):
        if index in used:
            gapped[used.index(index) :: len(used), start : start + block.width] = 0.0
        start += block.width
    return np.asarray(gapped[space.apply(gapped).any(axis=1)])


def _blocks(space: BlockSpace, seen_descriptors: Float32) -> tuple[GeneratorBlock, ...]:
    """Return what devices know of the blocks."""
    columns = space.columns(seen_descriptors)
    return tuple(
        measure_block(block.name, part, is_used=weight > 0.0)
        for block, part, weight in zip(space.blocks, columns, space.weights, strict=True)
    )


def _max_row_error(generator: Generator, injector: Injector, descriptors: Float32) -> float:
    expected = injector.rows(descriptors).astype(np.float64)
    found = np.concatenate([generator.run(part[None])[ROWS] for part in descriptors])
    errors = np.linalg.norm(found - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
    return float(np.nan_to_num(errors, nan=np.inf).max())
