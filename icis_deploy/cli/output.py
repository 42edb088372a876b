"""What a command prints: results on stdout as text or JSON, everything else on stderr.

A JSON result is one object: `schema_version`, `command`, `status` (`ok`, `failed` for a negative verdict, `error`), and
the command's own keys. Text is for people and may change; JSON only changes with `schema_version`.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from icis_deploy.common.terminal_text import columns, percent, points_text, printable

SCHEMA_VERSION = 1


def format_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--format text|json` to a command; the choice is kept in the context for `print_result`."""
    return click.option(
        "--format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        expose_value=False,
        callback=_remember,
        # Before all others, so that a wrong option is already reported in the format that was asked for.
        is_eager=True,
        help="How results are printed on stdout.",
    )(function)


def _remember(context: click.Context, _parameter: click.Parameter, value: str) -> None:
    context.find_root().ensure_object(dict)["format"] = value


def is_json(context: click.Context | None = None) -> bool:
    """Say whether the running command was asked for JSON."""
    root = (context or click.get_current_context()).find_root()
    return bool(root.obj and root.obj.get("format") == "json")


def print_result(result: Mapping[str, Any], *, text: str, status: str = "ok") -> None:
    """Print a command's result in the format that was asked for.

    Args:
        result: The command's own JSON keys.
        text: The same for people.
        status: `ok` or `failed`.
    """
    context = click.get_current_context()
    if is_json(context):
        click.echo(json_result(str(context.info_name), status, result))
    else:
        click.echo(visible_lines(text))


def visible_lines(text: str) -> str:
    """Return text of several lines as a terminal may show it, whatever names are in it; see `printable`."""
    return "\n".join([printable(line) for line in text.split("\n")])


def json_result(command: str, status: str, result: Mapping[str, Any]) -> str:
    """Return one JSON object for stdout; what a terminal would obey is written as the escape that JSON has for it."""
    values = {"schema_version": SCHEMA_VERSION, "command": command, "status": status, **result}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else json.dumps(char)[1:-1] for char in text])


def plain_value(value: object) -> Any:
    """Return a value that an error carries as JSON may hold it: what JSON has no form for becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    return str(value)


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Keep the library's warnings from stderr, for commands that print them with their result."""
    from icis_deploy.errors import ICISDeployWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ICISDeployWarning)
        yield


@contextmanager
def library_warnings() -> Iterator[list[str]]:
    """Collect the library's warnings, for commands whose result does not carry them; others stay as they are.

    Yields:
        The messages, in the order in which they come.
    """
    from icis_deploy.errors import ICISDeployWarning

    messages: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", ICISDeployWarning)
        show = warnings.showwarning

        def collect(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, ICISDeployWarning):
                messages.append(str(message))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = collect
        yield messages


def curve_table(curve: Sequence[Mapping[str, float]]) -> str:
    """Return what to expect at several losses of seen accuracy, as a table for people.

    Args:
        curve: JSON values of `CurvePoint`.
    """
    rows = [["seen classes lose", "U", "U, five first"]]
    rows += [[points_text(one["loss"]), percent(one["U"]), percent(one["U_top5"])] for one in curve]
    return columns(rows, right=[1, 2])


@contextmanager
def training_progress(description: str) -> Iterator[Callable[[int, float], None] | None]:
    """Give a callback that shows epoch and loss on stderr, or `None` unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=None, epoch=0, loss=float("nan"))

        def show(epoch: int, loss: float) -> None:
            bar.update(task, epoch=epoch, loss=loss)

        yield show
