"""Reproduce the published results of ICIS on CUB, AWA2 and SUN, and print our figures next to the published ones.

For each data set and seed: a softmax head is trained on the features of seen classes
(`benchmarks.zero_shot.base_head`), the published recipe predicts the rows of unseen classes from their attributes, and
T, U, S and H are measured on the test images, which nothing has used before. On the same heads, methods of
`icis_deploy.injection.inject` are measured as well.

docs/reproduction.md says where the data is, what differs from the authors' protocol, and what is wrong in theirs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.zero_shot.base_head import MAX_EPOCHS, BaseHead, train_base_head
from benchmarks.zero_shot.xlsa17 import FEATURES_NAME, ZeroShotData, load_zero_shot_data
from icis_deploy.common.arrays import Float32
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import inject
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.predictors.icis import ICISConfig, fit_icis, predict_rows
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report

FIGURES = ("T", "H", "U", "S")
PUBLISHED = "published recipe"
"""The row of our run that the published figures are compared with; other rows have the names of methods."""

PAPER: Mapping[str, Mapping[str, float]] = {
    "CUB": {"T": 60.6, "H": 56.5, "U": 45.8, "S": 73.7},
    "AWA2": {"T": 64.6, "H": 51.6, "U": 35.6, "S": 93.3},
    "SUN": {"T": 51.8, "H": 32.7, "U": 45.2, "S": 25.6},
}
"""ICIS in table 1 of Christensen et al., ICCV 2023, in percent; features of a ResNet-101 fine-tuned on seen classes."""

PAPER_BATCH_SIZE: Mapping[str, int] = {"AWA2": 20}
"""Where the authors' scripts leave their batches of 16."""

Report = Callable[[str], None]
"""Called with lines that say what was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure over the seeds, in percent."""

    mean: float
    """Mean over the seeds, percent."""

    deviation: float
    """Population standard deviation, as the paper states it; 0 for one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Scores of one way to predict rows on one data set."""

    name: str
    """`PUBLISHED` or a method."""

    figures: Mapping[str, Spread]
    """T, H, U and S over the seeds, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetReport:
    """Reproduced figures of one data set."""

    name: str
    """Name of the data set's folder."""

    num_seen: int
    """Number of seen classes."""

    num_unseen: int
    """Number of unseen classes."""

    seeds: tuple[int, ...]
    """One head and one run of every method for each."""

    head_accuracies: tuple[float, ...]
    """S of the heads before injection, percent, by seed."""

    head_epochs: tuple[int, ...]
    """Epochs that the held-out images chose, by seed."""

    icis_epochs: tuple[int, ...]
    """Epochs after which the published recipe stopped, by seed."""

    rows: tuple[Row, ...]
    """Scores of every way, the published recipe first."""


def reproduce(
    folder: Path,
    *,
    seeds: Sequence[int] = range(5),
    methods: Sequence[str] = (),
    features_name: str = FEATURES_NAME,
    head_epochs: int = MAX_EPOCHS,
    max_epochs: int | None = None,
    report: Report = lambda _: None,
) -> DataSetReport:
    """Reproduce one data set.

    Args:
        folder: Holds `att_splits.mat` and the features.
        seeds: One head and one run of every method for each.
        methods: Of `icis_deploy.injection.inject`, run in addition to the published recipe, with their calibration.
        features_name: Name of the file of features.
        head_epochs: Epochs of the head to choose from.
        max_epochs: Ends the published recipe early, to try things out; by default it ends by its own rule.
        report: Called with what was done.

    Raises:
        ICISDeployError: If the data cannot be read, or there is no such method.
    """
    options = [InjectionOptions(method=method, balance=0.5) for method in methods]
    data = load_zero_shot_data(folder, features_name=features_name)
    heads: list[BaseHead] = []
    own_accuracies: list[float] = []
    epochs: list[int] = []
    scores: dict[str, list[AccuracyReport]] = {}
    for seed in seeds:
        head = train_base_head(data.trainval, num_classes=data.seen.num_classes, seed=seed, max_epochs=head_epochs)
        heads.append(head)
        rows, num_epochs = published_rows(data, head.rows, seed=seed, max_epochs=max_epochs)
        epochs.append(num_epochs)
        for name, predicted in (
            (PUBLISHED, rows),
            *((each.method, _method_rows(data, head.rows, replace(each, seed=seed))) for each in options),
        ):
            score = score_rows(data, head.rows, predicted)
            scores.setdefault(name, []).append(score)
            report(f"{data.name}, seed {seed}, {name}: {figures_text(_percents(score))}")
        own_accuracies.append(100 * (scores[PUBLISHED][-1].S_original or 0.0))
    return DataSetReport(
        name=data.name,
        num_seen=data.seen.num_classes,
        num_unseen=data.unseen.num_classes,
        seeds=tuple(seeds),
        head_accuracies=tuple(own_accuracies),
        head_epochs=tuple(head.num_epochs for head in heads),
        icis_epochs=tuple(epochs),
        rows=tuple(Row(name=name, figures=_spreads(each)) for name, each in scores.items()),
    )


