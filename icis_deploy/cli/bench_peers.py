"""`icis-deploy bench-peers`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.api.bench import PRESET_NAMES
from icis_deploy.cli.bench_options import check_out, finish, numbers, out_options, show_progress
from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, THREADS
from icis_deploy.cli.output import format_option
from icis_deploy.cli.parameter_types import Choice


@click.command("bench-peers", short_help="Measure bundles against PyTorch, OpenVINO, re-export and ConSE.")
@click.argument("bundles", metavar="BUNDLE...", type=BUNDLE, nargs=-1, required=True)
@click.option("--against", "model", type=EXISTING_FILE, required=True, help="The original model: .pt2 or .onnx.")
@click.option("--descriptors", type=EXISTING_FILE, help="Of every class: also measures ConSE, which needs no rows.")
@click.option("--images", type=EXISTING_FILE, help="What accuracy is measured on: a CSV with file,class.")
@click.option(
    "--preset",
    type=Choice(PRESET_NAMES),
    default="normal",
    show_default=True,
    help="How much is measured: enough queries for p90, p99 or p99.9.",
)
@click.option("--batch", default="1", show_default=True, metavar="N,N", help="Images in a query; each is measured.")
@click.option("--threads", type=THREADS, help="Threads of every runtime. Default: each one's own.")
@out_options
@format_option
def bench_peers(
    bundles: tuple[Path, ...],
    model: Path,
    descriptors: Path | None,
    images: Path | None,
    preset: str,
    batch: str,
    threads: int | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure every BUNDLE against the other ways to give a model the same classes.

    PyTorch eager and compiled, OpenVINO, an export by torch, and ConSE: latency, accuracy, and the time to add 50
    classes. A way that cannot run here is left out with its reason.
    """
    check_out(out, overwrite=overwrite)
    sizes = numbers("--batch", batch)
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from benchmarks.bench.bench import PRESETS, labeled_inputs
    from benchmarks.peers.peers import measure_peers
    from icis_deploy.descriptors.files import load_descriptors

    with show_progress() as progress:
        result = measure_peers(
            bundles,
            model=model,
            descriptors=None if descriptors is None else load_descriptors(descriptors),
            inputs=None if images is None else labeled_inputs(images, str(model)),
            preset=PRESETS[preset],
            batch_sizes=sizes,
            num_threads=threads,
            progress=progress,
        )
    finish(result, out=out)
