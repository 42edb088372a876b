"""`icis-deploy evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import (
    BUNDLE,
    EXISTING_FILE,
    INPUTS,
    NEW_PATH,
    check_output,
    check_png,
    max_seen_loss_option,
    runtime_option,
)
from icis_deploy.cli.output import counting_progress, format_option, note, noted_warnings, print_result
from icis_deploy.cli.parameter_types import Choice
from icis_deploy.common.terminal_text import MAX_SHOWN, columns, percent, printable
from icis_deploy.errors import SeenLossError

if TYPE_CHECKING:
    from icis_deploy.metrics.accuracy import AccuracyReport

MEANINGS = {
    "T": "images of unseen classes, choosing among the unseen classes",
    "U": "images of unseen classes, choosing among all classes",
    "S": "images of seen classes, choosing among all classes",
    "H": "harmonic mean of U and S",
    "S_original": "images of seen classes, the original model",
}
NUM_NAMED = 5
"""As many classes as the text names."""


@click.command(short_help="Measure accuracy on seen and unseen classes.")
@click.argument("bundle", type=BUNDLE)
@click.option(
    "--images",
    type=INPUTS,
    required=True,
    help="Labelled inputs: file,class CSV, folder of class folders, .tar, .parquet, arrays with classes; path or URI.",
)
@click.option(
    "--unseen", type=EXISTING_FILE, help="Classes that count as unseen, one a line. Default: those that were injected."
)
@max_seen_loss_option("Exit with 1 if new classes cost the seen ones more points of accuracy, with 95 % confidence.")
@click.option("--per-class", type=NEW_PATH, help="Write a CSV with a line for each class here.")
@click.option("--curve", type=NEW_PATH, help="Draw S against U here, a .png.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that read images and run the model. Default: cores."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a thread runs at once. Default: 2-16; GPU: 32.")
@click.option(
    "--on-error",
    type=Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do with an image that cannot be read.",
)
@click.option(
    "--engine",
    type=Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Threads of this process, or actors of a Ray cluster.",
)
@click.option("--address", help="Of the Ray cluster: auto for one that runs. Default: one on this machine.")
@click.option(
    "--reduced-decode", is_flag=True, help="Decode large JPEG files at a part of their size. Faster; changes pixels."
)
@click.option("--checkpoint", type=NEW_PATH, help="Keep outcomes in this folder, and go on with what it holds.")
@runtime_option
@format_option
def evaluate(
    bundle: Path,
    images: Path | str,
    unseen: Path | None,
    max_seen_loss: float | None,
    per_class: Path | None,
    curve: Path | None,
    workers: int | None,
    batch_size: int | None,
    on_error: Literal["stop", "skip"],
    engine: Literal["local", "ray"],
    address: str | None,
    reduced_decode: bool,
    checkpoint: Path | None,
    runtime: str,
) -> None:
    """Measure the accuracy of BUNDLE on labelled images, seen and unseen classes apart.

    Every number is a macro average: the mean of the classes' own accuracies.
    """
    from icis_deploy.api.evaluate import EvaluateOptions, save_class_table
    from icis_deploy.api.evaluate import evaluate as evaluate_bundle
    from icis_deploy.api.evaluate_plot import save_curve_plot

    for path in (per_class, curve):
        if path is not None:
            # What an earlier run wrote is replaced, as a pipeline runs again and again; what this one reads is not.
            check_output(path, overwrite=True)
    if curve is not None:
        check_png(curve)
    failure = None
    try:
        with noted_warnings(), counting_progress("Evaluating") as progress:
            report = evaluate_bundle(
                bundle,
                images=images,
                unseen=unseen,
                runtime=runtime,
                max_seen_loss=max_seen_loss,
                options=EvaluateOptions(
                    workers=workers,
                    batch_size=batch_size,
                    on_error=on_error,
                    checkpoint=checkpoint,
                    engine=engine,
                    address=address,
                    reduced_decode=reduced_decode,
                ),
                progress=progress,
            )
    except SeenLossError as error:
        if error.report is None:
            raise
        report = error.report
        failure = f"{error.what} {command_line_hint(error.hint or '', all_commands(), command='evaluate')}".rstrip()
    if per_class is not None:
        save_class_table(per_class, report)
    if curve is not None:
        save_curve_plot(curve, report)
    result = {"bundle": str(bundle), "runtime": runtime, **accuracy_result(report)}
    print_result(
        result,
        text=accuracy_text(report),
        status="ok" if failure is None else "failed",
        after_change=per_class is not None or curve is not None,
    )
    if failure is not None:
        # The report is already on stdout, so the exit code says the rest.
        note(f"Error: {failure}")
        raise click.exceptions.Exit(SeenLossError.exit_code)


def accuracy_result(report: AccuracyReport) -> dict[str, object]:
    """Return an accuracy report's JSON keys: five fractions of 1, and the counts behind them."""
    values = report.to_json()
    return {"accuracy": {name: values.pop(name) for name in MEANINGS}, "details": values}


