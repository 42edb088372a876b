"""The hints of errors in the words of the command line.

The library's hints name what a Python caller writes, in backticks. Each form has one translation:

    `head_node`                             --head-node
    `head='updatable'`                      --head updatable
    `overwrite=True`                        --overwrite
    `targets=['tensorrt', 'onnx']`          --target tensorrt --target onnx
    `batch_sizes=(1, 8)`                    --batch 1,8
    `keygen()`, `Device.rollback()`         `icis-deploy keygen`, `icis-deploy rollback`
    `Device.apply(allow_unsigned=True)`     `icis-deploy apply --allow-unsigned`

Options are looked up by the names of click's own parameters, which are those of the library, but for `PARAMETERS`.
Anything else in backticks stays as it is.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator, Mapping

import click

PARAMETERS = {
    "base_url": "llm",
    "batch_sizes": "batch",
    "descriptor": "descriptors",
    "key_variable": "llm_key",
    "num_threads": "threads",
    "passphrase": "passphrase_file",
    "timeout_s": "llm_timeout",
    "workspace_bytes": "workspace",
}
"""Parameters of the library whose options have other names, by the name of click's parameter."""

_BACKTICKED = re.compile(r"`([^`]+)`")


def command_line_hint(hint: str, commands: Mapping[str, click.Command], *, command: str = "") -> str:
    """Return a hint of the library with its parameters and functions as options and commands.

    Args:
        hint: Sentences with names in backticks.
        commands: All commands by name.
        command: The one that runs: where commands call a parameter differently, its own option is named.
    """
    return _BACKTICKED.sub(lambda found: _translated(found[1], commands, command) or found[0], hint)


def project_file_hint(hint: str, commands: Mapping[str, click.Command]) -> str:
    """Return a hint of the library for who has written a project file, whose settings are called as parameters are.

    Only the forms differ: `head='updatable'` is written `head: updatable` there, and functions are commands.

    Args:
        hint: Sentences with names in backticks.
        commands: All commands by name.
    """
    return _BACKTICKED.sub(lambda found: _in_file(found[1], commands) or found[0], hint)


def _in_file(text: str, commands: Mapping[str, click.Command]) -> str | None:
    """Return what a project file calls an expression of Python; `None` where it has no word for it."""
    parsed = _one_argument(text)
    if parsed is None:
        return None
    if not parsed.keywords:
        [argument] = parsed.args
        return _command(argument, commands) if isinstance(argument, ast.Call) else None
    [keyword] = parsed.keywords
    try:
        value = ast.literal_eval(keyword.value)
    except ValueError:
        return None
    written = value if isinstance(value, str) else json.dumps(value)
    return f"`{keyword.arg}: {written}`"


def all_commands() -> Mapping[str, click.Command]:
    """Return the commands by name, from inside one of them."""
    root = click.get_current_context().find_root().command
    return root.commands if isinstance(root, click.Group) else {}


def option_of(parameter: str, commands: Mapping[str, click.Command], *, command: str = "") -> click.Option | None:
    """Return the option that sets a parameter of the library; `None` where no command has one.

    Args:
        parameter: Its name in Python.
        commands: All commands by name.
        command: The one that is asked first.
    """
    name = PARAMETERS.get(parameter, parameter)
    first = [commands[command]] if command in commands else []
    for each in (*first, *commands.values()):
        for option in each.params:
            if isinstance(option, click.Option) and option.name == name:
                return option
    return None


def _long_name(option: click.Option) -> str:
    return max(option.opts, key=len)


def _translated(text: str, commands: Mapping[str, click.Command], command: str) -> str | None:
    """Return what the command line calls an expression of Python; `None` where it has no word for it."""
    parsed = _one_argument(text)
    if parsed is None:
        return None
    if parsed.keywords:
        return _with_values(parsed.keywords, commands, command)
    [argument] = parsed.args
    if isinstance(argument, ast.Name):
        option = option_of(argument.id, commands, command=command)
        return None if option is None else _long_name(option)
    if isinstance(argument, ast.Call):
        return _command(argument, commands)
    return None


def _one_argument(text: str) -> ast.Call | None:
    """Return an expression as the one argument of a call, since `head='updatable'` is none of its own."""
    try:
        parsed = ast.parse(f"_({text})", mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null byte, before Python 3.12
        return None
    is_one = isinstance(parsed, ast.Call) and len(parsed.args) + len(parsed.keywords) == 1
    return parsed if is_one and isinstance(parsed, ast.Call) else None


def _command(call: ast.Call, commands: Mapping[str, click.Command]) -> str | None:
    """Return the command of a function or a method of `Device`, with the options that it is called with."""
    function = call.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    name = name.replace("_", "-")
    if name not in commands:
        return None
    options = _with_values(call.keywords, commands, name)
    return None if options is None else f"`icis-deploy {name}{' ' if options else ''}{options}`"


def _with_values(keywords: list[ast.keyword], commands: Mapping[str, click.Command], command: str) -> str | None:
    """Return options with their values; `None` where one of them is no option or its value is no constant."""
    words: list[str] = []
    for keyword in keywords:
        option = option_of(keyword.arg or "", commands, command=command)
        if option is None:
            return None
        try:
            value = ast.literal_eval(keyword.value)
        except ValueError:
            return None
        words += _option_words(option, value)
    return " ".join(words)


def _option_words(option: click.Option, value: object) -> Iterator[str]:
    name = _long_name(option)
    if value is True:
        yield name
    elif isinstance(value, list | tuple) and option.multiple:
        for each in value:
            yield from (name, shlex.quote(str(each)))
    else:
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield from (name, shlex.quote(text))
