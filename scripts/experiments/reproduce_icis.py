"""Reproduce the published results of ICIS and print them next to the paper's.

    scripts/experiments/reproduce-icis xlsa17/data --dataset CUB --seeds 5 --json cub.json

The exit code is 1 if a figure of the published recipe is more than `--tolerance` points from the paper's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine.environment import read_environment
from benchmarks.results.json_values import json_from_value
from benchmarks.zero_shot.base_head import MAX_EPOCHS
from benchmarks.zero_shot.reproduction import FIGURES, PAPER, DataSetReport, reproduce, text_of
from benchmarks.zero_shot.xlsa17 import FEATURES_NAME
from icis_deploy.common.files import check_free, write_file
from icis_deploy.errors import ICISDeployError, UsageError

SCHEMA_VERSION = 1


def main(arguments: Sequence[str]) -> int:
    """Run and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.json is not None:  # training takes hours
            check_free(options.json, overwrite=options.overwrite)
        reports = _reproduce_all(options)
        print(text_of(reports))
        if options.json is not None:
            content = {
                "schema_version": SCHEMA_VERSION,
                "data_sets": json_from_value(reports),
                "paper": PAPER,
                "environment": json_from_value(read_environment()),
            }
            write_file(options.json, json.dumps(content, indent=2, allow_nan=False).encode())
    except ICISDeployError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    missed = (
        [] if options.tolerance is None else [line for each in reports for line in _misses(each, options.tolerance)]
    )
    for line in missed:
        print(line)
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reproduce_icis", description="Reproduce the published results of ICIS.")
    parser.add_argument("data", type=Path, help="holds a folder for each data set, as xlsa17/data does")
    parser.add_argument("--dataset", action="append", help="a folder's name; may be repeated (default: CUB AWA2 SUN)")
    parser.add_argument("--features", default=FEATURES_NAME, help="file of features (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="number of heads and runs (default: %(default)s)")
    parser.add_argument(
        "--method", action="append", default=[], help="also run this method of `icis-deploy inject`; may be repeated"
    )
    parser.add_argument(
        "--head-epochs", type=int, default=MAX_EPOCHS, help="epochs of the head to choose from (default: %(default)s)"
    )
    parser.add_argument("--max-epochs", type=int, help="end the published recipe early, to try things out")
    parser.add_argument(
        "--tolerance", type=float, help="exit with 1 if a figure is further from the paper's, in points"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --json if there is one")
    return parser


def _reproduce_all(options: argparse.Namespace) -> list[DataSetReport]:
    names = list(dict.fromkeys(options.dataset or PAPER))
    missing = [name for name in names if not (options.data / name).is_dir()]
    if missing:
        raise UsageError(
            f"There is no folder {', '.join(missing)} in {options.data}. docs/reproduction.md says where the data is."
        )
    if min(options.seeds, options.head_epochs, 1 if options.max_epochs is None else options.max_epochs) < 1:
        raise UsageError("--seeds, --head-epochs and --max-epochs count from 1.")
    unknown = [name for name in names if name not in PAPER]
    if options.tolerance is not None and (unknown or not options.tolerance >= 0):
        raise UsageError(
            f"--tolerance is {options.tolerance:g} points, for {', '.join(names)}; expected 0 or more, and data sets "
            f"that the paper has: {', '.join(PAPER)}."
        )
    return [
        reproduce(
            options.data / name,
            seeds=range(options.seeds),
            methods=options.method,
            features_name=options.features,
            head_epochs=options.head_epochs,
            max_epochs=options.max_epochs,
            report=lambda line: print(line, file=sys.stderr),
        )
        for name in names
    ]


def _misses(report: DataSetReport, tolerance: float) -> list[str]:
    """Return a line for each figure of the published recipe that is too far from the paper's."""
    paper, ours = PAPER.get(report.name, {}), report.rows[0].figures
    return [
        f"{report.name}: {name} is {ours[name].mean:.1f}; the paper has {paper[name]:.1f}, over {tolerance:g} apart"
        for name in FIGURES
        if name in paper and abs(ours[name].mean - paper[name]) > tolerance
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
