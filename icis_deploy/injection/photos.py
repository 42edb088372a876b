"""Inject with a few photos of new classes: predicted rows where there are descriptors, and photos that move them.

How much a predicted row counts against photos is chosen on known classes that play new ones with their own images as
photos, where the owner's images allow it. The offset is set anew for the rows that come out, and is the same for all
images and all new rows: an arbiter is fitted on rows that no photo moved.

Without images of seen classes, pseudo-features stand in for them. They lack what all images have in common, and rows
that photos moved answer to that. Two things bring it back, both from the photos: the mean feature is moved towards
theirs, and the offset is lowered by what new rows still score higher at photos of each other's classes than at
pseudo-features.
"""

# Why: docs/decisions/0075 (the rule), docs/decisions/0076 (the offset after it), docs/decisions/0090 (without images).

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from icis_deploy.common.arrays import Float32, Float64, Int64, frozen_float32
from icis_deploy.common.terminal_text import percent
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import DescriptorError, ImageError, IncompatibleError, UsageError
from icis_deploy.few_shot.refining import DEFAULT_PRIOR_PHOTOS, FewShotContext, PhotoFeatures, levels, refine_rows
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.injection.arbiter.budget import spend_budget
from icis_deploy.injection.arbiter.pretend_new import PredictRows, calibrated, plan_sets
from icis_deploy.injection.arbiter.seen_images import SeenImages, seen_images
from icis_deploy.injection.inject import Injection, check_new, inject
from icis_deploy.injection.options import AUTO, DEFAULT_SEEN_ACCURACY, InjectionOptions
from icis_deploy.injection.predictors.block_space import BlockPredictor
from icis_deploy.injection.predictors.registry import method_named
from icis_deploy.injection.promise import FEW_SEEN_WITHOUT_IMAGES, Promise, promise_by_images, promise_by_photos
from icis_deploy.injection.pseudo_features.draws import draw, find_feature_source
from icis_deploy.injection.rows.calibration import DeviationCalibration
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.injection.rows.predictors import Progress
from icis_deploy.injection.rows.spectrum import mean_row

PRIOR_PHOTOS = (0.0, 0.25, 0.5, DEFAULT_PRIOR_PHOTOS)
"""Numbers of photos that a prior may count as: what descriptions give at their best, or less where they are poor."""

MIN_TESTED = 50
"""Images of known classes played as new that must be left to compare them with."""

NUM_PSEUDO_FEATURES = 2400

CENTRE_CLASSES = 5.0
"""New classes whose photos say as much of where images lie as all pseudo-features do (docs/results/few-photos.md)."""

NO_PROMISE = (
    "Without images of seen classes, no loss of seen accuracy is promised of rows that photos moved in so small a "
    "head, of photos of one class alone, or of classes without descriptors. Give images of seen classes with "
    "`seen_images`."
)
IMPRINTED = "photos"
"""The method of an injection without descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewClassPhotos:
    """Features of photos of new classes.

    Raises:
        IncompatibleError: On construction, if numbers disagree.
    """

    features: Float32
    """`(num_photos, feature_dim)` float32, read-only."""

    labels: tuple[str, ...]
    """`(num_photos,)`: the class of each."""

    digests: tuple[str, ...]
    """`(num_photos,)`: SHA-256 of each file, or of the feature where there is no file."""

    problems: tuple[str, ...] = ()
    """What was left out because it cannot be read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", frozen_float32(self.features, name="features of photos", ndim=2))
        if not len(self.features) == len(self.labels) == len(self.digests) or not self.labels:
            raise IncompatibleError(
                f"There are {len(self.features)} photos, {len(self.labels)} labels and {len(self.digests)} hashes.",
                found=(len(self.features), len(self.labels), len(self.digests)),
                expected="one of each for every photo, and at least one photo",
            )


