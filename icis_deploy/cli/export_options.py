"""The options of `export` that concern TensorRT's engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.options import NEW_PATH

if TYPE_CHECKING:
    from exporters.targets.tensorrt.engine_settings import EngineSettings

Command = Callable[..., None]


def engine_options(function: Command) -> Command:
    """Add the options; `engine_settings` turns their values into settings."""
    for option in (
        click.option("--refit", is_flag=True, help="Engines: slots are weights that are refitted, not inputs."),
        click.option(
            "--timing-cache", type=NEW_PATH, metavar="FILE", help="tensorrt: timings, so that a rebuild is fast."
        ),
        click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="Engines: memory of one layer."),
        click.option(
            "--hardware-compatibility",
            type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
            help="tensorrt: which other GPUs the engine runs on.",
        ),
        click.option(
            "--compute-capability",
            "compute_capabilities",
            multiple=True,
            metavar="X.Y",
            help="tensorrt-rtx: a GPU architecture to build for; may be given several times. Default: all from 8.0 on.",
        ),
        click.option("--max-batch", type=click.IntRange(min=1), help="Engines: the greatest batch. Default: 32."),
        click.option("--opt-batch", type=click.IntRange(min=1), help="Engines: the usual batch. Default: 1."),
        click.option("--min-batch", type=click.IntRange(min=1), help="Engines: the least batch. Default: 1."),
    ):
        function = option(function)
    return function


def engine_settings(
    *,
    refit: bool,
    timing_cache: Path | None,
    workspace: int | None,
    compute_capabilities: tuple[str, ...],
    **given: Any,
) -> EngineSettings:
    """Return what the options say; what they leave out is the settings' own default.

    Raises:
        UsageError: If the batches are not in order.
    """
    from icis_deploy.workbench import enable_workbench

    enable_workbench()
    from exporters.targets.tensorrt.engine_settings import EngineSettings

    return EngineSettings(
        refit=refit,
        timing_cache=timing_cache,
        workspace_bytes=None if workspace is None else workspace << 20,
        compute_capabilities=compute_capabilities,
        **{name: value for name, value in given.items() if value is not None},
    )
