"""`icis-deploy bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from icis_deploy.api.bench import CLASS_SWAP, LOADGEN_SCENARIOS, PRESET_NAMES, SCENARIO_NAMES, BenchOptions, PresetName
from icis_deploy.api.bench import bench as measure
from icis_deploy.cli.bench_options import (
    check_out,
    finish,
    fraction,
    numbers,
    out_options,
    show_progress,
)
from icis_deploy.cli.options import (
    BUNDLE,
    EXISTING_FILE,
    INPUTS,
    NEW_PATH,
    THREADS,
    max_seen_loss_option,
    refuse_given,
)
from icis_deploy.cli.output import format_option
from icis_deploy.cli.parameter_types import Choice, Number
from icis_deploy.errors import UsageError
from icis_deploy.runtime.sessions.choice import RUNTIME_NAMES


@click.command(short_help="Measure bundles: latency, memory, accuracy, parity.")
@click.argument("bundles", metavar="BUNDLE...", type=BUNDLE, nargs=-1, required=True)
@click.option("--against", metavar="BUNDLE|MODEL", help="What all are compared with: a bundle, or the original model.")
@click.option(
    "--preset",
    type=Choice(PRESET_NAMES),
    default="normal",
    show_default=True,
    help="How much is measured: enough queries for p90, p99 or p99.9.",
)
@click.option(
    "--seconds",
    type=Number(min=0, min_open=True),
    help="Measure a target and batch size for so long at most, where the preset's time is too short for a verdict.",
)
@click.option("--batch", default="1", show_default=True, metavar="N,N", help="Images in a query; each is measured.")
@click.option("--threads", type=THREADS, help="Threads inside one operator. Default: the runtime's.")
@click.option(
    "--runtime",
    "runtimes",
    type=Choice(RUNTIME_NAMES),
    multiple=True,
    default=RUNTIME_NAMES[:1],
    show_default=True,
    help="What runs the bundles. Repeatable.",
)
@click.option(
    "--images",
    type=INPUTS,
    help="What accuracy is measured on: inputs in any form of `evaluate`, path or URI, or a file of features.",
)
@click.option(
    "--scenario",
    "scenarios",
    type=Choice(SCENARIO_NAMES),
    multiple=True,
    help="A load besides the rest: MLPerf LoadGen's, or predictions while classes change. Repeatable.",
)
@click.option("--logs", type=NEW_PATH, help="Folder in which LoadGen's own logs are kept.")
@click.option("--baseline", type=EXISTING_FILE, help="An earlier result: exit with 1 if this one is worse.")
@click.option(
    "--max-regression",
    default="5%",
    show_default=True,
    callback=fraction,
    help="How much worse than the baseline is allowed.",
)
@max_seen_loss_option(
    "Points of seen accuracy that new classes may cost; with --baseline, exit with 1 if they cost more, with 95 % "
    "confidence, whatever they cost in the baseline. Default: what the updates state, and more than in the baseline."
)
@click.option("--any-machine", is_flag=True, help="Compare with a baseline of another machine.")
@out_options
@format_option
def bench(
    bundles: tuple[Path, ...],
    against: str | None,
    preset: PresetName,
    seconds: float | None,
    batch: str,
    threads: int | None,
    runtimes: tuple[str, ...],
    images: Path | str | None,
    scenarios: tuple[Any, ...],
    logs: Path | None,
    baseline: Path | None,
    max_regression: float,
    max_seen_loss: float | None,
    any_machine: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure every BUNDLE on this machine, in turn, against the first or against another.

    Latency with intervals and a verdict, throughput, start, memory and size; accuracy and parity in the same run.
    """
    check_out(out, overwrite=overwrite)
    _check_options(baseline, scenarios, logs)
    options = BenchOptions(
        preset=preset,
        max_seconds=seconds,
        batch_sizes=numbers("--batch", batch),
        runtimes=runtimes,
        num_threads=threads,
        scenarios=scenarios,
        logs=logs,
        max_seen_loss=max_seen_loss,
    )
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.results.result import load_result

    earlier = None if baseline is None else load_result(baseline)
    with show_progress() as progress:
        result = measure(
            bundles,
            against=against,
            images=images,
            options=options,
            baseline=earlier,
            any_machine=any_machine,
            progress=progress,
        )
    finish(
        result,
        out=out,
        baseline=earlier,
        max_regression=max_regression,
        any_machine=any_machine,
        max_seen_loss=max_seen_loss,
    )


def _check_options(baseline: Path | None, scenarios: Sequence[str], logs: Path | None) -> None:
    """Refuse what would do nothing, or fail, before minutes are spent on measuring.

    Raises:
        UsageError: If there is such an option.
    """
    if baseline is None:
        reason = "nothing is compared. Give --baseline, or leave them out."
        refuse_given("max_regression", "max_seen_loss", "any_machine", reason=reason)
    if not set(scenarios) - {CLASS_SWAP}:
        reason = f"no load of LoadGen is run. Give --scenario {LOADGEN_SCENARIOS[0]} or another, or leave it out."
        refuse_given("logs", reason=reason)
    elif logs is not None and logs.exists() and not logs.is_dir():
        raise UsageError(
            f"{logs} is a file; --logs names the folder in which LoadGen's logs are kept.",
            hint="Name a folder, or a path at which there is nothing.",
        )
