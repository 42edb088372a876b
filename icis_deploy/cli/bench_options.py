"""What the commands that benchmark share: options, progress, and the result's file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from icis_deploy.cli.options import NEW_PATH, check_output, refuse_given
from icis_deploy.cli.output import note, print_result
from icis_deploy.common.terminal_text import percent

if TYPE_CHECKING:
    from benchmarks.results.result import Result

Command = Callable[..., None]


def out_options(function: Command) -> Command:
    """Add `--out` and `--overwrite`; `check_out` must come before anything is measured."""
    overwrite = click.option("--overwrite", is_flag=True, help="Replace the file at --out if there is one.")
    return click.option("--out", type=NEW_PATH, help="Write the result here, as JSON.")(overwrite(function))


def check_out(out: Path | None, *, overwrite: bool) -> None:
    """Refuse a path for the result that exists or cannot be written, before minutes are spent on measuring.

    Raises:
        UsageError: If it exists and may not be replaced, its folder does not exist, or there is nothing to overwrite.
    """
    if out is None:
        refuse_given("overwrite", reason="no result is written. Give --out, or leave it out.")
    else:
        check_output(out, overwrite=overwrite, added_to="baseline")


def numbers(option: str, text: str) -> list[int]:
    """Return the numbers of `1,8,32`, ascending, each once.

    Raises:
        UsageError: If it is something else.
    """
    from icis_deploy.errors import UsageError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} is {text!r}; expected whole numbers from 1 on with commas between, such as 1,8,32.")
    return sorted({int(part) for part in parts})


@contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Give a callback that shows on stderr what is measured next; silent unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("opening") as status:
        yield status.update


def fraction(_context: click.Context, parameter: click.Parameter, value: str) -> float:
    """Return `5%` or `0.05` as 0.05; a click callback."""
    text = value.strip()
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf") or (found > 1 and not text.endswith("%")):  # 5 is rather 5% than 500%
        raise click.BadParameter(f"{value!r} is no fraction; expected something such as 5% or 0.05.", param=parameter)
    return found


def finish(
    result: Result,
    *,
    out: Path | None,
    baseline: Result | None = None,
    max_regression: float = 0.0,
    any_machine: bool = False,
    max_seen_loss: float | None = None,
) -> None:
    """Write a result to its file, if one was asked for, and print it; exit with 1 if it is worse than the baseline.

    Raises:
        StorageError: If the file cannot be written.
        IncompatibleError: If the two cannot be compared; the result is written all the same.
    """
    from benchmarks.bench.regression import find_regressions
    from benchmarks.results.json_values import json_from_value
    from benchmarks.results.result import save_result
    from benchmarks.results.text import text_of
    from icis_deploy.errors import RegressionError

    values, text = {"result": json_from_value(result)}, text_of(result)
    if out is not None:
        save_result(result, out)
        text += f"\n\nwritten to {out}"
    if baseline is None:
        print_result(values, text=text, after_change=out is not None)
        return
    found = find_regressions(
        result, baseline, max_regression=max_regression, any_machine=any_machine, max_seen_loss=max_seen_loss
    )
    verdict = "\n".join(each.text for each in found) or f"Nothing is more than {percent(max_regression)} worse."
    values["regressions"] = [json_from_value(each) for each in found]
    status = "failed" if found else "ok"
    print_result(values, text=f"{text}\n\n{verdict}", status=status, after_change=out is not None)
    if found:
        # What became worse is already on stdout, so the exit code says the rest.
        figures = "1 figure is" if len(found) == 1 else f"{len(found)} figures are"
        note(
            f"Error: {figures} more than {percent(max_regression)} worse. If the machine was not quiet, measure again; "
            "what is meant to be so is allowed with --max-regression, or by a new baseline."
        )
        raise click.exceptions.Exit(RegressionError.exit_code)
