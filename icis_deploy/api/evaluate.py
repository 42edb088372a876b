"""Evaluate a bundle: measure its accuracy on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icis_deploy.api.inputs import PathLike, class_names_from
from icis_deploy.errors import ImageError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.images.loading import load_image_list
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import Runtime

BATCH_SIZE = 32


def evaluate(
    bundle: PathLike | Device,
    *,
    images: PathLike,
    unseen: PathLike | Sequence[str] | None = None,
    runtime: Runtime | str = "onnxruntime",
) -> AccuracyReport:
    """Measure the accuracy of a bundle on labelled images, seen and unseen classes apart.

    Args:
        bundle: The bundle's folder, or an open device.
        images: An image list: a CSV with the columns `file` and `class`.
        unseen: The classes that count as unseen, or a text file of them; by default those that were injected. One that
            the head does not know counts as never recognised: that is the classifier without injection.
        runtime: Where the bundle is run, as in `Device.open`; an open device keeps its own.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        print(report.U, report.S, report.H)

    Raises:
        MissingDependencyError: If the runtime, or the device that it needs, is not there.
        ImageError: If an image shows a class that neither the head nor `unseen` names.
        ICISDeployError: If something cannot be read or run.
    """
    device = bundle if isinstance(bundle, Device) else Device.open(bundle, runtime=runtime)
    labeled = load_image_list(Path(images))
    head_names = device.classes()
    given = class_names_from(unseen)
    unseen_names = frozenset(head_names[device.bundle.num_seen :] if given is None else given)
    absent = tuple(sorted(unseen_names - set(head_names)))
    names = (*head_names, *absent)
    indices = {name: index for index, name in enumerate(names)}
    unknown = sorted({label for label in labeled.labels if label not in indices})
    if unknown:
        raise ImageError(
            f"The image list {images} shows {quoted(unknown)}, which the bundle's head does not know.",
            found=tuple(unknown),
            expected="classes of the bundle's head",
            where=images,
            hint="Name them in `unseen` if they count as classes it should know, or leave their images out.",
        )
    if device.bundle.preprocessing is None:
        raise UsageError(
            "The bundle does not state how images are prepared.",
            hint="Export it with `preprocess`.",
        )
    pieces = [labeled.paths[start : start + BATCH_SIZE] for start in range(0, len(labeled.paths), BATCH_SIZE)]
    logits = np.concatenate([device.logits(device.prepare(piece)).values for piece in pieces])
    # A class that the head lacks gets a logit that never wins.
    padded = np.pad(logits, ((0, 0), (0, len(absent))), constant_values=-np.inf)
    is_seen = np.array([name not in unseen_names for name in names])
    original_names = frozenset(device.bundle.seen_names)
    is_original = np.array([name in original_names for name in names])
    return accuracy_report(
        padded,
        np.array([indices[label] for label in labeled.labels]),
        seen=is_seen,
        original_logits=np.where(is_original, padded, -np.inf)[:, is_seen],
    )
