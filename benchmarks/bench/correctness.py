"""How accurate targets are, and how close to each other: accuracy and parity, on the same inputs and in the same run.

Rules:

1. Every target sees every image, batch by batch; an image is read once for all targets that prepare it alike, by
   threads that are ahead of the models. Of an image its outcome and its greatest error are kept, and no logits.
2. All targets choose among their own classes; a class that one lacks is, for it, never recognised.
3. Without images, parity is measured on seeded inputs, and accuracy is not measured.
4. Features are multiplied with the rows of each head in float64, so that they measure the rows and no runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from icis_deploy.common.ahead import map_ahead
from icis_deploy.common.arrays import Float64, Images
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.evaluation.measuring import usable_cores
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.images.inputs import InputForm, holds_images, prepare
from icis_deploy.images.sources import InputItem, InputSource, labels_of
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_of, checked_logits
from icis_deploy.metrics.outcomes import OutcomeHead, Outcomes, measure_outcomes, merge
from icis_deploy.metrics.parity import Errors, mean_and_deviation, measure_errors, num_kept_of
from icis_deploy.metrics.seen_loss import SeenLoss, stated_budget

BATCH_SIZE = 16
NUM_SEEDED_INPUTS = 64
FEATURES_AT_ONCE = 1024


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsBatch:
    """What targets give for some inputs."""

    logits: Mapping[str, Float64]
    """`(batch, num_classes)` float64 of each target, by its name."""

    keys: tuple[str, ...]
    """`(batch,)`, what each input is called."""

    labels: tuple[str, ...] | None
    """`(batch,)` class names; `None` where nobody says."""


def logits_on_inputs(targets: Sequence[OpenTarget], source: InputSource) -> Iterator[LogitsBatch]:
    """Yield the logits of every target on images or arrays, batch by batch.

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

    def read(part: Sequence[InputItem]) -> tuple[Sequence[InputItem], dict[InputForm, Images]]:
        values, keys = [item.value for item in part], [item.key for item in part]
        return part, {form: prepare(values, form, keys=keys) for form in set(forms.values())}

    for part, prepared in map_ahead(read, _parts(source), workers=usable_cores()):
        yield LogitsBatch(
            logits={
                target.name: np.asarray(target.answer(prepared[forms[target.name]]), dtype=np.float64)
                for target in targets
            },
            keys=tuple(item.key for item in part),
            labels=None if source.labels is None else tuple(item.label or "" for item in part),
        )


def _parts(source: InputSource) -> Iterator[list[InputItem]]:
    items = iter(source)
    while part := list(islice(items, BATCH_SIZE)):
        yield part


