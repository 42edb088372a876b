"""`icis-deploy bench`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.bench_options import batch_sizes, check_out, finish, out_options, show_progress
from icis_deploy.cli.options import BUNDLE
from icis_deploy.cli.output import format_option
from icis_deploy.runtime.runtimes import RUNTIME_NAMES


@click.command(short_help="Measure bundles: latency, memory, accuracy, parity.")
@click.argument("bundles", metavar="BUNDLE...", type=BUNDLE, nargs=-1, required=True)
@click.option("--against", metavar="BUNDLE|MODEL", help="What all are compared with: a bundle, or the original model.")
@click.option(
    "--preset",
    type=click.Choice(["quick", "normal", "submission"]),
    default="normal",
    show_default=True,
    help="How much is measured: enough queries for p90, p99 or p99.9.",
)
@click.option("--batch", default="1", show_default=True, metavar="N,N", help="Images in a query; each is measured.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator. Default: the runtime's.")
@click.option(
    "--runtime", "runtimes", type=click.Choice(RUNTIME_NAMES), multiple=True, help="Default: onnxruntime. Repeatable."
)
@click.option(
    "--images",
    type=click.Path(exists=True, path_type=Path),
    help="What accuracy is measured on: file,class CSV, folder of class folders, or features (.npz, .safetensors).",
)
@out_options
@format_option
def bench(
    bundles: tuple[Path, ...],
    against: str | None,
    preset: str,
    batch: str,
    threads: int | None,
    runtimes: tuple[str, ...],
    images: Path | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure every BUNDLE on this machine, in turn, against the first or against another.

    Latency with intervals and a verdict, throughput, start, memory and size; accuracy and parity in the same run.
    """
    check_out(out, overwrite=overwrite)
    sizes = batch_sizes(batch)
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.bench import PRESETS, labeled_inputs, open_targets, run_bench

    settings = {"preset": preset, "batch_sizes": sizes, "num_threads": threads, "against": against}
    inputs = None if images is None else labeled_inputs(images, against)
    with (
        show_progress() as progress,
        open_targets(bundles, against=against, runtimes=runtimes or ("onnxruntime",), num_threads=threads) as targets,
    ):
        result = run_bench(
            targets,
            preset=PRESETS[preset],
            batch_sizes=sizes,
            settings=settings,
            inputs=inputs,
            progress=progress,
        )
    finish(result, out=out)
