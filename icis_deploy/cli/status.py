"""`icis-deploy status`: what a carrier reports of a device."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from icis_deploy._version import __version__
from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import BUNDLE, EXISTING_FOLDER
from icis_deploy.cli.output import format_option, print_result
from icis_deploy.common.terminal_text import columns

FAULT = 4


@click.command(short_help="Say what a carrier reports of a device.")
@click.argument("bundle", type=BUNDLE)
@click.option("--device", help="What the fleet calls the device. Default: the host's name.")
@click.option(
    "--inbox",
    type=EXISTING_FOLDER,
    help="Where carriers put updates, to say what was refused.",
)
@format_option
def status(bundle: Path, device: str | None, inbox: Path | None) -> None:
    """Say which bundle, head and keys a device has in BUNDLE, what it refused, and whether its files are whole.

    Nothing is changed, and no model is loaded. Exit code 4: something is wrong with BUNDLE; what could be read is
    printed all the same.
    """
    from icis_deploy.runtime.status import status as status_of

    found = status_of(bundle, device=device or socket.gethostname(), release=__version__, inbox=inbox)
    text = [
        ("device", found.device),
        ("health", "ok" if not found.problems else f"{len(found.problems)} problem{'s' * (len(found.problems) != 1)}"),
        ("version", _known(found.version)),
        ("highest version", _known(found.highest_version)),
        ("last change", found.changed or "none"),
        ("classes", _known(found.num_classes)),
        ("free slots", f"{_known(found.num_free_slots)} of {_known(found.capacity)}"),
        ("bundle", _known(found.bundle_sha256)),
        ("head", _known(found.head_sha256)),
        ("keys", f"version {_known(found.trust_version)}: {', '.join(key[:16] for key in found.key_ids) or 'none'}"),
        ("refused", "no inbox was named" if found.num_refused is None else str(found.num_refused)),
        *((f"  {each.file}", f"{each.time} {_words(each.reason)}") for each in found.refusals),
        *(("problem", _words(problem)) for problem in found.problems),
    ]
    print_result(found.to_dict(), text=columns(text), status="error" if found.problems else "ok")
    if found.problems:
        raise click.exceptions.Exit(FAULT)


def _words(text: str) -> str:
    """Return what the library said in the words of the command line."""
    return command_line_hint(text, all_commands(), command="status")


def _known(value: object) -> str:
    return "-" if value is None else str(value)
