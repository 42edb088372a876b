"""Inject as a Python function on files: the second step of `icis_deploy.api.export`, which opens the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icis_deploy.api.models import Model, OpenedModel, PathLike, head_of, inspect
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.injection.inject import Injection
from icis_deploy.injection.inject import inject as predict_rows
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.workbench import enable_workbench


def inject(
    model: Model,
    *,
    classes: PathLike | None = None,
    descriptors: PathLike | Descriptors,
    unseen: PathLike | Sequence[str] | None = None,
    method: str = "auto",
    calibration: str = "auto",
    balance: float = 0.5,
    seen_accuracy: float | None = None,
    preprocess: PathLike | Preprocessing | None = None,
    seed: int = 0,
    strict: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> ClassUpdate:
    """Predict rows of classes that the model never saw, from descriptors alone, as a class update.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`; needed unless the model was opened with it.
        descriptors: A descriptor file, or descriptors; every seen class must have one.
        unseen: The classes to inject, or a text file of them; by default every described class that the head lacks.
        method: How rows are predicted; by default cross-validation chooses.
        calibration: How they are brought to compete with the seen rows: `auto`, `length` or `none`.
        balance: Weight of unseen classes against seen ones, in 0..1, both excluded.
        seen_accuracy: How often the model is right on images of its classes, in 0..1, both excluded, if known.
        preprocess: How images are prepared, or a JSON file that says it; for the neutral pictures that the backbone is
            run on. By default their pixels are scaled to -1..1.
        seed: The same seed gives the same rows.
        strict: Whether to refuse rows that their own estimate gives reason to doubt.
        progress: Called after each epoch of a training with its number and mean loss.

    Raises:
        DescriptorError: If a class has no descriptor, or there is no unseen class.
        UntrustworthyError: If `strict`, and the estimate warns or there is none.
        ICISDeployError: As `inspect`.
    """
    opened = inspect(model, classes=classes)
    injection = train_injector(
        opened,
        descriptors=descriptors,
        unseen=unseen,
        options=InjectionOptions(
            method=method, calibration=calibration, balance=balance, seen_accuracy=seen_accuracy, seed=seed
        ),
        preprocess=preprocess,
        progress=progress,
    )
    if strict:
        injection.require_trust()
    return ClassUpdate(
        base_fingerprint=head_of(opened).fingerprint,
        rows=injection.rows,
        added=injection.class_names,
        probe_seed=seed,
        provenance=injection.provenance,
    )


def train_injector(
    model: Model,
    *,
    classes: PathLike | None = None,
    descriptors: PathLike | Descriptors,
    unseen: PathLike | Sequence[str] | None = None,
    options: InjectionOptions | None = None,
    preprocess: PathLike | Preprocessing | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Injection:
    """Do what `inject` does, and return all that it knows: rows, estimate, and the injector, which makes further rows.

    Args:
        model: As in `inject`, and so are `classes`, `descriptors`, `unseen`, `preprocess` and `progress`.
        classes: As in `inject`.
        descriptors: As in `inject`.
        unseen: As in `inject`.
        options: How to predict and calibrate.
        preprocess: As in `inject`.
        progress: As in `inject`.

    Raises:
        ICISDeployError: As `inject`.
    """
    options = options or InjectionOptions()
    described = descriptors if isinstance(descriptors, Descriptors) else load_descriptors(Path(descriptors))
    names = load_class_list(Path(unseen)) if isinstance(unseen, str | Path) else unseen
    opened = inspect(model, classes=classes)
    features = (
        run_neutral_pictures(opened, preprocess=preprocess, seed=options.seed)
        if options.needs_cross_validation
        else None
    )
    return predict_rows(
        head_of(opened), described, unseen=names, options=options, neutral_features=features, progress=progress
    )


def run_neutral_pictures(
    model: OpenedModel, *, preprocess: PathLike | Preprocessing | None, seed: int
) -> NDArray[np.float32] | None:
    """Return features of neutral pictures, `(num_neutral, feature_dim)`; `None` where the model takes or runs none."""
    enable_workbench()
    from exporters.backbone.features import neutral_features

    preprocessing = load_preprocessing(Path(preprocess)) if isinstance(preprocess, str | Path) else preprocess
    return neutral_features(model.loaded, model.location, preprocessing=preprocessing, seed=seed)
