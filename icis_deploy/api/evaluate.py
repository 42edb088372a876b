"""Evaluate a bundle: measure its accuracy on labelled images."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from icis_deploy.api.inputs import ClassNames, PathLike, check_max_seen_loss, class_names_from, options_from
from icis_deploy.api.notices import tell
from icis_deploy.common.closest import closest, did_you_mean
from icis_deploy.common.files import path_from, write_file
from icis_deploy.common.given import check_callable, check_choice, check_flag, whole_number
from icis_deploy.common.terminal_text import points_text, shown
from icis_deploy.errors import ImageError, SeenLossError, UsageError
from icis_deploy.evaluation.checkpoint import ParquetCheckpoint
from icis_deploy.evaluation.measuring import (
    Worker,
    default_batch_size,
    measure,
    outcome_head,
    piece_size,
    threads,
    usable_cores,
)
from icis_deploy.evaluation.on_ray import ray_actors
from icis_deploy.head.class_names import quoted
from icis_deploy.images.inputs import holds_images, needs_preparing
from icis_deploy.images.loading import ListedImages, check_labelled
from icis_deploy.images.python_values import LabelledStream, PythonInputs, source_from
from icis_deploy.images.sources import InputSource, labels_of
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_of
from icis_deploy.metrics.outcomes import OutcomeHead
from icis_deploy.runtime.device import Device, runtime_of, state_of
from icis_deploy.runtime.sessions.choice import STREAM_RUNTIMES, Runtime, runtime_from


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """How a bundle is evaluated on many images; accuracy does not depend on it, but for `reduced_decode`.

    Example:
        options = icis_deploy.EvaluateOptions(on_error="skip", checkpoint="outcomes")
        report = icis_deploy.evaluate("bundle", images="images.csv", options=options)

    Raises:
        UsageError: On construction, if a number is not positive.
    """

    workers: int | None = None
    """Threads, each of which reads images and runs the model on them; `None` for one a core."""

    batch_size: int | None = None
    """Images that a thread runs the model on at once, one more where that is odd; `None` for 2 to 16 on a CPU, by the
    sizes of the model and of its input, and 32 elsewhere."""

    on_error: Literal["stop", "skip"] = "stop"
    """Whether an image that cannot be read ends the evaluation, or is left out and named in the report."""

    checkpoint: PathLike | None = None
    """A folder for the outcomes of single images, as Parquet files (the extra `data`): an evaluation that was ended
    goes on where it was."""

    reduced_decode: bool = False
    """Whether JPEG files are decoded at half, a quarter or an eighth of their size where that is still as large as what
    they are resized to. Saves time on photos at least twice as large, and **changes pixels**: answers may differ from
    those of a device."""

    engine: Literal["local", "ray"] = "local"
    """Threads of this process, or actors of a Ray cluster (the extra `ray`), each with a device of its own. Every node
    must reach the bundle and the images by the same paths."""

    address: str | None = None
    """Of the cluster: `auto` for one that runs, `None` for one that is started on this machine."""

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, name=name, at_least=1))
        check_flag(self.reduced_decode, name="reduced_decode")
        if self.checkpoint is not None:
            path_from(self.checkpoint, name="checkpoint")
        check_choice(self.on_error, ("stop", "skip"), what="`on_error`", name="on_error")
        check_choice(self.engine, ("local", "ray"), what="engine", name="engine")
        if self.address is not None and self.engine != "ray":
            raise UsageError(
                "`address` does nothing without a cluster.",
                found=self.address,
                expected="the engine 'ray'",
                hint="Set `engine` to 'ray', or leave `address` out.",
            )


_MISSPELT = 0.85
"""Ratio of `difflib` from which a name is taken for another one: less is common between kinds, such as of birds."""

_MAX_COMPARED = 50
"""As many unknown names are compared with known ones, which takes 10 ms each at a thousand: more are no slips."""


def evaluate(
    bundle: PathLike | Device,
    *,
    images: PythonInputs,
    unseen: ClassNames | None = None,
    runtime: Runtime | str = "onnxruntime",
    max_seen_loss: float | None = None,
    options: EvaluateOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AccuracyReport:
    """Measure the accuracy of a bundle on labelled images, seen and unseen classes apart.

    Args:
        bundle: The bundle's folder, or an open device.
        images: Labelled inputs, of seen and unseen classes together: a CSV with the columns `file` and `class`, a
            folder with a folder for each class, an `.npz` or `.safetensors` file with `inputs` as the model takes them
            and `labels`, a `.parquet` file with a column `class`, a `.tar` of WebDataset, a folder of such files or of
            a saved data set, a URI of fsspec, a pair of inputs and labels, or inputs by class name. An iterator yields
            `(key, label, input)`; each is taken once and not kept.
            Inputs in Python are paths, bytes, Pillow images, arrays or tensors.
        unseen: The classes that count as unseen, or a text file of them; by default those that were injected. One that
            the head does not know counts as never recognised: that is the classifier without injection.
        runtime: Where the bundle is run, as in `Device.open`; an open device keeps its own.
        max_seen_loss: How much of the accuracy on seen classes new ones may cost, as a fraction of 1 (0.02 is 2
            points); `None` for any.
        options: How many images are measured at once, what is done with one that cannot be read, and where outcomes
            are kept; by default as `EvaluateOptions()`.
        progress: Called with the number of images that are done, and with how many there are; of an iterator, with the
            first twice.

    Warns `ICISDeployWarning` of a name in `unseen` that nothing knows, where it is like that of a class that counts as
    seen.

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
    check_callable(progress, name="progress")
    options = options_from(options, EvaluateOptions)
    given, num_inputs = _labelled_inputs(images)  # before the model is loaded
    device = bundle if isinstance(bundle, Device) else _open(bundle, runtime, options)
    source = given.where
    where = None if isinstance(bundle, Device) else path_from(bundle, name="bundle")
    unseen_names = class_names_from(unseen, name="unseen")
    head = outcome_head(device, unseen_names)
    # One of them may have been left out of this head and of these inputs; all of them are another list.
    strange = () if set(unseen_names or ()).intersection(state_of(device).class_names) else unseen_names or ()
    check_labels = partial(
        _check_labels, head, source, max_seen_loss, disabled=device.disabled_classes(), strange=strange
    )
    if not isinstance(given, LabelledStream):
        check_labels(labels_of(given))
    _check_prepared(device, given)
    if options.reduced_decode:
        _check_reducible(device)
    checkpoint = None
    if options.checkpoint is not None:
        settings = {"source": source, "inputs": num_inputs, "runtime": runtime_of(device).name}
        if options.reduced_decode:  # else left out: a folder of an earlier release goes on
            settings["reduced decode"] = True
        checkpoint = ParquetCheckpoint(Path(options.checkpoint), head, settings)
    batch_size = options.batch_size or default_batch_size(device)
    worker = Worker(
        device=device,
        head=head,
        batch_size=batch_size,
        on_error=options.on_error,
        reduced_decode=options.reduced_decode,
    )
    if options.engine == "ray":
        engine = ray_actors(worker, address=options.address)
    else:
        engine = threads(worker, workers=_workers(options))
    outcomes, skipped = measure(
        given,
        engine,
        piece_size=piece_size(batch_size),
        checkpoint=checkpoint,
        progress=None if progress is None else partial(_tell, progress, num_inputs),
    )
    if isinstance(given, LabelledStream):
        check_labels(sorted(given.labels))
    if unseen_names:
        labels = given.labels if isinstance(given, LabelledStream) else labels_of(given)
        tell(_misspelt(unseen_names, device, labels))
    report = replace(
        accuracy_of(outcomes, max_seen_loss=max_seen_loss), skipped=skipped, reduced_decode=options.reduced_decode
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


def _labelled_inputs(images: PythonInputs) -> tuple[InputSource | LabelledStream, int | None]:
    """Return labelled inputs, and how many there are; `None` where that shows at the end."""
    if isinstance(images, Iterator):
        return LabelledStream(images, where="`images`"), None
    given = source_from(images, where="`images`")
    if isinstance(given, ListedImages):
        check_labelled(given)
    labels_of(given)
    return given, len(given)


def _tell(progress: Callable[[int, int], None], total: int | None, num_done: int) -> None:
    progress(num_done, num_done if total is None else total)


def _open(bundle: PathLike, runtime: Runtime | str, options: EvaluateOptions) -> Device:
    chosen = runtime_from(runtime)
    if chosen.num_threads is None and chosen.computes_on_cpu:
        # Each worker runs the model by itself: the cores are shared among them.
        workers = _workers(options)
        chosen = replace(chosen, num_threads=max(1, usable_cores() // workers))
        if chosen.name in STREAM_RUNTIMES and chosen.num_streams == 1:
            chosen = replace(chosen, num_streams=workers)
    return Device.open(bundle, runtime=chosen)


def _workers(options: EvaluateOptions) -> int:
    return usable_cores() if options.workers is None else options.workers


def _check_labels(
    head: OutcomeHead,
    source: str,
    max_seen_loss: float | None,
    labels: Sequence[str],
    *,
    disabled: Collection[str],
    strange: Sequence[str],
) -> None:
    """Refuse labels that no figure could be made of; before anything is run, where they are known then."""
    unknown = sorted({label for label in labels if label not in head.columns})
    if switched_off := [name for name in unknown if name in disabled]:
        raise ImageError(
            f"{source} shows {quoted(switched_off)}, disabled on this device, which no answer can choose.",
            found=tuple(switched_off),
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
            hint=f"{did_you_mean(unknown, head.class_names)}Name them in `unseen` if they count as classes it should "
            f"know, or leave their images out.",
        )
    if strange and set(strange).isdisjoint(labels):
        raise UsageError(
            f"The classes that count as unseen, such as {quoted(strange[:2])}, are neither shown by {source} nor known "
            f"to the bundle's head.",
            found=tuple(strange),
            expected="classes of the bundle's head, or of the inputs",
            hint=f"{did_you_mean(strange, labels)}Correct the names in `unseen`, or leave it out: then those that were "
            f"injected count.",
        )
    kept = {name for name, is_in in zip(head.class_names, head.is_original & head.is_seen, strict=True) if is_in}
    if max_seen_loss is not None and kept.isdisjoint(labels):
        raise UsageError(
            f"{source} shows none of the classes that the original model knows, on which a loss could be measured.",
            found=0,
            expected="at least 1 image of a seen class",
            where=source,
            hint="Add images of these classes, or leave `max_seen_loss` out.",
        )


def _misspelt(unseen: Sequence[str], device: Device, labels: Iterable[str]) -> list[str]:
    """Return a sentence about each name of `unseen` that nothing knows, and that a name which counts as seen is like.

    A list of all classes of a data set may name some that are left out here, so that an unknown name is no error.
    """
    known = set(device.classes()).union(device.disabled_classes(), labels)
    counted_as_seen = sorted(known.difference(unseen))
    said = []
    for name in sorted(set(unseen) - known)[:_MAX_COMPARED]:
        meant = closest(name, counted_as_seen, least_alike=_MISSPELT)
        if meant is not None:
            said.append(
                f"{shown(name)} of the unseen classes is neither in the bundle's head nor in the inputs, and "
                f"{shown(meant)} counts as seen. Correct the name in `unseen` if that one is meant."
            )
    return said


def _check_prepared(device: Device, source: InputSource | LabelledStream) -> None:
    if device.bundle.preprocessing is not None:
        return
    if needs_preparing(source.first.value) if isinstance(source, LabelledStream) else holds_images(source):
        raise UsageError(
            f"The bundle does not state how images are prepared, and {source.where} holds images.",
            found="images",
            expected="arrays as the model takes them, or images and how they are prepared",
            where=source.where,
            hint="Export it with `preprocess`, or give arrays.",
        )


def _check_reducible(device: Device) -> None:
    """Refuse a reduced decode where preparing an image has no use for one."""
    preprocessing = device.bundle.preprocessing
    obstacle = "no images" if preprocessing is None else preprocessing.obstacle_to_reduced_decode
    if obstacle is not None:
        taken = "model takes" if preprocessing is None else "preprocessing has"
        raise UsageError(
            f"JPEG files cannot be decoded at a part of their size: the bundle's {taken} {obstacle}.",
            found=obstacle,
            expected="images that are resized, with antialiasing",
            hint="Leave `reduced_decode` out.",
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