def logits_on_seeded_inputs(targets: Sequence[OpenTarget]) -> Iterator[LogitsBatch]:
    """Yield the logits on seeded noise of every target that takes the same kind of input as the first."""
    first = targets[0].model_input
    alike = [each for each in targets if (each.model_input.shape, each.model_input.dtype) == (first.shape, first.dtype)]
    for seed in range(NUM_SEEDED_INPUTS // BATCH_SIZE):
        batch = noise(first, BATCH_SIZE, seed=seed)
        logits = {target.name: np.asarray(target.answer(batch), np.float64) for target in alike}
        keys = tuple(str(seed * BATCH_SIZE + index) for index in range(BATCH_SIZE))
        yield LogitsBatch(logits=logits, keys=keys, labels=None)


def logits_on_features(targets: Sequence[OpenTarget], labeled: HeadFeatures) -> Iterator[LogitsBatch]:
    """Yield the logits of every target's head on features, in float64.

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
    heads = {
        target.name: Head(rows=np.concatenate([labeled.seen_rows, target.added_rows()]), class_names=target.class_names)
        for target in targets
    }
    arbiters = {target.name: target.added_arbiter() for target in targets}
    for start in range(0, len(labeled.features), FEATURES_AT_ONCE):
        features = labeled.features[start : start + FEATURES_AT_ONCE]
        found = {name: head.logits(features) for name, head in heads.items()}
        for name, logits in found.items():
            if arbiters[name].any():
                statistics = statistics_of(features, labeled.seen_rows, logits)
                logits[:, len(labeled.seen_rows) :] += statistics @ arbiters[name].T
        yield LogitsBatch(
            logits=found,
            keys=tuple(str(start + index) for index in range(len(features))),
            labels=labeled.labels[start : start + FEATURES_AT_ONCE],
        )


def statistics_of(features: NDArray[np.floating], seen_rows: NDArray[np.float32], logits: Float64) -> Float64:
    """Return what an arbiter's offsets follow from, `(num_images, 5)`, computed in float32 as a model does."""
    seen_logits = logits[:, : len(seen_rows)].astype(np.float32)
    lengths = deviation_lengths(seen_rows)
    return seen_statistics(features.astype(np.float32), seen_logits, lengths).astype(np.float64)


def correctness_of(
    targets: Sequence[OpenTarget],
    batches: Iterable[LogitsBatch],
    *,
    labels: Sequence[str] | None,
    num_inputs: int,
    source: str,
    keys: Iterable[str] = (),
    max_seen_loss: float | None = None,
) -> tuple[dict[str, Accuracy], dict[str, Parity]]:
    """Return accuracy and parity by the targets' names, from logits that are seen once.

    Args:
        targets: With the same seen classes; parity is against the first.
        batches: From this module.
        labels: `(num_inputs,)` class names; `None` leaves accuracy out.
        num_inputs: Those of all batches.
        source: What the logits are computed from, in words.
        keys: Of all inputs; they are asked for only to name one that is there twice.
        max_seen_loss: How much of the accuracy on seen classes the new ones may cost, fraction of 1; `None` for what
            the updates of each bundle state.

    Raises:
        ImageError: If an input shows a class that no target knows.
        IncompatibleError: If a target gives NaN, or an input comes twice.
    """
    head = None if labels is None else _head_of_all(targets, labels, source)
    shared = {target.name: _shared_columns(target, targets[0]) for target in targets[1:]}
    outcomes: dict[str, list[Outcomes]] = {target.name: [] for target in targets}
    errors: dict[str, list[Errors]] = {name: [] for name in shared}
    for batch in batches:
        if head is not None and batch.labels is not None:
            for target in targets:
                outcomes[target.name].append(_outcomes_of(target, batch, head))
        for target in targets[1:]:
            if target.name in batch.logits and targets[0].name in batch.logits:
                columns = shared[target.name]
                # The 99.9th percentile lies between two errors, of which the gate takes the greater one alone.
                num_kept = num_kept_of(num_inputs, len(columns)) + 1
                errors[target.name].append(_errors_of(target, targets[0], batch, columns, num_kept=num_kept))
    accuracy = {}
    if head is not None:
        for target in targets:
            budget = stated_by(target) if max_seen_loss is None else max_seen_loss
            report = accuracy_of(merge(outcomes[target.name], keys=keys), max_seen_loss=budget)
            has_new = len(target.class_names) > target.num_seen
            accuracy[target.name] = accuracy_from_report(report, source, has_new=has_new)
    parity = {
        name: parity_from_errors(parts, against=targets[0].name, source=source)
        for name, parts in errors.items()
        if parts
    }
    return accuracy, parity


def _head_of_all(targets: Sequence[OpenTarget], labels: Sequence[str], source: str) -> OutcomeHead:
    """Return the classes that any target knows: all choose among their own, and lack the others."""
    names = tuple(dict.fromkeys(name for target in targets for name in target.class_names))
    is_seen = np.arange(len(names)) < targets[0].num_seen
    head = OutcomeHead(class_names=names, is_seen=is_seen, is_original=is_seen, has_original=True)
    unknown = sorted(set(labels) - set(head.columns))
    if unknown:
        raise ImageError(
            f"Among {source}: {quoted(unknown)}, which no target knows.",
            found=tuple(unknown),
            where=source,
            hint="Leave these out.",
        )
    return head


def _outcomes_of(target: OpenTarget, batch: LogitsBatch, head: OutcomeHead) -> Outcomes:
    assert batch.labels is not None  # as the caller checked
    place = f"logits of {target.name} for {batch.keys[0]} and what follows"
    padded = np.full((len(batch.keys), len(head.class_names)), -np.inf)
    padded[:, [head.columns[name] for name in target.class_names]] = checked_logits(
        batch.logits[target.name], name=place
    )
    original = padded
    if ORIGINAL in batch.logits:
        original = np.full_like(padded, -np.inf)
        original[:, head.is_seen] = checked_logits(batch.logits[ORIGINAL], name=place)
    return measure_outcomes(
        padded,
        np.array([head.columns[label] for label in batch.labels], dtype=np.int64),
        head,
        keys=batch.keys,
        original_scores=np.where(head.is_seen, original, -np.inf),
    )


def _shared_columns(target: OpenTarget, first: OpenTarget) -> NDArray[np.intp]:
    """Return the columns of the classes that both have, `(num_shared, 2)`: the target's, and the first's."""
    column_of = {name: index for index, name in enumerate(first.class_names)}
    pairs = [(index, column_of[name]) for index, name in enumerate(target.class_names) if name in column_of]
    return np.array(pairs, dtype=np.intp).reshape(len(pairs), 2)


def _errors_of(
    target: OpenTarget, first: OpenTarget, batch: LogitsBatch, columns: NDArray[np.intp], *, num_kept: int
) -> Errors:
    ours, theirs = batch.logits[target.name][:, columns[:, 0]], batch.logits[first.name][:, columns[:, 1]]
    if target.score_kind != "logits":  # logarithms of probabilities: over fewer classes, normalised again
        ours, theirs = (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) for scores in (ours, theirs))
    return measure_errors(theirs, ours, num_kept=num_kept, compared_with=first.name)


