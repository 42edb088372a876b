"""`icis-deploy run` and `icis-deploy init`: a project in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.bench_options import show_progress
from icis_deploy.cli.hints import all_commands, project_file_hint
from icis_deploy.cli.options import EXISTING_FILE, NEW_PATH, classes_option, model_options, model_source
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.common.terminal_text import columns

if TYPE_CHECKING:
    from icis_deploy.project.running import StepOutcome


@click.command("run", short_help="Do all steps of a project file that have to be done.")
@click.argument("project", type=EXISTING_FILE, default="project.yaml", required=False)
@click.option("--dry-run", is_flag=True, help="Say what would be done and why; do and write nothing.")
@format_option
def run_project(project: Path, dry_run: bool) -> None:
    """Do the steps of PROJECT: describe, inject, export, verify, evaluate, bench, report. Default: project.yaml.

    A step is left out where its inputs, settings and outputs are what they were when it was finished, by their content.
    So a run that was stopped goes on where it was. `icis-deploy init` writes such a file.
    """
    from icis_deploy.project.file import load_project
    from icis_deploy.project.running import run_project as do_steps

    read = load_project(project)
    finished: list[StepOutcome] = []
    with show_progress() as progress:
        do_steps(
            read,
            dry_run=dry_run,
            on_start=lambda name, reason: note(f"{name}: {reason}"),
            on_outcome=finished.append,
            say=progress,
        )
    result = {"project": str(project), "out": str(read.out), "dry_run": dry_run, "steps": list(map(_step, finished))}
    is_changed = any(each.state == "done" for each in finished)
    print_result(result, text=_text(finished), after_change=is_changed)


def _step(outcome: StepOutcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "state": outcome.state,
        "reason": outcome.reason,
        "outputs": [str(path) for path in outcome.outputs],
        "result": dict(outcome.result),
        "warnings": [project_file_hint(each, all_commands()) for each in outcome.warnings],
        "seconds": outcome.seconds,
    }


def _text(outcomes: list[StepOutcome]) -> str:
    rows = [
        (
            each.name,
            each.state,
            "" if each.seconds is None else f"{each.seconds:.1f} s",
            str(each.outputs[0]),
            str(each.result.get("text", each.reason)),
        )
        for each in outcomes
    ]
    warnings = [
        f"Warning: {each.name}: {project_file_hint(message, all_commands())}"
        for each in outcomes
        for message in each.warnings
    ]
    return "\n".join([columns(rows, right=[2]), *warnings])


@click.command(short_help="Write a project file for a model.")
@click.argument("model")
@classes_option
@click.option("--out", type=NEW_PATH, default="project.yaml", show_default=True, help="The file to write.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@model_options
@format_option
def init(
    model: str,
    classes: Path | None,
    out: Path,
    overwrite: bool,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
) -> None:
    """Write a project file for MODEL, with what `icis-deploy inspect` finds in it; `icis-deploy run` takes it."""
    from icis_deploy.api.models import inspect
    from icis_deploy.cli.project_text import project_text
    from icis_deploy.common.files import check_free, write_file

    check_free(out, overwrite=overwrite)
    source = model_source(model, weights, input_shape, head_node)
    opened = inspect(source, classes=classes)
    write_file(out, project_text(opened, source, classes=classes, folder=out.absolute().parent).encode())
    found = f"{opened.location.num_classes} classes, {opened.location.feature_dim} features"
    print_result(
        {"project": str(out), "num_classes": opened.location.num_classes, "obstacle": opened.obstacle},
        text=f"{out}: a project for {model}, {found}. Read it, and then: icis-deploy run {out} --dry-run",
        after_change=True,
    )
