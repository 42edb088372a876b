"""Options of `icis-deploy export` that say in which form a model is exported, besides its head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from icis_deploy.cli.options import EXISTING_FILE

if TYPE_CHECKING:
    from icis_deploy.bundle.model_form import ModelForm

Command = TypeVar("Command", bound=Callable[..., Any])
_NAMES = ("precision", "calibration_images", "model_input", "top")


def form_options(command: Command) -> Command:
    """Add the options to a command, which takes them as keyword arguments; `split_form` reads them."""
    for option in reversed(
        (
            click.option(
                "--precision",
                type=click.Choice(["fp32", "fp16", "int8"]),
                default="fp32",
                show_default=True,
                help="What the backbone computes in; fp32 leaves it as it is. Slots are float32 in all of them.",
            ),
            click.option(
                "--calibration-images",
                type=EXISTING_FILE,
                help="Image list of what the device will see, for int8; the gate's, unless --images names another.",
            ),
            click.option(
                "--input",
                "model_input",
                type=click.Choice(["float32", "uint8"]),
                default="float32",
                show_default=True,
                help="What the model takes; uint8: resized and cropped pixels (height, width, channels).",
            ),
            click.option(
                "--top",
                type=click.IntRange(min=0),
                default=5,
                show_default=True,
                help="How many most probable classes the model gives beside all scores; 0 leaves the choice out.",
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
