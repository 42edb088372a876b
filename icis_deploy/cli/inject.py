"""`icis-deploy inject`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import (
    EXISTING_FILE,
    NEW_PATH,
    calibration_options,
    check_output,
    classes_option,
    model_arguments,
    model_options,
    model_source,
    photo_options,
    points_as_fraction,
    refuse_given,
    seed_option,
)
from icis_deploy.cli.output import (
    curve_table,
    format_option,
    print_result,
    training_progress,
    without_library_warnings,
)
from icis_deploy.cli.parameter_types import Choice
from icis_deploy.common.terminal_text import columns, percent, points_text

if TYPE_CHECKING:
    from icis_deploy.head.class_update import ClassUpdate

METHOD_NAMES = (
    "auto",
    "icis",
    "icis-centred",
    "ridge",
    "nearest",
    "mean",
    "mixture",
    "costa",
    "wavg",
    "ensemble",
)
"""Those of `icis_deploy.injection.predictors.registry`, which is not imported for --help; a test compares them."""

NUM_SHOWN = 5
"""Classes of low confidence, and collisions, that the summary names; the update holds more."""


@click.command(short_help="Predict rows of unseen classes; write a class update.")
@click.argument("model")
@classes_option
@click.option("--descriptors", type=EXISTING_FILE, help="Class descriptors: .npz, .csv or att_splits.mat.")
@click.option(
    "--unseen",
    type=EXISTING_FILE,
    help="The classes to inject, one a line. Default: all described or shown classes that the head lacks.",
)
@photo_options
@click.option(
    "--preprocess",
    type=EXISTING_FILE,
    help="How images are prepared, JSON; for images, or the neutral ones that set the scale of features.",
)
@click.option(
    "--method",
    type=Choice(METHOD_NAMES),
    default="auto",
    show_default=True,
    help="How rows are predicted; auto compares methods on classes that the model knows.",
)
@click.option(
    "--calibration",
    type=Choice(["auto", "length", "none"]),
    default="auto",
    show_default=True,
    help="How rows are brought to compete with the seen ones: auto, by mean length only, or as predicted.",
)
@calibration_options
@seed_option
@click.option("--strict", is_flag=True, help="Write nothing and exit with 1 if there is reason to doubt the rows.")
@click.option("--out", type=NEW_PATH, required=True, help="The class update to write, such as new.icis.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@model_options
@format_option
def inject(
    model: str,
    classes: Path | None,
    out: Path,
    overwrite: bool,
    method: str,
    calibration: str,
    max_seen_loss: float | None,
    balance: float | None,
    seen_images: Path | None,
    photos: Path | None,
    skip_unreadable: bool,
    arbiter: str,
    seen_accuracy: float | None,
    seed: int,
    preprocess: Path | None,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
    **given: Any,
) -> None:
    """Predict rows of unseen classes from their descriptors, and write them as a class update.

    The rows come from the descriptors and the rows of the classes that MODEL knows; no image of a new class is needed.
    A few of them in --photos move the rows, more so the more there are, and may stand in for descriptors.
    These lose at most --max-seen-loss points of their accuracy; with --seen-images, some of their own images say how
    far new classes may be favoured for that. What to expect is estimated on known classes that play new ones.
    """
    from icis_deploy.api.inject import inject as inject_classes
    from icis_deploy.injection.options import InjectionOptions
    from icis_deploy.updates.envelope import save_update

    check_output(out, overwrite=overwrite)
    if "auto" not in (method, calibration):
        reason = "it guides what is chosen, and --method and --calibration leave no choice. Let one of them be auto."
        refuse_given("balance", "seen_accuracy", reason=reason)
    if calibration != "auto":
        reason = "only --calibration auto keeps a budget of seen accuracy. Leave --calibration out."
        refuse_given("max_seen_loss", "seen_images", "arbiter", reason=reason)
    source = model_source(model, weights, input_shape, head_node)
    options = InjectionOptions(
        method=method,
        calibration=calibration,
        max_seen_loss=points_as_fraction(max_seen_loss),
        balance=balance,
        arbiter=arbiter,
        seen_images=seen_images,
        photos=photos,
        skip_unreadable=skip_unreadable,
        seen_accuracy=seen_accuracy,
        seed=seed,
    )
    with without_library_warnings(), training_progress("Training") as progress:
        update = inject_classes(
            source, classes=classes, options=options, preprocess=preprocess, progress=progress, **given
        )
    save_update(update, out)
    _print(
        out, update, _next_command(model_arguments(model, weights, input_shape, head_node), classes, out, preprocess)
    )


def _print(out: Path, update: ClassUpdate, next_command: str) -> None:
    provenance = dict(update.provenance)
    result = {
        "update": str(out),
        "num_added": len(update.added),
        "feature_dim": update.feature_dim,
        "base_fingerprint": update.base_fingerprint,
        "provenance": provenance,
    }
    count = len(update.added)
    text = (
        f"{out}: {count} class{'es' * (count != 1)} for the head {update.base_fingerprint[:16]}…, "
        f"by {provenance['method']}, seed {provenance['seed']}.\n{summary(provenance)}"
        f"Next: {next_command}"
    )
    print_result(result, text=text, after_change=True)


def _next_command(model: Sequence[str], classes: Path | None, update: Path, preprocess: Path | None) -> str:
    """Return the command that puts an update into a bundle, as a shell takes it."""
    files = (("--classes", classes), ("--update", update), ("--preprocess", preprocess))
    options = [part for name, path in files if path is not None for part in (name, str(path))]
    return shlex.join(["icis-deploy", "export", *model, *options, "--head", "fused", "--out", "bundle"])


def summary(provenance: Mapping[str, Any]) -> str:
    """Return what was chosen, what is predicted and which classes may fail, in lines for people."""
    from icis_deploy.injection.blocks import BlockWeight, weights_text

    lines = []
    if (photos := provenance.get("photos")) is not None:
        lines += photo_lines(photos)
    if len(provenance["blocks"]) > 1:
        lines.append(weights_text([BlockWeight(**block) for block in provenance["blocks"]]))
    if provenance["selection"] is not None:
        lines.append(provenance["selection"]["reason"])
    estimate = provenance["estimate"]
    if estimate is not None:
        num_images = provenance["selection"]["num_images"]
        source = f"from {num_images} images of known classes" if num_images else "without an image"
        lines.append(f"Predicted {source}, with 90 % intervals:")
        rows = [(name, percent(estimate[name]["value"]), _interval(estimate[name])) for name in ("T", "U", "S", "H")]
        lines += [columns(rows, right=[1]), estimate["limit"]]
        least_confident = list(estimate["confidence"].items())[:NUM_SHOWN]
        lines.append(
            "Least likely to be recognised: " + ", ".join(f"{name} ({percent(p)})" for name, p in least_confident)
        )
        lines += [f"Collision: {one['message']}" for one in estimate["collisions"][:NUM_SHOWN]]
    if provenance["curve"]:
        lines += ["What new classes get for what seen ones lose:", curve_table(provenance["curve"])]
    commands = all_commands()
    if provenance["budget"] is not None:
        budget = provenance["budget"]
        lines.append(f"Budget {points_text(budget['max_seen_loss'])}. {command_line_hint(budget['message'], commands)}")
    if provenance["arbiter"]["reason"] is not None:
        lines.append(provenance["arbiter"]["reason"])
    lines += [f"Warning: {command_line_hint(message, commands)}" for message in provenance["warnings"]]
    return "".join(f"{line}\n" for line in lines)


def photo_lines(photos: Mapping[str, Any]) -> list[str]:
    """Return how many photos moved the rows, and what they stand in for."""
    counts, absent = photos["num_photos"], photos["without_descriptor"]
    total = sum(counts.values())
    few = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:NUM_SHOWN])
    more = f", and {len(counts) - NUM_SHOWN} more" if len(counts) > NUM_SHOWN else ""
    of_classes = f"{len(counts)} new {'class' if len(counts) == 1 else 'classes'}"
    lines = [f"{total} {'photo' if total == 1 else 'photos'} of {of_classes}: {few}{more}. {photos['reason']}"]
    if absent:
        more = f", and {len(absent) - NUM_SHOWN} more" if len(absent) > NUM_SHOWN else ""
        lines.append(f"Without a descriptor, from photos alone: {', '.join(absent[:NUM_SHOWN])}{more}.")
    if photos["is_estimate_from_descriptors"]:
        lines.append("The predictions below are of the descriptors alone; photos are expected to raise them.")
    return lines


def _interval(value: Mapping[str, float]) -> str:
    return f"{percent(value['low'])} to {percent(value['high'])}"
