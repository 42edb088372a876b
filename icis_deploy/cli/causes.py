"""What lies behind an error: `-v` names its causes, `--debug` shows the traceback. Every command has both."""

from __future__ import annotations

from collections.abc import Iterator

import click


def cause_options() -> tuple[click.Option, click.Option]:
    """Return the two options, which may also stand before the command; `is_asked` says whether one was given."""
    verbose = click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember,
        help="After an error, say what caused it.",
    )
    debug = click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember,
        help="Before an error, show the traceback.",
    )
    return verbose, debug


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    # Not where it is False: it may have been given before the command.
    if value:
        context.find_root().ensure_object(dict)[str(parameter.name)] = True


def causes_of(error: BaseException) -> Iterator[str]:
    """Yield what an error was raised from, the nearest first: the kind of each, and what it says.

    What was only being handled when an error was raised is its cause too, unless whoever raised it said `from None`.
    """
    seen = {id(error)}
    while (cause := _cause(error)) is not None and id(cause) not in seen:
        seen.add(id(cause))
        said = " ".join(str(cause).split())
        kind = type(cause)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        yield f"{name}: {said}" if said else name
        error = cause


def _cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__
