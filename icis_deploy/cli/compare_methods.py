"""`icis-deploy compare-methods`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.inject import METHOD_NAMES
from icis_deploy.cli.options import (
    EXISTING_FILE,
    NEW_PATH,
    calibration_options,
    check_output,
    check_png,
    classes_option,
    described_classes_options,
    model_options,
    model_source,
    points_as_fraction,
    refuse_given,
    seed_option,
)
from icis_deploy.cli.output import format_option, note, print_result, without_library_warnings
from icis_deploy.cli.parameter_types import Choice
from icis_deploy.common.terminal_text import columns, percent, points_text

if TYPE_CHECKING:
    from icis_deploy.api.compare import ComparedMethod


@click.command("compare-methods", short_help="Compare all methods of inject, with or without images.")
@click.argument("model")
@classes_option
@described_classes_options
@click.option("--method", "methods", type=Choice(METHOD_NAMES), multiple=True, help="What to compare. Default: all.")
@calibration_options
@click.option(
    "--images",
    type=EXISTING_FILE,
    help="Labelled inputs to measure on: CSV with the columns file and class, or a file of arrays.",
)
@seed_option
@click.option("--plot", type=NEW_PATH, help="PNG to draw the comparison to.")
@click.option("--overwrite", is_flag=True, help="Replace a plot that is there.")
@model_options
@format_option
def compare_methods(
    model: str,
    methods: tuple[str, ...],
    max_seen_loss: float | None,
    balance: float | None,
    seen_images: Path | None,
    arbiter: str,
    seen_accuracy: float | None,
    seed: int,
    plot: Path | None,
    overwrite: bool,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
    **files: Any,
) -> None:
    """Predict rows with every method, calibrate each, and compare their accuracy.

    It is predicted by cross-validation on classes that MODEL knows, without an image or with --seen-images. With
    --images it is also measured; they are used only after all rows are final.
    """
    from icis_deploy.api.compare import ComparisonOptions
    from icis_deploy.api.compare import compare_methods as compare

    if plot is None:
        refuse_given("overwrite", reason="no plot is drawn. Give --plot, or leave it out.")
    else:
        check_png(plot)
        check_output(plot, overwrite=overwrite)
    options = ComparisonOptions(
        methods=methods or METHOD_NAMES,
        max_seen_loss=points_as_fraction(max_seen_loss),
        balance=balance,
        arbiter=arbiter,
        seen_images=seen_images,
        seen_accuracy=seen_accuracy,
        seed=seed,
    )
    with without_library_warnings():
        compared = compare(
            model_source(model, weights, input_shape, head_node),
            options=options,
            on_method=lambda name: note(f"Trying {name}"),
            **files,
        )
    if plot is not None:
        from icis_deploy.api.compare_plot import save_comparison_plot

        save_comparison_plot(plot, compared)
    result = {"methods": [one.to_json() for one in compared]}
    print_result(result, text=comparison_text(compared), after_change=plot is not None)


def comparison_text(compared: Sequence[ComparedMethod]) -> str:
    """Return a table of the methods; predicted accuracies first, then measured ones where there are any."""
    names = ("T", "U", "S", "H")
    has_images = compared[0].measured is not None
    rows = [["method", *(f"predicted {name}" for name in names), *(names if has_images else ()), "seconds"]]
    for one in compared:
        name = one.name if one.name == one.method else f"{one.name} ({one.method})"
        predicted = [percent(getattr(one.estimate, key).value) for key in names]
        measured = [percent(getattr(one.measured, key)) for key in names] if has_images else []
        rows.append([name, *predicted, *measured, f"{one.train_s:.1f}"])
    lines = [columns(rows, right=range(1, len(rows[0])))]
    if compared[0].curve:
        lines += ["Predicted U for what seen classes lose, and U with the right class among the five first:"]
        lines += [_curves(compared)]
    lines.append(compared[0].estimate.limit)
    messages = dict.fromkeys(message for one in compared for message in one.warnings)
    commands = all_commands()
    lines += [f"Warning: {command_line_hint(message, commands)}" for message in messages]
    return "\n".join(lines)


def _curves(compared: Sequence[ComparedMethod]) -> str:
    """Return a table of the methods' curves."""
    losses = [point.loss for point in compared[0].curve]
    rows = [["method", *(points_text(loss) for loss in losses), *(f"five, {100 * loss:g}" for loss in losses)]]
    for one in compared:
        points = {point.loss: point for point in one.curve}
        known = [points.get(loss) for loss in losses]
        first = ["-" if point is None else percent(point.U) for point in known]
        rows.append([one.name, *first, *("-" if point is None else percent(point.U_top5) for point in known)])
    return columns(rows, right=range(1, len(rows[0])))
