"""Evaluate a bundle: measure its accuracy on labelled images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icis_deploy.api.inputs import PathLike, check_max_seen_loss, class_names_from
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.files import write_file
from icis_deploy.common.terminal_text import points_text
from icis_deploy.errors import ImageError, SeenLossError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.images.loading import (
    LabeledArrays,
    LabeledImages,
    labeled_arrays,
    load_image_list,
    load_labeled_arrays,
)
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import Runtime

BATCH_SIZE = 32


def evaluate(
    bundle: PathLike | Device,
    *,
    images: PathLike | tuple[Images, Sequence[str]],
    unseen: PathLike | Sequence[str] | None = None,
    runtime: Runtime | str = "onnxruntime",
    max_seen_loss: float | None = None,
) -> AccuracyReport:
    """Measure the accuracy of a bundle on labelled images, seen and unseen classes apart.

    Args:
        bundle: The bundle's folder, or an open device.
        images: Labelled images, of seen and unseen classes together: a CSV with the columns `file` and `class`, a
            folder with a folder for each class, a `.npz` file with `images` as the model takes them and `labels`, or
            these two as a pair.
        unseen: The classes that count as unseen, or a text file of them; by default those that were injected. One that
            the head does not know counts as never recognised: that is the classifier without injection.
        runtime: Where the bundle is run, as in `Device.open`; an open device keeps its own.
        max_seen_loss: How much of the accuracy on seen classes new ones may cost, as a fraction of 1 (0.02 is 2
            points); `None` for any.

    Example:
        report = icis_deploy.evaluate("bundle", images="images.csv")
        print(report.U, report.S, report.H)

    Raises:
        SeenLossError: If more than `max_seen_loss` is lost with 95 % confidence; it has the report.
        MissingDependencyError: If the runtime, or the device that it needs, is not there.
        ImageError: If an image shows a class that neither the head nor `unseen` names.
        ICISDeployError: If something cannot be read or run.
    """
    check_max_seen_loss(max_seen_loss)
    device = bundle if isinstance(bundle, Device) else Device.open(bundle, runtime=runtime)
    labeled = labeled_from(images)
    source = str(images) if isinstance(images, str | Path) else "arrays"
    where = None if isinstance(bundle, Device) else Path(bundle)
    head_names = device.classes()
    given = class_names_from(unseen)
    unseen_names = frozenset(head_names[device.bundle.num_seen :] if given is None else given)
    absent = tuple(sorted(unseen_names - set(head_names)))
    names = (*head_names, *absent)
    indices = {name: index for index, name in enumerate(names)}
    unknown = sorted({label for label in labeled.labels if label not in indices})
    if unknown:
        raise ImageError(
            f"The image list {source} shows {quoted(unknown)}, which the bundle's head does not know.",
            found=tuple(unknown),
            expected="classes of the bundle's head",
            where=source,
            hint="Name them in `unseen` if they count as classes it should know, or leave their images out.",
        )
    original_names = frozenset(device.bundle.seen_names)
    is_seen = np.array([name not in unseen_names for name in names])
    is_original = np.array([name in original_names for name in names])
    if max_seen_loss is not None and not any(label in original_names - unseen_names for label in labeled.labels):
        raise UsageError(
            f"{source} shows none of the classes that the original model knows, on which a loss could be measured.",
            found=0,
            expected="at least 1 image of a seen class",
            where=source,
            hint="Add images of these classes, or leave `max_seen_loss` out.",
        )
    # A class that the head lacks gets a logit that never wins.
    padded = np.pad(_logits(device, labeled), ((0, 0), (0, len(absent))), constant_values=-np.inf)
    report = accuracy_report(
        padded,
        np.array([indices[label] for label in labeled.labels]),
        seen=is_seen,
        original_logits=np.where(is_original, padded, -np.inf)[:, is_seen],
        class_names=names,
        max_seen_loss=max_seen_loss,
    )
    if report.seen_loss is not None and report.seen_loss.failure is not None and max_seen_loss is not None:
        raise SeenLossError(
            f"{'The device' if where is None else where}: {report.seen_loss.failure}.",
            found=report.seen_loss.loss,
            expected=f"at most {points_text(max_seen_loss)}",
            where=where,
            hint="Inject again with a smaller budget, or allow more with `max_seen_loss`.",
            report=report,
        )
    return report


def labeled_from(images: PathLike | tuple[Images, Sequence[str]]) -> LabeledImages | LabeledArrays:
    """Return labelled images, read where a path is given.

    Raises:
        ImageError: If they cannot be read, or do not fit.
    """
    if not isinstance(images, str | Path):
        arrays, labels = images
        return labeled_arrays(arrays, labels, where="the arrays")
    path = Path(images)
    if path.suffix == ".npz" and not path.is_dir():
        return load_labeled_arrays(path)
    return load_image_list(path)


def _logits(device: Device, labeled: LabeledImages | LabeledArrays) -> Float32:
    """Return `(num_images, num_classes)` float32."""
    found = []
    for start in range(0, len(labeled.labels), BATCH_SIZE):
        if isinstance(labeled, LabeledArrays):
            batch = labeled.images[start : start + BATCH_SIZE]
            _check_batch(device, batch)
        else:
            if device.bundle.preprocessing is None:
                raise UsageError(
                    "The bundle does not state how images are prepared.",
                    hint="Export it with `preprocess`.",
                )
            batch = device.prepare(labeled.paths[start : start + BATCH_SIZE])
        found.append(device.logits(batch).values)
    return np.concatenate(found)


def _check_batch(device: Device, batch: Images) -> None:
    taken = device.bundle.model_input
    if batch.shape[1:] != taken.shape or str(batch.dtype) != taken.dtype:
        raise ImageError(
            f"The images have shape {batch.shape[1:]} and dtype {batch.dtype}; the bundle's model takes {taken.shape} "
            f"and {taken.dtype}.",
            found=(batch.shape[1:], str(batch.dtype)),
            expected=(taken.shape, taken.dtype),
            hint="Prepare them as the bundle's model takes them.",
        )


def save_class_table(path: Path, report: AccuracyReport) -> None:
    """Write a CSV with a line for each class that has images.

    Columns: `class`, `kind` (`seen` or `unseen`), `images`, `accuracy_before` (the original model; empty where it does
    not know the class), `accuracy`, and `mistake`, the most frequent wrong answer.

    Raises:
        StorageError: If the disk refuses.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "kind", "images", "accuracy_before", "accuracy", "mistake"])
    for index, name in enumerate(report.class_names):
        accuracy = report.class_accuracy[index]
        if accuracy is None:
            continue
        change = None if report.class_change is None else report.class_change[index]
        mistake = report.class_mistake[index]
        writer.writerow(
            [
                name,
                "seen" if report.class_is_seen[index] else "unseen",
                report.class_num_images[index],
                "" if change is None else f"{accuracy - change:.4f}",
                f"{accuracy:.4f}",
                "" if mistake is None else report.class_names[mistake],
            ]
        )
    write_file(path, text.getvalue().encode())
