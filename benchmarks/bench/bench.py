"""One run of the benchmark: the latency and the accuracy of targets, compared with each other on this machine.

Rules:

1. All targets are open at the same time and measured in turn, one batch size after the other; see `latency.py`.
2. The first target is what the others are compared with: the one given with `--against`, or the first bundle. An
   updatable bundle is compared with the fused one of its precision too: that is what slots cost.
3. What cannot be measured here is left out with its reason, and the rest is still measured.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench.correctness import (
    NUM_SEEDED_INPUTS,
    check_same_base,
    correctness_of,
    logits_on_features,
    logits_on_inputs,
    logits_on_seeded_inputs,
    source_of,
)
from benchmarks.bench.head_overhead import head_shares
from benchmarks.bench.labeled_inputs import HeadFeatures, LabeledFeatures
from benchmarks.bench.loadgen import ScenarioName, import_loadgen, run_scenario
from benchmarks.bench.opened import OpenTarget, names_of_bundles, noise, open_bundle, open_original
from benchmarks.machine.environment import read_environment
from benchmarks.results.result import Result
from benchmarks.results.values import Accuracy, BatchRun, Parity, Phases, Scenario, Target
from benchmarks.timing.latency import Plan, measure
from benchmarks.timing.percentiles import num_queries_needed
from benchmarks.timing.rounds import Call, calls_over
from benchmarks.timing.startup import measure_startup
from benchmarks.updates.class_swap import measure_class_swap
from benchmarks.updates.reports import scenario_from_swap
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.common.json_fields import json_from_time
from icis_deploy.errors import ICISDeployError, UsageError
from icis_deploy.images.python_values import PythonInputs
from icis_deploy.images.sources import InputSource, labels_of
from icis_deploy.runtime.sessions.choice import Runtime

NUM_INPUTS = 4
"""Different batches that the queries take turns with."""

CLASS_SWAP: Literal["class-swap"] = "class-swap"
NUM_SWAPPED = 50
"""Classes that an update changes in the class-swap scenario."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How much is measured."""

    name: str
    """Name on the command line and in the result."""

    percent: float
    """Percentile that must be measured: there are as many queries as it needs."""

    budget_s: float
    """Seconds for one target and one batch size."""

    num_starts: int
    """Fresh processes for each target."""

    scenario_s: float
    """Seconds that one scenario lasts at least."""


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="quick", percent=90.0, budget_s=3.0, num_starts=1, scenario_s=2.0),
        Preset(name="normal", percent=99.0, budget_s=8.0, num_starts=3, scenario_s=10.0),
        # MLPerf Inference Rules, "Scenarios": a run lasts at least 600 seconds.
        Preset(name="submission", percent=99.9, budget_s=600.0, num_starts=5, scenario_s=600.0),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledInputs:
    """What accuracy is measured on."""

    labeled: InputSource | HeadFeatures
    """What is answered, and the correct answers."""

    source: str
    """Where they are from, in words."""


@contextmanager
def open_targets(
    bundles: Sequence[Path], *, against: str | None, runtimes: Sequence[str], num_threads: int | None
) -> Iterator[list[OpenTarget]]:
    """Open what is to be measured, what the others are compared with first.

    Args:
        bundles: Bundle folders.
        against: Another bundle, or the model that the bundles were made from: a `.onnx` file; or a `.pt2` file or a
            factory, which then runs as the ONNX graph that `export` makes of it.
        runtimes: Names of runtimes; every bundle is opened in each.
        num_threads: Threads inside one operator; None lets the runtime choose.

    Yields:
        The targets, all open.

    Raises:
        ICISDeployError: If one cannot be opened.
    """
    is_bundle = against is not None and os.path.isdir(against)  # noqa: PTH112 - a name that is too long is none
    folders = [Path(against), *bundles] if is_bundle and against is not None else list(bundles)
    targets = []
    with tempfile.TemporaryDirectory() as name:
        for runtime in runtimes:
            for folder, called in zip(folders, names_of_bundles(folders), strict=True):
                full_name = called if len(runtimes) == 1 else f"{called} in {runtime}"
                chosen = Runtime(name=runtime, num_threads=num_threads)
                targets.append(open_bundle(folder, name=full_name, runtime=chosen))
        if against is not None and not is_bundle:  # last, as it may take minutes, and a runtime may be missing
            path = onnx_file(against, Path(name))
            targets.insert(0, open_original(path, like=load_manifest(folders[0]), num_threads=num_threads))
        check_same_base(targets)
        yield targets


def onnx_file(spec: str, folder: Path) -> Path:
    """Return a model as a `.onnx` file, written to a folder unless it is one.

    Raises:
        ICISDeployError: If it cannot be loaded or written; the workbench's extras are needed unless it is one.
    """
    if Path(spec).suffix == ".onnx":
        return Path(spec)
    from exporters.loading.models import load_model
    from exporters.onnx_io.files import save_model

    path = folder / "original.onnx"
    save_model(load_model(spec).model, path)
    return path


