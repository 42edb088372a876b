"""`icis-deploy inbox`: the updates that carriers have put into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import BUNDLE
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.common.terminal_text import MAX_SHOWN, columns, printable

REFUSED, FAULT = 6, 4


@click.command(short_help="Apply what carriers put into a folder.")
@click.argument("folder", type=BUNDLE)
@click.option("--to", "bundle", type=BUNDLE, required=True, help="The bundle.")
@format_option
def inbox(folder: Path, bundle: Path) -> None:
    """Apply the .icis files in FOLDER to a bundle, in the order of their names, and sort them.

    What was taken goes to FOLDER/done, what was refused to FOLDER/refused with the reason next to it; no file stops
    another one. Put a file there under a name that does not end in .icis and rename it, so that no half file is seen.
    Exit code 6: a file was refused; 4: the device is at fault, and what is left waits for the next run; 5: so does all
    of it, since a library is missing.
    """
    from icis_deploy.errors import ICISDeployError, MissingDependencyError
    from icis_deploy.runtime.inbox import InboxReport, process_inbox

    try:
        report = process_inbox(folder, bundle)
    except ICISDeployError as error:
        # Not the error's own exit code: 6 would say that a file was refused.
        report = InboxReport(files=(), num_left=0, fault=error)
    rows, files = [], []
    for each in report.files:
        reason = None if each.reason is None else _said(each.reason)
        version = None if each.applied is None else each.applied.entry.version
        state = "refused" if each.applied is None else "taken" if each.applied.changed else "there already"
        files.append({"name": each.name, "state": state, "version": version, "reason": reason})
        said = f"version {version}" if reason is None else " ".join(reason.split())
        rows.append((printable(each.name, max_length=MAX_SHOWN), state, said))
    result: dict[str, Any] = {"inbox": str(folder), "bundle": str(bundle), "files": files, "num_left": report.num_left}
    is_refused = any(each.reason is not None for each in report.files)
    fault_code = MissingDependencyError.exit_code if isinstance(report.fault, MissingDependencyError) else FAULT
    code = fault_code if report.fault is not None else REFUSED if is_refused else 0
    fault = None if report.fault is None else _said(report.fault)
    result["fault"] = fault
    text = columns(rows) if rows else "Nothing was taken or refused."
    print_result(result, text=text, status="ok" if report.fault is None else "error", after_change=True)
    if fault is not None:
        note(f"Error: {printable(' '.join(fault.split()))}")
    if code:
        raise click.exceptions.Exit(code)


def _said(error: Exception) -> str:
    return command_line_hint(str(error), all_commands(), command="inbox")