def classes_to_inject(
    head: Head, descriptors: Descriptors | None, unseen: Sequence[str] | None, photos: NewClassPhotos
) -> tuple[str, ...]:
    """Return the new classes: those asked for, else all that are described or shown.

    Raises:
        ImageError: If a photo shows a class that the head knows, or that is not asked for.
        ClassConflictError: If a class that is asked for is known, or asked for twice.
    """
    known = set(head.class_names)
    shown = tuple(dict.fromkeys(photos.labels))
    if old := sorted(set(shown) & known):
        raise ImageError(
            f"The photos of new classes show {quoted(old)}, which the model knows already.",
            found=tuple(old),
            expected="classes that the model does not know",
            hint="Give images of known classes as `seen_images`.",
        )
    if unseen is None:
        described = () if descriptors is None else descriptors.class_names
        return tuple(dict.fromkeys(name for name in (*described, *shown) if name not in known))
    if strange := sorted(set(shown) - set(unseen)):
        raise ImageError(
            f"The photos show {quoted(strange)}, which are not among the classes to inject.",
            found=tuple(strange),
            expected=tuple(unseen),
            hint="Name these classes in `unseen`, or leave their photos out.",
        )
    check_new(unseen, head)
    return tuple(unseen)


def inject_with_photos(
    head: Head,
    descriptors: Descriptors | None,
    photos: NewClassPhotos,
    *,
    unseen: Sequence[str] | None = None,
    options: InjectionOptions | None = None,
    neutral_features: Float32 | None = None,
    images: SeenImages | None = None,
    progress: Progress | None = None,
) -> Injection:
    """Predict rows of new classes from descriptors and photos.

    Args:
        head: The classifier's head: the seen classes.
        descriptors: Of every seen class, and of new ones; `None` where every new class has photos.
        photos: Of some new classes, or all.
        unseen: As in `inject`; every described or shown class that the head lacks by default.
        options: As in `inject`; the calibration is "auto", and for a budget.
        neutral_features: `(num_neutral, feature_dim)`; needed where there are no images of seen classes.
        images: Of seen classes.
        progress: As in `inject`.

    Raises:
        UsageError: If the options ask for another calibration or a balance.
        ImageError: If a photo shows a class that is not new.
        DescriptorError: If a class has neither descriptor nor photo.
        IncompatibleError: If nothing shows what features of seen classes are like, or images are too few.
    """
    options = _checked(options or InjectionOptions())
    budget = options.max_seen_loss
    assert budget is not None
    names = classes_to_inject(head, descriptors, unseen, photos)
    shown = set(photos.labels)
    has_descriptor = set() if descriptors is None else set(descriptors.class_names)
    predicted = tuple(name for name in names if name in has_descriptor or name not in shown)
    known = _stand_ins(head, options, neutral_features) if images is None else images
    base = None
    if predicted:
        base = inject(
            head,
            _required(descriptors, predicted),
            unseen=predicted,
            options=replace(options, arbiter="off"),
            neutral_features=neutral_features,
            images=images,
            progress=progress,
        )
    prior = np.zeros((len(names), head.feature_dim + 1), dtype=np.float32)
    has_prior = np.isin(np.array(names), np.array(predicted))
    if base is not None:
        prior[has_prior] = base.rows
    index_of = {name: index for index, name in enumerate(names)}
    of_photos = PhotoFeatures(
        features=photos.features, classes=np.array([index_of[one] for one in photos.labels], dtype=np.int64)
    )
    context = few_shot_context(head, prior[has_prior], known, photos=of_photos if images is None else None)
    prior_photos, reason = DEFAULT_PRIOR_PHOTOS, "No row was predicted from a descriptor."
    if base is not None and descriptors is not None:
        prior_photos, reason = _chosen_prior(base, head, descriptors, images, of_photos, options.seed)
    context = replace(context, prior_photos=prior_photos)
    rows = refine_rows(prior, of_photos, context, has_prior=has_prior)
    leads = np.asarray(head_logits(rows, known.features).max(axis=1) - known.logits.max(axis=1), dtype=np.float32)
    spent = spend_budget(known, leads, budget=budget, seed=options.seed)
    rows[:, -1] -= np.float32(spent.threshold)
    warnings: tuple[str, ...] = ()
    if images is None and len(shown) > 1:
        rows[:, -1] -= np.float32(_common_lead(rows, of_photos, known, context.mean_row))
    if images is not None:
        promise = promise_by_images(spent, known)
    elif head.num_classes >= FEW_SEEN_WITHOUT_IMAGES and len(shown) > 1 and has_prior.all():
        promise = promise_by_photos(budget)
    else:
        promise, warnings = Promise(max_seen_loss=budget, ground="none", message=NO_PROMISE), (NO_PROMISE,)
    counts = {name: photos.labels.count(name) for name in names if name in shown}
    details = {
        "num_photos": counts,
        "sha256": {
            name: [d for d, of in zip(photos.digests, photos.labels, strict=True) if of == name] for name in counts
        },
        "prior_photos": prior_photos,
        "reason": reason,
        "is_estimate_from_descriptors": base is not None and base.estimate is not None,
        "without_descriptor": [name for name in names if name not in has_descriptor],
    }
    if base is None:
        return Injection(
            rows=rows,
            class_names=names,
            injector=None,
            blocks=(),
            method=IMPRINTED,
            settings={},
            options=options,
            selection=None,
            estimate=None,
            arbiter=None,
            curve=(),
            promise=promise,
            arbiter_reason=None,
            warnings=warnings,
            photos=details,
        )
    return replace(
        base,
        rows=rows,
        class_names=names,
        promise=promise,
        options=options,
        arbiter_reason=None,
        warnings=(*warnings, *base.warnings),
        photos=details,
    )