def run_bench(
    targets: Sequence[OpenTarget],
    *,
    preset: Preset,
    batch_sizes: Sequence[int],
    settings: Mapping[str, object],
    inputs: LabeledInputs | None = None,
    scenarios: Sequence[ScenarioName | Literal["class-swap"]] = (),
    logs: Path | None = None,
    max_seen_loss: float | None = None,
    progress: Progress = lambda _: None,
) -> Result:
    """Measure targets.

    Args:
        targets: What to measure; the others are compared with the first.
        preset: How much.
        batch_sizes: Images in a query, each measured apart.
        settings: What the command was asked for, to be kept in the result.
        inputs: What accuracy is measured on; None leaves it out.
        scenarios: Loads under which every target is run.
        logs: Where the load generator's logs are kept; None discards them.
        max_seen_loss: How much of the accuracy on seen classes new ones may cost, fraction of 1; None for what the
            updates of each bundle state.
        progress: Called with what is measured next, in words.

    Raises:
        RuntimeFailureError: If a target fails.
        UsageError: If a batch does not fit into memory, or classes are to be swapped and there are no slots.
        ImageError, IncompatibleError: If the inputs do not fit the targets.
        MissingDependencyError: If there are scenarios, but LoadGen is not installed.
    """
    check_batches_fit(targets, batch_sizes)
    if CLASS_SWAP in scenarios and not any(target.capacity for target in targets):
        raise UsageError(
            "class-swap is for bundles with slots, and none was given.",
            hint="Export one with `head='updatable'`.",
        )
    if set(scenarios) - {CLASS_SWAP}:
        import_loadgen()  # before minutes are spent on the rest
    environment = read_environment()
    progress("accuracy and parity")
    accuracy, parity = measure_correctness(targets, inputs, max_seen_loss=max_seen_loss)
    measured = [start_target(target, preset.num_starts, progress) for target in targets]
    runs = tuple(measure_batch(targets, batch_size, preset, progress) for batch_size in batch_sizes)
    return Result(
        command="bench",
        created=json_from_time(datetime.now(timezone.utc)),
        settings=settings,
        environment=environment,
        targets=with_correctness(measured, accuracy, parity),
        runs=runs,
        phases=measure_all_phases(targets, batch_sizes),
        head_shares=head_shares(targets, runs),
        scenarios=tuple(run_scenarios(targets, scenarios, preset, logs, progress)),
    )


def check_batches_fit(targets: Sequence[OpenTarget], batch_sizes: Sequence[int]) -> None:
    """Check that the inputs of the largest batch fit into memory, before the system ends the process for it.

    Raises:
        UsageError: If they do not.
    """
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for target in targets:
        image_bytes = math.prod(target.model_input.shape) * np.dtype(target.model_input.dtype).itemsize
        if NUM_INPUTS * max(batch_sizes) * image_bytes > memory_bytes:
            raise UsageError(
                f"{NUM_INPUTS} batches of {max(batch_sizes)} images for {target.name!r} are "
                f"{NUM_INPUTS * max(batch_sizes) * image_bytes / 1e9:,.0f} GB; this machine has "
                f"{memory_bytes / 1e9:.0f} GB of memory.",
                found=NUM_INPUTS * max(batch_sizes) * image_bytes,
                expected=memory_bytes,
                hint="Give a smaller one in `batch_sizes`.",
            )


def run_scenarios(
    targets: Sequence[OpenTarget],
    scenarios: Sequence[ScenarioName | Literal["class-swap"]],
    preset: Preset,
    logs: Path | None,
    progress: Progress,
) -> Iterator[Scenario]:
    """Yield what every target did under every load; class-swap is for updatable bundles alone."""
    for scenario in scenarios:
        for target in targets:
            progress(f"{scenario}: {target.name}")
            if scenario != CLASS_SWAP:
                yield run_scenario(target, scenario, min_duration_s=preset.scenario_s, logs=logs)
            elif target.capacity and target.bundle is not None:
                report = measure_class_swap(
                    target.bundle,
                    seconds=preset.scenario_s,
                    num_new_classes=min(NUM_SWAPPED, target.capacity),
                    runtime=Runtime(name=target.runtime, num_threads=target.num_threads),
                )
                yield scenario_from_swap(report, target=target.name)


def measure_correctness(
    targets: Sequence[OpenTarget], inputs: LabeledInputs | None, *, max_seen_loss: float | None = None
) -> tuple[dict[str, Accuracy], dict[str, Parity]]:
    """Return accuracy and parity by the targets' names; without inputs, parity alone."""
    if inputs is None:
        seeded = logits_on_seeded_inputs(targets)
        return correctness_of(targets, seeded, labels=None, num_inputs=NUM_SEEDED_INPUTS, source="seeded noise")
    labeled = inputs.labeled
    keys: Iterable[str] = ()
    if isinstance(labeled, HeadFeatures):
        batches, labels = logits_on_features(targets, labeled), labeled.labels
    else:
        batches, labels = logits_on_inputs(targets, labeled), labels_of(labeled)
        keys = (item.key for item in labeled)
    return correctness_of(
        targets,
        batches,
        labels=labels,
        num_inputs=len(labels),
        source=inputs.source,
        keys=keys,
        max_seen_loss=max_seen_loss,
    )


