"""How accurate targets are, and how close to each other: accuracy and parity, on the same inputs and in the same run.

Rules:

1. Every target sees every image, batch by batch; an image is read once for all targets that prepare it alike.
2. All targets choose among their own classes; a class that one lacks is, for it, never recognised.
3. Without images, parity is measured on seeded inputs, and accuracy is not measured.
4. Features are multiplied with the rows of each head in float64, so that they measure the rows and no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench.labeled_inputs import HeadFeatures, LabeledFeatures
from benchmarks.bench.opened import ORIGINAL, OpenTarget, noise
from benchmarks.results.values import (
    Accuracy,
    BudgetGain,
    ClassAccuracy,
    Confusion,
    CurveStep,
    Parity,
    SeenCost,
)
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.common.arrays import Float64, Images
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.images.inputs import InputForm, holds_images, prepare
from icis_deploy.images.sources import InputItem, InputSource, labels_of
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report
from icis_deploy.metrics.seen_loss import SeenLoss, stated_budget

BATCH_SIZE = 16
NUM_SEEDED_INPUTS = 64


def check_same_base(targets: Sequence[OpenTarget]) -> None:
    """Check that targets have the same seen classes.

    Raises:
        IncompatibleError: If not; their accuracies and logits could not be compared.
    """
    first = targets[0]
    seen = first.class_names[: first.num_seen]
    for target in targets[1:]:
        if target.class_names[: target.num_seen] != seen:
            raise IncompatibleError(
                f"{target.name} and {first.name} were made from models with other seen classes ({target.num_seen} and "
                f"{first.num_seen} of them).",
                found=target.num_seen,
                expected=first.num_seen,
                where=target.name,
                hint="Measure them in two runs.",
            )


def logits_on_inputs(targets: Sequence[OpenTarget], source: InputSource) -> dict[str, Float64]:
    """Return the logits of every target on images or arrays, by its name.

    Returns:
        `(num_inputs, num_classes)` float64 each.

    Raises:
        ImageError: If a file is no image, or an array is no input of a target.
        UsageError: If there are images, and a target does not say how images are prepared.
    """
    if holds_images(source):
        for target in targets:
            if target.preprocessing is None:
                raise UsageError(
                    f"{target.name} does not state how images are prepared.",
                    where=target.name,
                    hint="Export it with `preprocess`.",
                )
    forms = {
        target.name: InputForm(
            shape=target.model_input.shape, dtype=target.model_input.dtype, preprocessing=target.preprocessing
        )
        for target in targets
    }
    found: dict[str, list[Float64]] = {target.name: [] for target in targets}
    items: Iterator[InputItem] = iter(source)
    while part := list(islice(items, BATCH_SIZE)):
        values, keys = [item.value for item in part], [item.key for item in part]
        prepared: dict[InputForm, Images] = {}
        for target in targets:
            form = forms[target.name]
            if form not in prepared:
                prepared[form] = prepare(values, form, keys=keys)
            found[target.name].append(np.asarray(target.answer(prepared[form]), dtype=np.float64))
    return {name: np.concatenate(batches) for name, batches in found.items()}


def logits_on_seeded_inputs(targets: Sequence[OpenTarget]) -> dict[str, Float64]:
    """Return the logits on seeded noise of every target that takes the same kind of input as the first."""
    first = targets[0].model_input
    batches = [noise(first, BATCH_SIZE, seed=seed) for seed in range(NUM_SEEDED_INPUTS // BATCH_SIZE)]
    return {
        target.name: np.concatenate([np.asarray(target.answer(batch), np.float64) for batch in batches])
        for target in targets
        if (target.model_input.shape, target.model_input.dtype) == (first.shape, first.dtype)
    }


def logits_on_features(targets: Sequence[OpenTarget], labeled: HeadFeatures) -> dict[str, Float64]:
    """Return the logits of every target's head on features, in float64, by its name.

    Args:
        targets: Made from the same model.
        labeled: Features of that model's backbone, with the rows of its head.

    Raises:
        IncompatibleError: If the features have another width than the rows.
    """
    feature_dim = labeled.seen_rows.shape[1] - 1
    if labeled.features.shape[1] != feature_dim:
        raise IncompatibleError(
            f"The features are {labeled.features.shape[1]} wide; the head's rows multiply {feature_dim}. They come "
            f"from another model, or another layer of it.",
            found=labeled.features.shape[1],
            expected=feature_dim,
            hint="Take the features that go into the last layer of the bundle's model.",
        )
    found = {}
    for target in targets:
        head = Head(rows=np.concatenate([labeled.seen_rows, target.added_rows()]), class_names=target.class_names)
        logits, arbiter = head.logits(labeled.features), target.added_arbiter()
        if arbiter.any():
            num_seen = len(labeled.seen_rows)
            logits[:, num_seen:] += statistics_of(labeled.features, labeled.seen_rows, logits) @ arbiter.T
        found[target.name] = logits
    return found


def statistics_of(features: NDArray[np.floating], seen_rows: NDArray[np.float32], logits: Float64) -> Float64:
    """Return what an arbiter's offsets follow from, `(num_images, 5)`, computed in float32 as a model does."""
    seen_logits = logits[:, : len(seen_rows)].astype(np.float32)
    lengths = deviation_lengths(seen_rows)
    return seen_statistics(features.astype(np.float32), seen_logits, lengths).astype(np.float64)


