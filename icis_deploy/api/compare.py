"""Compare the methods that predict rows: by cross-validation, and on images where there are some.

No image influences any row: every method is trained and calibrated first, and measured afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icis_deploy.api.inject import neutral_features_of
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
from icis_deploy.api.seen_images import backbone_features_of, labelled_seen_images, read_seen_images
from icis_deploy.common.arrays import Float32
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.given import check_callable, items
from icis_deploy.errors import ImageError, UntrustworthyError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.images.loading import ListedImages, check_labelled
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.python_values import PythonInputs, source_from
from icis_deploy.images.sources import InputSource, labels_of
from icis_deploy.injection.estimate.estimate import Estimate
from icis_deploy.injection.inject import Injection, inject, unseen_classes
from icis_deploy.injection.options import AUTO, InjectionOptions
from icis_deploy.injection.predictors.registry import METHODS
from icis_deploy.injection.promise import Promise
from icis_deploy.injection.validation.operating_point import CurvePoint
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """Which methods are compared, and how each predicts and calibrates.

    Example:
        icis_deploy.ComparisonOptions(methods=("ridge", "nearest", "mean"), seen_accuracy=0.76)

    Raises:
        UsageError: On construction, if there is no such method, none at all, or a number is out of range.
    """

    methods: Sequence[str] = (AUTO, *METHODS)
    """What to compare, in this order: `auto`, or names of methods."""

    max_seen_loss: float | None = None
    """As in `InjectionOptions`."""

    balance: float | None = None
    """As in `InjectionOptions`."""

    arbiter: str = AUTO
    """As in `InjectionOptions`."""

    seen_images: PythonInputs | None = None
    """As in `InjectionOptions`."""

    seen_accuracy: float | None = None
    """As in `InjectionOptions`."""

    seed: int = 0
    """As in `InjectionOptions`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", items(self.methods, "names of methods", name="methods"))
        if not self.methods:
            raise UsageError("There is no method to compare; name at least one.", found=0, expected="at least 1")
        self.by_method()

    def by_method(self) -> dict[str, InjectionOptions]:
        """Return the options of each method's injection, by the method's name."""
        return {
            name: InjectionOptions(
                method=name,
                max_seen_loss=self.max_seen_loss,
                balance=self.balance,
                arbiter=self.arbiter,
                seen_images=self.seen_images,
                seen_accuracy=self.seen_accuracy,
                seed=self.seed,
            )
            for name in self.methods
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedMethod:
    """What one method achieves on one head.

    Example:
        for each in icis_deploy.compare_methods("model.onnx", classes="classes.txt", descriptors="descriptors.npz"):
            print(each.name, each.estimate.H.value)
    """

    name: str
    """As asked for: `auto`, or a method."""

    method: str
    """The method that predicted the rows; another than `name` for `auto` only."""

    estimate: Estimate
    """What to expect."""

    measured: AccuracyReport | None
    """On the images; `None` where there were none."""

    train_s: float
    """Time in seconds for choices, cross-validation, calibration, estimate and training."""

    curve: tuple[CurvePoint, ...] = ()
    """What to expect where seen classes lose 1, 2, 5 and 10 points of their accuracy."""

    promise: Promise | None = None
    """The budget of seen accuracy and on what ground it is kept; `None` where a balance was asked for."""

    warnings: tuple[str, ...] = ()
    """Reasons to doubt the rows."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; accuracies are fractions of 1."""
        names = ("T", "U", "S", "H")
        return {
            "name": self.name,
            "method": self.method,
            "predicted": {name: getattr(self.estimate, name).to_json() for name in names},
            "measured": None if self.measured is None else {name: getattr(self.measured, name) for name in names},
            "train_s": self.train_s,
            "curve": [point.to_json() for point in self.curve],
            "budget": None if self.promise is None else self.promise.to_json(),
            "warnings": list(self.warnings),
        }


def compare_methods(
    model: Model,
    *,
    classes: ClassNames | None = None,
    descriptors: DescriptorsLike,
    unseen: ClassNames | None = None,
    options: ComparisonOptions | None = None,
    preprocess: Preprocess | None = None,
    images: PythonInputs | None = None,
    on_method: Callable[[str], None] | None = None,
) -> tuple[ComparedMethod, ...]:
    """Inject the same classes with every method.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`; needed unless the model was opened with it, or states its classes.
        descriptors: As in `inject`, and so are `unseen` and `preprocess`.
        unseen: The classes to inject.
        options: What to compare; by default all methods.
        preprocess: As in `inject`; needed where there are images and the model does not state it.
        images: An image list to measure on; classes that are neither seen nor injected may not be in it.
        on_method: Called with each method's name before its turn.

    Example:
        compared = icis_deploy.compare_methods(
            "model.onnx", classes="classes.txt", descriptors="descriptors.npz", preprocess="preprocess.json"
        )
        best = max(compared, key=lambda each: each.estimate.H.value)

    Raises:
        UntrustworthyError: If there are too few seen classes to compare anything on.
        UsageError: If there are images and nothing says how they are prepared.
        ImageError: If an image shows a class that is neither in the head nor injected.
        ICISDeployError: As `inject`.
    """
    options = options_from(options, ComparisonOptions)
    check_callable(on_method, name="on_method")
    described, names = descriptors_from(descriptors), class_names_from(unseen, name="unseen")
    stated_classes, explicit = class_names_from(classes), preprocessing_from(preprocess)
    if stated_classes is not None:
        described.select(stated_classes)
    options = replace(options, seen_images=listed(options.seen_images, where="the seen images"))
    measured_on = None if images is None else _labelled(images)
    opened, preprocessing = open_with_preprocessing(model, classes=stated_classes, preprocess=explicit)
    head = head_of(opened)
    new = unseen_classes(head, described, names)
    [any_options, *_] = options.by_method().values()
    read = read_seen_images(opened, any_options, preprocessing)
    problems = () if read is None else read.problems
    seen_images = None if read is None else labelled_seen_images(read, head, new_classes=new)
    labeled = None if measured_on is None else LabeledImageFeatures.load(measured_on, opened, preprocessing)
    neutral = neutral_features_of(opened, preprocessing=preprocessing, seed=options.seed)
    compared = []
    for name, each in options.by_method().items():
        if on_method is not None:
            on_method(name)
        start = time.perf_counter()
        injection = inject(head, described, unseen=names, options=each, neutral_features=neutral, images=seen_images)
        train_s = time.perf_counter() - start
        measured = (
            None
            if labeled is None
            else labeled.measure(head, injection.rows, injection.class_names, arbiter=injection.arbiter)
        )
        injection = replace(injection, warnings=(*injection.warnings, *problems))
        compared.append(_compared(name, injection, measured, train_s))
    tell(message for one in compared for message in one.warnings)
    return tuple(compared)


def _compared(name: str, injection: Injection, measured: AccuracyReport | None, train_s: float) -> ComparedMethod:
    if injection.estimate is None:
        raise UntrustworthyError(
            f"There is nothing to compare methods on. {injection.warnings[0]}",
            found=injection.warnings[0],
            expected="an estimate",
            hint="Give images of known classes as `seen_images`.",
        )
    return ComparedMethod(
        name=name,
        method=injection.method,
        estimate=injection.estimate,
        measured=measured,
        train_s=train_s,
        curve=injection.curve,
        promise=injection.promise,
        warnings=injection.warnings,
    )


def _labelled(images: PythonInputs) -> InputSource:
    given = source_from(images, where="`images`")
    if isinstance(given, ListedImages):
        check_labelled(given)
    labels_of(given)
    return given


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabeledImageFeatures:
    """Labelled images as features, which are the same whatever the head's rows are."""

    source: str
    """The image list, for messages."""

    labels: tuple[str, ...]
    """`(num_images,)`: the class of each image."""

    features: Float32
    """`(num_images, feature_dim)` float32."""

    @classmethod
    def load(
        cls, images: PythonInputs, opened: OpenedModel, preprocessing: Preprocessing | None
    ) -> LabeledImageFeatures:
        """Run the backbone on an image list.

        Raises:
            UsageError: If nothing says how its images are prepared.
            ImageError: If the list or an image cannot be read.
        """
        given = _labelled(images)
        features = backbone_features_of(given, opened, preprocessing)
        return cls(source=given.where, labels=labels_of(given), features=features)

    def measure(
        self, head: Head, rows: Float32, class_names: Sequence[str], *, arbiter: Float32 | None = None
    ) -> AccuracyReport:
        """Return the accuracy of a head with injected rows.

        Args:
            head: The seen classes.
            rows: `(num_unseen, feature_dim + 1)`.
            class_names: `(num_unseen,)`.
            arbiter: `(5,)`, the coefficients of all rows; `None` for constant offsets.

        Raises:
            ImageError: If an image shows a class that is neither in the head nor injected.
        """
        expanded = head.expand(rows, class_names)
        indices = {name: index for index, name in enumerate(expanded.class_names)}
        unknown = sorted({label for label in self.labels if label not in indices})
        if unknown:
            raise ImageError(
                f"The image list {self.source} shows {quoted(unknown)}, which the head does not know and which are "
                f"not injected.",
                found=tuple(unknown),
                expected="classes that the head knows or that are injected",
                where=self.source,
                hint=f"{did_you_mean(unknown, indices)}Leave their images out, or inject them.",
            )
        labels = np.array([indices[label] for label in self.labels])
        logits = expanded.logits(self.features)
        if arbiter is not None:
            seen_logits = np.asarray(logits[:, : head.num_classes], dtype=np.float32)
            statistics = seen_statistics(self.features, seen_logits, deviation_lengths(head.rows))
            logits[:, head.num_classes :] += (statistics @ arbiter)[:, None]
        return accuracy_report(logits, labels, seen=head.num_classes)
