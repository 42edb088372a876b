"""`icis-deploy bench-scale`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.bench_options import check_out, finish, numbers, out_options, show_progress
from icis_deploy.cli.options import THREADS
from icis_deploy.cli.output import format_option

POSITIVE = click.IntRange(min=1)


@click.command("bench-scale", short_help="Measure heads of 1,000 to 100,000 classes against the memory's roofline.")
@click.option(
    "--classes", default="1000,10000,21000,100000", show_default=True, metavar="N,N", help="Classes of each head."
)
@click.option("--features", type=POSITIVE, default=1280, show_default=True, help="Width of a feature.")
@click.option("--capacity", type=POSITIVE, default=256, show_default=True, help="Slots of the updatable head.")
@click.option("--batch", type=POSITIVE, default=1, show_default=True, help="Images in a query.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of the runtime.")
@out_options
@format_option
def bench_scale(
    classes: str, features: int, capacity: int, batch: int, threads: int, out: Path | None, overwrite: bool
) -> None:
    """Measure latency and memory of heads alone, fused and updatable, against their number of classes.

    For comparison: the time that reading all rows takes at the memory bandwidth measured on this machine.
    """
    check_out(out, overwrite=overwrite)
    sizes = numbers("--classes", classes)
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.bench.scale import HeadSettings, measure_scale

    with show_progress() as progress:
        settings = HeadSettings(feature_dim=features, capacity=capacity, batch_size=batch, num_threads=threads)
        result = measure_scale(sizes, settings, progress=progress)
    finish(result, out=out)