def few_shot_context(
    head: Head, predicted: Float32, known: SeenImages, *, photos: PhotoFeatures | None = None
) -> FewShotContext:
    """Return what refining rows of a head needs, with the default weight of a prior.

    Args:
        head: The seen classes.
        predicted: `(num_predicted, feature_dim + 1)`, calibrated rows; may be none.
        known: Images of seen classes, or what stands in for them.
        photos: Of new classes, which show where images lie where `known` only stands in for them.
    """
    mean = mean_row(head.rows)
    weights = known.weights()
    centre = np.asarray(weights @ known.features / weights.sum(), dtype=np.float32)
    if photos is not None:
        of_classes = _class_means(photos)
        share = len(of_classes) / (len(of_classes) + CENTRE_CLASSES)
        centre = np.asarray(centre + share * (of_classes.mean(axis=0) - centre), dtype=np.float32)
    like = predicted if len(predicted) else head.rows
    return FewShotContext(
        mean_row=mean,
        feature_mean=centre,
        length=float(np.linalg.norm((like - mean)[:, :-1], axis=1).mean(dtype=np.float64)),
        level=float(levels(predicted, mean, centre).mean()) if len(predicted) else 0.0,
    )


def _class_means(photos: PhotoFeatures) -> Float64:
    """Return the mean feature of each class that has photos, `(num_shown, feature_dim)`, in their order."""
    shown = np.unique(photos.classes)
    return np.stack([photos.features[photos.classes == one].mean(axis=0, dtype=np.float64) for one in shown])


def _common_lead(rows: Float32, photos: PhotoFeatures, stand_ins: SeenImages, mean: Float32) -> float:
    """Return how much higher new rows score at photos of each other's classes than at stand-ins, in logits.

    Args:
        rows: `(num_new, feature_dim + 1)`.
        photos: Of two of these classes at least.
        stand_ins: For images of seen classes.
        mean: `(feature_dim + 1,)`, the mean seen row.

    Returns:
        0 or more.
    """
    weights = stand_ins.weights()
    centre = weights @ stand_ins.features / weights.sum()
    deviations = (rows[np.unique(photos.classes)] - mean)[:, :-1].astype(np.float64)
    scores = (_class_means(photos) - centre) @ deviations.T  # (num_shown, num_shown)
    others = ~np.eye(len(scores), dtype=bool)
    return max(0.0, float(scores[others].mean()))