def published_rows(
    data: ZeroShotData, seen_rows: Float32, *, seed: int, max_epochs: int | None = None
) -> tuple[Float32, int]:
    """Return raw rows `(num_unseen, feature_dim + 1)` of the published recipe, and its number of epochs."""
    config = ICISConfig.published()
    batch_size = PAPER_BATCH_SIZE.get(data.name, config.batch_size)
    config = replace(config, batch_size=batch_size, max_epochs=max_epochs or config.max_epochs)
    fit = fit_icis(data.seen.values, seen_rows, data.unseen.values, config=config, seed=seed)
    return predict_rows(fit.model, data.unseen.values), len(fit.epoch_losses)


def score_rows(data: ZeroShotData, seen_rows: Float32, unseen_rows: Float32) -> AccuracyReport:
    """Measure T, U, S and H on the test images.

    Args:
        data: A data set.
        seen_rows: `(num_seen, feature_dim + 1)`.
        unseen_rows: `(num_unseen, feature_dim + 1)`.
    """
    features = np.concatenate([data.test_seen.features, data.test_unseen.features])
    labels = np.concatenate([data.test_seen.labels, data.test_unseen.labels])
    logits = head_logits(np.concatenate([seen_rows, unseen_rows]), features)
    return accuracy_report(logits, labels, seen=len(seen_rows), original_logits=logits[:, : len(seen_rows)])


def _method_rows(data: ZeroShotData, seen_rows: Float32, options: InjectionOptions) -> Float32:
    both = Descriptors(
        values=np.concatenate([data.seen.values, data.unseen.values]),
        class_names=(*data.seen.class_names, *data.unseen.class_names),
    )
    head = Head(rows=seen_rows, class_names=data.seen.class_names)
    return inject(head, both, unseen=data.unseen.class_names, options=options).rows


def _percents(score: AccuracyReport) -> dict[str, float]:
    return {name: 100 * (getattr(score, name) or 0.0) for name in FIGURES}


def _spreads(scores: Sequence[AccuracyReport]) -> dict[str, Spread]:
    percents = [_percents(score) for score in scores]
    return {
        name: Spread(
            mean=statistics.fmean(each[name] for each in percents),
            deviation=statistics.pstdev(each[name] for each in percents),
        )
        for name in FIGURES
    }


def figures_text(figures: Mapping[str, float]) -> str:
    """Return figures on one line."""
    return "  ".join(f"{name} {figures[name]:.1f}" for name in FIGURES)


def text_of(reports: Sequence[DataSetReport]) -> str:
    """Return reports as a table for people."""
    return "\n\n".join("\n".join(_lines_of(report)) for report in reports)


def _lines_of(report: DataSetReport) -> Iterator[str]:
    seeds = f"{len(report.seeds)} seed{'s' * (len(report.seeds) > 1)}"
    epochs = " to ".join(str(number) for number in sorted({min(report.icis_epochs), max(report.icis_epochs)}))
    yield (
        f"{report.name}: {report.num_seen} seen and {report.num_unseen} unseen classes, {seeds}; S of the heads alone "
        f"{statistics.fmean(report.head_accuracies):.1f} %; the published recipe stopped after {epochs} epochs"
    )
    yield _line("", [f"{name:>7}" for name in FIGURES])
    if report.name in PAPER:
        yield _line("in the paper", [f"{PAPER[report.name][name]:>7.1f}" for name in FIGURES])
    for row in report.rows:
        yield _line(row.name, [_spread_text(row.figures[name], len(report.seeds)) for name in FIGURES])
    if report.name in PAPER:
        ours = report.rows[0].figures
        differences = [ours[name].mean - PAPER[report.name][name] for name in FIGURES]
        yield _line("published recipe - paper", [f"{difference:>+7.1f}" for difference in differences])


def _line(title: str, cells: Sequence[str]) -> str:
    return (f"{title:28}" + "".join(f"{cell:14}" for cell in cells)).rstrip()


def _spread_text(spread: Spread, num_runs: int) -> str:
    # One run has no deviation; a 0.0 would say that it was repeated.
    return f"{spread.mean:>7.1f}" if num_runs == 1 else f"{spread.mean:>7.1f} ± {spread.deviation:.1f}"
