"""`icis-deploy bench-fit`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.inject import METHOD_NAMES
from icis_deploy.cli.options import (
    EXISTING_FILE,
    classes_option,
    described_classes_options,
    model_options,
    model_source,
)
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.cli.parameter_types import Choice, Seed


@click.command("bench-fit", short_help="Time the prediction of rows against the published recipe.")
@click.argument("model")
@classes_option
@described_classes_options
@click.option("--images", type=EXISTING_FILE, help="Image list to measure on: CSV with the columns file and class.")
@click.option(
    "--method",
    "methods",
    type=Choice(METHOD_NAMES),
    multiple=True,
    default=("icis", "ridge", "auto"),
    show_default=True,
    help="What to time.",
)
@click.option(
    "--published-epochs",
    type=click.IntRange(min=1),
    help="Epochs of the published recipe to its stop, from an earlier run. Default: train it to its stop, for minutes.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=8, show_default=True, help="8 or more give an interval.")
@click.option("--seed", type=Seed(), default=0, show_default=True, help="Of everything drawn at random.")
@model_options
@format_option
def bench_fit(
    model: str,
    classes: Path | None,
    descriptors: Path,
    unseen: Path | None,
    preprocess: Path | None,
    images: Path | None,
    methods: tuple[str, ...],
    published_epochs: int | None,
    rounds: int,
    seed: int,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
) -> None:
    """Time every step from MODEL, opened, to calibrated rows, and the published recipe run to its own stop.

    Everything is measured in turn in one process, a few epochs of the published recipe in each round.
    """
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.results.json_values import json_from_value
    from benchmarks.zero_shot.fit import load_problem, measure_fit, text_of

    problem = load_problem(
        model_source(model, weights, input_shape, head_node),
        classes=classes,
        descriptors=descriptors,
        unseen=unseen,
        preprocess=preprocess,
        images=images,
    )
    report = measure_fit(
        problem,
        methods=methods,
        published_epochs=published_epochs,
        num_rounds=rounds,
        seed=seed,
        on_step=note,
    )
    print_result(json_from_value(report), text=text_of(report))
