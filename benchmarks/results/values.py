"""The parts of a benchmark result; `result.py` puts them together and writes them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from benchmarks.results.json_values import json_from_value
from benchmarks.timing.latency import Measurement
from benchmarks.timing.percentiles import Interval, Percentile, percentile_of
from benchmarks.timing.startup import StartupReport

HeadKind = Literal["original", "fused", "updatable", "other"]
CLASS_UPDATE = "class update"
"""The way of `UpdateLatency` that the other ways are compared with."""

PART_NAMES = {"probe_ms": "self_test_ms"}
"""What readers are told, and `ApplyTimings` calls, a part of a class update whose key in results is an older word."""


def timing_from_latencies(latencies_ms: Sequence[float]) -> Timing:
    """Return the median and the 99th percentile of latencies in milliseconds, at least one."""
    values = np.array(latencies_ms)
    return Timing(num_queries=len(values), median_ms=float(np.median(values)), p99=percentile_of(values, 99.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing that was measured: a model in a runtime."""

    name: str
    """What it is called in this result; latencies and comparisons refer to it."""

    head_kind: HeadKind
    """`original`: the model before injection; `fused` or `updatable`: a bundle; `other`: another way to do the same."""

    precision: str
    """Of the weights, such as `fp32`, `fp16` or `int8`."""

    runtime: str
    """What runs it, such as `onnxruntime`."""

    provider: str | None
    """What the runtime says that it really runs on, such as `CPUExecutionProvider`."""

    num_threads: int | None
    """Threads inside one operator; null where the runtime was left to choose."""

    num_classes: int
    """Classes that an answer chooses among."""

    num_seen: int
    """How many of them the original model knew."""

    capacity: int
    """Slots; 0 where the head has none."""

    size_bytes: int
    """Size of the files that the runtime loads: model and slots, without what other runtimes or teaching need."""

    startup: StartupReport | None
    """Load, first inference and peak memory, in fresh processes."""

    accuracy: Accuracy | None
    """How accurate it is, on labelled images or features."""

    parity: tuple[Parity, ...]
    """How near its logits are to those of others on the same inputs."""

    add_classes: AddClasses | None
    """How long it takes until an answer chooses among more classes."""

    missing: Mapping[str, str]
    """Why something that was asked for is not here, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracy on seen and unseen classes; macro averages, fractions of 1, null where no image measures one."""

    T: float | None
    """Images of unseen classes, choosing among the unseen classes."""

    U: float | None
    """Images of unseen classes, choosing among all classes."""

    S: float | None
    """Images of seen classes, choosing among all classes."""

    H: float | None
    """Harmonic mean of U and S."""

    S_original: float | None
    """Images of seen classes, the original model's classes alone."""

    num_seen_images: int
    """Images that S was measured on."""

    num_unseen_images: int
    """Images that T and U were measured on."""

    num_seen_taken_for_unseen: int
    """Images of seen classes for which an unseen class won."""

    num_unseen_taken_for_seen: int
    """Images of unseen classes for which a seen class won."""

    confusions: tuple[Confusion, ...]
    """The most frequent pairs behind these two numbers, most frequent first."""

    classes: tuple[ClassAccuracy, ...]
    """Every class that has images."""

    source: str
    """What it was measured on, in words."""

    S_top5: float | None = None
    """As S, with the right class among the five greatest logits; null where no more than five compete."""

    U_top5: float | None = None
    """As U, likewise."""

    AUSUC: float | None = None
    """Area under the curve of S against U; null unless both have images."""

    seen_cost: SeenCost | None = None
    """What the new classes cost the seen ones; null where there are no new ones, or no images of seen ones."""

    budgets: tuple[BudgetGain, ...] = ()
    """The greatest U for a loss of S of 1, 2, 5 and 10 points, with the best number added to all new logits."""

    curve: tuple[CurveStep, ...] = ()
    """S against U as new logits are raised, from where seen classes always win; empty unless both have images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCost:
    """What new classes cost the seen ones: right answers that a new class takes; fractions of 1.

    Both accuracies are of the same logits, so that what a conversion costs is not in it.
    """

    before: float
    """Macro accuracy on seen classes, choosing among them alone."""

    after: float
    """The same where all classes compete."""

    low: float
    """Lower end of the 95 % interval of what is lost, by Clopper and Pearson."""

    high: float
    """Upper end of it."""

    num_images: int
    """Images of seen classes."""

    max_seen_loss: float | None
    """How much may be lost; null where nobody said."""

    DERIVED: ClassVar = ("loss", "verdict")

    @property
    def loss(self) -> float:
        """`before` less `after`."""
        return self.before - self.after

    @property
    def verdict(self) -> Literal["within", "over", "cannot tell", "no budget"]:
        """`within` or `over` the budget if the whole interval says so."""
        if self.max_seen_loss is None:
            return "no budget"
        if self.low > self.max_seen_loss:
            return "over"
        return "within" if self.high <= self.max_seen_loss else "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetGain:
    """The most that unseen classes can have for a loss of seen accuracy, fractions of 1."""

    max_seen_loss: float
    """The loss that is allowed."""

    S: float
    """Images of seen classes that are right then."""

    U: float
    """Images of unseen classes that are right then."""

    U_top5: float
    """Images of unseen classes with the right one among the first five."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveStep:
    """A point of the curve of S against U, fractions of 1."""

    S: float
    """Images of seen classes that are right."""

    U: float
    """Images of unseen classes that are right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class taken for a class on the other side of the seen / unseen line."""

    label: str
    """The class that the images are of."""

    prediction: str
    """The class that they were taken for."""

    num_images: int
    """Number of such images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """Accuracy on one class."""

    name: str
    """Name of the class."""

    is_seen: bool
    """Whether the original model knew it."""

    num_images: int
    """Number of images of the class."""

    accuracy: float
    """Fraction of them that were recognised, choosing among all classes."""

    change: float | None
    """Accuracy less the original model's, -1 to 1; null for an unseen class, or without an original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How near a target's logits are to those of another on the same inputs, over the classes that both have."""

    against: str
    """Name of the other target."""

    source: str
    """Where the inputs are from, in words."""

    num_images: int
    """Inputs that both were run on."""

    num_classes: int
    """Classes that both have."""

    agreement: float
    """Fraction of the inputs for which both choose the same class, near-ties counted too."""

    max_scaled_error: float
    """Greatest difference of two logits, in standard deviations of the other's logits."""

    p999_scaled_error: float
    """99.9th percentile of the differences, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of something that was timed a number of times, outside of interleaved rounds."""

    num_queries: int
    """Number of repetitions."""

    median_ms: float
    """Median, milliseconds."""

    p99: Percentile
    """99th percentile, or how many queries it would take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddClasses:
    """How long it takes until an answer chooses among more classes, and how that was measured."""

    num_classes: int
    """Classes added at once."""

    timing: Timing
    """From the rows, or the descriptors, in memory to the first answer."""

    how: str
    """What a user has to do for it, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """All targets, measured in turn with one batch size."""

    batch_size: int
    """Images in a query."""

    measurement: Measurement
    """Latencies and comparisons; labels are names of targets. One query is one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShare:
    """What the added rows of one target may cost an answer to one image, and what they do cost."""

    target: str
    """Name of the target; it is compared with the original model."""

    added_bytes: int
    """Bytes of the rows that the original's head does not have, empty slots included."""

    bandwidth_bytes_per_s: float
    """At which this machine reads as much as the largest head, right after an answer, with as many threads."""

    share_ms: float
    """`added_bytes` over that bandwidth, milliseconds."""

    measured_ms: Interval
    """What an answer takes longer than the original's, with its 99 % interval, milliseconds; below 0 if faster."""

    DERIVED: ClassVar = ("verdict",)

    @property
    def verdict(self) -> Literal["within", "over", "cannot tell"]:
        """`within` or `over` its share if the whole interval says so."""
        if self.measured_ms.high <= self.share_ms:
            return "within"
        return "over" if self.measured_ms.low > self.share_ms else "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Where the time of a query goes on a device with memory of its own."""

    target: str
    """Name of the target."""

    batch_size: int
    """Images in a query."""

    host_to_device_ms: Interval
    """Median time of copying the input to the device, milliseconds."""

    compute_ms: Interval
    """Median time of the model alone, milliseconds."""

    device_to_host_ms: Interval
    """Median time of copying the logits back, milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One target under one load, as MLPerf LoadGen or the class-swap test generates it."""

    name: Literal["single-stream", "multi-stream", "server", "offline", "class-swap"]
    """Kind of load."""

    target: str
    """Name of the target."""

    valid: bool
    """Whether the rules of the scenario were kept; the figures of an invalid run are not to be used."""

    reasons: tuple[str, ...]
    """Why it is not valid, in words."""

    num_queries: int
    """Number of queries that were made."""

    samples_per_query: int
    """Images in a query."""

    duration_s: float
    """Duration of the run in seconds."""

    samples_per_s: float
    """Images answered in a second."""

    latency: LatencySummary | None
    """Latency of a query; null for offline, which has a single one."""

    details: Mapping[str, object]
    """What the load generator itself reports, by its own names."""

    logs: str | None
    """Folder of its logs, as it was given on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latency of the queries of a scenario."""

    median_ms: float
    """Median, milliseconds."""

    percentiles: tuple[Percentile, ...]
    """Those that the number of queries allows, and what the others need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLatency:
    """How long a class update takes, compared with other ways to change a head."""

    num_new_classes: int
    """Number of classes in each update."""

    capacity: int
    """Number of slots of the head."""

    feature_dim: int
    """Width of a feature."""

    update_bytes: int
    """Size of an update's file in bytes."""

    ways: Mapping[str, Timing]
    """From the file, or the rows, to the first answer, by way."""

    parts: Mapping[str, Timing]
    """Where the time of a class update goes, by part."""

    def times_faster(self, other: str) -> float:
        """Return how many times as long as a class update another way takes, by the medians."""
        return self.ways[other].median_ms / self.ways[CLASS_UPDATE].median_ms

    def to_json(self) -> dict[str, Any]:
        """Return these latencies, and how many times faster a class update is, as values that `json.dumps` takes."""
        faster = {way: self.times_faster(way) for way in self.ways if way != CLASS_UPDATE}
        return {**json_from_value(self), "times_faster": faster}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePoint:
    """A head with so many classes."""

    num_classes: int
    """Number of classes of the head."""

    head_bytes: int
    """Bytes of its rows, which every query of batch 1 has to read."""

    latency_ms: Interval
    """Median latency of a query of the head alone, milliseconds."""

    roofline_ms: float
    """`head_bytes` over the measured memory bandwidth: no head that is read from memory is faster."""

    memory_bytes: int | None
    """Peak memory of a fresh process that has loaded it and answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSeries:
    """Latency and memory against the number of classes."""

    head_kind: HeadKind
    """Kind of the head."""

    feature_dim: int
    """Width of a feature."""

    batch_size: int
    """Images in a query."""

    num_threads: int
    """Threads of the runtime."""

    bandwidth_bytes_per_s: float
    """Memory bandwidth measured on this machine with as many threads."""

    points: tuple[ScalePoint, ...]
    """By ascending number of classes."""