def accuracy_text(report: AccuracyReport) -> str:
    """Return an accuracy report for people: what the seen classes keep and the new ones give comes first."""
    blocks = [
        "\n".join(_headlines(report)),
        _figures(report),
        _budgets(report),
        "\n".join(_classes(report)),
        "\n".join(_skipped(report)),
        "JPEG files were decoded at a part of their size: a device answers on other pixels."
        if report.reduced_decode
        else "",
    ]
    return "\n\n".join(block for block in blocks if block)


def _headlines(report: AccuracyReport) -> Iterator[str]:
    from icis_deploy.metrics.seen_loss import points_lost

    loss = report.seen_loss
    if loss is not None:
        lost = points_lost(loss.before, loss.after)
        interval = f"95 % interval {100 * loss.interval.low:.1f} to {100 * loss.interval.high:.1f}"
        yield (
            f"The old classes keep {100 * loss.after:.1f} of {100 * loss.before:.1f} %: {lost} points "
            f"are lost to new ones ({interval}), {loss.num_lost} of {loss.num_images} images."
        )
        if loss.max_seen_loss is not None:
            said = {"within": "within", "over": "over", "cannot tell": "not shown to be over"}[loss.verdict or "within"]
            yield f"That is {said} the {100 * loss.max_seen_loss:.4g} that are allowed."
    if report.U is not None:
        top5 = report.top5.get("U")
        more = "" if top5 is None else f", {100 * top5:.1f} % among the first five"
        yield f"The new classes give {100 * report.U:.1f} %{more}."


def _figures(report: AccuracyReport) -> str:
    rows = [["", "top-1", "95 % interval", "top-5", ""]]
    for name, meaning in {**MEANINGS, "AUSUC": "area under the curve of S against U"}.items():
        interval = report.intervals.get(name)
        shown = "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
        top5 = report.top5.get(name)
        rows.append([name, percent(getattr(report, name)), shown, "" if top5 is None else percent(top5), meaning])
    return columns(rows, right=[1, 2, 3])


def _budgets(report: AccuracyReport) -> str:
    if not report.budget_points or report.S is None or report.U is None:
        return ""
    from icis_deploy.metrics.seen_loss import points_lost

    before = report.curve[0].S if report.S_original is None else report.S_original
    top5 = report.top5.get("U")
    rows = [
        ["S lost, at most", *(f"{100 * point.max_seen_loss:.4g}" for point in report.budget_points), "as exported"],
        ["S lost", *(points_lost(before, each) for each in (*(p.S for p in report.budget_points), report.S))],
        ["U", *(percent(each) for each in (*(p.U for p in report.budget_points), report.U))],
    ]
    if top5 is not None:
        rows.append(["U, top-5", *(percent(each) for each in (*(p.U_top5 for p in report.budget_points), top5))])
    note = "  with the best number added to all new logits, as these images show it"
    return f"{columns(rows, right=range(1, len(rows[0])))}\n{note}"


def _classes(report: AccuracyReport) -> Iterator[str]:
    loss = report.seen_loss
    if loss is not None and loss.losing:
        losing = ", ".join(
            f"{each.name} {each.num_lost} of {each.num_images} to {each.taken_by[0].name}"
            for each in loss.losing[:NUM_NAMED]
        )
        taking = ", ".join(f"{each.name} {each.num_taken}" for each in loss.taking[:NUM_NAMED])
        yield f"Lose most: {losing}."
        yield f"Take most: {taking}."
    yield (
        f"{report.num_seen_images} images of seen and {report.num_unseen_images} of unseen classes; "
        f"{report.num_seen_taken_for_unseen} seen taken for unseen, {report.num_unseen_taken_for_seen} unseen for seen."
    )


def _skipped(report: AccuracyReport) -> Iterator[str]:
    if not report.skipped:
        return
    yield f"Left out, as they could not be read: {len(report.skipped)} images"
    for each in report.skipped[:NUM_NAMED]:
        yield f"  {printable(each.reason, max_length=MAX_SHOWN)}"
    if len(report.skipped) > NUM_NAMED:
        yield "  All of them are named with --format json."
