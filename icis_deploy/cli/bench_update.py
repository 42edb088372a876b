"""`icis-deploy bench-update`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE
from icis_deploy.cli.output import format_option, print_result


@click.command("bench-update", short_help="Time class updates beside the other ways to change a head.")
@click.argument("bundle", type=BUNDLE)
@click.option("--against", "model", type=EXISTING_FILE, help="The original model: also times exporting it again.")
@click.option(
    "--classes", "num_classes", type=click.IntRange(min=1), default=50, show_default=True, help="New classes."
)
@click.option(
    "--updates",
    "num_updates",
    type=click.IntRange(min=1),
    default=700,
    show_default=True,
    help="662 or more give a p99.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the runtime.")
@format_option
def bench_update(bundle: Path, model: Path | None, num_classes: int, num_updates: int, threads: int) -> None:
    """Measure the time from a class update's file to the first answer with it, on a copy of BUNDLE.

    Beside it, in turn: a new session with replaced slots, a LoRA adapter of ONNX Runtime, and exporting again. The
    parts of the class update are listed; each way's answers are compared with the others'.
    """
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.update import measure_update, text_of

    report = measure_update(
        bundle, original=model, num_new_classes=num_classes, num_updates=num_updates, num_threads=threads
    )
    print_result({"bundle": str(bundle), **report.to_json()}, text=text_of(report))
