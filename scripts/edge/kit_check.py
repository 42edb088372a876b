"""What scripts/edge/test-arm64 --kit needs: something to pack, and a comparison of two results of the same kit.

python scripts/edge/kit_check.py prepare FOLDER               a tiny classifier, a bundle of it, and images
python scripts/edge/kit_check.py compare x86.json arm64.json   the same accuracy, class by class
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.results.result import Result, load_result
from benchmarks.results.values import Accuracy
from icis_deploy.common.terminal_text import percent

MAX_SCALED_ERROR = 1e-4
"""Of a logit, compared with the original's on the same machine, in standard deviations."""


def prepare(folder: Path) -> None:
    """Write a tiny project and its bundles, of which `updatable` has the unseen classes in its slots."""
    from testing.exported_bundles import export_bundles
    from testing.tiny_project import write_tiny_project

    export_bundles(write_tiny_project(folder), folder)


def accuracy_of(result: Result, target: str) -> Accuracy:
    """Return the accuracy of a target; every class's is in it."""
    accuracy = result.target(target).accuracy
    if accuracy is None:
        raise SystemExit(f"FAIL  {target} has no accuracy")
    return accuracy


def compare(here: Result, there: Result) -> int:
    """Print both and what differs; return the exit code."""
    failures = [f"{there.environment.name} is no arm64"] * (machine_of(there) != "aarch64")
    for target in here.targets:
        one, other = accuracy_of(here, target.name), accuracy_of(there, target.name)
        if one != other:
            failures.append(
                f"{target.name}: {one.T, one.U, one.S, one.H} here, {other.T, other.U, other.S, other.H} there"
            )
        worst = max((each.max_scaled_error for each in there.target(target.name).parity), default=0.0)
        if worst > MAX_SCALED_ERROR:
            failures.append(f"{target.name}: logits are {worst:.1e} from the original's")
        shown = ", ".join(f"{name} {percent(getattr(other, name))}" for name in "TUSH")
        print(f"{machine_of(there)}, {target.name}: {shown} on {other.source}; {worst:.1e} from the original")
    print(
        "\n".join(f"FAIL  {each}" for each in failures) or "PASS  the accuracy of every class is that of this machine"
    )
    return 1 if failures else 0


def machine_of(result: Result) -> object:
    """Return the architecture that a result was measured on."""
    return result.environment.sections["cpu"]["architecture"]


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare")
    prepared.add_argument("folder", type=Path)
    compared = commands.add_parser("compare")
    compared.add_argument("here", type=Path)
    compared.add_argument("there", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.folder)
        return 0
    return compare(load_result(arguments.here), load_result(arguments.there))


if __name__ == "__main__":
    sys.exit(main())