def stated_by(target: OpenTarget) -> float | None:
    """Return how much seen accuracy the updates of a bundle were made to cost; `None` where nobody said."""
    return None if target.bundle is None else stated_budget(load_manifest(target.bundle).updates)


def accuracy_from_report(report: AccuracyReport, source: str, *, has_new: bool) -> Accuracy:
    """Return an accuracy report with the names of its classes, as a result states it.

    Args:
        report: Of one target.
        source: What it was measured on, in words.
        has_new: Whether the target has classes besides the seen ones, without which nothing can be lost or gained.
    """
    names = report.class_names
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
        classes=tuple(classes_with_images(report)),
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


def classes_with_images(report: AccuracyReport) -> Iterator[ClassAccuracy]:
    """Yield the accuracy of every class that has images."""
    for index, accuracy in enumerate(report.class_accuracy):
        if accuracy is not None:
            yield ClassAccuracy(
                name=report.class_names[index],
                is_seen=index < report.num_seen_classes,
                num_images=report.class_num_images[index],
                accuracy=accuracy,
                change=None if report.class_change is None else report.class_change[index],
            )


def parity_from_errors(parts: Sequence[Errors], *, against: str, source: str) -> Parity:
    """Return how close a target's logits are to another's, over the classes that both have.

    Args:
        parts: Of all inputs, in any order; each keeps one error more than `num_kept_of` all.
        against: What the other target is called.
        source: What both were given, in words.
    """
    rows = np.concatenate([part.rows for part in parts])
    num_classes, num_kept = parts[0].num_classes, parts[0].num_kept
    greatest = np.sort(np.concatenate([part.greatest for part in parts]))[-num_kept:]
    scale = mean_and_deviation(rows["mean"], rows["squares"], num_classes)[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # of one class and probabilities every logit is the same
        scaled = greatest / np.float64(scale)
    # As `np.percentile` has it: on a line between two errors. The greatest ones begin where their ranks do.
    rank = 0.999 * (len(rows) * num_classes - 1) - (len(rows) * num_classes - len(scaled))
    return Parity(
        against=against,
        source=source,
        num_images=len(rows),
        num_classes=num_classes,
        agreement=float(rows["agrees"].mean()),
        max_scaled_error=float(scaled[-1]),
        p999_scaled_error=float(np.interp(rank, np.arange(len(scaled)), scaled)),
    )


def source_of(labeled: InputSource | LabeledFeatures, name: str) -> str:
    """Return what accuracy was measured on, in words."""
    if isinstance(labeled, LabeledFeatures):
        what, count = "feature", len(labeled.labels)
    else:
        what, count = "image" if holds_images(labeled) else "input", len(labels_of(labeled))
    return f"{count} {what}{'s' * (count != 1)} of {name}"
