"""What the commands that benchmark share: options, progress, and the result's file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from icis_deploy.cli.options import NEW_PATH
from icis_deploy.cli.output import print_result

if TYPE_CHECKING:
    from benchmarks.results import Result

Command = Callable[..., None]


def out_options(function: Command) -> Command:
    """Add `--out` and `--overwrite`; `check_out` must come before anything is measured."""
    overwrite = click.option("--overwrite", is_flag=True, help="Replace the file at --out if there is one.")
    return click.option("--out", type=NEW_PATH, help="Write the result here, as JSON.")(overwrite(function))


def check_out(out: Path | None, *, overwrite: bool) -> None:
    """Refuse a place for the result that is taken or cannot be, before minutes are spent on measuring.

    Raises:
        UsageError: If it is taken, or its folder is not there.
    """
    from icis_deploy.errors import UsageError
    from icis_deploy.files import check_free

    if out is not None:
        check_free(out, overwrite=overwrite)
        if not out.absolute().parent.is_dir():
            raise UsageError(
                f"There is no folder {out.absolute().parent} for the result. Create it, or choose another."
            )


def batch_sizes(text: str) -> list[int]:
    """Return the batch sizes of `1,8,32`.

    Raises:
        UsageError: If it is something else.
    """
    from icis_deploy.errors import UsageError

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch is {text!r}; expected whole numbers from 1 on with commas between, such as 1,8,32.")
    return sorted({int(part) for part in parts})


@contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Give a callback that shows on stderr what is measured next; silent where nobody watches a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("opening") as status:
        yield status.update


def finish(result: Result, *, out: Path | None, status: str = "ok") -> None:
    """Write a result to its file, if one was asked for, and print it."""
    from benchmarks.json_values import json_from_value
    from benchmarks.result_text import text_of
    from benchmarks.results import save_result

    text = text_of(result)
    if out is not None:
        save_result(result, out)
        text += f"\n\nwritten to {out}"
    print_result({"result": json_from_value(result)}, text=text, status=status)
