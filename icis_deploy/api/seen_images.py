"""Read the owner's images of classes that a model knows, and run its backbone on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from icis_deploy.api.inputs import PathLike
from icis_deploy.api.models import OpenedModel, head_of
from icis_deploy.common.archives import read_npz
from icis_deploy.common.arrays import Float32, Int64, frozen_float32
from icis_deploy.common.files import open_plain, sha256_of_file
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.images.loading import MAX_ARRAY_BYTES, iterate_batches, list_images, load_images
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
    read = read_seen_images(opened, options, preprocessing)
    return None if read is None else labelled_seen_images(read, head_of(opened), new_classes=new_classes)


def read_seen_images(
    opened: OpenedModel, options: InjectionOptions, preprocessing: Preprocessing | None
) -> ReadImages | None:
    """Return features of the images of seen classes that the options name; `None` if they name none.

    Raises:
        ICISDeployError: As `read_images`.
    """
    if options.seen_images is None:
        return None
    return read_images(
        options.seen_images, opened, preprocessing, skip_unreadable=options.skip_unreadable, what="seen images"
    )


def labelled_seen_images(read: ReadImages, head: Head, *, new_classes: Sequence[str]) -> SeenImages:
    """Return images as the head sees them.

    Raises:
        ImageError: If they show classes that the head does not know.
        IncompatibleError: If the head is right on none.
    """
    labels = None if read.labels is None else _indices(read.labels, head, new_classes, where=read.where)
    return seen_images(read.features, head.rows, labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadImages:
    """Features of images that a user named."""

    features: Float32
    """`(num_images, feature_dim)` float32."""

    labels: tuple[str, ...] | None
    """`(num_images,)` names of classes; `None` where nobody says them."""

    digests: tuple[str, ...]
    """`(num_images,)`: SHA-256 of each file; of the float32 feature where features were given."""

    where: str
    """Whence they come, for messages."""

    problems: tuple[str, ...] = ()
    """What was left out because it cannot be read, in a sentence."""


def read_images(
    given: PathLike | tuple[ArrayLike, Sequence[str] | None],
    opened: OpenedModel,
    preprocessing: Preprocessing | None,
    *,
    skip_unreadable: bool,
    what: str,
) -> ReadImages:
    """Read images in any of the forms of `InjectionOptions.seen_images`, and run the backbone on them.

    Args:
        given: A list, a folder, an `.npz` of features, or features and labels.
        opened: A model whose classes are known.
        preprocessing: How images are prepared; features need none.
        skip_unreadable: Whether to leave out, with a warning, what cannot be read.
        what: "seen images" or "photos", for messages.

    Raises:
        UsageError: If nothing says how images are prepared.
        ImageError: If images cannot be read.
        IncompatibleError: If features do not fit the head.
    """
    head = head_of(opened)
    names: tuple[str, ...] | None
    paths: tuple[Path, ...] | None = None
    problems: tuple[str, ...] = ()
    if isinstance(given, tuple):
        where, (values, labels) = "the features", given
        features = frozen_float32(np.asarray(values), name=f"features of {what}", ndim=2)
        names = None if labels is None else tuple(str(one) for one in labels)
    else:
        where = str(given)
        if Path(given).suffix == ".npz":
            features, names = _load_features(Path(given))
        else:
            listed = list_images(Path(given))
            paths, names = listed.paths, listed.labels
            if skip_unreadable:
                paths, names, problems = _readable(paths, names, preprocessing, where=where)
            try:
                features = backbone_features_of(paths, opened, preprocessing)
            except ImageError as error:
                hint = "To go on without what cannot be read, give `skip_unreadable=True`."
                raise ImageError(
                    error.what,
                    found=error.found,
                    expected=error.expected,
                    where=error.where,
                    hint=hint if error.hint is None else f"{error.hint} {hint}",
                ) from error
    if features.shape[1] != head.feature_dim:
        raise IncompatibleError(
            f"The features of {what} are {features.shape[1]} wide; the head takes {head.feature_dim}.",
            found=features.shape[1],
            expected=head.feature_dim,
            where=where,
        )
    if paths is not None:
        digests = tuple(sha256_of_file(path) for path in paths)
    else:
        digests = tuple(hashlib.sha256(one.tobytes()).hexdigest() for one in features)
    return ReadImages(features=features, labels=names, digests=digests, where=where, problems=problems)


def _readable(
    paths: tuple[Path, ...], names: tuple[str, ...] | None, preprocessing: Preprocessing | None, *, where: str
) -> tuple[tuple[Path, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """Return what can be read, and a sentence about what cannot.

    Raises:
        ImageError: If nothing can be read.
    """
    if preprocessing is None:
        return paths, names, ()
    kept, problems = [], []
    for index, path in enumerate(paths):
        try:
            load_images([path], preprocessing)
            kept.append(index)
        except ImageError as error:
            problems.append(error.what)
    if not kept:
        raise ImageError(
            f"None of the {len(paths)} images of {where} can be read: {problems[0]}",
            found=tuple(problems),
            expected="images that Pillow can read",
            where=where,
        )
    left_out = (f"{len(problems)} of {len(paths)} images of {where} are left out: {' '.join(problems[:5])}",)
    return (
        tuple(paths[one] for one in kept),
        None if names is None else tuple(names[one] for one in kept),
        left_out if problems else (),
    )


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
