"""Options of `icis-deploy export`: TensorRT's engines, and in which form a model is exported besides its head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from icis_deploy.cli.options import EXISTING_FILE, NEW_PATH
from icis_deploy.cli.parameter_types import Choice

if TYPE_CHECKING:
    from icis_deploy.bundle.model_form import ModelForm
    from icis_deploy.bundle.target_options import BackboneSettings, EngineSettings


Command = TypeVar("Command", bound=Callable[..., Any])
_NAMES = ("precision", "head_precision", "calibration_images", "model_input", "top")


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
            type=Choice(["none", "ampere_plus", "same_compute_capability"]),
            help="tensorrt: which other GPUs the engine runs on.",
        ),
        click.option(
            "--compute-capability",
            "compute_capabilities",
            multiple=True,
            metavar="X.Y",
            help="tensorrt-rtx: a GPU architecture to build for; may be given several times. Default: all from 8.0 on.",
        ),
        click.option("--max-batch", type=click.IntRange(min=1), help="Engines: the largest batch. Default: 32."),
        click.option("--opt-batch", type=click.IntRange(min=1), help="Engines: the usual batch. Default: 1."),
        click.option("--min-batch", type=click.IntRange(min=1), help="Engines: the smallest batch. Default: 1."),
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
    from icis_deploy.bundle.target_options import EngineSettings

    return EngineSettings(
        refit=refit,
        timing_cache=timing_cache,
        workspace_bytes=None if workspace is None else workspace << 20,
        compute_capabilities=compute_capabilities,
        **{name: value for name, value in given.items() if value is not None},
    )


def backbone_options(function: Command) -> Command:
    """Add the options; `backbone_settings` reads them."""
    for option in (
        click.option("--backbone-opset", type=click.IntRange(min=1), help="backbone: version of ONNX's operators."),
        click.option("--backbone-batch", type=click.IntRange(min=1), help="backbone: the only batch that it takes."),
    ):
        function = option(function)
    return function


def backbone_settings(options: Mapping[str, Any]) -> tuple[BackboneSettings, dict[str, Any]]:
    """Return what a command's options say of the backbone, and its other options."""
    from icis_deploy.bundle.target_options import BackboneSettings

    settings = BackboneSettings(batch=options["backbone_batch"], opset=options["backbone_opset"])
    return settings, {name: value for name, value in options.items() if not name.startswith("backbone_")}


def form_options(command: Command) -> Command:
    """Add the options to a command, which takes them as keyword arguments; `split_form` reads them."""
    for option in reversed(
        (
            click.option(
                "--precision",
                type=Choice(["fp32", "fp16", "int8"]),
                default="fp32",
                show_default=True,
                help="What the backbone computes in; fp32 leaves it as it is. Slots are float32 in all of them.",
            ),
            click.option(
                "--head-precision",
                type=Choice(["fp32", "fp16", "int8"]),
                default="fp32",
                show_default=True,
                help="What the baked rows are stored in; fp32 leaves them as they are. They are multiplied as floats.",
            ),
            click.option(
                "--calibration-images",
                type=EXISTING_FILE,
                help="Images or arrays of what the device will see, for int8; the gate's unless --images is given.",
            ),
            click.option(
                "--input",
                "model_input",
                type=Choice(["float32", "uint8"]),
                default="float32",
                show_default=True,
                help="What the model takes; uint8: resized and cropped pixels (height, width, channels).",
            ),
            click.option(
                "--top",
                type=click.IntRange(min=0),
                default=5,
                show_default=True,
                help="How many most probable classes the model gives besides all scores; 0 leaves the choice out.",
            ),
        )
    ):
        command = option(command)
    return command


def split_form(options: Mapping[str, Any]) -> tuple[ModelForm, dict[str, Any]]:
    """Return the form that a command's options state, and its other options.

    Raises:
        UsageError: If the options do not go together.
    """
    from icis_deploy.bundle.model_form import ModelForm

    form = ModelForm(**{name: options[name] for name in _NAMES if options[name] is not None})
    return form, {name: value for name, value in options.items() if name not in _NAMES}
