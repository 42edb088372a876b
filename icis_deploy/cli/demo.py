"""`icis-deploy demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icis_deploy.cli.options import NEW_PATH
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.cli.parameter_types import Seed
from icis_deploy.common.terminal_text import columns, percent

if TYPE_CHECKING:
    from icis_deploy.demo.pipeline import DemoResult


@click.command(short_help="Show the whole job on rendered images.")
@click.option("--out", type=NEW_PATH, default="demo", show_default=True, help="Folder for everything that it makes.")
@click.option("--seed", type=Seed(), default=0, show_default=True, help="Seed of classes and training.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that is there.")
@format_option
def demo(out: Path, seed: int, overwrite: bool) -> None:
    """Show the whole job on rendered images: train, inject, export, verify, evaluate, update.

    Needs no data and no download. Takes about a minute or two on two cores.
    """
    from icis_deploy.demo.pipeline import run_demo

    result = run_demo(out, seed=seed, overwrite=overwrite, log=note)
    print_result(result.to_json(), text=demo_text(result), after_change=True)


def demo_text(result: DemoResult) -> str:
    """Return the result for people."""
    chance_t, chance_u = 1 / result.num_unseen, 1 / (result.num_seen + result.num_unseen)
    rows: list[tuple[str, ...]] = [("", "T", "U", "S", "H")]
    rows += [
        (name, *(percent(getattr(report, key)) for key in ("T", "U", "S", "H")))
        for name, report in (
            ("without injection", result.without),
            ("injected, fused head", result.injected),
            ("injected on the device", result.updated),
        )
    ]
    rows.append(("chance", percent(chance_t), percent(chance_u), percent(chance_u), percent(chance_u)))
    return (
        f"{result.num_unseen} classes injected from their attributes into a head of {result.num_seen}; no image "
        f"of them was used.\nSeen classes keep {percent(result.injected.S)} of the {percent(result.without.S)} that "
        f"they had, where at most 2 points were to be lost.\n\n{columns(rows, right=[1, 2, 3, 4])}\n\n"
        f"T: unseen images, among unseen classes. U: unseen images, S: seen images, among all classes. H: 2US/(U+S).\n"
        f"The device took the class update, and answered with it, in {result.apply_ms:.1f} ms.\n"
        f"Everything is in {result.folder}; look at {result.sheet}. The demo took {result.total_s:.0f} s."
    )
