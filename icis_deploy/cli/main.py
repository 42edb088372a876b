"""The entry point: runs a command and turns every error into one clear line and the right exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from io import StringIO
from itertools import pairwise
from typing import Any, NoReturn

import click

from icis_deploy.__main__ import INTERRUPTED
from icis_deploy._version import __version__
from icis_deploy.cli.bench import bench
from icis_deploy.cli.bench_fit import bench_fit
from icis_deploy.cli.bench_peers import bench_peers
from icis_deploy.cli.bench_scale import bench_scale
from icis_deploy.cli.bench_update import bench_update
from icis_deploy.cli.causes import cause_options, causes_of
from icis_deploy.cli.compact import compact
from icis_deploy.cli.compare_methods import compare_methods
from icis_deploy.cli.demo import demo
from icis_deploy.cli.describe import describe
from icis_deploy.cli.device import apply, classes, disable, enable, history, rollback, teach
from icis_deploy.cli.doctor import doctor
from icis_deploy.cli.evaluate import evaluate
from icis_deploy.cli.export import export
from icis_deploy.cli.export_generator import export_generator
from icis_deploy.cli.fleet_report import fleet_report
from icis_deploy.cli.hints import command_line_hint, project_file_hint
from icis_deploy.cli.inbox import inbox
from icis_deploy.cli.inject import inject
from icis_deploy.cli.inspect import inspect
from icis_deploy.cli.output import (
    BROKEN_PIPE,
    drop_stdout,
    json_result,
    note,
    open_standard_streams,
    plain_value,
    write_stdout,
)
from icis_deploy.cli.predict import predict
from icis_deploy.cli.report import report
from icis_deploy.cli.run import init, run_project
from icis_deploy.cli.serve import serve
from icis_deploy.cli.signing import diff, keygen, rotate_keys, sign, sign_bundle, verify_bundle, verify_update
from icis_deploy.cli.status import status
from icis_deploy.cli.verify import verify
from icis_deploy.common.terminal_text import printable
from icis_deploy.errors import ICISDeployError
from icis_deploy.workbench import libraries_required

INTERNAL_ERROR = 4
SECTIONS: Mapping[str, tuple[click.Command, ...]] = {
    "Workbench": (
        *(inspect, describe, compare_methods, inject, export, verify, evaluate, export_generator, compact),
        *(init, run_project, demo, doctor),
    ),
    "Device": (predict, apply, inbox, teach, rollback, history, classes, enable, disable),
    "Fleet": (sign, verify_update, sign_bundle, verify_bundle, diff, status, fleet_report, serve),
    "Keys": (keygen, rotate_keys),
    "Benchmarks": (bench, bench_fit, bench_update, bench_peers, bench_scale, report),
}
"""All commands, by where they are used and then in the order in which they are used."""


# Why: docs/decisions/0012, 0122.
class SectionedGroup(click.Group):
    """A group whose help lists the commands in sections, in the order of the work; click would sort them by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands' names in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """Write a list of commands for each section, with one column of names throughout."""
        width = max(map(len, self.commands))
        limit = formatter.width - 4 - width
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(str(each.name).ljust(width), each.get_short_help_str(limit)) for each in commands],
                )


@click.group(
    cls=SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 a negative verdict, 2 usage, 3 cannot load or incompatible, 4 runtime failure, "
    "5 missing dependency or hardware, 6 integrity refused, 130 interrupted.",
)
@click.version_option(__version__, prog_name="icis-deploy")
def cli() -> None:
    """Teach a trained or deployed classifier new classes from their descriptions alone."""


