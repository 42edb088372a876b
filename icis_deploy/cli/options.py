"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from icis_deploy.cli.parameter_types import Choice, ExistingPath, NewPath, Number, Seed
from icis_deploy.runtime.sessions.choice import MAX_THREADS, RUNTIME_NAMES

if TYPE_CHECKING:
    from icis_deploy.api.models import ModelSource

EXISTING_FILE = ExistingPath(dir_okay=False, path_type=Path)
EXISTING_PATH = ExistingPath(path_type=Path)
EXISTING_FOLDER = ExistingPath(file_okay=False, path_type=Path)


class InputsType(ExistingPath):
    """What holds inputs: a path that is there, or a URI or pattern of several files, which is left as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path, or the text of a URI or pattern."""
        if isinstance(value, str) and ("://" in value or (".." in value and "{" in value)):
            return value
        return super().convert(value, param, ctx)


INPUTS = InputsType(path_type=Path)
BUNDLE = ExistingPath(
    expected="Name a bundle: the folder that `icis-deploy export` wrote.", file_okay=False, path_type=Path
)
NEW_PATH = NewPath(path_type=Path)
THREADS = click.IntRange(min=1, max=MAX_THREADS)

Command = Callable[..., None]


class PercentOrNone(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.3 on
    """A percentage as a share of 1, or the word `none`, which stays one: click's `None` is an option not given."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Return the share, 0..1, or `none`."""
        if isinstance(value, float) or value == "none":
            return value
        return float(Number(0, 100)(value, param, ctx)) / 100


def model_options(function: Command) -> Command:
    """Add the options that say how a MODEL is read; `model_source` turns their values into a `ModelSource`."""
    for option in (
        click.option("--head-node", metavar="NAME", help="The head's node, where several could be it."),
        click.option("--input-shape", metavar="C,H,W", help="Shape of one image, where the model does not state it."),
        click.option("--weights", type=EXISTING_FILE, help="Weights of a factory: .safetensors or .pth."),
    ):
        function = option(function)
    return function


def classes_option(function: Command) -> Command:
    """Add the option `--classes`."""
    return click.option(
        "--classes",
        type=EXISTING_FILE,
        help="The head's class names, one a line, in the order of the logits. Default: those that the model states.",
    )(function)


def described_classes_options(function: Command) -> Command:
    """Add the options that describe the classes, and say how images are prepared."""
    for option in (
        click.option(
            "--preprocess",
            type=EXISTING_FILE,
            help="How images are prepared, JSON; for the neutral images that set the scale of features. Default: what "
            "the model states.",
        ),
        click.option(
            "--unseen",
            type=EXISTING_FILE,
            help="The classes to inject, one a line. Default: every described class that the head lacks.",
        ),
        click.option(
            "--descriptors", type=EXISTING_FILE, required=True, help="Class descriptors: .npz, .csv or att_splits.mat."
        ),
    ):
        function = option(function)
    return function


def photo_options(function: Command) -> Command:
    """Add the options that give a few photos of new classes."""
    for option in (
        click.option(
            "--skip-unreadable",
            is_flag=True,
            help="Leave out images of --photos and --seen-images that cannot be read, with a warning.",
        ),
        click.option(
            "--photos",
            metavar="LIST|FOLDER",
            type=EXISTING_PATH,
            help="A few photos of new classes, of some or all: CSV with the columns file and class, a folder of class "
            "folders, or a file of arrays or features with labels. They move the rows; a class with photos needs no "
            "descriptor.",
        ),
    ):
        function = option(function)
    return function


def calibration_options(function: Command) -> Command:
    """Add the options that say what calibration aims at and what it may take for granted."""
    for option in (
        click.option(
            "--seen-accuracy",
            type=Number(0, 1, min_open=True, max_open=True),
            help="Accuracy of the model on images of its classes, such as 0.76; sharpens calibration.",
        ),
        click.option(
            "--arbiter",
            type=Choice(["auto", "off"]),
            default="auto",
            show_default=True,
            help="auto: how far new classes are favoured depends on the image, where --seen-images speak for it.",
        ),
        click.option(
            "--seen-images",
            metavar="LIST|FOLDER",
            type=EXISTING_PATH,
            help="Images of classes that the model knows: CSV with the columns file and class (or file alone), a "
            "folder of class folders or of images, or a file of arrays or features with labels. They keep "
            "--max-seen-loss, and the estimate comes from them. Not those that the model was trained on: they promise "
            "too much.",
        ),
        click.option(
            "--balance",
            type=Number(0, 1, min_open=True, max_open=True),
            help="Instead of --max-seen-loss, the weight of unseen classes against seen ones; 0.5 is that of papers.",
        ),
        click.option(
            "--max-seen-loss",
            metavar="POINTS",
            type=Number(0, 100, min_open=True, max_open=True),
            help="Points of accuracy that seen classes may lose at most.  [default: 2]",
        ),
    ):
        function = option(function)
    return function


def max_seen_loss_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option `--max-seen-loss`, in points; its parameter is a fraction of 1."""
    return click.option(
        "--max-seen-loss",
        metavar="POINTS",
        type=Number(0, 100),
        callback=lambda _context, _parameter, value: points_as_fraction(value),
        help=help_text,
    )


def points_as_fraction(points: float | None) -> float | None:
    """Return points of accuracy as a fraction of 1; `None` stays `None`."""
    return None if points is None else points / 100.0


def seed_option(function: Command) -> Command:
    """Add the option `--seed` of commands that predict rows."""
    return click.option("--seed", type=Seed(), default=0, show_default=True, help="The same seed, the same rows.")(
        function
    )


def runtime_option(function: Command) -> Command:
    """Add the option `--runtime`."""
    return click.option(
        "--runtime",
        type=Choice(RUNTIME_NAMES),
        default=RUNTIME_NAMES[0],
        show_default=True,
        help="What runs the bundle's model.",
    )(function)


def model_arguments(spec: str, weights: Path | None, input_shape: str | None, head_node: str | None) -> tuple[str, ...]:
    """Return a MODEL and what `model_options` said of it as the arguments of another command."""
    options = (("--weights", weights), ("--input-shape", input_shape), ("--head-node", head_node))
    return (spec, *(part for name, value in options if value is not None for part in (name, str(value))))


def model_source(spec: str, weights: Path | None, input_shape: str | None, head_node: str | None) -> ModelSource:
    """Return what the options of `model_options` say of a model."""
    from icis_deploy.api.models import ModelSource
    from icis_deploy.workbench import enable_workbench

    shape = None
    if input_shape is not None:
        enable_workbench()
        from exporters.loading.models import parse_input_shape

        shape = parse_input_shape(input_shape)
    return ModelSource(spec=spec, weights=weights, input_shape=shape, head_node=head_node)


def refuse_given(*names: str, reason: str) -> None:
    """Refuse options of the running command that were given but would do nothing.

    Args:
        names: Of the command's parameters.
        reason: Why they would do nothing, and what to do instead.

    Raises:
        UsageError: If one of them was given.
    """
    from icis_deploy.errors import UsageError

    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    options = [each.opts[-1] for each in context.command.params if each.name in given]
    if options:
        raise UsageError(f"{' and '.join(options)} would do nothing: {reason}")


def check_png(path: Path) -> None:
    """Check that the name of a plot says what is written under it.

    Raises:
        UsageError: If it does not end in `.png`.
    """
    from icis_deploy.errors import UsageError

    if path.suffix.lower() != ".png":
        raise UsageError(
            f"The plot is a PNG; {path} ends in {path.suffix or 'nothing'!r}.",
            found=path.suffix,
            expected=".png",
            where=path,
            hint="Give it a name that ends in .png.",
        )


def check_output(out: Path, *, overwrite: bool, added_to: str | None = None) -> None:
    """Check that a file can be written, and is none that the running command was given besides.

    Args:
        out: The value of one of the command's parameters.
        overwrite: Whether what is there may be replaced.
        added_to: The parameter whose file may be replaced all the same, as the result takes its place.

    Raises:
        UsageError: If it exists and may not be replaced, is given as another parameter too, or there is no folder.
        StorageError: If nothing can be written in its folder.
    """
    from icis_deploy.common.files import check_free
    from icis_deploy.errors import UsageError

    check_free(out, overwrite=overwrite)
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.params.get(parameter.name or "")
        if parameter.name == added_to:
            continue
        for one in given if isinstance(given, tuple) else (given,):
            if one is not out and isinstance(one, str | Path) and _is_same_file(one, out):
                raise UsageError(
                    f"{out} would be written over what is given as {_name_of(parameter)}.",
                    found=str(out),
                    expected="a path of its own",
                    where=out,
                    hint="Choose another path.",
                )


def _name_of(parameter: click.Parameter) -> str:
    return parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name


def _is_same_file(one: str | Path, other: Path) -> bool:
    try:
        return Path(one).samefile(other)  # the text of a model may be its path, or the name of one on a hub
    except (OSError, ValueError):
        return False  # one of them is not there
