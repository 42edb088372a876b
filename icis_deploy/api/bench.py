"""Measure bundles on this machine: latency, throughput, start, memory, size, accuracy and parity, in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from icis_deploy.api.inputs import check_max_seen_loss, options_from
from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_callable, check_choice, check_flag, check_number, items, whole_number
from icis_deploy.errors import UsageError
from icis_deploy.images.python_values import PythonInputs
from icis_deploy.runtime.sessions.choice import RUNTIME_NAMES
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from benchmarks.results.result import Result
    from icis_deploy.api.inputs import PathLike

PresetName = Literal["quick", "normal", "submission"]
ScenarioName = Literal["single-stream", "multi-stream", "server", "offline", "class-swap"]
PRESET_NAMES: tuple[PresetName, ...] = ("quick", "normal", "submission")
CLASS_SWAP: Literal["class-swap"] = "class-swap"
LOADGEN_SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "server", "offline")
SCENARIO_NAMES: tuple[ScenarioName, ...] = (*LOADGEN_SCENARIOS, CLASS_SWAP)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What a benchmark measures, and for how long.

    Example:
        options = icis_deploy.BenchOptions(preset="quick", batch_sizes=(1, 8), num_threads=2)
        icis_deploy.bench(["fused", "updatable"], options=options)

    Raises:
        UsageError: On construction, if there is no such preset, runtime or scenario, or a number is not positive.
    """

    preset: PresetName = "normal"
    """How many queries are measured: enough for p90 (`quick`), p99 (`normal`) or p99.9 (`submission`)."""

    max_seconds: float | None = None
    """Time for one target and one batch size; `None` for the preset's."""

    batch_sizes: Sequence[int] = (1,)
    """Images in a query; each size is measured, in ascending order."""

    runtimes: Sequence[str] = RUNTIME_NAMES[:1]
    """What runs the bundles; each runtime is measured once."""

    num_threads: int | None = None
    """Threads inside one operator; `None` for the runtime's default."""

    scenarios: Sequence[ScenarioName] = ()
    """Loads that bundles are also put under: MLPerf LoadGen's, and `class-swap`: predictions while classes change."""

    logs: PathLike | None = None
    """Folder in which LoadGen's own logs are kept; `None` discards them."""

    max_seen_loss: float | None = None
    """How much of the accuracy on seen classes new ones may cost, fraction of 1: more is a regression; `None` for what
    the updates of each bundle were made for."""

    def __post_init__(self) -> None:
        sizes = (
            whole_number(each, name="batch_sizes") for each in items(self.batch_sizes, "sizes", name="batch_sizes")
        )
        object.__setattr__(self, "batch_sizes", tuple(sorted(set(sizes))))
        check_choice(self.preset, PRESET_NAMES, what="preset", name="preset")
        for what, known in (("runtime", RUNTIME_NAMES), ("scenario", SCENARIO_NAMES)):
            given = items(getattr(self, f"{what}s"), f"names of {what}s", name=f"{what}s")
            for each in given:
                check_choice(each, known, what=what, name=f"{what}s")
            object.__setattr__(self, f"{what}s", tuple(dict.fromkeys(given)))
        if not self.batch_sizes or self.batch_sizes[0] < 1:
            raise UsageError(
                f"The batch sizes are {self.batch_sizes}; expected at least one, each of 1 or more images.",
                found=self.batch_sizes,
                expected="at least one size, each at least 1",
            )
        check_max_seen_loss(self.max_seen_loss)
        for what, name in (("seconds", "max_seconds"), ("threads", "num_threads")):
            number = getattr(self, name)
            if number is None:
                continue
            check_number(number, name=name)
            if not 0 < number < float("inf"):
                raise UsageError(
                    f"{number} {what} were asked for; expected a positive number.",
                    found=number,
                    expected="a positive number",
                    hint=f"Give another `{name}`.",
                )
        if self.num_threads is not None:
            object.__setattr__(self, "num_threads", whole_number(self.num_threads, name="num_threads"))
        if self.logs is not None:
            object.__setattr__(self, "logs", path_from(self.logs, name="logs"))


def bench(
    bundles: Sequence[PathLike],
    *,
    against: PathLike | None = None,
    images: PythonInputs | None = None,
    options: BenchOptions | None = None,
    baseline: Result | PathLike | None = None,
    any_machine: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Measure bundles in turn, compared with the first one or with another.

    Args:
        bundles: The bundles' folders.
        against: What all are compared with: another bundle, or the original model as in `inspect`.
        images: What accuracy is measured on: labelled inputs in any form of `evaluate`, or a file of features (`.npz`,
            `.safetensors`). Without, parity is measured on seeded inputs.
        options: What is measured, and for how long; `BenchOptions()` by default.
        baseline: An earlier result, or its file, with which this one is to be compared: refused before anything is
            measured if it cannot be. `icis_deploy.results.find_regressions` then compares the two.
        any_machine: Whether the baseline may be of another machine.
        progress: Called with what is measured next, in words.

    Example:
        result = icis_deploy.bench(["fused", "updatable"], against="model.onnx", images="images.csv")
        icis_deploy.results.save_result(result, "result.json")

    Raises:
        UsageError: If there is no bundle, something does not go together, or a batch does not fit into memory.
        IncompatibleError: If the bundles, the inputs or the baseline do not go together.
        MissingDependencyError: If a runtime is not there, or LoadGen for a scenario.
        ICISDeployError: If something cannot be read or run.
    """
    enable_workbench()
    from benchmarks.bench.bench import PRESETS, labeled_inputs, open_targets, run_bench
    from benchmarks.bench.regression import check_comparable
    from benchmarks.machine.environment import read_environment
    from benchmarks.results.result import Result, load_result

    folders = [path_from(each, name="bundles") for each in items(bundles, "bundles", name="bundles")]
    check_callable(progress, name="progress")
    check_flag(any_machine, name="any_machine")
    if not folders:
        raise UsageError("There is no bundle to measure.", found=0, expected="at least 1", hint="Give at least one.")
    earlier = (
        baseline
        if baseline is None or isinstance(baseline, Result)
        else load_result(path_from(baseline, name="baseline"))
    )
    options = options_from(options, BenchOptions)
    preset, model = PRESETS[options.preset], None if against is None else str(path_from(against, name="against"))
    preset = preset if options.max_seconds is None else replace(preset, budget_s=options.max_seconds)
    inputs = None if images is None else labeled_inputs(images, model)
    sizes = options.batch_sizes
    opened = open_targets(folders, against=model, runtimes=options.runtimes, num_threads=options.num_threads)
    with opened as targets:
        if earlier is not None:
            sources = {} if inputs is None else dict.fromkeys((target.name for target in targets), inputs.source)
            check_comparable(earlier, read_environment(), targets, sizes, sources, any_machine=any_machine)
        return run_bench(
            targets,
            preset=preset,
            batch_sizes=sizes,
            settings={
                "preset": options.preset,
                "seconds": preset.budget_s,
                "num_threads": options.num_threads,
                "against": None if model is None else Path(model).name,
            },
            inputs=inputs,
            scenarios=options.scenarios,
            logs=None if options.logs is None else Path(options.logs),
            max_seen_loss=options.max_seen_loss,
            progress=progress or (lambda _what: None),
        )