def with_correctness(
    measured: Sequence[Target], accuracy: Mapping[str, Accuracy], parity: Mapping[str, Parity]
) -> tuple[Target, ...]:
    """Return targets with their accuracy and parity, where they have any."""
    return tuple(
        replace(each, accuracy=accuracy.get(each.name), parity=(parity[each.name],) if each.name in parity else ())
        for each in measured
    )


def start_target(target: OpenTarget, num_starts: int, progress: Progress) -> Target:
    """Return what is known of a target, and what it costs to start it."""
    progress(f"{target.name}: start in a fresh process")
    try:
        startup = measure_startup(
            target.name, target.factory, target.arguments, files=target.files, num_runs=num_starts
        )
    except ICISDeployError as error:
        return replace(describe(target), missing={"startup": str(error)})
    return replace(describe(target), startup=startup)


def describe(target: OpenTarget) -> Target:
    """Return what is known of a target before anything is measured."""
    return Target(
        name=target.name,
        head_kind=target.head_kind,
        precision=target.precision,
        runtime=target.runtime,
        provider=target.provider,
        num_threads=target.num_threads,
        num_classes=len(target.class_names),
        num_seen=target.num_seen,
        capacity=target.capacity,
        size_bytes=target.size_bytes,
        startup=None,
        accuracy=None,
        parity=(),
        add_classes=None,
        missing={},
    )


def measure_batch(targets: Sequence[OpenTarget], batch_size: int, preset: Preset, progress: Progress) -> BatchRun:
    """Measure all targets in turn with one batch size."""
    progress(f"batch {batch_size}: {len(targets)} targets in turn")
    plan = Plan(num_queries=num_queries_needed(preset.percent), budget_s=preset.budget_s * len(targets))
    calls = {target.name: query_of(target, batch_size) for target in targets}
    return BatchRun(batch_size=batch_size, measurement=measure(calls, further_pairs=slot_pairs(targets), plan=plan))


def slot_pairs(targets: Sequence[OpenTarget]) -> list[tuple[str, str]]:
    """Return each updatable target with the first fused one that differs from it in the kind of head alone."""

    def kind(target: OpenTarget) -> tuple[object, ...]:
        return target.precision, target.runtime, target.provider, target.class_names

    fused = {kind(target): target.name for target in reversed(targets) if target.head_kind == "fused"}
    updatable = [target for target in targets if target.head_kind == "updatable"]
    return [(target.name, fused[kind(target)]) for target in updatable if kind(target) in fused]


def measure_all_phases(targets: Sequence[OpenTarget], batch_sizes: Sequence[int]) -> tuple[Phases, ...]:
    """Return where the time goes on a device with memory of its own, for every target that runs on one."""
    return tuple(
        target.phases(noise(target.model_input, batch_size))
        for target in targets
        for batch_size in batch_sizes
        if target.phases is not None
    )


def query_of(target: OpenTarget, batch_size: int) -> Call:
    """Return a callable that answers one batch after the other."""
    inputs = [np.ascontiguousarray(noise(target.model_input, batch_size, seed=seed)) for seed in range(NUM_INPUTS)]
    return calls_over(target.answer, inputs)


def labeled_inputs(given: PythonInputs, against: str | None) -> LabeledInputs:
    """Read what accuracy is measured on, and for features the rows of the original head.

    Args:
        given: As `load_labeled`.
        against: The model that the bundles were made from, which features need.

    Raises:
        UsageError: If there are features, but no model to take the seen rows from.
        ICISDeployError: If something cannot be read.
    """
    from benchmarks.bench.labeled_inputs import load_labeled

    loaded = load_labeled(given)
    source = source_of(loaded, Path(given).name if isinstance(given, str | Path) else "values in Python")
    if not isinstance(loaded, LabeledFeatures):
        return LabeledInputs(labeled=loaded, source=source)
    rows = original_rows(Path(given), against)
    labeled = HeadFeatures(features=loaded.features, labels=loaded.labels, seen_rows=rows)
    return LabeledInputs(labeled=labeled, source=source)


def original_rows(path: Path, against: str | None) -> NDArray[np.float32]:
    """Return the rows of the model that bundles were made from, `(num_seen, feature_dim + 1)`."""
    if against is None or os.path.isdir(against):  # noqa: PTH112 - a name that is too long is none
        raise UsageError(
            f"{path} holds features, which are multiplied with the rows of the head, and no model was given to take "
            f"them from.",
            where=path,
            hint="Give the model that the bundles were made from as `against`.",
        )
    from exporters.head.finding import find_head, read_head
    from exporters.loading.models import load_model

    model = load_model(against).model
    location = find_head(model)
    return read_head(model, location, tuple(str(index) for index in range(location.num_classes))).rows
