"""What the robustness loops share: the command line, progress, the report and the exit code.

A loop does the same thing a given number of times with random choices from a seed, and counts what went wrong. Run as a
command it works in a temporary folder, prints what went wrong as it happens and one line at the end, and exits with 1
if anything did. The same seed makes the same choices.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0


class Report(Protocol):
    """What a loop found."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""

    @property
    def summary(self) -> str:
        """What was found, on one line."""


class Run(Protocol):
    """A loop: does its work `count` times in `folder`, which is empty."""

    def __call__(self, folder: Path, count: int, /, *, seed: int) -> Report:
        """Return what was found."""


def main(run: Run, *, description: str | None, unit: str, default: int) -> int:
    """Run a loop as the command line says, and return the exit code.

    Args:
        run: The loop.
        description: The script's docstring; its first line is shown by `--help`.
        unit: What is counted, which is the option's name: `kills` gives `--kills`.
        default: How many, unless the option says otherwise.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument(f"--{unit}", dest="count", type=int, default=default, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), arguments.count, seed=arguments.seed)
    print(report.summary)
    return 0 if report.is_clean else 1


def counted(count: int, unit: str) -> Iterator[int]:
    """Yield `0 ... count - 1`; on a terminal, say every ten seconds on stderr how many are done."""
    said = time.monotonic()
    for index in range(count):
        yield index
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES and sys.stderr.isatty():
            print(f"{index + 1:,} of {count:,} {unit}", file=sys.stderr)
            said = time.monotonic()


def say(failure: str) -> None:
    """Print something that went wrong, at once."""
    print(failure, file=sys.stderr, flush=True)
