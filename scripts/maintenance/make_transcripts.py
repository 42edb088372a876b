r"""Run the commands of a document and write what they print below them.

    python scripts/maintenance/make_transcripts.py docs/tutorials/first-class.md --inputs FOLDER

A block of `console` holds commands, each after `$ ` (`\` ends a line that goes on), and below each what it
printed. All commands of a document run one after the other in one folder, which begins as a copy of `--inputs`. Output
that ends in a line `…` stays cut off after as many lines as the document has.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CUT = "…"
REPOSITORY = Path(__file__).resolve().parents[2]

Run = Callable[[str], str]
"""Runs one command and returns what it printed."""


@dataclass(frozen=True)
class Step:
    """A command and what the document says that it prints."""

    command: str
    """As it stands in the document, without `$ `, with its line ends."""

    output: tuple[str, ...]
    """Lines."""


class CommandFailedError(Exception):
    """A command of a document ended with another exit code than 0."""


def parse_block(block: str) -> list[Step]:
    """Return the steps of the text between the fences.

    Raises:
        ValueError: If there is text before the first command.
    """
    steps: list[Step] = []
    lines = iter(block.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = [line.removeprefix("$ ")]
            while command[-1].endswith("\\"):
                command.append(next(lines))
            steps.append(Step("\n".join(command), ()))
        elif steps:
            steps[-1] = Step(steps[-1].command, (*steps[-1].output, line))
        else:
            raise ValueError(f"A console block begins with {line!r}; expected a command after '$ '.")
    return steps


def steps_of(text: str) -> list[Step]:
    """Return all steps of a document, in order."""
    return [step for block in BLOCK.findall(text) for step in parse_block(block)]


def cut_as(output: str, before: tuple[str, ...]) -> list[str]:
    """Return the lines of an output, cut off where the document cuts it off."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    if before and before[-1] == CUT and len(lines) >= len(before):
        return [*lines[: len(before) - 1], CUT]
    return lines


def with_output(text: str, run: Run) -> str:
    """Return a document in which each command is followed by what it prints now."""

    def renewed(match: re.Match[str]) -> str:
        lines = []
        for step in parse_block(match[1]):
            lines += [f"$ {step.command}", *cut_as(run(step.command), step.output)]
        return "```console\n" + "\n".join(lines) + "\n```"

    return BLOCK.sub(renewed, text)


def shell_in(folder: Path) -> Run:
    """Return a function that runs commands in a folder, with the `icis-deploy` of this interpreter.

    It raises `CommandFailedError` with what the command printed, where its exit code is not 0.
    """
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "140", "NO_COLOR": "1"}

    def run(command: str) -> str:
        done = subprocess.run(  # noqa: S603 - the commands of the project's own documents
            ["/bin/bash", "-c", f"{command} 2>errors"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandFailedError(f"{command}\n{done.stdout}{(folder / 'errors').read_text('utf-8')}")
        return done.stdout

    return run


def main(arguments: list[str] | None = None) -> None:
    """Renew the transcripts of the documents that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--inputs", type=Path, help="Folder whose files the commands find where they run.")
    options = parser.parse_args(arguments)
    for document in options.documents:
        with tempfile.TemporaryDirectory() as folder:
            if options.inputs:
                shutil.copytree(options.inputs, folder, dirs_exist_ok=True)
            renewed = with_output(document.read_text("utf-8"), shell_in(Path(folder)))
        document.write_text(renewed, "utf-8")
        print(document)


if __name__ == "__main__":
    main()
