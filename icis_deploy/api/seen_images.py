"""Read the owner's images of classes that a model knows, and run its backbone on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icis_deploy.api.models import OpenedModel
from icis_deploy.common.archives import read_npz
from icis_deploy.common.arrays import Float32, Int64, frozen_float32
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.files import open_plain, sha256_of_file
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.images.array_files import MAX_ARRAY_BYTES, holds_inputs
from icis_deploy.images.input_files import RemoteFile, is_uri, read_input
from icis_deploy.images.inputs import InputForm, as_array, holds_images, open_shape, prepare, prepared_batches
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.python_values import PythonInputs, source_from
from icis_deploy.images.sources import MAX_IMAGE_BYTES, InputSource, InputValue
from icis_deploy.injection.arbiter.seen_images import SeenImages, seen_images
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.workbench import enable_workbench

BATCH_SIZE = 32


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
    """`(num_images,)`: SHA-256 of each file, or of its bytes; of the numbers where arrays or features were given."""

    where: str
    """Whence they come, for messages."""

    problems: tuple[str, ...] = ()
    """What was left out, because it cannot be read or is there twice, in sentences."""

    are_arrays: bool = False
    """Whether they are inputs of a model that is not given images."""


def read_images(
    given: PythonInputs,
    opened: OpenedModel,
    preprocessing: Preprocessing | None,
    *,
    skip_unreadable: bool,
    what: str,
) -> ReadImages:
    """Read images in any of the forms of `InjectionOptions.seen_images`, and run the backbone on them.

    Args:
        given: Inputs in any form of `source_from`, an `.npz` of features, or features and labels.
        opened: A model whose classes are known.
        preprocessing: How images are prepared; features and arrays need none.
        skip_unreadable: Whether to leave out, with a warning, what cannot be read.
        what: "seen images" or "photos", for messages.

    Raises:
        UsageError: If nothing says how images are prepared, or an array could be features or inputs.
        ImageError: If images cannot be read.
        IncompatibleError: If features do not fit the head.
    """
    form = form_of(opened, preprocessing)
    found = given_features(given, form, feature_dim=opened.location.feature_dim, what=what)
    if found is not None:
        digests = tuple(hashlib.sha256(one.tobytes()).hexdigest() for one in found.features)
        return ReadImages(features=found.features, labels=found.labels, digests=digests, where=found.where)
    source = source_from(given, where=f"the {what}")
    source, problems = _readable(source, form) if skip_unreadable else (source, ())
    try:
        features = backbone_features_of(source, opened, preprocessing)
    except ImageError as error:
        hint = "To go on without what cannot be read, give `skip_unreadable=True`."
        raise ImageError(
            error.what,
            found=error.found,
            expected=error.expected,
            where=error.where,
            hint=hint if error.hint is None else f"{error.hint} {hint}",
        ) from error
    digests = tuple(_digest(item.value) for item in source)
    kept = list(range(len(digests)))
    repeats: tuple[str, ...] = ()
    # Inputs that are no images, such as a few measured numbers, may well be equal and yet be of two things.
    if holds_images(source):
        kept, repeats = _different_images(digests, source.labels, where=source.where)
    return ReadImages(
        features=features[kept],
        labels=None if source.labels is None else tuple(source.labels[index] for index in kept),
        digests=tuple(digests[index] for index in kept),
        where=source.where,
        problems=(*problems, *repeats),
        are_arrays=preprocessing is None and not holds_images(source),
    )


def _different_images(
    digests: Sequence[str], labels: Sequence[str] | None, *, where: str
) -> tuple[list[int], tuple[str, ...]]:
    """Return the index of the first of each image of a class, and sentences about the others.

    What is there twice says nothing more, while intervals, offsets and rows count images.
    """
    seen_as: dict[str, dict[str | None, int]] = {}
    for index, digest in enumerate(digests):
        seen_as.setdefault(digest, {}).setdefault(None if labels is None else labels[index], index)
    kept = sorted(index for classes in seen_as.values() for index in classes.values())
    said = []
    if len(kept) < len(digests):
        num_repeats = len(digests) - len(kept)
        said.append(f"{num_repeats} of {len(digests)} images of {where} are there already, and count once.")
    contradictions = [classes for classes in seen_as.values() if len(classes) > 1]
    if contradictions:
        said.append(
            f"Images that {where} has under more than one class: {len(contradictions)}, such as one under "
            f"{quoted([str(name) for name in contradictions[0]])}: only one of them can be right."
        )
    return kept, tuple(said)


def form_of(opened: OpenedModel, preprocessing: Preprocessing | None) -> InputForm:
    """Return what one input of a model is."""
    return InputForm(shape=open_shape(opened.loaded.input_shape), preprocessing=preprocessing)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenFeatures:
    """Features that were given in place of images, which somebody has run already."""

    features: Float32
    """`(num_images, feature_dim)`."""

    labels: tuple[str, ...] | None
    """`(num_images,)`, the classes of the images; `None` where nobody says them."""

    where: str
    """Whence they come, for messages."""


def given_features(given: PythonInputs, form: InputForm, *, feature_dim: int, what: str) -> GivenFeatures | None:
    """Return features, where features are given and not inputs of the model.

    Args:
        given: As for `read_images`.
        form: What the model takes.
        feature_dim: What the head takes.
        what: "seen images" or "photos", for messages.

    Raises:
        ImageError: If a file cannot be read, or labels are of another number.
        IncompatibleError: If features do not fit the head.
        UsageError: If nothing tells features from inputs.
    """
    if isinstance(given, str | Path):
        if is_uri(str(given)) or Path(given).suffix != ".npz" or holds_inputs(Path(given)):
            return None
        features, labels = _load_features(Path(given))
        where = str(given)
    else:
        if not (isinstance(given, tuple) and len(given) == 2):
            return None
        values, names = as_array(given[0]), given[1]
        if not isinstance(values, np.ndarray) or values.ndim != 2 or isinstance(names, str | Path):
            return None
        is_input = form.fits(values.shape[1:])
        if is_input and values.shape[1] != feature_dim:
            return None
        if is_input:
            raise UsageError(
                f"The {what} are an array with rows of {values.shape[1]} numbers: these can be inputs of the model or "
                f"its features, which are as wide.",
                found=values.shape,
                expected="inputs or features, and which of them",
                hint="Give inputs as a list of arrays, or features as an .npz file with features and labels.",
            )
        features = frozen_float32(values, name=f"features of {what}", ndim=2)
        labels = None if names is None else tuple(str(one) for one in names)
        where = "the features"
    if features.shape[1] != feature_dim:
        raise IncompatibleError(
            f"The features of {what} are {features.shape[1]} wide; the head takes {feature_dim}.",
            found=features.shape[1],
            expected=feature_dim,
            where=where,
            hint="Take the features that go into this model's last layer.",
        )
    if labels is not None and len(labels) != len(features):
        raise ImageError(
            f"There are {len(features)} features and {len(labels)} labels in {where}; expected as many.",
            found=len(labels),
            expected=len(features),
            where=where,
            hint="Give one label for each row of features.",
        )
    return GivenFeatures(features=features, labels=labels, where=where)


def _readable(source: InputSource, form: InputForm) -> tuple[InputSource, tuple[str, ...]]:
    """Return what can be read, and a sentence about what cannot.

    Raises:
        ImageError: If nothing can be read.
    """
    if form.preprocessing is None and holds_images(source):
        return source, ()
    kept, problems = [], []
    for index, item in enumerate(source):
        try:
            prepare([item.value], form, keys=[item.key])
            kept.append(index)
        except ImageError as error:
            problems.append(error.what)
    if not kept:
        expected = "arrays as the model takes them" if form.preprocessing is None else "images that Pillow can read"
        raise ImageError(
            f"None of the {len(source)} {form.noun}s of {source.where} can be read: {problems[0]}",
            found=tuple(problems),
            expected=expected,
            where=source.where,
            hint="Check the first of them by itself, and how the list names them.",
        )
    left_out = (
        f"{len(problems)} of {len(source)} {form.noun}s of {source.where} are left out: {' '.join(problems[:5])}",
    )
    return source.select(kept), left_out if problems else ()


def _digest(value: InputValue) -> str:
    """Return the SHA-256 of a file, of its bytes, or of the numbers of an array or a picture in memory."""
    if isinstance(value, Path):
        return sha256_of_file(value)
    if isinstance(value, RemoteFile):
        value = read_input(value, max_bytes=MAX_IMAGE_BYTES)
    if not isinstance(value, bytes):
        value = np.ascontiguousarray(value).tobytes()
    return hashlib.sha256(value).hexdigest()


def backbone_features_of(source: InputSource, opened: OpenedModel, preprocessing: Preprocessing | None) -> Float32:
    """Run a model's backbone on inputs, `(num_inputs, feature_dim)`.

    Raises:
        UsageError: If they are images, and nothing says how images are prepared.
        ImageError: If one cannot be read, or is no input of the model.
    """
    if preprocessing is None and holds_images(source):
        raise UsageError(
            "Images can only be used where it is known how they are prepared.",
            found="no preprocessing",
            expected="how images are prepared",
            hint="Give `preprocess`, which says it, arrays as the model takes them, or leave the images out.",
        )
    enable_workbench()
    from exporters.backbone.features import backbone_features

    form = form_of(opened, preprocessing)
    prepared = prepared_batches(source, form, batch_size=BATCH_SIZE)
    batches = (np.asarray(batch.inputs, dtype=np.float32) for batch in prepared)
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
            hint=f"{did_you_mean(unknown, index_of)}Name classes as `classes` does, or leave these images out.",
        )
    return np.array([index_of[str(name)] for name in names], dtype=np.int64)


def _load_features(path: Path) -> tuple[Float32, tuple[str, ...] | None]:
    """Read features and, where they are there, labels."""
    try:
        with open_plain(path) as file:
            values, _ = read_npz(file, ("features", "labels"), max_bytes=MAX_ARRAY_BYTES)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"Cannot read the features {path}: {error}.",
            found=str(error),
            expected="an .npz file",
            where=path,
            hint="Write it again with numpy.savez and the arrays features and labels.",
        ) from error
    if "features" not in values:
        raise ImageError(
            f"{path} holds no array `features`.",
            found="no features",
            expected="features (num_images, feature_dim) and labels (num_images,)",
            where=path,
            hint="Write the arrays features and labels with numpy.savez.",
        )
    features = frozen_float32(values["features"], name="features of seen images", ndim=2)
    labels = values.get("labels")
    return features, None if labels is None else tuple(str(name) for name in labels.ravel())
