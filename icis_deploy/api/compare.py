"""Compare the methods that predict rows: by cross-validation, and on images where there are some.

No image has a say in any row: all methods are trained and calibrated first, and measured afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.api.evaluate import BATCH_SIZE
from icis_deploy.api.inject import run_neutral_pictures
from icis_deploy.api.models import Model, OpenedModel, PathLike, head_of, inspect
from icis_deploy.common.arrays import Float32
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.errors import ImageError, UntrustworthyError, UsageError
from icis_deploy.head.class_names import load_class_list, quoted
from icis_deploy.head.head import Head
from icis_deploy.images.loading import iterate_batches, load_image_list
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.injection.estimate.estimate import Estimate
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import AUTO, InjectionOptions
from icis_deploy.injection.predictors.registry import METHODS
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report
from icis_deploy.workbench import enable_workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedMethod:
    """What one method is worth on one head."""

    name: str
    """As asked for: `auto`, or a method."""

    method: str
    """The method that predicted the rows; another than `name` for `auto` only."""

    estimate: Estimate
    """Predicted without an image."""

    measured: AccuracyReport | None
    """On the images; `None` where there were none."""

    train_s: float
    """Time in seconds for choices, cross-validation, calibration, estimate and training."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; accuracies are fractions of 1."""
        names = ("T", "U", "S", "H")
        return {
            "name": self.name,
            "method": self.method,
            "predicted": {name: getattr(self.estimate, name).to_json() for name in names},
            "measured": None if self.measured is None else {name: getattr(self.measured, name) for name in names},
            "train_s": self.train_s,
            "warnings": list(self.estimate.warnings),
        }


def compare_methods(
    model: Model,
    *,
    classes: PathLike | None = None,
    descriptors: PathLike | Descriptors,
    unseen: PathLike | Sequence[str] | None = None,
    methods: Sequence[str] = (AUTO, *METHODS),
    balance: float = 0.5,
    seen_accuracy: float | None = None,
    preprocess: PathLike | Preprocessing | None = None,
    images: PathLike | None = None,
    seed: int = 0,
    on_method: Callable[[str], None] | None = None,
) -> tuple[ComparedMethod, ...]:
    """Inject the same classes with every method.

    Args:
        model: As in `pipeline.inspect`.
        classes: As in `pipeline.inspect`; needed unless the model was opened with it.
        descriptors: As in `injection_pipeline.inject`, like `unseen`, `balance`, `seen_accuracy` and `preprocess`.
        unseen: The classes to inject.
        methods: What to compare.
        balance: Weight of unseen classes against seen ones.
        seen_accuracy: How often the model is right on images of its classes, if known.
        preprocess: How images are prepared; needed where there are images.
        images: An image list to measure on; classes that are neither seen nor injected may not be in it.
        seed: Of everything drawn at random.
        on_method: Called with each method's name before its turn.

    Raises:
        UntrustworthyError: If there are too few seen classes to compare anything on.
        UsageError: If there is no such method, or there are images and nothing says how they are prepared.
        ImageError: If an image shows a class that is neither in the head nor injected.
        ICISDeployError: As `injection_pipeline.inject`.
    """
    described = descriptors if isinstance(descriptors, Descriptors) else load_descriptors(Path(descriptors))
    names = load_class_list(Path(unseen)) if isinstance(unseen, str | Path) else unseen
    preprocessing = load_preprocessing(Path(preprocess)) if isinstance(preprocess, str | Path) else preprocess
    chosen = {
        name: InjectionOptions(method=name, balance=balance, seen_accuracy=seen_accuracy, seed=seed) for name in methods
    }
    opened = inspect(model, classes=classes)
    head = head_of(opened)
    photos = None if images is None else Photos.load(images, opened, preprocessing)
    neutral = run_neutral_pictures(opened, preprocess=preprocessing, seed=seed)
    compared = []
    for name, options in chosen.items():
        if on_method is not None:
            on_method(name)
        start = time.perf_counter()
        injection = inject(head, described, unseen=names, options=options, neutral_features=neutral)
        train_s = time.perf_counter() - start
        measured = None if photos is None else photos.measure(head, injection.rows, injection.class_names)
        compared.append(_compared(name, injection, measured, train_s))
    return tuple(compared)


def _compared(name: str, injection: Injection, measured: AccuracyReport | None, train_s: float) -> ComparedMethod:
    if injection.estimate is None:
        raise UntrustworthyError(
            f"There is nothing to compare methods on. {injection.warnings[0]}",
            found=injection.warnings[0],
            expected="an estimate",
        )
    return ComparedMethod(
        name=name, method=injection.method, estimate=injection.estimate, measured=measured, train_s=train_s
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Photos:
    """Labelled images as features: the backbone is the same whatever the rows."""

    source: str
    labels: tuple[str, ...]
    features: Float32

    @classmethod
    def load(cls, images: PathLike, opened: OpenedModel, preprocessing: Preprocessing | None) -> Photos:
        """Run the backbone on an image list."""
        if preprocessing is None:
            raise UsageError(
                "Images can only be measured on where it is known how they are prepared.",
                hint="Give `preprocess`, which says it, or leave `images` out.",
            )
        enable_workbench()
        from exporters.backbone.features import backbone_features

        listed = load_image_list(Path(images))
        batches = iterate_batches(listed.paths, preprocessing, batch_size=BATCH_SIZE)
        return cls(
            source=str(images),
            labels=listed.labels,
            features=backbone_features(opened.loaded, opened.location, batches),
        )

    def measure(self, head: Head, rows: Float32, class_names: Sequence[str]) -> AccuracyReport:
        """Return the accuracy of a head with injected rows, `(num_unseen, feature_dim + 1)`.

        Raises:
            ImageError: If an image shows a class that is neither in the head nor injected.
        """
        expanded = head.expand(rows, class_names)
        place = {name: index for index, name in enumerate(expanded.class_names)}
        unknown = sorted({label for label in self.labels if label not in place})
        if unknown:
            raise ImageError(
                f"The image list {self.source} shows {quoted(unknown)}, which the head does not know and which are "
                f"not injected.",
                found=tuple(unknown),
                expected="classes that the head knows or that are injected",
                where=self.source,
                hint="Leave their images out, or inject them.",
            )
        labels = np.array([place[label] for label in self.labels])
        return accuracy_report(expanded.logits(self.features), labels, seen=head.num_classes)
