"""How long it takes to predict rows, compared with the published recipe run to its own stop.

Measured in one process, on one head and one set of descriptors:

    published recipe    steps of 1e-5 in batches of 16, until the authors' rule ends it, after hundreds of epochs
    fast recipe         the same model and loss as `icis` trains it here
    inject, METHOD      everything that `inject` does once the model is open: neutral images, cross-validation,
                        calibration, estimate, training

Rules:

1. Every round measures all ways once, in random order; a ratio is taken within a round, and over rounds it is the
   Hodges-Lehmann estimate of `benchmarks.timing.comparison`.
2. All epochs of the published recipe are alike. Each round times a few, after one that warms up, and multiplies by the
   number of epochs to its stop: that of a run to the end, made first, or one that the caller knows from such a run.
3. Accuracies are measured on images where there are some, after all rows are final; else they are those that
   cross-validation predicts, which raw rows do not have.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from benchmarks.timing.comparison import compare
from benchmarks.timing.percentiles import Interval
from benchmarks.timing.rounds import garbage_collector_at_rest
from icis_deploy.api.compare import LabeledImageFeatures
from icis_deploy.api.inject import train_injector
from icis_deploy.api.inputs import PathLike
from icis_deploy.api.models import Model, OpenedModel, head_of, open_with_preprocessing
from icis_deploy.common.arrays import Float32
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.errors import UsageError
from icis_deploy.head.class_names import load_class_list
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.injection.inject import unseen_classes
from icis_deploy.injection.options import InjectionOptions

if TYPE_CHECKING:
    from icis_deploy.injection.predictors.icis import Fit, ICISConfig

PUBLISHED, FAST = "published recipe", "fast recipe"
NUM_TIMED_EPOCHS = 2
FIGURES = ("T", "U", "S", "H")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A model, and classes to predict rows for."""

    opened: OpenedModel
    """The opened model, with its head."""

    descriptors: Descriptors
    """Descriptors of every seen and unseen class."""

    unseen: tuple[str, ...]
    """Names of the classes to predict."""

    preprocessing: Preprocessing | None = None
    """How images are prepared, for neutral images."""

    photos: LabeledImageFeatures | None = None
    """Labelled images to measure accuracies on; `None` where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to predict rows."""

    name: str
    """Name of the way, as in the table of this module."""

    seconds: tuple[float, ...]
    """One figure for each round; of the published recipe the time to its stop."""

    times_faster: Interval | None
    """Time of the published recipe over this one's, with a 99 % interval from 8 rounds on; None for itself."""

    source: Literal["images", "cross-validation", "none"]
    """What the accuracies were measured on."""

    accuracies: Mapping[str, float | None]
    """T, U, S and H as fractions of 1; empty where there are none."""

    @property
    def median_s(self) -> float:
        """Median over the rounds, seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """Times and accuracies of one run."""

    num_seen: int
    """Classes of the head."""

    num_unseen: int
    """Classes that rows were predicted for."""

    published_epochs: int
    """Epochs of the published recipe to its stop."""

    was_run_to_the_end: bool
    """Whether this run trained it so long; else the number was given."""

    published_epoch_s: float
    """Median time of one of its epochs, seconds."""

    num_threads: int
    """Threads of torch."""

    ways: tuple[Way, ...]
    """All ways that were measured, the published recipe first."""


@dataclass(slots=True, kw_only=True)
class _Found:
    """Results of the calls of one way so far."""

    call: Callable[[], float]
    """Predict rows once and return the seconds that it took."""

    seconds: list[float] = field(default_factory=list)
    rows: Float32 | None = None
    predicted: dict[str, float | None] = field(default_factory=dict)


def load_problem(
    model: Model,
    *,
    classes: PathLike | None = None,
    descriptors: PathLike,
    unseen: PathLike | None = None,
    preprocess: PathLike | None = None,
    images: PathLike | None = None,
) -> Problem:
    """Read a problem from a user's files; arguments are those of `icis_deploy.inject`.

    Raises:
        ICISDeployError: If a file cannot be read, or they do not fit together.
    """
    opened, preprocessing = open_with_preprocessing(model, classes=classes, preprocess=preprocess)
    described = load_descriptors(Path(descriptors))
    names = None if unseen is None else load_class_list(Path(unseen))
    return Problem(
        opened=opened,
        descriptors=described,
        unseen=unseen_classes(head_of(opened), described, names),
        preprocessing=preprocessing,
        photos=None if images is None else LabeledImageFeatures.load(images, opened, preprocessing),
    )


def measure_fit(
    problem: Problem,
    *,
    methods: Sequence[str] = ("icis", "ridge", "auto"),
    published_epochs: int | None = None,
    num_rounds: int = 8,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> FitReport:
    """Time all ways, in turn.

    Args:
        problem: What rows are predicted for.
        methods: Of `inject`.
        published_epochs: Epochs of the published recipe to its stop, from an earlier run; by default it is trained to
            its stop first, which takes minutes.
        num_rounds: Times that everything is measured; 8 or more give an interval.
        seed: Of everything drawn at random.
        on_step: Told what is about to be measured.

    Raises:
        UsageError: If a count is not positive, or there is no such method.
        ICISDeployError: If the model cannot be run.
    """
    import torch

    from icis_deploy.injection.predictors.icis import ICISConfig

    if num_rounds < 1 or (published_epochs is not None and published_epochs < 1):
        raise UsageError(
            "Rounds and epochs count from 1.",
            found=(num_rounds, published_epochs),
            expected="at least 1",
        )
    options = [InjectionOptions(method=method, balance=0.5, seed=seed) for method in methods]
    published = ICISConfig.published()
    num_epochs, rows = published_epochs, None
    if num_epochs is None:
        on_step(f"{PUBLISHED}, to its stop")
        fit, _ = _train(problem, published, seed)
        num_epochs, rows = len(fit.epoch_losses), _rows_of(problem, fit)
    ways = {
        PUBLISHED: _Found(call=lambda: num_epochs * _epoch_s(problem, published, seed), rows=rows),
        FAST: _fast_way(problem, seed),
        **{f"inject, {each.method}": _inject_way(problem, each) for each in options},
    }
    random = np.random.default_rng(seed)
    with garbage_collector_at_rest():
        for number in range(num_rounds):
            for name in random.permutation(list(ways)):
                on_step(f"round {number + 1} of {num_rounds}: {name}")
                ways[name].seconds.append(ways[name].call())
    return FitReport(
        num_seen=head_of(problem.opened).num_classes,
        num_unseen=len(problem.unseen),
        published_epochs=num_epochs,
        was_run_to_the_end=published_epochs is None,
        published_epoch_s=statistics.median(ways[PUBLISHED].seconds) / num_epochs,
        num_threads=torch.get_num_threads(),
        ways=tuple(_way(name, found, ways[PUBLISHED].seconds, problem) for name, found in ways.items()),
    )


def _train(
    problem: Problem, config: ICISConfig, seed: int, progress: Callable[[int, float], None] | None = None
) -> tuple[Fit, float]:
    """Train ICIS, and return it with the seconds that it took."""
    from icis_deploy.injection.predictors.icis import fit_icis

    head = head_of(problem.opened)
    seen = problem.descriptors.select(head.class_names).values
    unseen = problem.descriptors.select(problem.unseen).values
    start = time.perf_counter()
    fit = fit_icis(seen, head.rows, unseen, config=config, seed=seed, progress=progress)
    return fit, time.perf_counter() - start


def _epoch_s(problem: Problem, published: ICISConfig, seed: int) -> float:
    """Return the mean time of an epoch, in seconds; the first one warms up."""
    ends: list[float] = []
    config = replace(published, max_epochs=1 + NUM_TIMED_EPOCHS)
    _train(problem, config, seed, lambda _epoch, _loss: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / NUM_TIMED_EPOCHS


def _rows_of(problem: Problem, fit: Fit) -> Float32:
    from icis_deploy.injection.predictors.icis import predict_rows

    return predict_rows(fit.model, problem.descriptors.select(problem.unseen).values)


def _fast_way(problem: Problem, seed: int) -> _Found:
    from icis_deploy.injection.predictors.icis import ICISConfig

    def call() -> float:
        fit, seconds = _train(problem, ICISConfig(), seed)
        found.rows = _rows_of(problem, fit)
        return seconds

    found = _Found(call=call)
    return found


def _inject_way(problem: Problem, options: InjectionOptions) -> _Found:
    def call() -> float:
        start = time.perf_counter()
        injection = train_injector(
            problem.opened,
            descriptors=problem.descriptors,
            unseen=problem.unseen,
            options=options,
            preprocess=problem.preprocessing,
        )
        seconds = time.perf_counter() - start
        found.rows = injection.rows
        if injection.estimate is not None:
            found.predicted = {name: getattr(injection.estimate, name).value for name in FIGURES}
        return seconds

    found = _Found(call=call)
    return found


def _way(name: str, found: _Found, published_s: Sequence[float], problem: Problem) -> Way:
    times_faster = None
    if name != PUBLISHED:
        times_faster = compare(published_s, found.seconds, label=PUBLISHED, against=name, margin=0.02).ratio
    source: Literal["images", "cross-validation", "none"] = "none"
    accuracies: Mapping[str, float | None] = {}
    if problem.photos is not None and found.rows is not None:
        report = problem.photos.measure(head_of(problem.opened), found.rows, problem.unseen)
        source, accuracies = "images", {figure: getattr(report, figure) for figure in FIGURES}
    elif found.predicted:
        source, accuracies = "cross-validation", found.predicted
    return Way(
        name=name,
        seconds=tuple(found.seconds),
        times_faster=times_faster,
        source=source,
        accuracies=accuracies,
    )


def text_of(report: FitReport) -> str:
    """Return a report as a table for people."""
    how = "run to its stop here" if report.was_run_to_the_end else "as given"
    lines = [
        f"{report.num_seen} seen and {report.num_unseen} unseen classes, torch with {report.num_threads} threads",
        f"{PUBLISHED}: {report.published_epochs} epochs ({how}) of {report.published_epoch_s:.2f} s",
        "",
        f"{'':24}{'seconds':>10}{'times faster':>24}" + "".join(f"{name:>9}" for name in FIGURES),
    ]
    for way in report.ways:
        lines.append(f"{way.name:24}{way.median_s:>10.2f}{_times_text(way.times_faster):>24}{_accuracies_text(way)}")
    return "\n".join(lines)


def _times_text(ratio: Interval | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.value:.0f}" + (f" ({ratio.low:.0f} to {ratio.high:.0f})" if np.isfinite(ratio.high) else "")


def _accuracies_text(way: Way) -> str:
    values = (way.accuracies.get(name) for name in FIGURES)
    cells = "".join(f"{'-' if value is None else f'{100 * value:.1f} %':>9}" for value in values)
    return cells + ("  predicted by cross-validation" if way.source == "cross-validation" else "")
