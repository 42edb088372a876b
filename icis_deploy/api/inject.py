"""Inject: predict the rows of new classes from a model's head and descriptors, and train what makes further rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from icis_deploy.api.inputs import (
    ClassNames,
    DescriptorsLike,
    Preprocess,
    class_names_from,
    descriptors_from,
    listed,
    options_from,
    preprocessing_from,
)
from icis_deploy.api.models import (
    Model,
    OpenedModel,
    head_of,
    open_with_preprocessing,
)
from icis_deploy.api.notices import tell
from icis_deploy.api.photos import check_apart, load_photos
from icis_deploy.api.seen_images import labelled_seen_images, read_seen_images
from icis_deploy.common.arrays import Float32
from icis_deploy.common.given import check_callable, check_flag
from icis_deploy.common.terminal_text import called_inputs
from icis_deploy.errors import UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.injection.inject import Injection, unseen_classes
from icis_deploy.injection.inject import inject as predict_rows
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.owner_images import enough_to_choose
from icis_deploy.injection.photos import classes_to_inject, inject_with_photos
from icis_deploy.workbench import enable_workbench


def inject(
    model: Model,
    *,
    classes: ClassNames | None = None,
    descriptors: DescriptorsLike | None = None,
    unseen: ClassNames | None = None,
    options: InjectionOptions | None = None,
    preprocess: Preprocess | None = None,
    strict: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> ClassUpdate:
    """Predict rows of classes that the model never saw, from descriptors alone, as a class update.

    Warns `ICISDeployWarning` where there is reason to doubt the rows; `.warnings` of the update has it too.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`; needed unless the model was opened with it, or states its classes.
        descriptors: A descriptor file, descriptors, a vector by class name, or a table of pandas with a row for each
            class, whose index has the names; every seen class must have one. A new class with `photos` in
            the options needs none, and where all have photos, descriptors may be left out.
        unseen: The classes to inject, or a text file of them; by default every described class that the head lacks.
        options: How to predict and calibrate; `InjectionOptions()` by default: seen classes lose at most 2 points of
            accuracy. With `seen_images` the owner's images of seen classes say what that is.
        preprocess: How images are prepared: a JSON file, a mapping or a `Preprocessing` that says it, an image
            processor of transformers or transforms of torchvision; for images of seen classes, or else the neutral
            images that the backbone is run on. By default what the model states; where it states nothing, pixels of
            neutral images are scaled to -1..1.
        strict: Whether to refuse rows that their own estimate gives reason to doubt.
        progress: Called after each epoch of a training with its number and mean loss.

    Example:
        update = icis_deploy.inject("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        icis_deploy.save_update(update, "new.icis")

    Raises:
        DescriptorError: If a class has no descriptor, or there is no unseen class.
        UntrustworthyError: If `strict`, and the estimate warns or there is none.
        ICISDeployError: As `inspect`.
    """
    check_flag(strict, name="strict")
    opened, injection = _train(model, classes, descriptors, unseen, options, preprocess, progress)
    if strict:
        injection.require_trust()
    tell(injection.warnings)
    return ClassUpdate(
        base_fingerprint=head_of(opened).fingerprint,
        rows=injection.rows,
        added=injection.class_names,
        arbiter=injection.row_arbiter,
        self_test_seed=injection.options.seed,
        provenance=injection.provenance,
    )


def train_injector(
    model: Model,
    *,
    classes: ClassNames | None = None,
    descriptors: DescriptorsLike | None = None,
    unseen: ClassNames | None = None,
    options: InjectionOptions | None = None,
    preprocess: Preprocess | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Injection:
    """Do what `inject` does, and return all that it knows: rows, estimate, and the injector, which makes further rows.

    Args:
        model: As in `inject`, and so are `classes`, `descriptors`, `unseen`, `options`, `preprocess` and `progress`.
        classes: As in `inject`.
        descriptors: As in `inject`.
        unseen: As in `inject`.
        options: As in `inject`.
        preprocess: As in `inject`.
        progress: As in `inject`.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        print(injection.method, injection.estimate)

    Raises:
        ICISDeployError: As `inject`.
    """
    _, injection = _train(model, classes, descriptors, unseen, options, preprocess, progress)
    tell(injection.warnings)
    return injection


def _train(
    model: Model,
    classes: ClassNames | None,
    descriptors: DescriptorsLike | None,
    unseen: ClassNames | None,
    options: InjectionOptions | None,
    preprocess: Preprocess | None,
    progress: Callable[[int, float], None] | None,
) -> tuple[OpenedModel, Injection]:
    """Open the model and inject, without a word of what there is to doubt."""
    enable_workbench()
    from exporters.bundles.requirements import require_exportable

    check_callable(progress, name="progress")
    # All that is wrong with the other files is said before the model is loaded.
    stated_classes, explicit = class_names_from(classes), preprocessing_from(preprocess)
    described = None if descriptors is None else descriptors_from(descriptors)
    names, options = class_names_from(unseen, name="unseen"), _with_lists(options_from(options, InjectionOptions))
    if described is None and options.photos is None:
        raise UsageError(
            "Nothing says what the new classes are.",
            found="neither descriptors nor photos",
            expected="descriptors of seen and new classes, or photos of the new ones",
            hint="Give `descriptors`, `photos`, or both.",
        )
    if described is not None and stated_classes is not None:
        described.select(stated_classes)
    opened, preprocessing = open_with_preprocessing(model, classes=stated_classes, preprocess=explicit)
    head = head_of(opened)
    require_exportable(opened.loaded, opened.location, preprocessing)
    photos = load_photos(opened, options, preprocessing)
    if photos is not None:
        new = classes_to_inject(head, described, names, photos)
    else:
        assert described is not None  # otherwise there are photos
        new = unseen_classes(head, described, names)
    read = read_seen_images(opened, options, preprocessing)
    if read is not None and photos is not None:
        check_apart(photos, read.digests)
    images = None if read is None else labelled_seen_images(read, head, new_classes=new)
    neutral = None
    if options.needs_cross_validation and (images is None or enough_to_choose(images) is None):
        neutral = neutral_features_of(opened, preprocessing=preprocessing, seed=options.seed)
    if photos is not None:
        injection = inject_with_photos(
            head,
            described,
            photos,
            unseen=names,
            options=options,
            neutral_features=neutral,
            images=images,
            progress=progress,
        )
    else:
        assert described is not None
        injection = predict_rows(
            head, described, unseen=names, options=options, neutral_features=neutral, images=images, progress=progress
        )
    problems = (*(() if read is None else read.problems), *(() if photos is None else photos.problems))
    warnings = (*problems, *injection.warnings)
    # Where inputs were given that are no images, nothing is said of images.
    if read is not None and read.are_arrays:
        warnings = tuple(called_inputs(warning) for warning in warnings)
    return opened, replace(injection, warnings=warnings)


def _with_lists(options: InjectionOptions) -> InjectionOptions:
    """Return the options with images as what lists them; that each is there, and has a class where one is needed."""
    return replace(
        options,
        seen_images=listed(options.seen_images, where="the seen images"),
        photos=listed(options.photos, where="the photos of new classes"),
    )


def neutral_features_of(model: OpenedModel, *, preprocessing: Preprocessing | None, seed: int) -> Float32 | None:
    """Return features of neutral images, `(num_neutral, feature_dim)`; `None` where the model takes or runs none."""
    enable_workbench()
    from exporters.backbone.features import neutral_features

    return neutral_features(model.loaded, model.location, preprocessing=preprocessing, seed=seed)
