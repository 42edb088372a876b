"""Write the injector that `inject` trains as a generator, for devices that make rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.api.inject import train_injector
from icis_deploy.api.models import Model, PathLike, head_of, inspect
from icis_deploy.common.files import check_free
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from exporters.generator.writing import WrittenGenerator


def export_generator(
    model: Model,
    *,
    classes: PathLike | None = None,
    descriptors: PathLike | Descriptors,
    out: PathLike,
    unseen: PathLike | Sequence[str] | None = None,
    options: InjectionOptions | None = None,
    preprocess: PathLike | Preprocessing | None = None,
    precision: str = "fp32",
    overwrite: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> WrittenGenerator:
    """Train an injector as `inject` does, and write it as a generator for `export` to put into a bundle.

    Args:
        model: As in `inject`, and so are `classes`, `descriptors`, `unseen`, `preprocess` and `progress`.
        classes: As in `inject`.
        descriptors: As in `inject`.
        out: The file to write.
        unseen: As in `inject`.
        options: How to predict and calibrate.
        preprocess: As in `inject`.
        precision: `fp32`, or `fp16` for a file of half the size.
        overwrite: Whether a file at `out` may be replaced.
        progress: As in `inject`.

    Raises:
        GateFailedError: If the generator does not make the injector's rows.
        IncompatibleError: If the method has no closed form.
        ICISDeployError: As `inject`.
    """
    enable_workbench()
    from exporters.generator.writing import write_generator

    check_free(Path(out), overwrite=overwrite)
    described = descriptors if isinstance(descriptors, Descriptors) else load_descriptors(Path(descriptors))
    opened = inspect(model, classes=classes)
    injection = train_injector(
        opened, descriptors=described, unseen=unseen, options=options, preprocess=preprocess, progress=progress
    )
    head = head_of(opened)
    return write_generator(
        Path(out),
        injection.injector,
        head=head,
        seen_descriptors=described.select(head.class_names).values,
        unseen_descriptors=described.select(injection.class_names).values,
        method=injection.method,
        precision=precision,
    )
