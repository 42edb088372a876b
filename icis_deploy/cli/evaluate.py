"""`icis-deploy evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, runtime_option
from icis_deploy.cli.output import format_option, print_result
from icis_deploy.common.terminal_text import columns, percent

if TYPE_CHECKING:
    from icis_deploy.metrics.accuracy import AccuracyReport

MEANINGS = {
    "T": "images of unseen classes, choosing among the unseen classes",
    "U": "images of unseen classes, choosing among all classes",
    "S": "images of seen classes, choosing among all classes",
    "H": "harmonic mean of U and S",
    "S_original": "images of seen classes, the original model",
}


@click.command(short_help="Measure accuracy on seen and unseen classes.")
@click.argument("bundle", type=BUNDLE)
@click.option("--images", type=EXISTING_FILE, required=True, help="Image list: CSV with the columns file and class.")
@click.option(
    "--unseen", type=EXISTING_FILE, help="Classes that count as unseen, one a line. Default: those that were injected."
)
@runtime_option
@format_option
def evaluate(bundle: Path, images: Path, unseen: Path | None, runtime: str) -> None:
    """Measure the accuracy of BUNDLE on labelled images, seen and unseen classes apart.

    Every number is a macro average: the mean of the classes' own top-1 accuracies.
    """
    from icis_deploy.api.evaluate import evaluate as evaluate_bundle

    report = evaluate_bundle(bundle, images=images, unseen=unseen, runtime=runtime)
    print_result({"bundle": str(bundle), "runtime": runtime, **accuracy_result(report)}, text=accuracy_text(report))


def accuracy_result(report: AccuracyReport) -> dict[str, object]:
    """Return an accuracy report's JSON keys: five fractions of 1, and the counts behind them."""
    values = report.to_json()
    return {"accuracy": {name: values.pop(name) for name in MEANINGS}, "details": values}


def accuracy_text(report: AccuracyReport) -> str:
    """Return an accuracy report for people."""
    rows = [(name, percent(getattr(report, name)), meaning) for name, meaning in MEANINGS.items()]
    counts = (
        f"{report.num_seen_images} images of seen and {report.num_unseen_images} of unseen classes; "
        f"{report.num_seen_taken_for_unseen} seen taken for unseen, {report.num_unseen_taken_for_seen} unseen for seen."
    )
    return f"{columns(rows, right=[1])}\n{counts}"
