"""The reference of a bundle: features of images of classes that the original model knew, and what its head says.

    features    (num_reference, feature_dim) float16
    statistics  (num_reference, 5) float32: `icis_deploy.head.arbiter.STATISTICS` of the original head on them
    answers     (num_reference,) int32: the seen class that the original head answers with, by its index
    sketches    (num_seen, sketch_dim) float16: the weights of the seen classes, projected; not there for large heads

A device looks on them for answers that a change of classes would change (`icis_deploy.runtime.changes.guard`). No
label is needed: what the original head answers is what must stay. Projections on the same random signs keep angles
(Johnson and Lindenstrauss, 1984), those of equal directions exactly: they show a copy of a seen class, whose few images
among all say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import REFERENCE_NAME, Bundle, check_file
from icis_deploy.common.arrays import Float32, frozen_float32
from icis_deploy.common.files import read_plain
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError, IncompatibleError
from icis_deploy.head.arbiter import STATISTICS

MAX_REFERENCE_BYTES = 1_000_000
_HEADER_BYTES = 1024
"""More than safetensors needs to say what the three tensors are."""

_TYPES: dict[str, tuple[type[np.generic], int]] = {
    "features": (np.float16, 2),
    "statistics": (np.float32, 2),
    "answers": (np.int32, 1),
}
_SKETCH_TYPE: tuple[type[np.generic], int] = (np.float16, 2)

SKETCH_DIM = 64
"""Two directions at a cosine of 0.98 come out at one between 0.96 and 0.99 (95 %), equal ones at 1."""

MAX_SKETCH_BYTES = 256_000
"""Heads of more than 2,000 classes have no sketches: features are of more use."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Images of known classes, as the original head sees them.

    Raises:
        IncompatibleError: On construction, if shapes disagree, there is no image, or a value is not finite.
    """

    features: Float32
    """`(num_reference, feature_dim)` float32, read-only; each a float16 number."""

    statistics: Float32
    """`(num_reference, 5)` float32, read-only: `STATISTICS` of the original head on these features. The first one is
    the greatest seen logit."""

    answers: NDArray[np.int32]
    """`(num_reference,)` int32, read-only: indices of the seen classes that the original head answers with."""

    sketches: Float32 | None = None
    """`(num_seen, sketch_dim)` float32, read-only: `sketched` weights of the seen classes; `None` where there are too
    many."""

    def __post_init__(self) -> None:
        features = frozen_float32(self.features, name="features of the reference", ndim=2)
        statistics = frozen_float32(self.statistics, name="statistics of the reference", ndim=2)
        answers = np.array(self.answers, dtype=np.int32)
        answers.flags.writeable = False
        shapes = (statistics.shape, answers.shape)
        expected = ((len(features), len(STATISTICS)), (len(features),))
        if not len(features) or shapes != expected:
            raise IncompatibleError(
                f"The reference has features, statistics and answers of the shapes {(features.shape, *shapes)}; "
                f"expected at least one image, and {len(STATISTICS)} statistics and one answer for each.",
                found=(features.shape, *shapes),
                expected=expected,
            )
        for name, value in (("features", features), ("statistics", statistics), ("answers", answers)):
            object.__setattr__(self, name, value)
        if self.sketches is not None:
            sketches = frozen_float32(self.sketches, name="sketches of the reference", ndim=2)
            object.__setattr__(self, "sketches", sketches)

    @property
    def num_reference(self) -> int:
        """Number of images."""
        return len(self.features)


def sketched(weight: Float32) -> Float32:
    """Return weights in few dimensions, in which equal directions are equal and others about as far apart.

    Args:
        weight: `(num_classes, feature_dim)`.

    Returns:
        `(num_classes, sketch_dim)` float32.
    """
    return np.asarray(weight @ sketching(weight.shape[1]), dtype=np.float32)


@lru_cache(maxsize=1)
def sketching(feature_dim: int) -> Float32:
    """Return what weights are multiplied with, `(feature_dim, sketch_dim)` float32: random signs.

    Weights that are no wider than a sketch stay as they are.
    """
    if feature_dim <= SKETCH_DIM:
        return np.eye(feature_dim, dtype=np.float32)
    # The generator's own words, which no release of numpy changes.
    words: NDArray[np.uint64] = np.random.PCG64(0).random_raw(feature_dim)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8).reshape(feature_dim, 8), axis=1)
    return (2.0 * bits - 1.0).astype(np.float32)


def has_sketches(num_seen: int, feature_dim: int) -> bool:
    """Say whether a head of this size has sketches in its reference."""
    return 2 * num_seen * min(feature_dim, SKETCH_DIM) <= MAX_SKETCH_BYTES


def max_reference_images(feature_dim: int, num_seen: int) -> int:
    """Return how many images fit into the file of a reference."""
    sketches = 2 * num_seen * min(feature_dim, SKETCH_DIM) if has_sketches(num_seen, feature_dim) else 0
    return (MAX_REFERENCE_BYTES - _HEADER_BYTES - sketches) // (2 * feature_dim + 4 * len(STATISTICS) + 4)


def serialize_reference(reference: Reference) -> bytes:
    """Return the safetensors bytes of a reference; equal ones give equal bytes."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(getattr(reference, name), dtype=dtype) for name, (dtype, _) in _TYPES.items()}
    if reference.sketches is not None:
        tensors["sketches"] = np.ascontiguousarray(reference.sketches, dtype=_SKETCH_TYPE[0])
    return save(tensors)


def load_reference(folder: Path, bundle: Bundle) -> Reference:
    """Return the reference of a bundle whose manifest names one.

    Raises:
        BundleError: If the file cannot be read.
        CorruptFileError: If it does not have the hash that the manifest states, or is no reference for this head.
    """
    path = folder / REFERENCE_NAME
    check_file(path, bundle.files[REFERENCE_NAME])
    data = read_plain(path, max_bytes=MAX_REFERENCE_BYTES, what="reference", error_type=BundleError)
    try:
        return parse_reference(data, feature_dim=bundle.feature_dim, num_seen=bundle.num_seen)
    except CorruptFileError as error:
        raise CorruptFileError.at(path, error) from error


def parse_reference(data: bytes, *, feature_dim: int, num_seen: int) -> Reference:
    """Return the reference that these bytes hold.

    Args:
        data: The bytes.
        feature_dim: How wide its features must be.
        num_seen: How many classes the original head has, of which its answers must be.

    Raises:
        CorruptFileError: If they are none of this width.
    """
    try:
        tensors, _ = load_tensors(data)
        types = _TYPES | ({"sketches": _SKETCH_TYPE} if "sketches" in tensors else {})
        found = {name: (tensor.dtype.type, tensor.ndim) for name, tensor in tensors.items()}
        sketches = tensors.get("sketches")
        shape = (num_seen, min(feature_dim, SKETCH_DIM))
        if (
            found != types
            or tensors["features"].shape[1] != feature_dim
            or (sketches is not None and sketches.shape != shape)
        ):
            raise ValueError(
                f"it has tensors of other names, types or widths than features of {feature_dim} float16 values, "
                f"statistics, answers and sketches of shape {shape}"
            )
        answers = tensors["answers"]
        if not ((answers >= 0) & (answers < num_seen)).all():
            raise ValueError(f"it answers with another class than one of {num_seen}")
        return Reference(
            features=tensors["features"].astype(np.float32),
            statistics=tensors["statistics"],
            answers=answers,
            sketches=None if sketches is None else sketches.astype(np.float32),
        )
    except (ICISDeployError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"The reference is damaged: {reason_of(error)}.",
            found=reason_of(error),
            hint="Fetch the bundle again.",
        ) from error
