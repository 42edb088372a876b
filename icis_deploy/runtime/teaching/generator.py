"""A bundle's generator on the device: rows from descriptors, and what is wrong with a row or its descriptor.

It runs in ONNX Runtime on the CPU, whatever runs the bundle's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.bundle.generator_metadata import (
    COLLIDING_COSINE,
    DESCRIPTOR,
    GENERATOR_NAME,
    MEAN_ROW,
    METADATA_KEY,
    NEAREST,
    ROWS,
    SIMILARITY,
    GeneratorBlock,
    GeneratorMetadata,
    parse_metadata,
)
from icis_deploy.bundle.manifest import Bundle, check_file, known_names
from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import (
    ClassConflictError,
    CorruptFileError,
    DescriptorError,
    IncompatibleError,
    MissingDependencyError,
    ModelLoadError,
    OutlierError,
    RuntimeFailureError,
    WrongBaseError,
)
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.sessions.onnxruntime_session import session_options


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """A generator that is loaded."""

    session: Any
    """An `onnxruntime.InferenceSession`."""

    metadata: GeneratorMetadata

    def run(self, descriptors: Float32) -> Mapping[str, NDArray[Any]]:
        """Return its outputs by name; see `icis_deploy.bundle.generator_metadata`.

        Args:
            descriptors: `(batch, descriptor_dim)` float32.

        Raises:
            RuntimeFailureError: If the runtime fails.
        """
        names = (ROWS, SIMILARITY, NEAREST, MEAN_ROW)
        try:
            outputs = self.session.run(list(names), {DESCRIPTOR: descriptors})
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise RuntimeFailureError(
                f"The generator failed on a descriptor: {error}",
                found=str(error),
            ) from error
        return dict(zip(names, outputs, strict=True))


def load_generator(model: Path | bytes, *, where: str = "the generator") -> Generator:
    """Load a generator.

    Args:
        model: The file, or its bytes.
        where: What to call bytes in messages.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        ModelLoadError: If it is no ONNX model, or no generator.
        CorruptFileError: If its metadata is damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Making a row needs ONNX Runtime.",
            hint="Install it: pip install 'icis-deploy[cpu]' (or 'icis-deploy[gpu]', never both).",
        ) from error
    source = model if isinstance(model, bytes) else str(model)
    where = where if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # see Generator.run
        raise ModelLoadError(
            f"ONNX Runtime cannot load {where}: {error}",
            found=str(error),
            where=where,
            hint="Give the file that `export_generator()` wrote.",
        ) from error
    properties = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in properties:
        raise ModelLoadError(
            f"{where} is no generator.",
            where=where,
            hint="`export_generator()` writes one.",
        )
    return Generator(session=session, metadata=parse_metadata(properties[METADATA_KEY]))


def bundle_generator(folder: Path, bundle: Bundle) -> Generator:
    """Load the generator of a bundle.

    Raises:
        IncompatibleError: If it has none.
        CorruptFileError: If it is not the file that the manifest states.
        ICISDeployError: As `load_generator` and `check_base`.
    """
    if GENERATOR_NAME not in bundle.files:
        raise IncompatibleError(
            f"The bundle {folder} has no {GENERATOR_NAME}, so it cannot be taught.",
            expected=GENERATOR_NAME,
            where=folder,
            hint="Export it with a `generator` that `export_generator()` wrote, or apply a class update.",
        )
    check_file(folder / GENERATOR_NAME, bundle.files[GENERATOR_NAME])
    generator = load_generator(folder / GENERATOR_NAME)
    check_base(generator.metadata, bundle.base_fingerprint, bundle.feature_dim)
    return generator


def check_base(metadata: GeneratorMetadata, base_fingerprint: str, feature_dim: int) -> None:
    """Raise `WrongBaseError` if a generator's rows are for another head."""
    if (metadata.base_fingerprint, metadata.feature_dim) != (base_fingerprint, feature_dim):
        raise WrongBaseError(
            f"The generator was made for the head {metadata.base_fingerprint[:16]}… of feature_dim "
            f"{metadata.feature_dim}; this bundle's is {base_fingerprint[:16]}… of {feature_dim}.",
            found=(metadata.base_fingerprint, metadata.feature_dim),
            expected=(base_fingerprint, feature_dim),
            hint="Write it again with this model and classes.",
        )


