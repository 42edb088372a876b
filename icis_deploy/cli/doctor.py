"""`icis-deploy doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, refuse_given
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.common.terminal_text import columns
from icis_deploy.errors import MissingDependencyError, RuntimeFailureError

if TYPE_CHECKING:
    from icis_deploy.doctor.bundles import Check
    from icis_deploy.doctor.installation import Conflict, ExtraState
    from icis_deploy.doctor.runtimes import RuntimeState


@click.command(short_help="Say what works here, and how to get the rest.")
@click.option("--bundle", type=BUNDLE, help="A bundle to look at as well; nothing in it is changed.")
@click.option(
    "--trust",
    type=EXISTING_FILE,
    multiple=True,
    help="A public key, one of which must have signed --bundle; may be given several times.",
)
@format_option
def doctor(bundle: Path | None, trust: tuple[Path, ...]) -> None:
    """Say what is installed, what each runtime really does on this machine, and which command installs the rest.

    A small bundle is opened in each runtime, answers, and takes a class update. With --bundle, its files, signature,
    state and slots are looked at, and it is run. Exit code 5: packages are in each other's way, or no runtime works;
    4: a runtime is there and fails; of a bundle that is not sound, the code of what is wrong with it.
    """
    from icis_deploy import __version__
    from icis_deploy.doctor.installation import conflicts, extras, system_text
    from icis_deploy.doctor.runtimes import runtimes

    if bundle is None:
        refuse_given("trust", reason="there is no bundle whose signature it could verify. Give --bundle.")
    system, rivals, installed, states = system_text(), conflicts(), extras(), runtimes()
    checks = None if bundle is None else _checks(bundle, trust)
    result: dict[str, Any] = {
        "version": __version__,
        "system": system,
        "conflicts": [asdict(each) for each in rivals],
        "extras": [{**asdict(each), "command": each.command} for each in installed],
        "runtimes": [asdict(each) | {"hint": _hint(each.hint)} for each in states],
        "bundle": None if bundle is None else str(bundle),
        "checks": None if checks is None else [asdict(each) | {"hint": _hint(each.hint)} for each in checks],
    }
    blocks = [
        f"icis-deploy {__version__}, {system}",
        *[_conflict_text(each) for each in rivals],
        _runtimes_text(states),
        _extras_text(installed),
        *([] if checks is None else [_checks_text(bundle, checks)]),
    ]
    code, problem = _verdict(rivals, states, checks or ())
    print_result(result, text="\n\n".join(blocks), status="failed" if code else "ok")
    if code:
        # What is wrong is already on stdout, so the exit code says the rest.
        note(f"Error: {problem}")
        raise click.exceptions.Exit(code)


def _checks(bundle: Path, trust: Sequence[Path]) -> tuple[Check, ...]:
    from icis_deploy.doctor.bundles import check_bundle

    return check_bundle(bundle, trust=trust)


def _verdict(rivals: Sequence[Conflict], states: Sequence[RuntimeState], checks: Sequence[Check]) -> tuple[int, str]:
    """Return the exit code and why; 0 if nothing is wrong."""
    failed = next((each for each in checks if each.state == "failed"), None)
    if failed is not None:
        return failed.exit_code, f"the bundle's {failed.name}: {failed.detail}"
    if rivals:
        return MissingDependencyError.exit_code, rivals[0].problem
    if not any(each.state in {"works", "not tried"} for each in states):
        return MissingDependencyError.exit_code, "no runtime works here."
    broken = next((each for each in states if each.state == "broken"), None)
    if broken is not None:
        return RuntimeFailureError.exit_code, f"the runtime {broken.name} is there and fails."
    return 0, ""


def _hint(hint: str | None) -> str | None:
    return None if hint is None else command_line_hint(hint, all_commands(), command="doctor")


def _said(detail: str, hint: str | None) -> str:
    """Return what was seen and what to do, as sentences."""
    return detail if hint is None else f"{detail.removesuffix('.')}. {_hint(hint)}"


def _conflict_text(conflict: Conflict) -> str:
    return f"CONFLICT  {conflict.problem}\n          {conflict.command}"


def _runtimes_text(states: Sequence[RuntimeState]) -> str:
    rows = [(each.name, each.state, _said(each.detail, each.hint)) for each in states]
    return f"Runtimes\n{columns(rows)}"


def _extras_text(installed: Sequence[ExtraState]) -> str:
    rows = [
        (each.name, "there" if each.command is None else "missing", each.purpose, each.command or "")
        for each in installed
    ]
    return f"Extras\n{columns(rows)}"


def _checks_text(bundle: Path | None, checks: Sequence[Check]) -> str:
    rows = [(each.name, each.state, _said(each.detail, each.hint)) for each in checks]
    return f"Bundle {bundle}\n{columns(rows)}"
