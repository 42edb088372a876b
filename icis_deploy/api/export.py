"""Export a model with new classes: write a bundle, if it passes the parity gate."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.api.few_shot import make_few_shot
from icis_deploy.api.inputs import (
    ClassNames,
    PathLike,
    Preprocess,
    check_max_seen_loss,
    class_names_from,
    inputs_from,
    listed,
    options_from,
    preprocessing_from,
    update_from,
)
from icis_deploy.api.models import (
    Model,
    head_of,
    open_with_preprocessing,
)
from icis_deploy.api.notices import tell
from icis_deploy.api.reference import make_reference, refusals_to_expect
from icis_deploy.bundle.manifest import HEAD_KINDS, Bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.bundle.target_options import TargetOptions
from icis_deploy.common.files import check_free, path_from
from icis_deploy.common.given import check_callable, check_choice, check_number, check_type, items, whole_number
from icis_deploy.errors import UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.python_values import PythonInputs
from icis_deploy.updates.signers import SigningKey, open_signer
from icis_deploy.updates.signing import key_paths
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from exporters.targets.registry import BuiltTarget

ARBITERS = ("auto", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a bundle gets besides the model and its new classes, and what it is checked with.

    Example:
        options = icis_deploy.ExportOptions(head="updatable", capacity=256, preprocess="preprocess.json")
        icis_deploy.export("model.onnx", classes="classes.txt", out="bundle", options=options)

    Raises:
        UsageError: On construction, if there is no such kind of head, or something is given that a fused head has no
            use for; or a loss of seen accuracy is limited that is no fraction, or that no images measure.
    """

    head: str = "fused"
    """`fused`: all rows in one layer, the fastest. `updatable`: rows can be changed on the device."""

    capacity: int | None = None
    """Number of slots of an updatable head; `None` for 256, or twice as many as the updates fill where that is more, as
    far as a bundle holds so many. A fused head has none."""

    arbiter: str = "auto"
    """`auto`: the logits of new classes follow statistics of the image, where a class update says so; an updatable head
    is prepared for such updates. `off`: the model is not, and such updates are refused."""

    preprocess: Preprocess | None = None
    """How images are prepared: a JSON file, a mapping or a `Preprocessing` that says it, an image processor of
    transformers or transforms of torchvision; by default what the model states."""

    images: PythonInputs | None = None
    """Images or arrays for the gate, in any form of `evaluate`; by default the calibration images, or seeded inputs
    where there are none. On images of seen classes it measures what the new ones cost them."""

    max_seen_loss: float | None = None
    """How much of the accuracy on seen classes the new ones may cost, fraction of 1; `None` for what the updates were
    made for, which the gate holds them to where there are images."""

    seen_images: PythonInputs | None = None
    """Images or arrays of classes that the model knows, in any form of `evaluate`, or their features, in the forms of
    `InjectionOptions.seen_images`: on them devices look for answers that a class update would change. By default those
    among `images`, or features that are drawn from the head. For updatable heads."""

    max_changed_answers: float | None = 0.05
    """Share of these answers, 0..1, that one class update may change on a device; `None` leaves the guard out. Of an
    updatable head whose model takes images."""

    form: ModelForm = field(default_factory=ModelForm)
    """What is done to the model besides its head, such as its precision."""

    trust: Sequence[PathLike] = ()
    """Files of public keys whose class updates a device with this bundle takes; for updatable heads."""

    generator: PathLike | None = None
    """A generator, with which devices can be taught classes from descriptors; for updatable heads."""

    targets: Sequence[str] = ("onnx",)
    """What the bundle holds: `onnx`, which is always there, `openvino`, `litert`, `mnn`, `executorch`, `ncnn`,
    `qnn`, `coreml`, `ort-amd64`, `ort-arm`, `tensorrt`, `tensorrt-rtx`, `backbone`, `triton`, `web`; `all` for what
    this machine can build."""

    target_options: TargetOptions = field(default_factory=TargetOptions)
    """How the targets are built."""

    key: SigningKey | None = None
    """What signs the bundle, as in `sign`; `None` leaves it unsigned, until `sign_bundle`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trust", tuple(key_paths(self.trust, name="trust")))
        object.__setattr__(self, "targets", items(self.targets, "names of targets", name="targets"))
        if self.generator is not None:
            path_from(self.generator, name="generator")
        check_type(self.form, ModelForm, name="form")
        check_type(self.target_options, TargetOptions, name="target_options")
        check_max_seen_loss(self.max_seen_loss)
        if self.max_seen_loss is not None and self.images is None and self.form.calibration_images is None:
            raise UsageError(
                "A loss of seen accuracy can only be measured on images.",
                hint="Give labelled images of seen classes in `images`, or leave `max_seen_loss` out.",
            )
        check_choice(self.head, HEAD_KINDS, what="head", name="head")
        if self.capacity is not None:
            object.__setattr__(self, "capacity", whole_number(self.capacity, name="capacity"))
        if self.head == "fused" and self.capacity is not None:
            raise UsageError(
                "A fused head has no slots.",
                found=self.capacity,
                expected="no capacity",
                hint="Give `capacity` with `head='updatable'` only.",
            )
        check_choice(self.arbiter, ARBITERS, what="arbiter", name="arbiter")
        if self.trust and self.head == "fused":
            raise UsageError(
                "A device with a fused head takes no class updates, whoever signed them.",
                found=self.head,
                expected="updatable",
                hint="Give `trust` with `head='updatable'`, or leave it out.",
            )
        _check_max_changed_answers(self.max_changed_answers)
        if self.seen_images is not None and (self.head == "fused" or self.max_changed_answers is None):
            raise UsageError(
                "Images of seen classes guard a device against class updates, and this one takes none or has no guard.",
                found=(self.head, self.max_changed_answers),
                expected="an updatable head with a share of answers that may change",
                hint="Give `seen_images` with `head='updatable'` and `max_changed_answers`, or leave it out.",
            )
        if self.generator is not None and self.head == "fused":
            raise UsageError(
                "A device can only be taught classes in slots.",
                found=self.head,
                expected="updatable",
                hint="Give `generator` with `head='updatable'`.",
            )


def _check_max_changed_answers(share: float | None) -> None:
    """Raise `UsageError` if this is no share of the answers that an update may change."""
    if share is None:
        return
    check_number(share, name="max_changed_answers")
    if not 0 <= share <= 1:
        raise UsageError(
            f"{share} is no share of the answers that an update may change.",
            found=share,
            expected="0 to 1, or None",
            hint="Give `max_changed_answers` as a share of all answers.",
        )


def export(
    model: Model,
    *,
    classes: ClassNames | None = None,
    out: PathLike,
    updates: Sequence[PathLike | ClassUpdate] = (),
    options: ExportOptions | None = None,
    on_target: Callable[[BuiltTarget], None] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle, if it passes the parity gate.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`; needed unless the model was opened with it, or states its classes.
        out: The bundle's folder.
        updates: Class updates, or files of them, applied in order.
        options: What else the bundle gets; `ExportOptions()` by default.
        on_target: Told what became of each target, as soon as it is known.
        overwrite: Whether a bundle at `out` may be replaced.

    Example:
        icis_deploy.export("model.onnx", classes="classes.txt", updates=["new.icis"], out="bundle")

    Warns `ICISDeployWarning` where the guard of a device would refuse the new classes as an update.

    Raises:
        GateFailedError: If the export disagrees with the model, or its new classes cost the seen ones more accuracy
            than is allowed, with 95 % confidence; `<out>.rejected` holds it and its report.
        WrongBaseError: If an update or the generator was made for another head.
        IncompatibleError: If an update has an arbiter and the model gets none: by `arbiter='off'`, or since its classes
            are independent of each other.
        UsageError: If something that was asked for would be left out: it does not go with the head or the targets.
        IncompatibleError: If one of the images of seen classes is of another class.
        MissingDependencyError: If a target cannot be built on this machine.
        SignatureError: If `key` cannot be read, or does not sign.
        ICISDeployError: As `inspect`, and if something cannot be read or written.
    """
    enable_workbench()
    from exporters.bundles.finishing import read_trust
    from exporters.bundles.requirements import require_exportable
    from exporters.bundles.writing import BundleSettings, plan_head, write_bundle
    from exporters.generator.writing import read_generator, with_generator
    from exporters.head.score_kinds import score_kind
    from exporters.targets.registry import plan_targets

    options = options_from(options, ExportOptions)
    out = path_from(out, name="out")
    check_free(out, overwrite=overwrite, makes_folders=True)
    check_callable(on_target, name="on_target")
    # Before the work of minutes: whoever signs may have to be asked for a passphrase.
    signer = None if options.key is None else open_signer(options.key)
    targets = plan_targets(options.targets, options.target_options, head_kind=options.head)
    # All that is wrong with the other files is said before the model is loaded.
    stated_classes, explicit = class_names_from(classes), preprocessing_from(options.preprocess)
    if isinstance(updates, str | os.PathLike | ClassUpdate):
        raise UsageError(
            "`updates` is one class update; expected a list of them, as they are applied in order.",
            found=type(updates).__name__,
            expected="a list of class updates, or of their files",
            hint="Give `updates=[...]`.",
        )
    parsed = [update_from(update) for update in items(updates, "class updates", name="updates")]
    trusted = tuple(Path(key) for key in options.trust)
    read_trust(trusted)
    generator = None if options.generator is None else read_generator(Path(options.generator))
    given_images = listed(options.images, where="`images`")
    seen_images = listed(options.seen_images, where="`seen_images`")
    calibration = listed(options.form.calibration_images, where="the calibration inputs")
    opened, preprocessing = open_with_preprocessing(model, classes=stated_classes, preprocess=explicit)
    require_exportable(opened.loaded, opened.location, preprocessing)
    plan = plan_head(
        head_of(opened),
        parsed,
        head_kind=options.head,
        capacity=options.capacity,
        arbiter=options.arbiter,
        score_kind=score_kind(opened.location.node_name, opened.location.followed_by),
    )
    opened = replace(opened, head=None)  # the rows of a large head are not held while models with it are loaded
    images = inputs_from(given_images, preprocessing)
    made = None
    if plan.head_kind == "updatable" and options.max_changed_answers is not None:
        made = make_reference(
            opened,
            seen_names=plan.seen_names,
            seen_images=seen_images,
            gate_images=images,
            preprocessing=preprocessing,
            max_changed_answers=options.max_changed_answers,
        )
    settings = BundleSettings(
        preprocessing=preprocessing,
        images=images,
        form=replace(options.form, calibration_images=calibration),
        trust=trusted,
        targets=targets,
        max_seen_loss=options.max_seen_loss,
        signer=signer,
    )
    plan = with_generator(plan, generator)
    bundle = write_bundle(
        out,
        replace(
            plan,
            reference=None if made is None else made.reference,
            few_shot=None if made is None else make_few_shot(opened, made, plan.generator, options.max_seen_loss),
            reference_source=None if made is None else made.source,
            max_changed_answers=None if made is None else options.max_changed_answers,
        ),
        loaded=opened.loaded,
        location=opened.location,
        settings=settings,
        on_target=on_target,
        overwrite=overwrite,
    )
    if made is not None:
        tell(refusals_to_expect(bundle, made.reference, plan.table))
    return bundle
