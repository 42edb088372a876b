"""Read the owner's images of classes that a model knows, and run its backbone on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icis_deploy.api.models import OpenedModel, head_of
from icis_deploy.common.archives import read_npz
from icis_deploy.common.arrays import Float32, Int64, frozen_float32
from icis_deploy.common.files import open_plain
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.images.loading import MAX_ARRAY_BYTES, iterate_batches, list_images
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.injection.arbiter.seen_images import SeenImages, seen_images
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.workbench import enable_workbench

BATCH_SIZE = 32


def load_seen_images(
    opened: OpenedModel,
    options: InjectionOptions,
    preprocessing: Preprocessing | None,
    *,
    new_classes: Sequence[str],
) -> SeenImages | None:
    """Return the images that the options name, as the model's head sees them; `None` if they name none.

    Args:
        opened: A model whose classes are known.
        options: `seen_images` in any of its forms.
        preprocessing: How images are prepared; features need none.
        new_classes: Classes that the head lacks, to name an image of one as what it is.

    Raises:
        UsageError: If nothing says how images are prepared.
        ImageError: If images cannot be read, or show classes that the head does not know.
        IncompatibleError: If features do not fit the head, or it is right on none.
    """
    given, head = options.seen_images, head_of(opened)
    if given is None:
        return None
    if isinstance(given, tuple):
        where, (values, names) = "the features", given
        features = frozen_float32(values, name="features of seen images", ndim=2)
    else:
        path = Path(given)
        where = str(path)
        if path.suffix == ".npz":
            features, names = _load_features(path)
        else:
            listed = list_images(path)
            names = listed.labels
            features = backbone_features_of(listed.paths, opened, preprocessing)
    if features.shape[1] != head.feature_dim:
        raise IncompatibleError(
            f"The features of seen images are {features.shape[1]} wide; the head takes {head.feature_dim}.",
            found=features.shape[1],
            expected=head.feature_dim,
            where=where,
        )
    labels = None if names is None else _indices(names, head, new_classes, where=where)
    return seen_images(features, head.rows, labels)


def backbone_features_of(paths: Sequence[Path], opened: OpenedModel, preprocessing: Preprocessing | None) -> Float32:
    """Run a model's backbone on image files, `(num_images, feature_dim)`.

    Raises:
        UsageError: If nothing says how images are prepared.
        ImageError: If one cannot be read.
    """
    if preprocessing is None:
        raise UsageError(
            "Images can only be used where it is known how they are prepared.",
            found="no preprocessing",
            expected="how images are prepared",
            hint="Give `preprocess`, which says it, or leave the images out.",
        )
    enable_workbench()
    from exporters.backbone.features import backbone_features

    batches = iterate_batches(paths, preprocessing, batch_size=BATCH_SIZE)
    return backbone_features(opened.loaded, opened.location, batches)


def _indices(names: Sequence[str], head: Head, new_classes: Sequence[str], *, where: str) -> Int64:
    """Return the classes of images as indices of the head's."""
    index_of = {name: index for index, name in enumerate(head.class_names)}
    unknown = sorted({str(name) for name in names} - set(index_of))
    new = [name for name in unknown if name in set(new_classes)]
    if new:
        raise ImageError(
            f"The images of seen classes in {where} show {quoted(new)}, which are among the new classes.",
            found=tuple(new),
            expected="classes that the model knows",
            where=where,
            hint="Leave their images out: only what the model knows today can be lost, and no image of a new class is "
            "needed.",
        )
    if unknown:
        raise ImageError(
            f"The images of seen classes in {where} show {quoted(unknown)}, which the model does not know.",
            found=tuple(unknown),
            expected="classes that the model knows",
            where=where,
            hint="Name classes as `classes` does, or leave these images out.",
        )
    return np.array([index_of[str(name)] for name in names], dtype=np.int64)


def _load_features(path: Path) -> tuple[Float32, tuple[str, ...] | None]:
    """Read features and, where they are there, labels."""
    try:
        with open_plain(path) as file:
            values, _ = read_npz(file, ("features", "labels"), max_bytes=MAX_ARRAY_BYTES)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"Cannot read the features {path}: {error}.", found=str(error), expected="an .npz file", where=path
        ) from error
    if "features" not in values:
        raise ImageError(
            f"{path} holds no array `features`.",
            found="no features",
            expected="features (num_images, feature_dim) and labels (num_images,)",
            where=path,
        )
    features = frozen_float32(values["features"], name="features of seen images", ndim=2)
    if "labels" not in values:
        return features, None
    labels = tuple(str(name) for name in values["labels"].ravel())
    if len(labels) != len(features):
        raise ImageError(
            f"{path} holds {len(features)} features and {len(labels)} labels; expected as many.",
            found=len(labels),
            expected=len(features),
            where=path,
        )
    return features, labels