cli.params += cause_options()
for _commands in SECTIONS.values():
    for _command in _commands:
        _command.params += cause_options()
        cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit."""
    open_standard_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; results go to stdout, everything else to stderr."""
    state: dict[str, Any] = {}
    streams = sys.stdout, sys.stderr
    try:
        # Not standalone: click returns the code of its own exits, such as the one after --help.
        # Whatever a command imports, and whenever: a library of an extra that is missing is no bug.
        with libraries_required():
            stopped = cli.main(arguments, prog_name="icis-deploy", standalone_mode=False, obj=state)
        return stopped if isinstance(stopped, int) else 0
    except (click.Abort, KeyboardInterrupt):
        note("Interrupted.")
        return INTERRUPTED
    except SystemExit:
        # Where a reader leaves while click prints a help text, click exchanges the streams and ends the process.
        if sys.stdout is streams[0]:
            raise
        sys.stdout, sys.stderr = streams
        drop_stdout()
        return BROKEN_PIPE
    except Exception as error:
        command = next((name for name in arguments if name in cli.commands), "")
        if state.get("debug") and _is_explained(error):
            note("".join(traceback.format_exception(error)).rstrip())
        exit_code = _report(error, command)
        if state.get("verbose"):
            for cause in causes_of(error):
                note(f"Caused by {printable(cause)}")
        if state.get("format", _stated_format(arguments)) == "json":
            try:
                _print_json_error(error, exit_code, command, causes=bool(state.get("verbose")))
            except OSError:
                drop_stdout()
        return exit_code


def _stated_format(arguments: list[str]) -> str:
    """Return what `--format` says where click could not take arguments apart, as with an unknown option."""
    stated = [after for option, after in pairwise(arguments) if option == "--format"]
    stated += [each.partition("=")[2] for each in arguments if each.startswith("--format=")]
    return stated[-1] if stated else ""


def _is_of_output(error: OSError) -> bool:
    """Say whether it was raised where click prints: a help text, or the version."""
    return traceback.extract_tb(error.__traceback__)[-1].filename == click.utils.__file__


def _is_explained(error: Exception) -> bool:
    """Say whether an error ends in one line that stands for it; of any other the traceback is shown anyway."""
    is_of_output = isinstance(error, OSError) and _is_of_output(error)
    return is_of_output or isinstance(error, click.ClickException | ICISDeployError)


def _report(error: Exception, command: str) -> int:
    """Say on stderr what went wrong, and return the exit code."""
    if isinstance(error, click.ClickException):
        shown = StringIO()
        error.show(shown)
        note(shown.getvalue().removesuffix("\n"))
        return error.exit_code
    if isinstance(error, OSError) and _is_of_output(error):
        drop_stdout()
        note(f"Error: The output could not be written: {error.strerror or error}.")
        return INTERNAL_ERROR
    if isinstance(error, ICISDeployError):
        # One line, also where a runtime's own message, which has several, is part of it.
        note(f"Error: {printable(' '.join(_message(error, command).split()))}")
        return error.exit_code
    if isinstance(error, MemoryError):
        said = f": {printable(' '.join(str(error).split()))}" if str(error) else ""
        note(f"Error: There is not enough memory{said}. End other programs, or use a machine with more memory.")
        return INTERNAL_ERROR
    # A bug. Python's own exit code for it is 1, which would read as a verdict.
    note("".join(traceback.format_exception(error)).rstrip())
    note("Error: this is a bug in icis-deploy; please report it with the lines above.")
    return INTERNAL_ERROR


def _message(error: ICISDeployError, command: str) -> str:
    """Return what an error says, with its hint in the words of the command line."""
    hint = _hint(error, command)
    return error.what if hint is None else f"{error.what} {hint}"


def _hint(error: ICISDeployError, command: str) -> str | None:
    if error.hint is None:
        return None
    if command == run_project.name:
        return project_file_hint(error.hint, cli.commands)
    return command_line_hint(error.hint, cli.commands, command=command)


def _print_json_error(error: Exception, exit_code: int, command: str, *, causes: bool) -> None:
    details: dict[str, Any] = {"type": type(error).__name__, "message": str(error), "exit_code": exit_code}
    if isinstance(error, click.ClickException):
        details["message"] = error.format_message()
    elif isinstance(error, ICISDeployError):
        details["message"] = _message(error, command)
        details |= {
            "found": plain_value(error.found),
            "expected": plain_value(error.expected),
            "where": None if error.where is None else str(error.where),
            "hint": _hint(error, command),
        }
    if causes:
        details["causes"] = list(causes_of(error))
    write_stdout(json_result(command, "failed" if exit_code == 1 else "error", {"error": details}))


if __name__ == "__main__":
    main()
