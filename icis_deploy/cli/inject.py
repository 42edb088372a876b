"""`icis-deploy inject`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.options import EXISTING_FILE, NEW_PATH, classes_option, model_options, model_source
from icis_deploy.cli.output import format_option, print_result, training_progress


@click.command(short_help="Predict rows of unseen classes; write a class update.")
@click.argument("model")
@classes_option(required=True)
@click.option(
    "--descriptors", type=EXISTING_FILE, required=True, help="Class descriptors: .npz, .csv or att_splits.mat."
)
@click.option(
    "--unseen",
    type=EXISTING_FILE,
    help="The classes to inject, one a line. Default: every described class that the head lacks.",
)
@click.option(
    "--method", type=click.Choice(["icis"]), default="icis", show_default=True, help="How rows are predicted."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed, the same rows.")
@click.option("--out", type=NEW_PATH, required=True, help="The class update to write, such as new.icis.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@model_options
@format_option
def inject(
    model: str,
    classes: Path,
    descriptors: Path,
    unseen: Path | None,
    method: str,
    seed: int,
    out: Path,
    overwrite: bool,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
) -> None:
    """Predict rows of unseen classes from their descriptors, and write them as a class update.

    No image is used: the rows come from the descriptors and the rows of the classes that MODEL knows.
    """
    from icis_deploy.envelope import save_update
    from icis_deploy.files import check_free
    from icis_deploy.pipeline import inject as inject_classes

    check_free(out, overwrite=overwrite)
    with training_progress(f"Training {method}") as progress:
        update = inject_classes(
            model_source(model, weights, input_shape, head_node),
            classes=classes,
            descriptors=descriptors,
            unseen=unseen,
            method=method,
            seed=seed,
            progress=progress,
        )
    save_update(update, out)
    result = {
        "update": str(out),
        "num_added": len(update.added),
        "feature_dim": update.feature_dim,
        "base_fingerprint": update.base_fingerprint,
        "provenance": dict(update.provenance),
    }
    text = (
        f"{out}: {len(update.added)} classes for the head {update.base_fingerprint[:16]}…, by {method}, seed {seed}.\n"
        f"Next: icis-deploy export {model} --classes {classes} --update {out} --head fused --out bundle"
    )
    print_result(result, text=text)
