"""A class that a device is taught: by its descriptor, by photos, or by both.

What its row must be like is the room `teaching`'s to say, and what it may take from other classes `changes`'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ICISDeployWarning, IncompatibleError
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.answers import top_predictions
from icis_deploy.runtime.open_bundle import OpenBundle, input_form, run_with_features
from icis_deploy.runtime.state.journal import HistoryEntry

if TYPE_CHECKING:
    from icis_deploy.images.python_values import PythonInputs
    from icis_deploy.runtime.teaching.generator import Generator


def teach_described(
    opened: OpenBundle,
    class_name: str,
    descriptor: ArrayLike | Mapping[str, ArrayLike],
    *,
    allow_changed_answers: bool,
) -> HistoryEntry:
    """Teach a class by its descriptor; see `Device.teach`, whose caller changes nothing else meanwhile."""
    generator = opened.generator.load()
    return opened.updater.teach(
        class_name,
        _row_maker(opened, generator, class_name, descriptor),
        arbiter=generator.metadata.coefficients,
        allow_changed_answers=allow_changed_answers,
    )


def _row_maker(
    opened: OpenBundle, generator: Generator, class_name: str, descriptor: ArrayLike | Mapping[str, ArrayLike]
) -> Callable[[SlotTable | None], Float32]:
    """Return what makes the generator's row of a class, given the other classes in slots."""
    from icis_deploy.runtime.teaching.generator import make_row

    return lambda table: make_row(generator, class_name, descriptor, bundle=opened.bundle, table=table)


def teach_by_photos(
    opened: OpenBundle,
    class_name: str,
    descriptor: ArrayLike | Mapping[str, ArrayLike] | None,
    images: PythonInputs,
    *,
    skip_unreadable: bool,
    allow_changed_answers: bool,
) -> HistoryEntry:
    """Teach a class by photos, and its descriptor if there is one; see `Device.teach`.

    What there is reason to doubt is a warning of the line that called `Device.teach`.
    """
    from icis_deploy.runtime.teaching.photos import batches, check_finite, doubts, load_photos, make_photo_row

    few_shot = opened.updater.limits.few_shot()
    make_prior = None if descriptor is None else _row_maker(opened, opened.generator.load(), class_name, descriptor)
    if make_prior is not None and not few_shot.has_generator:
        raise IncompatibleError(
            f"The generator of the bundle {opened.folder} was written by an earlier release, and does not say what "
            f"its rows are like: photos cannot move them.",
            found="a generator of an earlier release",
            expected="a generator of this release",
            where=opened.folder,
            hint="Write it again with `export_generator()` and export the bundle, or teach by photos alone.",
        )
    photos = load_photos(images, input_form(opened.bundle), skip_unreadable=skip_unreadable)
    state = opened.updater.held.state
    outputs = [run_with_features(opened, batch, state) for batch in batches(photos)]
    features = np.concatenate([found for _, found in outputs])
    check_finite(features, photos)
    answers = top_predictions(
        np.concatenate([scores for scores, _ in outputs]),
        1,
        class_names=state.class_names,
        version=state.version,
        independent=opened.bundle.score_kind == "sigmoid",
    )

    def make_row(table: SlotTable | None) -> Float32:
        prior = None if make_prior is None else make_prior(table)
        return make_photo_row(class_name, features, prior=prior, few_shot=few_shot, bundle=opened.bundle, table=table)

    entry = opened.updater.teach(
        class_name,
        make_row,
        photos_sha256=photos.sha256,
        allow_changed_answers=allow_changed_answers,
    )
    named = [(answer.class_names[0], answer.probabilities[0]) for answer in answers]
    for message in doubts(class_name, named, photos, opened.bundle):
        warnings.warn(message, ICISDeployWarning, stacklevel=3)
    return entry
