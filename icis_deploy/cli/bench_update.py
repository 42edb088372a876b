"""`icis-deploy bench-update`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.bench_options import check_out, out_options
from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, THREADS, refuse_given
from icis_deploy.cli.output import format_option, print_result
from icis_deploy.cli.parameter_types import Number


@click.command("bench-update", short_help="Time class updates against the other ways to change a head.")
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
@click.option(
    "--class-swap",
    is_flag=True,
    help="Instead: let 4 threads predict for --seconds while classes change 10 times a second.",
)
@click.option(
    "--seconds",
    type=Number(min=1),
    default=30.0,
    show_default=True,
    help="How long classes change in --class-swap; it takes three times as long.",
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of the runtime.")
@out_options
@format_option
def bench_update(
    bundle: Path,
    model: Path | None,
    num_classes: int,
    num_updates: int,
    class_swap: bool,
    seconds: float,
    threads: int,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure the time from a class update's file to the first answer with it, on a copy of BUNDLE.

    Beside it, in turn: a new session with replaced slots, a LoRA adapter of ONNX Runtime, and exporting again. The
    parts of the class update are listed; each way's answers are compared with the others'. With --class-swap, the exit
    code is 1 if an answer was torn, dropped or wrongly labelled.
    """
    check_out(out, overwrite=overwrite)
    if class_swap:
        refuse_given("model", "num_updates", reason="--class-swap times no other ways. Leave them out.")
    else:
        refuse_given("seconds", reason="it is for --class-swap; --updates says how much is measured.")
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    if class_swap:
        _measure_class_swap(bundle, num_classes=num_classes, seconds=seconds, threads=threads, out=out)
        return
    from benchmarks.updates.update_latency import measure_update, text_of

    report = measure_update(
        bundle, original=model, num_new_classes=num_classes, num_updates=num_updates, num_threads=threads
    )
    if out is not None:
        from benchmarks.results.result import save_result
        from benchmarks.updates.reports import result_from_update

        save_result(result_from_update(report, num_threads=threads), out)
    print_result({"bundle": str(bundle), **report.to_json()}, text=text_of(report), after_change=out is not None)


def _measure_class_swap(bundle: Path, *, num_classes: int, seconds: float, threads: int, out: Path | None) -> None:
    from benchmarks.results.result import save_result
    from benchmarks.updates.class_swap import measure_class_swap
    from benchmarks.updates.reports import result_from_swap, text_of
    from icis_deploy.runtime.sessions.choice import Runtime

    report = measure_class_swap(
        bundle, seconds=seconds, num_new_classes=num_classes, runtime=Runtime(num_threads=threads)
    )
    if out is not None:
        save_result(result_from_swap(report, target=bundle.name, num_threads=threads), out)
    status = "ok" if report.is_clean else "failed"
    print_result(
        {"bundle": str(bundle), **report.to_json()}, text=text_of(report), status=status, after_change=out is not None
    )
    if not report.is_clean:
        click.get_current_context().exit(1)