def make_row(
    generator: Generator,
    class_name: str,
    descriptor: ArrayLike | Mapping[str, ArrayLike],
    *,
    bundle: Bundle,
    table: SlotTable | None,
) -> Float32:
    """Return the calibrated row of a class, `(feature_dim + 1,)` float32, if nothing speaks against it.

    Args:
        generator: The bundle's.
        class_name: What the class will be called, for messages.
        descriptor: `(descriptor_dim,)`, or `(width,)` by name of its block; blocks left out say nothing of the class.
        bundle: The bundle whose head the row is for.
        table: The classes in slots; `None` where there are none.

    Raises:
        DescriptorError: If the descriptor is not a finite vector of the width that the generator takes.
        OutlierError: If descriptor or row are unlike those of the seen classes.
        ClassConflictError: If the head knows the class, or another one is described alike, so that the two could not be
            told apart; it is named.
        CorruptFileError: If the generator gives something that is no row.
        RuntimeFailureError: If the runtime fails.
    """
    check_unknown(class_name, bundle, table)
    vector = _checked(descriptor, generator.metadata, class_name)
    outputs = generator.run(vector[None])
    row, mean = outputs[ROWS][0], outputs[MEAN_ROW]
    similarity, nearest = float(outputs[SIMILARITY][0]), int(outputs[NEAREST][0])
    if row.shape != (bundle.feature_dim + 1,) or mean.shape != row.shape or not 0 <= nearest < bundle.num_seen:
        raise CorruptFileError(
            "The generator gives no row of this bundle's width.",
            found=row.shape,
            expected=(bundle.feature_dim + 1,),
            hint="Fetch the bundle again.",
        )
    seen_name = bundle.seen_names[nearest]
    _check_usual(generator.metadata, class_name, vector, row, mean, similarity=similarity, nearest=seen_name)
    if similarity > generator.metadata.similarity.high:
        raise _collision(class_name, seen_name, similarity)
    check_apart(class_name, row, mean, table)
    return np.asarray(row, dtype=np.float32)


def check_unknown(class_name: str, bundle: Bundle, table: SlotTable | None) -> None:
    """Raise `ClassConflictError` if the head knows a class, baked or in these slots."""
    if class_name in known_names(bundle, table):
        way = "." if class_name in bundle.class_names else ", or replace it by a class update."
        raise ClassConflictError(
            f"{shown(class_name)} was not taught: the head already knows it.",
            found=class_name,
            hint=f"Teach it under another name{way}",
        )


def check_apart(
    class_name: str, row: Float32, mean: Float32, table: SlotTable | None, *, alike: str = "it is described"
) -> None:
    """Raise `ClassConflictError` if a row points where that of another class in a slot does.

    Args:
        class_name: The class.
        row: `(feature_dim + 1,)`, its row.
        mean: `(feature_dim + 1,)`, the mean seen row.
        table: The other classes in slots; `None` where there are none.
        alike: Why the two are alike, for the message.
    """
    if table is None or not table.filled.size:
        return
    # Of weights alone: calibration gives all injected biases the same offset, which would make any two alike.
    cosines = _cosines((table.rows() - mean)[:, :-1], (row - mean)[:-1])
    closest = int(np.argmax(cosines))
    if cosines[closest] > COLLIDING_COSINE:
        raise _collision(class_name, table.filled_names[closest], float(cosines[closest]), alike=alike)


def _checked(descriptor: ArrayLike | Mapping[str, ArrayLike], metadata: GeneratorMetadata, class_name: str) -> Float32:
    if isinstance(descriptor, Mapping):
        return _of_blocks(descriptor, metadata, class_name)
    vector = _finite_vector(descriptor, metadata.descriptor_dim, class_name)
    _check_says_something(vector, metadata, class_name)
    return vector


def _of_blocks(parts: Mapping[str, ArrayLike], metadata: GeneratorMetadata, class_name: str) -> Float32:
    """Return the descriptor that has these parts, zero in the blocks that are not among them."""
    if not metadata.blocks and len(parts) == 1:
        (only,) = parts.values()
        return _finite_vector(only, metadata.descriptor_dim, class_name)
    names = [block.name for block in metadata.blocks]
    unknown = [name for name in parts if name not in names]
    if unknown:
        takes = f"the blocks {', '.join(map(shown, names))}" if names else "descriptors of one block, as one vector"
        raise DescriptorError(
            f"The descriptor of {class_name!r} has a block {shown(unknown[0])}; the generator takes {takes}.",
            found=tuple(parts),
            expected=tuple(names),
            hint="Describe the class as those were described that the generator was trained with.",
        )
    vector = np.concatenate(
        [
            _finite_vector(parts[block.name], block.width, class_name, block=block.name)
            if block.name in parts
            else np.zeros(block.width, dtype=np.float32)
            for block in metadata.blocks
        ]
    )
    _check_says_something(vector, metadata, class_name)
    return vector


