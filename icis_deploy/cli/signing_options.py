"""The options that say who signs, which every command that signs has in common."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.options import EXISTING_FILE, Command
from icis_deploy.errors import LoadError, UsageError

if TYPE_CHECKING:
    from icis_deploy.updates.signers import SigningKey

_NAMES = ("key", "signer", "sign_command", "public_key", "passphrase_file", "passphrase_env")
_MAX_FILE_BYTES = 1 << 12


def passphrase_options(function: Command) -> Command:
    """Add the options that say where a passphrase is; `passphrase_from` reads it."""
    for option in (
        click.option(
            "--passphrase-env", metavar="NAME", help="The environment variable that holds the passphrase or PIN."
        ),
        click.option("--passphrase-file", type=EXISTING_FILE, help="A file whose first line is the passphrase or PIN."),
    ):
        function = option(function)
    return function


def signing_options(key_help: str) -> Callable[[Command], Command]:
    """Return the options that say who signs; `signing_key_from` takes their values out of a command's.

    Args:
        key_help: What the private key of `--key` is.
    """

    def add(function: Command) -> Command:
        function = passphrase_options(function)
        for option in (
            click.option(
                "--public-key",
                type=EXISTING_FILE,
                help="Of --signer and --sign-command: the public key that devices trust.",
            ),
            click.option(
                "--sign-command",
                metavar="COMMAND",
                help="Instead of --key, a program with its arguments that reads what to sign and prints the signature.",
            ),
            click.option(
                "--signer",
                metavar="URI",
                help="Instead of --key, a key in a token or a KMS, as securesystemslib names it, such as hsm:2.",
            ),
            click.option("--key", type=EXISTING_FILE, help=key_help),
        ):
            function = option(function)
        return function

    return add


def signing_key_from(values: dict[str, Any]) -> SigningKey:
    """Take what `signing_options` were given out of a command's values.

    Raises:
        UsageError: If nobody is named who signs, or several are, or an option would do nothing.
        LoadError: If the file of the passphrase cannot be read.
    """
    key = optional_signing_key_from(values)
    if key is None:
        raise UsageError(
            "Nobody is named who signs.",
            found="none",
            expected="a private key, a signer or a command",
            hint="Give `key`, `signer` or `sign_command`.",
        )
    return key


def optional_signing_key_from(values: dict[str, Any]) -> SigningKey | None:
    """Take what `signing_options` were given out of a command's values; `None` where nobody shall sign.

    Raises:
        UsageError: If several are named who sign, or an option would do nothing.
        LoadError: If the file of the passphrase cannot be read.
    """
    given = {name: values.pop(name) for name in _NAMES}
    ways = [name for name in ("key", "signer", "sign_command") if given[name] is not None]
    options = "--key, --signer or --sign-command"
    if len(ways) > 1:
        raise UsageError(
            f"{len(ways)} of {options} were given; expected one.",
            found=len(ways),
            expected=1,
            hint="Name one way to sign.",
        )
    if not ways:
        _refuse(given, *_NAMES, reason=f"nothing is signed without {options}")
        return None
    return _KINDS[ways[0]](given)


def _key_file(given: Mapping[str, Any]) -> SigningKey:
    from icis_deploy.updates.signers import KeyFile

    _refuse(given, "public_key", reason="the file of --key holds its public key as well")
    return KeyFile(path=given["key"], passphrase=_secret(given))


def _signer_uri(given: Mapping[str, Any]) -> SigningKey:
    from icis_deploy.updates.signers import SignerURI

    return SignerURI(uri=given["signer"], public_key=_public_key(given), secret=_secret(given))


def _signing_command(given: Mapping[str, Any]) -> SigningKey:
    from icis_deploy.updates.signers import SigningCommand

    _refuse(given, "passphrase_file", "passphrase_env", reason="a command asks for what it needs itself")
    try:
        command = shlex.split(given["sign_command"])
    except ValueError as error:
        raise UsageError(
            f"--sign-command cannot be split into a program and its arguments: {error}.",
            found=given["sign_command"],
            expected="a program and its arguments, quoted as for a shell",
            hint="Close what is open in it: a quotation mark, or a backslash at its end.",
        ) from error
    return SigningCommand(command=command, public_key=_public_key(given))


_KINDS = {"key": _key_file, "signer": _signer_uri, "sign_command": _signing_command}


def _refuse(given: Mapping[str, Any], *names: str, reason: str) -> None:
    useless = [f"--{name.replace('_', '-')}" for name in names if given[name] is not None]
    if useless:
        raise UsageError(
            f"{' and '.join(useless)} would do nothing: {reason}.", found=tuple(useless), expected="neither"
        )


def _public_key(given: Mapping[str, Any]) -> Path:
    if given["public_key"] is None:
        raise UsageError(
            "Whoever signs is named by the public key that devices trust, and none was given.",
            found="no public key",
            expected="a file",
            hint="Give its file as `public_key`.",
        )
    path: Path = given["public_key"]
    return path


def _secret(given: Mapping[str, Any]) -> Any:
    passphrase = passphrase_from(given["passphrase_file"], given["passphrase_env"])
    return _ask if passphrase is None else passphrase


def passphrase_from(file: Path | None, variable: str | None) -> str | None:
    """Return the passphrase that options name; `None` where they name none.

    Raises:
        UsageError: If both are given, or there is no such variable.
        LoadError: If the file cannot be read.
    """
    from icis_deploy.common.files import read_capped

    if file is not None and variable is not None:
        raise UsageError(
            "Both --passphrase-file and --passphrase-env were given; expected one of them.",
            found=2,
            expected=1,
        )
    if variable is not None:
        if variable not in os.environ:
            raise UsageError(
                f"There is no environment variable {variable!r}, which should hold the passphrase.",
                found="no such variable",
                expected=variable,
                hint="Set it, or give a file.",
            )
        return os.environ[variable]
    if file is None:
        return None
    data = read_capped(file, max_bytes=_MAX_FILE_BYTES, what="file of the passphrase", error_type=LoadError)
    return data.split(b"\n", 1)[0].removesuffix(b"\r").decode("utf-8", "surrogateescape")


def ask_new_passphrase() -> str:
    """Ask for a passphrase twice.

    Raises:
        UsageError: If there is no terminal to ask at.
    """
    _check_terminal("new passphrase")
    return str(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))


def _ask(purpose: str) -> str:
    _check_terminal(purpose)
    return str(click.prompt(f"The {purpose}", hide_input=True, err=True))


def _check_terminal(purpose: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            f"The {purpose} is needed, and there is no terminal to ask for it.",
            found="no terminal",
            expected="the passphrase",
            hint="Give its `passphrase`.",
        )
