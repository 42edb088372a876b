"""`icis-deploy export-generator`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.inject import METHOD_NAMES
from icis_deploy.cli.options import (
    NEW_PATH,
    calibration_options,
    classes_option,
    described_classes_options,
    model_options,
    model_source,
    points_as_fraction,
    seed_option,
)
from icis_deploy.cli.output import format_option, library_warnings, print_result, training_progress
from icis_deploy.cli.parameter_types import Choice
from icis_deploy.common.terminal_text import columns

if TYPE_CHECKING:
    from exporters.generator.writing import WrittenGenerator


@click.command("export-generator", short_help="Write what makes rows, for devices that are taught classes.")
@click.argument("model")
@classes_option
@described_classes_options
@click.option(
    "--method",
    type=Choice([name for name in METHOD_NAMES if name != "mixture"]),
    default="auto",
    show_default=True,
    help="How rows are predicted, as for inject.",
)
@calibration_options
@seed_option
@click.option(
    "--precision",
    type=Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16: matrices in half the size.",
)
@click.option("--out", type=NEW_PATH, required=True, help="The generator to write, such as generator.onnx.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@model_options
@format_option
def export_generator(
    model: str,
    precision: str,
    out: Path,
    overwrite: bool,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
    method: str,
    max_seen_loss: float | None,
    balance: float | None,
    seen_images: Path | None,
    arbiter: str,
    seen_accuracy: float | None,
    seed: int,
    preprocess: Path | None,
    **files: Any,
) -> None:
    """Train what inject trains, and write it as an ONNX model from descriptors to rows.

    It is kept only if it makes the same rows. `icis-deploy export --generator` puts it into a bundle, and
    `icis-deploy teach` then makes a class of a descriptor on the device.
    """
    from icis_deploy.api.generator import GeneratorOptions
    from icis_deploy.api.generator import export_generator as write
    from icis_deploy.injection.options import InjectionOptions

    options = InjectionOptions(
        method=method,
        max_seen_loss=points_as_fraction(max_seen_loss),
        balance=balance,
        arbiter=arbiter,
        seen_images=seen_images,
        seen_accuracy=seen_accuracy,
        seed=seed,
    )
    with library_warnings() as messages, training_progress("Training") as progress:
        written = write(
            model_source(model, weights, input_shape, head_node),
            options=GeneratorOptions(injection=options, preprocess=preprocess, precision=precision),
            out=out,
            overwrite=overwrite,
            progress=progress,
            **files,
        )
    _print(out, precision, written, messages)


def _print(out: Path, precision: str, written: WrittenGenerator, messages: Sequence[str]) -> None:
    metadata = written.metadata
    result = {
        "generator": str(out),
        "method": metadata.method,
        "precision": precision,
        "base_fingerprint": metadata.base_fingerprint,
        "descriptor_dim": metadata.descriptor_dim,
        "feature_dim": metadata.feature_dim,
        "size_bytes": written.size_bytes,
        "max_row_error": written.max_row_error,
        "num_compared": written.num_compared,
        "warnings": list(messages),
    }
    rows = [
        ("generator", f"{out}, {written.size_bytes / 1e6:.1f} MB, {precision}"),
        ("method", metadata.method),
        ("head", f"{metadata.base_fingerprint[:16]}…"),
        ("descriptor", f"{metadata.descriptor_dim} numbers"),
        (
            "rows",
            f"at most {written.max_row_error:.1e} of their length off inject's, on {written.num_compared} descriptors",
        ),
    ]
    commands = all_commands()
    warned = [f"Warning: {command_line_hint(message, commands)}" for message in messages]
    print_result(result, text="\n".join([columns(rows), *warned]), after_change=True)