def _check_says_something(vector: Float32, metadata: GeneratorMetadata, class_name: str) -> None:
    """Raise `DescriptorError` if a descriptor is zero in all blocks that rows depend on."""
    if not metadata.blocks or any(part.any() for block, part in _parts(vector, metadata) if block.is_used):
        return
    used = tuple(block.name for block in metadata.blocks if block.is_used)
    raise DescriptorError(
        f"The descriptor of {class_name!r} says nothing in the blocks that rows are made of: "
        f"{', '.join(map(shown, used))}.",
        found="zeros",
        expected=used,
        hint="Describe it in one of them at least.",
    )


def _parts(vector: Float32, metadata: GeneratorMetadata) -> list[tuple[GeneratorBlock, Float32]]:
    """Return the blocks of a descriptor."""
    ends = np.cumsum([block.width for block in metadata.blocks])
    return list(zip(metadata.blocks, np.split(vector, ends[:-1]), strict=True))


def _finite_vector(descriptor: ArrayLike, width: int, class_name: str, *, block: str | None = None) -> Float32:
    where = "" if block is None else f" in block {shown(block)}"
    try:
        with np.errstate(over="ignore"):  # what no float32 holds is infinite, and refused below
            vector = np.asarray(descriptor, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise DescriptorError(
            f"The descriptor of {class_name!r}{where} is no vector of numbers: {error}.",
            found=str(error),
            expected=f"{width} finite numbers",
            hint="Give as many numbers as the generator's descriptors have.",
        ) from error
    if vector.shape != (width,):
        raise DescriptorError(
            f"The descriptor of {class_name!r} has shape {vector.shape}{where}; expected {width} finite numbers, made "
            f"as those that the generator was trained with.",
            found=vector.shape,
            expected=(width,),
            hint="Describe the class with the sources that the generator was trained with.",
        )
    if not np.isfinite(vector).all():
        index = int(np.argmin(np.isfinite(vector)))
        raise DescriptorError(
            f"The descriptor of {class_name!r} holds {vector[index]} at {index}{where}; expected {width} finite "
            f"numbers of float32.",
            found=float(vector[index]),
            expected=f"{width} finite numbers",
            hint="Correct it, or describe the class again.",
        )
    return vector


def _check_usual(
    metadata: GeneratorMetadata,
    class_name: str,
    vector: Float32,
    row: Float32,
    mean: Float32,
    *,
    similarity: float,
    nearest: str,
) -> None:
    """Raise `OutlierError` if anything is outside the range of seen classes."""
    if not similarity >= metadata.similarity.low:
        raise OutlierError(
            f"{class_name!r} was not taught: no seen class is like it. The most similar one is {nearest!r}, with a "
            f"cosine of {similarity:.3f}; expected at least {metadata.similarity.low:.3f}.",
            found=similarity,
            expected=f"at least {metadata.similarity.low:.3f}",
            where=nearest,
            hint="Check the descriptor, or add the class by a class update.",
        )
    lengths = [("length of its descriptor", vector, metadata.descriptor_length)]
    if metadata.blocks:
        lengths = [
            (f"length of its descriptor in block {shown(block.name)}", part, block.length)
            for block, part in _parts(vector, metadata)
            if block.is_used and part.any()
        ]
    measured = (
        *((what, float(np.linalg.norm(part.astype(np.float64))), limits) for what, part, limits in lengths),
        ("length of its row", float(np.linalg.norm(row.astype(np.float64))), metadata.row_length),
        ("cosine of its row with the mean row", float(_cosines(row[None], mean)[0]), metadata.row_cosine),
    )
    for what, value, limits in measured:
        if value not in limits:
            raise OutlierError(
                f"{class_name!r} was not taught: the {what} is {value:.4g}; of classes like the seen ones it lies in "
                f"{limits.low:.4g} to {limits.high:.4g}.",
                found=value,
                expected=(limits.low, limits.high),
                where=what,
                hint="Check that the descriptor was made like theirs.",
            )


def _cosines(rows: Float32, vector: Float32) -> Float64:
    wide, direction = rows.astype(np.float64), vector.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(direction)
    return np.asarray(wide @ direction / np.maximum(lengths, np.finfo(np.float64).tiny))


def _collision(class_name: str, other: str, cosine: float, *, alike: str = "it is described") -> ClassConflictError:
    way = "Describe it by" if alike == "it is described" else "Give photos that show"
    return ClassConflictError(
        f"{class_name!r} was not taught: {alike} like {other!r} (cosine {cosine:.3f}), so the two could not be "
        f"told apart.",
        found=cosine,
        where=other,
        hint=f"{way} what sets it apart, or use the class that is there.",
    )
