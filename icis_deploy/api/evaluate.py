"""Evaluate a bundle: measure its accuracy on labelled images."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from icis_deploy.api.inputs import ClassNames, PathLike, check_max_seen_loss, class_names_from
from icis_deploy.common.arrays import Float32
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.files import write_file
from icis_deploy.common.terminal_text import points_text
from icis_deploy.errors import ImageError, SeenLossError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.images.inputs import holds_images, prepared_batches
from icis_deploy.images.loading import ListedImages, check_labelled
from icis_deploy.images.python_values import PythonInputs, source_from
from icis_deploy.images.sources import InputSource, labels_of
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report
from icis_deploy.runtime.device import Device, input_form
from icis_deploy.runtime.sessions.choice import Runtime

BATCH_SIZE = 32


def evaluate(
    bundle: PathLike | Device,
    *,
    images: PythonInputs,
    unseen: ClassNames | None = None,
    runtime: Runtime | str = "onnxruntime",
    max_seen_loss: float | None = None,
) -> AccuracyReport:
    """Measure the accuracy of a bundle on labelled images, seen and unseen classes apart.

    Args:
        bundle: The bundle's folder, or an open device.
        images: Labelled inputs, of seen and unseen classes together: a CSV with the columns `file` and `class`, a
            folder with a folder for each class, an `.npz` or `.safetensors` file with `inputs` as the model takes them
            and `labels`, a `.parquet` file with a column `class`, a pair of inputs and labels, or inputs by class name.
            Inputs in Python are paths, bytes, Pillow images, arrays or tensors.
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
    given = source_from(images, where="`images`")
    if isinstance(given, ListedImages):
        check_labelled(given)
    labels, source = labels_of(given), given.where
    where = None if isinstance(bundle, Device) else Path(bundle)
    head_names = device.classes()
    named = class_names_from(unseen)
    original_names = frozenset(device.bundle.seen_names)
    unseen_names = (
        frozenset(name for name in head_names if name not in original_names) if named is None else frozenset(named)
    )
    absent = tuple(sorted(unseen_names - set(head_names)))
    names = (*head_names, *absent)
    indices = {name: index for index, name in enumerate(names)}
    unknown = sorted({label for label in labels if label not in indices})
    if disabled := [name for name in unknown if name in device.disabled_classes()]:
        raise ImageError(
            f"{source} shows {quoted(disabled)}, disabled on this device, which no answer can choose.",
            found=tuple(disabled),
            expected="classes that are enabled",
            where=source,
            hint="Enable them by `Device.enable()`, or leave their inputs out.",
        )
    if unknown:
        raise ImageError(
            f"{source} shows {quoted(unknown)}, which the bundle's head does not know.",
            found=tuple(unknown),
            expected="classes of the bundle's head",
            where=source,
            hint=f"{did_you_mean(unknown, names)}Name them in `unseen` if they count as classes it should know, or "
            f"leave their images out.",
        )
    is_seen = np.array([name not in unseen_names for name in names])
    is_original = np.array([name in original_names for name in names])
    if max_seen_loss is not None and not any(label in original_names - unseen_names for label in labels):
        raise UsageError(
            f"{source} shows none of the classes that the original model knows, on which a loss could be measured.",
            found=0,
            expected="at least 1 image of a seen class",
            where=source,
            hint="Add images of these classes, or leave `max_seen_loss` out.",
        )
    # A class that the head lacks gets a logit that never wins.
    padded = np.pad(_logits(device, given), ((0, 0), (0, len(absent))), constant_values=-np.inf)
    report = accuracy_report(
        padded,
        np.array([indices[label] for label in labels]),
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


def _logits(device: Device, source: InputSource) -> Float32:
    """Return `(num_inputs, num_classes)` float32."""
    form = input_form(device.bundle)
    if form.preprocessing is None and holds_images(source):
        raise UsageError(
            f"The bundle does not state how images are prepared, and {source.where} holds images.",
            found="images",
            expected="arrays as the model takes them, or images and how they are prepared",
            where=source.where,
            hint="Export it with `preprocess`, or give arrays.",
        )
    batches = prepared_batches(source, form, batch_size=BATCH_SIZE)
    return np.concatenate([device.logits(batch.inputs).values for batch in batches])


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
