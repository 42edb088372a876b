"""Export a generator: a trained injector as an ONNX model, with which devices make rows of descriptors themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from icis_deploy.api.inject import train_injector
from icis_deploy.api.inputs import (
    ClassNames,
    DescriptorsLike,
    PathLike,
    Preprocess,
    class_names_from,
    descriptors_from,
    options_from,
    preprocessing_from,
)
from icis_deploy.api.models import (
    Model,
    head_of,
    open_model,
)
from icis_deploy.api.notices import tell
from icis_deploy.common.files import check_free, path_from
from icis_deploy.common.given import check_callable, check_choice, check_type
from icis_deploy.errors import UsageError
from icis_deploy.injection.options import AUTO, InjectionOptions
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from exporters.generator.writing import WrittenGenerator

PRECISIONS = ("fp32", "fp16")

WITHOUT_CLOSED_FORM = frozenset({"mixture"})
"""Methods that no graph can be written of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorOptions:
    """How a generator is trained and written.

    Example:
        icis_deploy.GeneratorOptions(injection=icis_deploy.InjectionOptions(method="ridge"), precision="fp16")

    Raises:
        UsageError: On construction, if there is no such precision.
    """

    injection: InjectionOptions = field(default_factory=InjectionOptions)
    """How the injector predicts and calibrates."""

    preprocess: Preprocess | None = None
    """How images are prepared, as in `inject`."""

    precision: str = "fp32"
    """`fp32`, or `fp16` for a file of half the size."""

    def __post_init__(self) -> None:
        check_type(self.injection, InjectionOptions, name="injection")
        check_choice(self.precision, PRECISIONS, what="precision", name="precision")


def export_generator(
    model: Model,
    *,
    classes: ClassNames | None = None,
    descriptors: DescriptorsLike,
    out: PathLike,
    unseen: PathLike | Sequence[str] | None = None,
    options: GeneratorOptions | None = None,
    overwrite: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> WrittenGenerator:
    """Train an injector as `inject` does, and write it as a generator for `export` to put into a bundle.

    Args:
        model: As in `inject`, and so are `classes`, `descriptors`, `unseen` and `progress`.
        classes: As in `inject`.
        descriptors: As in `inject`.
        out: The file to write.
        unseen: As in `inject`.
        options: How to train and write it; `GeneratorOptions()` by default.
        overwrite: Whether a file at `out` may be replaced.
        progress: As in `inject`.

    Example:
        icis_deploy.export_generator(
            "model.onnx", classes="classes.txt", descriptors="descriptors.npz", out="generator.onnx"
        )

    Raises:
        GateFailedError: If the generator does not make the injector's rows.
        IncompatibleError: If the method that was asked for has no closed form. Where `auto` chooses one such, the next
            best is taken, with a warning.
        ICISDeployError: As `inject`.
    """
    enable_workbench()
    from exporters.generator.writing import write_generator

    options = options_from(options, GeneratorOptions)
    out = path_from(out, name="out")
    check_free(out, overwrite=overwrite)
    check_callable(progress, name="progress")
    if options.injection.photos is not None:
        raise UsageError(
            "A generator makes rows from descriptors alone; photos cannot be part of it.",
            found="photos of new classes",
            expected="descriptors alone",
            hint="Leave `photos` out of the options.",
        )
    described, names = descriptors_from(descriptors), class_names_from(classes)
    if names is not None:
        described.select(names)
    opened = open_model(model, classes=names, preprocessing=preprocessing_from(options.preprocess))
    train = partial(
        train_injector,
        opened,
        descriptors=described,
        unseen=unseen,
        preprocess=options.preprocess,
        progress=progress,
    )
    injection = train(options=options.injection)
    if options.injection.method == AUTO and injection.selection is not None and injection.method in WITHOUT_CLOSED_FORM:
        instead = injection.selection.best_without(WITHOUT_CLOSED_FORM)
        if instead is not None:
            tell([_instead(injection.method, instead)])
            injection = train(options=replace(options.injection, method=instead))
    head = head_of(opened)
    assert injection.injector is not None  # only rows of photos have none
    return write_generator(
        out,
        injection.injector,
        head=head,
        seen_descriptors=described.select(head.class_names).values,
        unseen_descriptors=described.select(injection.class_names).values,
        method=injection.method,
        arbiter=injection.arbiter,
        precision=options.precision,
    )


def _instead(chosen: str, instead: str) -> str:
    return (
        f"The best method here is {chosen}, which solves a problem for each class: a generator cannot. It is made by "
        f"{instead}, the next best; rows that `inject` makes by {chosen} are other ones, and may be better."
    )