def accuracies(
    targets: Sequence[OpenTarget],
    logits: dict[str, Float64],
    labels: Sequence[str],
    *,
    source: str,
    max_seen_loss: float | None = None,
) -> dict[str, Accuracy]:
    """Return the accuracy of every target, by its name.

    Args:
        targets: With the same seen classes.
        logits: From this module.
        labels: `(num_images,)` class names.
        source: What the logits were computed from, in words.
        max_seen_loss: How much of the accuracy on seen classes the new ones may cost, fraction of 1; `None` for what
            the updates of each bundle state.

    Raises:
        ImageError: If an image shows a class that no target knows.
    """
    num_seen = targets[0].num_seen
    names = list(dict.fromkeys(name for target in targets for name in target.class_names))
    column_of = {name: index for index, name in enumerate(names)}
    unknown = sorted(set(labels) - set(column_of))
    if unknown:
        raise ImageError(
            f"Among {source}: {quoted(unknown)}, which no target knows.",
            found=tuple(unknown),
            where=source,
            hint="Leave these out.",
        )
    columns = np.array([column_of[label] for label in labels])
    found = {}
    for target in targets:
        padded = np.full((len(columns), len(names)), -np.inf)
        padded[:, [column_of[name] for name in target.class_names]] = logits[target.name]
        original = logits[ORIGINAL] if ORIGINAL in logits else padded[:, :num_seen]
        report = accuracy_report(
            padded,
            columns,
            seen=num_seen,
            original_logits=original,
            class_names=names,
            max_seen_loss=stated_by(target) if max_seen_loss is None else max_seen_loss,
        )
        has_new = len(target.class_names) > num_seen
        found[target.name] = accuracy_from_report(report, names, columns, source, has_new=has_new)
    return found


def stated_by(target: OpenTarget) -> float | None:
    """Return how much seen accuracy the updates of a bundle were made to cost; `None` where nobody said."""
    return None if target.bundle is None else stated_budget(load_manifest(target.bundle).updates)


