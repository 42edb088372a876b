"""A class from photos that a device has of it: read, hashed, and made into a row by the rule of `few_shot`.

Rules:

1. A photo that is given twice counts once. One that cannot be read is an error that names it, or is left out where the
   caller says so.
2. The row is the generator's, moved by the photos, where there is a descriptor; else that of the photos alone.
3. Two classes whose rows point the same way could not be told apart: the second one is refused.
4. Where the model is sure that most of the photos show a class that it knows, the caller is told, and the class is
   taught: only people know whether it is another one.
"""

# Why: docs/decisions/0087.

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.few_shot import FewShot
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.files import sha256_of_file
from icis_deploy.common.terminal_text import percent, shown
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.few_shot.refining import PhotoFeatures, refine_rows
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.inputs import InputForm, prepare
from icis_deploy.images.python_values import PythonInputs, single_values
from icis_deploy.images.sources import InputValue
from icis_deploy.runtime.teaching.generator import check_apart, check_unknown

MAX_PHOTOS = 100
"""A class has some twenty; the history keeps the hash of each."""

SURE = 0.9
"""Probability from which the model is sure of a class. With one photo of a class that it knows it was in 82 of 100
cases, and in 4 of 100 with one of a species that it does not know (docs/results/few-photos.md)."""

DRAWN_REFERENCE = (
    "The offset of the class was set on features that stand in for images of known classes, and how much accuracy "
    "these lose is not known. Export the bundle again with `seen_images`."
)
_BATCH_SIZE = 16
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedPhotos:
    """Photos as the model takes them."""

    batch: Images
    """`(num_photos, *input_shape)` in the model's input dtype."""

    names: tuple[str, ...]
    """`(num_photos,)`: what each is called in messages."""

    sha256: tuple[str, ...]
    """`(num_photos,)`: of each file, or of its input of the model where there was no file."""

    problems: tuple[str, ...] = ()
    """What was left out, in sentences."""


def load_photos(images: PythonInputs, form: InputForm, *, skip_unreadable: bool) -> LoadedPhotos:
    """Return photos as the model takes them (rule 1).

    Args:
        images: One photo or several, in any form that `Device.predict` takes.
        form: What the model takes.
        skip_unreadable: Whether to leave out what cannot be read.

    Raises:
        UsageError: If there is no photo, or more than `MAX_PHOTOS`, or the bundle does not state its preprocessing.
        ImageError: If one cannot be read, or none can.
    """
    problems: list[str] = []
    on_unreadable = (lambda error: problems.append(error.what)) if skip_unreadable else None
    given = list(islice(single_values(images, form, on_unreadable=on_unreadable), MAX_PHOTOS + 1))
    num_given = len(given) + len(problems)
    if not num_given or len(given) > MAX_PHOTOS:
        raise UsageError(
            f"A class is taught by 1 to {MAX_PHOTOS} photos; found {'more' if given else 'none'}.",
            found="more" if given else 0,
            expected=f"1 to {MAX_PHOTOS}",
            hint="Give some of them in `images`: twenty say nearly all.",
        )
    found: dict[str, tuple[str, Images]] = {}
    for name, value in given:
        try:
            photo = prepare([value], form, keys=[name])
            digest = _sha256(value, photo)
        except ImageError as error:
            if not skip_unreadable:
                raise
            problems.append(error.what)
            continue
        if digest in found:
            problems.append(f"The photo {name} is the same as {found[digest][0]}, and counts once.")
        else:
            found[digest] = name, photo
    if not found:
        raise ImageError(
            f"None of the {num_given} photos can be read: {problems[0]}",
            found=tuple(problems[:_MAX_NAMED]),
            expected="images that Pillow can read",
            hint="Check the first of them by itself.",
        )
    return LoadedPhotos(
        batch=np.concatenate([photo for _, photo in found.values()]),
        names=tuple(name for name, _ in found.values()),
        sha256=tuple(found),
        problems=tuple(problems),
    )


def _sha256(value: InputValue, photo: Images) -> str:
    """Return what the history keeps of a photo: of its file, or of its input of the model where there is none."""
    if isinstance(value, Path) and value.suffix.lower() != ".npy":
        return sha256_of_file(value)
    return hashlib.sha256(value if isinstance(value, bytes) else np.ascontiguousarray(photo).tobytes()).hexdigest()


def batches(photos: LoadedPhotos) -> Iterator[Images]:
    """Yield photos in batches that fit a small device's memory."""
    for start in range(0, len(photos.batch), _BATCH_SIZE):
        yield photos.batch[start : start + _BATCH_SIZE]


def make_photo_row(
    class_name: str,
    features: Float32,
    *,
    prior: Float32 | None,
    few_shot: FewShot,
    bundle: Bundle,
    table: SlotTable | None,
) -> Float32:
    """Return the row of a class before its offset, `(feature_dim + 1,)` float32, if nothing speaks against it.

    Args:
        class_name: What the class will be called.
        features: `(num_photos, feature_dim)`, finite.
        prior: `(feature_dim + 1,)`, the generator's row; `None` for photos alone.
        few_shot: The bundle's.
        bundle: Whose head the row is for.
        table: The other classes in slots; `None` where there are none.

    Raises:
        ClassConflictError: If the head knows the class, or another one in a slot looks alike.
        IncompatibleError: If the photos have no direction.
    """
    check_unknown(class_name, bundle, table)
    rows = np.zeros((1, bundle.feature_dim + 1), dtype=np.float32) if prior is None else prior[None]
    photos = PhotoFeatures(features=features, classes=np.zeros(len(features), dtype=np.int64))
    try:
        made = refine_rows(rows, photos, few_shot.context, has_prior=np.array([prior is not None]))
    except IncompatibleError as error:
        raise IncompatibleError.at(f"{shown(class_name)} was not taught", error) from error
    check_apart(class_name, made[0], few_shot.context.mean_row, table, alike="it looks")
    return np.asarray(made[0], dtype=np.float32)


def doubts(
    class_name: str, answers: Sequence[tuple[str, float]], photos: LoadedPhotos, bundle: Bundle
) -> tuple[str, ...]:
    """Return what there is reason to doubt, in sentences (rules 1 and 4).

    Args:
        class_name: The class that is taught.
        answers: `(num_photos,)`: the class that the model answered with before, and its probability.
        photos: What it answered.
        bundle: The bundle.
    """
    found = list(photos.problems)
    sure = Counter(name for name, probability in answers if probability >= SURE and name != class_name)
    for name, count in sure.most_common(1):
        if 2 * count > len(answers):
            least = min(probability for answer, probability in answers if answer == name and probability >= SURE)
            found.append(
                f"The model is sure that {count} of {len(answers)} photos of {shown(class_name)} show {shown(name)}, "
                f"which it knows ({percent(least)} or more). If they do, take this back with `Device.rollback()`."
            )
    if bundle.is_reference_drawn:
        found.append(DRAWN_REFERENCE)
    return tuple(found)


def check_finite(features: NDArray[np.float32], photos: LoadedPhotos) -> None:
    """Raise `ImageError` if the model makes no numbers of a photo, and name it."""
    is_finite = np.isfinite(features).all(axis=1)
    if not is_finite.all():
        name = photos.names[int(np.argmin(is_finite))]
        raise ImageError(
            f"The model's features of the photo {name} are no finite numbers.",
            found="NaN or infinity",
            expected="finite features",
            where=name,
            hint="Check that the image is finite and prepared as the bundle states, or leave it out.",
        )