def choose_prior_photos(
    images: SeenImages,
    head: Head,
    descriptors: Float32,
    predict_rows: PredictRows,
    *,
    num_new: int,
    num_photos: int,
    seed: int,
) -> tuple[float, str]:
    """Choose how many photos a predicted row counts as, on known classes that play new ones.

    Each gets so many of its images as photos; the others are tested among the pretend-new classes. The default stays
    unless another number is better by more than a standard error of the difference, over classes: images of one class
    share its photos.

    Args:
        images: Of seen classes, labelled.
        head: The seen classes.
        descriptors: `(num_seen, descriptor_dim)`, of them.
        predict_rows: How the injection makes rows.
        num_new: Classes that are injected.
        num_photos: Photos that a new class has.
        seed: Of sets and photos.

    Returns:
        The number, and why in a sentence.
    """
    played = [
        _played(images, head, descriptors, predict_rows, held_out, num_photos, seed)
        for held_out in plan_sets(images.labels, num_seen=head.num_classes, num_new=num_new, seed=seed)
    ]
    num_tested = sum(one.num_tested for one in played)
    accuracies = np.concatenate([one.accuracies for one in played])
    if num_tested < MIN_TESTED:
        return DEFAULT_PRIOR_PHOTOS, (
            f"A predicted row counts as {_photos(DEFAULT_PRIOR_PHOTOS)}: {num_tested} images of known classes are too "
            f"few to choose otherwise."
        )
    default = PRIOR_PHOTOS.index(DEFAULT_PRIOR_PHOTOS)
    gains = accuracies - accuracies[:, [default]]
    best = int(accuracies.mean(axis=0).argmax())
    error = float(gains[:, best].std() / np.sqrt(len(gains)))
    chosen = best if float(gains[:, best].mean()) > error else default
    return PRIOR_PHOTOS[chosen], (
        f"A predicted row counts as {_photos(PRIOR_PHOTOS[chosen])}: known classes that played new ones with "
        f"{_photos(num_photos)} each were recognised in {percent(float(accuracies[:, chosen].mean()))} of their other "
        f"images."
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Played:
    """How classes that played new ones were recognised among themselves."""

    accuracies: Float64
    """`(num_tested_classes, len(PRIOR_PHOTOS))`, fractions of 1."""

    num_tested: int
    """Images."""


def _played(
    images: SeenImages,
    head: Head,
    descriptors: Float32,
    predict_rows: PredictRows,
    held_out: Int64,
    num_photos: int,
    seed: int,
) -> _Played:
    """Return how each of `PRIOR_PHOTOS` recognises images of held-out classes that are not their photos."""
    random = np.random.default_rng(seed)
    is_photo = np.zeros(images.num_images, dtype=bool)
    for index in held_out:
        of_class = random.permutation(np.flatnonzero(images.labels == index))
        is_photo[of_class[: min(num_photos, len(of_class) - 1)]] = len(of_class) > 1
    is_new = np.isin(images.labels, held_out)
    has_photos = np.isin(images.labels, images.labels[is_photo])
    is_tested = is_new & has_photos & ~is_photo
    if not is_tested.any() or is_new.all():
        return _Played(accuracies=np.zeros((0, len(PRIOR_PHOTOS))), num_tested=0)
    rest = np.setdiff1d(np.arange(head.num_classes, dtype=np.int64), held_out)
    prior = predict_rows(descriptors[rest], head.rows[rest], descriptors[held_out])
    mean, centre = mean_row(head.rows[rest]), images.features[~is_new].mean(axis=0, dtype=np.float64)
    context = FewShotContext(
        mean_row=mean,
        feature_mean=centre.astype(np.float32),
        length=float(np.linalg.norm((prior - mean)[:, :-1], axis=1).mean()),
        level=float(levels(prior, mean, centre.astype(np.float32)).mean()),
    )
    photos = PhotoFeatures(
        features=images.features[is_photo], classes=np.searchsorted(held_out, images.labels[is_photo])
    )
    labels = images.labels[is_tested]
    of_class = labels == np.unique(labels)[:, None]  # (num_tested_classes, num_tested)
    accuracies = []
    for count in PRIOR_PHOTOS:
        rows = refine_rows(prior, photos, replace(context, prior_photos=count))
        is_hit = held_out[head_logits(rows, images.features[is_tested]).argmax(axis=1)] == labels
        accuracies.append((of_class & is_hit).sum(axis=1) / of_class.sum(axis=1))
    return _Played(accuracies=np.stack(accuracies, axis=1), num_tested=len(labels))


def _joined_as(base: Injection, descriptors: Float32) -> Float32:
    """Return descriptors as the method of an injection took them: with their blocks joined, where there are several."""
    predictor = None if base.injector is None else base.injector.predictor
    return predictor.space.apply(descriptors) if isinstance(predictor, BlockPredictor) else descriptors


def _chosen_prior(
    base: Injection,
    head: Head,
    descriptors: Descriptors,
    images: SeenImages | None,
    photos: PhotoFeatures,
    seed: int,
) -> tuple[float, str]:
    """Choose how much predicted rows count, where images of seen classes and a fast method allow it."""
    calibration = None if base.injector is None else base.injector.calibration
    method = None if base.selection is None else method_named(base.method)
    if (
        images is None
        or not images.are_labelled
        or not isinstance(calibration, DeviationCalibration)
        or method is None
        or method.is_trained
    ):
        return DEFAULT_PRIOR_PHOTOS, (
            f"A predicted row counts as {_photos(DEFAULT_PRIOR_PHOTOS)}: no images of known classes said otherwise."
        )
    seen = _joined_as(base, descriptors.select(head.class_names).values)
    prepared = method.prepare(seen, head.rows, seed, None)
    counts = np.bincount(photos.classes)
    return choose_prior_photos(
        images,
        head,
        seen,
        calibrated(prepared.predict, calibration),
        num_new=len(base.class_names),
        num_photos=int(np.median(counts[counts > 0])),
        seed=seed,
    )


def _photos(count: float) -> str:
    return f"{count:g} photo" if count == 1 else f"{count:g} photos"


def _stand_ins(head: Head, options: InjectionOptions, neutral_features: Float32 | None) -> SeenImages:
    """Return pseudo-features in the place of images of seen classes."""
    if neutral_features is None or head.num_classes < 3:
        raise IncompatibleError(
            "Photos of new classes need to be compared with what the model knows: the backbone shows no features of "
            "neutral images, and there are no images of seen classes.",
            found="nothing that seen classes look like",
            expected="images of seen classes",
            hint="Give images of seen classes with `seen_images`.",
        )
    accuracy = DEFAULT_SEEN_ACCURACY if options.seen_accuracy is None else options.seen_accuracy
    source = find_feature_source(
        head.rows,
        neutral_features=neutral_features,
        seen_accuracy=accuracy,
        max_features=NUM_PSEUDO_FEATURES,
        seed=options.seed,
    )
    drawn = draw(source, max_features=NUM_PSEUDO_FEATURES, seed=options.seed).features(seen_accuracy=accuracy)
    return seen_images(drawn.features, head.rows, drawn.classes)


def _required(descriptors: Descriptors | None, names: Sequence[str]) -> Descriptors:
    """Return the descriptors of classes that have no photo."""
    if descriptors is None:
        raise DescriptorError(
            f"There is neither a descriptor nor a photo of {quoted(names)}.",
            found=tuple(names),
            expected="a descriptor or a photo of each new class",
            hint="Give photos of these classes in `photos`, or `descriptors` of them and of all seen classes.",
        )
    return descriptors


def _checked(options: InjectionOptions) -> InjectionOptions:
    if options.calibration != AUTO or options.max_seen_loss is None:
        raise UsageError(
            "With photos of new classes the offset is set anew for a budget of seen accuracy.",
            found=options.calibration if options.calibration != AUTO else "a balance",
            expected="calibration 'auto', and a budget",
            hint="Leave `balance` out, and calibrate with `calibration='auto'`.",
        )
    return options