def accuracy_from_report(
    report: AccuracyReport, names: Sequence[str], columns: NDArray[np.int64], source: str, *, has_new: bool
) -> Accuracy:
    """Return an accuracy report with the names of its classes, as a result states it.

    Args:
        report: Of one target.
        names: `(num_classes,)`, those of all targets.
        columns: `(num_images,)`, labels.
        source: What it was measured on, in words.
        has_new: Whether the target has classes besides the seen ones, without which nothing can be lost or gained.
    """
    return Accuracy(
        T=report.T,
        U=report.U,
        S=report.S,
        H=report.H,
        S_original=report.S_original,
        num_seen_images=report.num_seen_images,
        num_unseen_images=report.num_unseen_images,
        num_seen_taken_for_unseen=report.num_seen_taken_for_unseen,
        num_unseen_taken_for_seen=report.num_unseen_taken_for_seen,
        confusions=tuple(
            Confusion(label=names[pair.label], prediction=names[pair.prediction], num_images=pair.num_images)
            for pair in report.crossings
            if pair.prediction >= 0
        ),
        classes=tuple(classes_with_images(report, names, columns)),
        source=source,
        S_top5=report.top5["S"],
        U_top5=report.top5["U"],
        AUSUC=report.AUSUC if has_new else None,
        seen_cost=seen_cost(report.seen_loss) if has_new and report.seen_loss is not None else None,
        budgets=tuple(
            BudgetGain(max_seen_loss=point.max_seen_loss, S=point.S, U=point.U, U_top5=point.U_top5)
            for point in report.budget_points
            if has_new
        ),
        curve=tuple(CurveStep(S=point.S, U=point.U) for point in report.curve if has_new),
    )


def seen_cost(loss: SeenLoss) -> SeenCost:
    """Return what new classes cost, as a result states it."""
    return SeenCost(
        before=loss.before,
        after=loss.after,
        low=loss.interval.low,
        high=loss.interval.high,
        num_images=loss.num_images,
        max_seen_loss=loss.max_seen_loss,
    )


def classes_with_images(
    report: AccuracyReport, names: Sequence[str], columns: NDArray[np.int64]
) -> Iterator[ClassAccuracy]:
    """Yield the accuracy of every class that has images."""
    num_images = np.bincount(columns, minlength=len(names)).tolist()
    for index, accuracy in enumerate(report.class_accuracy):
        if accuracy is not None:
            yield ClassAccuracy(
                name=names[index],
                is_seen=index < report.num_seen_classes,
                num_images=num_images[index],
                accuracy=accuracy,
                change=None if report.class_change is None else report.class_change[index],
            )


def parities(targets: Sequence[OpenTarget], logits: dict[str, Float64], *, source: str) -> dict[str, Parity]:
    """Return how close every target's logits are to the first's, over the classes that both have, by its name."""
    first = targets[0]
    return {
        target.name: parity_of(target, first, logits, source)
        for target in targets[1:]
        if target.name in logits and first.name in logits
    }


def parity_of(target: OpenTarget, first: OpenTarget, logits: dict[str, Float64], source: str) -> Parity:
    """Return how close a target's logits are to another's."""
    column_of = {name: index for index, name in enumerate(first.class_names)}
    shared = [(index, column_of[name]) for index, name in enumerate(target.class_names) if name in column_of]
    ours = logits[target.name][:, [index for index, _ in shared]]
    theirs = logits[first.name][:, [index for _, index in shared]]
    if target.score_kind != "logits":  # logarithms of probabilities: over fewer classes, normalised again
        ours, theirs = (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) for scores in (ours, theirs))
    errors = np.abs(ours - theirs) / theirs.std()
    return Parity(
        against=first.name,
        source=source,
        num_images=len(ours),
        num_classes=len(shared),
        agreement=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        max_scaled_error=float(errors.max()),
        p999_scaled_error=float(np.percentile(errors, 99.9)),
    )


def source_of(labeled: InputSource | LabeledFeatures, name: str) -> str:
    """Return what accuracy was measured on, in words."""
    if isinstance(labeled, LabeledFeatures):
        what, count = "feature", len(labeled.labels)
    else:
        what, count = "image" if holds_images(labeled) else "input", len(labels_of(labeled))
    return f"{count} {what}{'s' * (count != 1)} of {name}"
