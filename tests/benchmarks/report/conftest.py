"""Results to report on: a real one of a tiny model, with accuracies and more whose values the tests choose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.page import html_page, report_of
from benchmarks.results.result import load_result
from benchmarks.results.values import (
    Accuracy,
    AddClasses,
    BudgetGain,
    ClassAccuracy,
    CurveStep,
    ScalePoint,
    ScaleSeries,
    SeenCost,
    Timing,
    UpdateLatency,
)
from benchmarks.timing.percentiles import Interval, Percentile
from icis_deploy.metrics.averages import harmonic_mean

RESULT_PATH = Path(__file__).resolve().parents[1] / "results" / "bench.json"


def accuracy(*, U, S, T=0.5, num_seen=100, num_unseen=50, seed=0):
    """Return an accuracy whose classes have about these macro averages."""
    random = np.random.default_rng(seed)
    classes = [
        ClassAccuracy(name=f"{kind}{index}", is_seen=kind == "s", num_images=1, accuracy=float(right), change=None)
        for kind, share, number in (("s", S, num_seen), ("u", U, num_unseen))
        for index, right in enumerate(random.permutation(np.arange(number) < round(share * number)))
    ]
    return Accuracy(
        T=T,
        U=U,
        S=S,
        H=harmonic_mean(U, S),
        S_original=0.9,
        num_seen_images=num_seen,
        num_unseen_images=num_unseen,
        num_seen_taken_for_unseen=3,
        num_unseen_taken_for_seen=30,
        confusions=(),
        classes=tuple(classes),
        source="150 photos",
    )


def with_curve(measured):
    """Return an accuracy with a curve of S against U through three points, two budgets on it, and what was lost."""
    steps = ((0.9, 0.0), (0.8, 0.4), (0.0, 0.5))
    return replace(
        measured,
        AUSUC=0.4,
        curve=tuple(CurveStep(S=s, U=u) for s, u in steps),
        budgets=tuple(BudgetGain(max_seen_loss=loss, S=0.9 - loss, U=4 * loss, U_top5=0.6) for loss in (0.02, 0.1)),
        seen_cost=SeenCost(before=0.9, after=0.8, low=0.05, high=0.16, num_images=100, max_seen_loss=0.02),
    )


def timing(median_ms, p99_ms=None):
    p99 = Percentile(percent=99.0, num_queries=700, num_needed=662, value_ms=p99_ms, upper_bound_ms=p99_ms)
    return Timing(num_queries=700, median_ms=median_ms, p99=p99)


@pytest.fixture(scope="session")
def measured():
    """A result as `bench` wrote it: original, fused and updatable, batches of 1 and 8."""
    return load_result(RESULT_PATH)


@pytest.fixture(scope="session")
def full(measured):
    """The same with everything that a result can hold."""
    original, fused, updatable = measured.targets
    point = ScalePoint(
        num_classes=1000,
        head_bytes=5_124_000,
        latency_ms=Interval(value=0.2, low=0.19, high=0.21),
        roofline_ms=0.1,
        memory_bytes=None,
    )
    targets = (
        replace(original, accuracy=replace(accuracy(U=0.0, S=0.9), T=None, U=None, H=None)),
        replace(fused, accuracy=accuracy(U=0.2, S=0.8), missing={"power": "no sensor"}),
        replace(
            updatable,
            accuracy=with_curve(accuracy(U=0.4, S=0.8)),
            add_classes=AddClasses(num_classes=50, timing=timing(2.0, 3.0), how="a class update"),
        ),
    )
    return replace(
        measured,
        targets=targets,
        update=UpdateLatency(
            num_new_classes=50,
            capacity=256,
            feature_dim=1280,
            update_bytes=270_000,
            ways={"class update": timing(2.0, 3.0), "new session": timing(90.0), "export, reload": timing(3000.0)},
            parts={"verify_ms": timing(0.4), "sync_ms": timing(1.1), "work_ms": timing(0.5)},
        ),
        scale=(
            ScaleSeries(
                head_kind="fused",
                feature_dim=1280,
                batch_size=1,
                num_threads=1,
                bandwidth_bytes_per_s=51.24e9,
                points=(
                    point,
                    replace(
                        point,
                        num_classes=100_000,
                        head_bytes=512_400_000,
                        roofline_ms=10.0,
                        latency_ms=Interval(value=12.0, low=11.9, high=12.1),
                    ),
                ),
            ),
        ),
    )


@pytest.fixture(scope="session")
def other_device(full):
    """The same result, as another machine would have measured it."""
    sections = {**full.environment.sections, "cpu": {**full.environment.sections["cpu"], "model": "Cortex-A76"}}
    return replace(full, environment=replace(full.environment, sections=sections))


@pytest.fixture(scope="session")
def page_of_two(full, other_device):
    """A page about two devices."""
    return html_page(report_of([full, other_device]))
