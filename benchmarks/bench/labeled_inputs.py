"""What accuracy is measured on: inputs of the models or features, each with the class that it shows.

    images.csv, a folder,
    inputs.npz, ...         inputs in any form of `icis_deploy.images.python_values`, with their classes
    features.npz            `features` (num_images, feature_dim) and `labels` (num_images,), names of classes
    features.safetensors    `features`; the names as a JSON list under `labels` in the metadata

Features measure a head alone, in float64 and without a runtime; the backbone, which is the same for all, is not run.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.archives import read_npz
from icis_deploy.common.files import read_capped
from icis_deploy.common.json_fields import load_strict, text_from_json
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.errors import ImageError, LoadError
from icis_deploy.images.array_files import holds_features_alone
from icis_deploy.images.input_files import input_file
from icis_deploy.images.loading import ListedImages, check_labelled
from icis_deploy.images.python_values import PythonInputs, source_from
from icis_deploy.images.sources import InputSource, labels_of

MAX_FEATURE_BYTES = 1 << 34


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledFeatures:
    """Features of images, each with the class that it shows."""

    features: NDArray[np.floating]
    """`(num_images, feature_dim)`."""

    labels: tuple[str, ...]
    """`(num_images,)` class names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFeatures:
    """Features of images with the rows that they are multiplied with, and the class that each image shows."""

    features: NDArray[np.floating]
    """`(num_images, feature_dim)`, computed by the model's backbone."""

    labels: tuple[str, ...]
    """`(num_images,)` class names."""

    seen_rows: NDArray[np.float32]
    """`(num_seen, feature_dim + 1)`, the rows of the model's own head."""


def load_labeled(given: PythonInputs) -> InputSource | LabeledFeatures:
    """Read what accuracy is measured on; the form follows from the path.

    Raises:
        ImageError: If it cannot be read, or nothing says which classes it shows.
    """
    path = input_file(given) if isinstance(given, str | Path) else None
    is_arrays = path is not None and path.suffix.lower() in (".npz", ".safetensors")
    if is_arrays and isinstance(path, Path) and not path.is_dir() and holds_features_alone(path):
        return load_features(path)
    source = source_from(given, where="`images`")
    if isinstance(source, ListedImages):
        check_labelled(source)
    labels_of(source)
    return source


def load_features(path: Path) -> LabeledFeatures:
    """Read features with their labels.

    Raises:
        ImageError: If it cannot be read, or the two do not fit.
    """
    data = read_capped(path, max_bytes=MAX_FEATURE_BYTES, what="file of features", error_type=ImageError)
    try:
        features, labels = _parse_npz(data) if path.suffix == ".npz" else _parse_safetensors(data)
    except (KeyError, ValueError, TypeError, LoadError) as error:
        raise ImageError(
            f"Cannot read the features in {path}: {error}. Expected `features` (num_images, feature_dim) and "
            f"`labels`, one class name for each.",
            found=str(error),
            expected=("features", "labels"),
            where=path,
            hint="Write the arrays features and labels with numpy.savez.",
        ) from error
    is_matrix = features.ndim == 2 and features.dtype.kind == "f" and len(features) > 0
    if not is_matrix or len(labels) != len(features) or not np.isfinite(features).all():
        raise ImageError(
            f"{path} holds features of shape {features.shape} and type {features.dtype} with {len(labels)} labels; "
            f"expected finite numbers of shape (num_images, feature_dim) and a label for each image.",
            found=(features.shape, str(features.dtype), len(labels)),
            expected="finite numbers of shape (num_images, feature_dim) and a label for each image",
            where=path,
            hint="Write the arrays features and labels with numpy.savez.",
        )
    return LabeledFeatures(features=features, labels=labels)


def _parse_npz(data: bytes) -> tuple[NDArray[np.floating], tuple[str, ...]]:
    arrays, _ = read_npz(io.BytesIO(data), ("features", "labels"), max_bytes=MAX_FEATURE_BYTES)
    labels = arrays["labels"]
    if labels.ndim != 1 or labels.dtype.kind != "U":
        raise TypeError(f"the labels have shape {labels.shape} and type {labels.dtype}; expected a list of texts")
    return arrays["features"], tuple(labels.tolist())


def _parse_safetensors(data: bytes) -> tuple[NDArray[np.floating], tuple[str, ...]]:
    tensors, metadata = load_tensors(data)
    features, labels = tensors["features"], load_strict(text_from_json(metadata["labels"]))
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("the labels are not a JSON list of names")
    return features, tuple(labels)
