"""What a command prints: results on stdout as text or JSON, everything else on stderr.

A JSON result is one object: `schema_version`, `command`, `status` (`ok`, `failed` for a negative verdict, `error`), and
the command's own keys. Text is for people and may change; JSON only changes with `schema_version`.

Rules for output that cannot be written, because the disk is full, the pipe's reader has left or the stream is closed:

1. A command that has changed something keeps its verdict: the change is in, whoever could not read of it.
2. A command that only reads has failed, with exit code 4; where the reader has left, as `head` does, silently with 141,
   as if the signal had ended it.
3. stderr is for people who watch: what it does not take is lost, and nothing else changes.
"""

# Why: docs/decisions/0079.

from __future__ import annotations

import errno
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.parameter_types import Choice
from icis_deploy.common.terminal_text import called_inputs, columns, percent, points_text, printable
from icis_deploy.errors import RuntimeFailureError

SCHEMA_VERSION = 1
BROKEN_PIPE = 141
"""Exit code of a process that SIGPIPE ends, by the rules of shells."""


def format_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--format text|json` to a command; the choice is kept in the context for `print_result`."""
    return click.option(
        "--format",
        type=Choice(["text", "json"]),
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


def print_result(result: Mapping[str, Any], *, text: str, status: str = "ok", after_change: bool = False) -> None:
    """Print a command's result in the format that was asked for.

    Args:
        result: The command's own JSON keys.
        text: The same for people.
        status: `ok` or `failed`.
        after_change: Whether the command has changed something, which stays changed if nobody can be told.

    Raises:
        RuntimeFailureError: If stdout cannot be written, and nothing was changed.
    """
    context = click.get_current_context()
    printed = (
        json_result(str(context.info_name), status, result)
        if is_json(context)
        else visible_lines(_in_words_of_inputs(text, context))
    )
    try:
        write_stdout(printed)
    except OSError as error:
        drop_stdout()
        reason = error.strerror or str(error)
        if after_change:
            if not isinstance(error, BrokenPipeError):
                note(f"Done, but the result could not be printed: {reason}.")
            return
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(BROKEN_PIPE) from error
        raise RuntimeFailureError(
            f"The result could not be printed: {reason}.",
            found=reason,
            expected="a standard output that takes it",
            where="standard output",
            hint="Nothing was changed; direct the output to a place that can be written and run it again.",
        ) from error


def write_stdout(text: str) -> None:
    """Write lines to stdout, all of them before it returns.

    Raises:
        OSError: If stdout does not take them, or there is none.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    click.echo(_encodable(text, sys.stdout))


_INPUT_OPTIONS = ("images", "seen_images", "photos", "calibration_images")


def _in_words_of_inputs(text: str, context: click.Context) -> str:
    """Return text for people in the words of what a command was given: images, or inputs that are arrays."""
    from icis_deploy.images.array_files import holds_features_alone, is_array_file

    given = [context.params.get(name) for name in _INPUT_OPTIONS]
    paths = [each for one in given for each in (one if isinstance(one, tuple) else (one,)) if isinstance(each, Path)]
    is_of_arrays = any(is_array_file(path) and not holds_features_alone(path) for path in paths)
    return called_inputs(text) if is_of_arrays else text


def note(text: str) -> None:
    """Write a line to stderr, if stderr takes it."""
    if sys.stderr is None:
        return
    try:
        click.echo(_encodable(text, sys.stderr), file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def _encodable(text: str, stream: TextIO) -> str:
    """Return a text in which what a stream's encoding lacks is an escape, of a form that JSON reads as well."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join([char if _fits(char, encoding) else json.dumps(char)[1:-1] for char in text])
    return text


def _fits(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def drop_stdout() -> None:
    """Lose what stdout still holds and whatever comes; else Python tries again at exit, and ends with its own code."""
    _drop(sys.stdout)


def _drop(stream: TextIO | None) -> None:
    with suppress(OSError, ValueError, AttributeError):  # no file of the system behind it, as in tests
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())  # type: ignore[union-attr]
        os.close(descriptor)


def open_standard_streams() -> None:
    """Open what the caller has closed of descriptors 0 to 2, to nowhere.

    Else the next file that is opened gets the number, the journal perhaps, and a library that prints writes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one


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


@contextmanager
def noted_warnings() -> Iterator[None]:
    """Write the library's warnings to stderr in this command's words, where its result does not carry them."""
    command = click.get_current_context().info_name or ""
    with library_warnings() as messages:
        try:
            yield
        finally:
            for message in dict.fromkeys(messages):
                note(f"Warning: {printable(command_line_hint(message, all_commands(), command=command))}")


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


@contextmanager
def counting_progress(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a callback that shows on stderr how many are done, how fast, and the time left.

    It is `None` unless stderr is a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=None, rate="")

        def show(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate="" if speed is None else f"{speed:.0f} a second")

        yield show
