"""Export a model with new classes: write a bundle, if it passes the parity gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.api.models import Model, PathLike, head_of, inspect
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.common.files import check_free
from icis_deploy.errors import UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.loading import load_prepared_list
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.updates.envelope import load_update
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.bundles.writing import HeadPlan
    from exporters.targets.registry import BuiltTarget, TargetOptions


def export(
    model: Model,
    *,
    classes: PathLike | None = None,
    out: PathLike,
    updates: Sequence[PathLike | ClassUpdate] = (),
    head: str = "fused",
    capacity: int | None = None,
    preprocess: PathLike | Preprocessing | None = None,
    images: PathLike | None = None,
    form: ModelForm | None = None,
    trust: Sequence[PathLike] = (),
    generator: PathLike | None = None,
    targets: Sequence[str] = ("onnx",),
    target_options: TargetOptions | None = None,
    on_target: Callable[[BuiltTarget], None] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle, if it passes the parity gate.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`; needed unless the model was opened with it.
        out: The bundle's folder.
        updates: Class updates, or files of them, applied in order.
        head: `fused` or `updatable`.
        capacity: Number of slots of an updatable head.
        preprocess: How images are prepared, or a JSON file that says it.
        images: An image list to compare on; by default the calibration images, or seeded inputs where there are none.
        form: What is done to the model besides its head, such as its precision; by default nothing.
        trust: Public keys whose class updates a device with this bundle takes (updatable heads).
        generator: A generator, with which devices can be taught classes from descriptors (updatable heads).
        targets: What the bundle holds: `onnx`, which is always there, and others of
            `exporters.targets.registry.TARGETS`.
        target_options: How they are built.
        on_target: Told what became of each target, as soon as it is known.
        overwrite: Whether a bundle at `out` may be replaced.

    Raises:
        GateFailedError: If the export disagrees with the model; `<out>.rejected` holds it and its report.
        WrongBaseError: If an update was made for another head.
        UsageError: If something that was asked for would be left out: it does not go with the head or the targets.
        MissingDependencyError: If a target cannot be built on this machine.
        ICISDeployError: As `inspect`, and if something cannot be read or written.
    """
    enable_workbench()
    from exporters.bundles.writing import plan_head, write_bundle
    from exporters.targets.registry import plan_targets

    check_free(Path(out), overwrite=overwrite)
    planned_targets = plan_targets(targets, target_options, head_kind=head)
    preprocessing = load_preprocessing(Path(preprocess)) if isinstance(preprocess, str | Path) else preprocess
    opened = inspect(model, classes=classes)
    bare = plan_head(head_of(opened), _parsed(updates), head_kind=head, capacity=capacity)
    opened = replace(opened, head=None)  # the rows of a large head are not held while models with it are loaded
    return write_bundle(
        Path(out),
        _with_generator(bare, generator),
        loaded=opened.loaded,
        location=opened.location,
        preprocessing=preprocessing,
        images=load_prepared_list(images, preprocessing),
        form=form,
        trust=_used_keys(trust, head),
        targets=planned_targets,
        on_target=on_target,
        overwrite=overwrite,
    )


def _used_keys(trust: Sequence[PathLike], head_kind: str) -> list[Path]:
    if trust and head_kind == "fused":
        raise UsageError(
            "A device with a fused head takes no class updates, whoever signed them.",
            found=head_kind,
            expected="updatable",
            hint="Give `trust` with `head='updatable'`, or leave it out.",
        )
    return [Path(key) for key in trust]


def _with_generator(plan: HeadPlan, generator: PathLike | None) -> HeadPlan:
    from exporters.generator.writing import with_generator

    return with_generator(plan, generator)


def _parsed(updates: Sequence[PathLike | ClassUpdate]) -> list[ClassUpdate]:
    return [update if isinstance(update, ClassUpdate) else load_update(Path(update)) for update in updates]
