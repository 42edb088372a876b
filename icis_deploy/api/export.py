"""The main job as Python functions: inspect, export, verify, evaluate. The command line is thin on top of them.

Inject, the step after inspect, is in `icis_deploy.api.inject`.

This module is an edge: it reads files and reaches the workbench (`exporters`), which needs torch only for torch models.
Paths may be given as strings. Every function raises the errors of `icis_deploy.errors` and leaves nothing half-written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import Bundle, load_bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.bundle.slot_files import load_injected
from icis_deploy.common.files import check_free
from icis_deploy.errors import ImageError, UsageError, WrongBaseError
from icis_deploy.head.class_names import load_class_list, quoted
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.images.loading import LabeledImages, load_image_list
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_report
from icis_deploy.metrics.parity import ParityReport
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import Runtime, runtime_from
from icis_deploy.runtime.state.store import Store, exported_slots
from icis_deploy.updates.envelope import load_update
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.bundles.writing import HeadPlan
    from exporters.head.finding import HeadLocation
    from exporters.loading.models import LoadedModel
    from exporters.targets.registry import BuiltTarget, TargetOptions

PathLike = str | Path
BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a user's model is, and how to read it."""

    spec: PathLike
    """Path of a `.onnx` or `.pt2` file, or `package.module:factory`."""

    weights: PathLike | None = None
    """A `.safetensors` or `.pth` file, for a factory."""

    input_shape: tuple[int, ...] | None = None
    """Shape of one image, where the model does not state it."""

    head_node: str | None = None
    """Name of the head's node, where several could be it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A user's model with its head found, and read if its classes are known."""

    loaded: LoadedModel
    """The model as an ONNX graph, and the original to compare with."""

    location: HeadLocation
    """Where in the graph the head is, and how sure that is."""

    head: Head | None
    """Its rows and class names; `None` if no class list was given."""


Model = PathLike | ModelSource | OpenedModel


def inspect(model: Model, *, classes: PathLike | None = None) -> OpenedModel:
    """Load a model and find its head.

    Args:
        model: A path, `package.module:factory`, a `ModelSource` that says more, or an `OpenedModel`, which is not
            loaded again: a torch model takes seconds to become an ONNX graph.
        classes: A text file with one class name a line, in the order of the logits.

    Raises:
        ModelLoadError: If it cannot be loaded or has no head.
        AmbiguousHeadError: If several layers could be the head.
        IncompatibleError: If the class list has another length than the head.
    """
    enable_workbench()
    from exporters.head.finding import find_head, read_head
    from exporters.loading.models import load_model

    names = None if classes is None else load_class_list(Path(classes))
    if isinstance(model, OpenedModel):
        opened = model
    else:
        source = model if isinstance(model, ModelSource) else ModelSource(spec=model)
        weights = None if source.weights is None else Path(source.weights)
        loaded = load_model(str(source.spec), weights, source.input_shape)
        opened = OpenedModel(loaded=loaded, location=find_head(loaded.model, source.head_node), head=None)
    return opened if names is None else replace(opened, head=read_head(opened.loaded.model, opened.location, names))


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
        images=_image_list(images, preprocessing),
        form=form,
        trust=_used_keys(trust, head),
        targets=planned_targets,
        on_target=on_target,
        overwrite=overwrite,
    )


def _used_keys(trust: Sequence[PathLike], head_kind: str) -> list[Path]:
    if trust and head_kind == "fused":
        raise UsageError(
            "A device with a fused head takes no class updates, whoever signed them: give --trust with --head "
            "updatable, or leave it out."
        )
    return [Path(key) for key in trust]


def _with_generator(plan: HeadPlan, generator: PathLike | None) -> HeadPlan:
    from exporters.generator.writing import with_generator

    return with_generator(plan, generator)


def _parsed(updates: Sequence[PathLike | ClassUpdate]) -> list[ClassUpdate]:
    return [update if isinstance(update, ClassUpdate) else load_update(Path(update)) for update in updates]


def verify(
    bundle: PathLike, *, against: Model, images: PathLike | None = None, runtime: Runtime | str = "onnxruntime"
) -> tuple[ParityReport, ...]:
    """Run a bundle beside the model that it was made from, and compare.

    Args:
        bundle: The bundle's folder.
        against: The original model, as in `inspect`.
        images: An image list to compare on; seeded inputs by default.
        runtime: Where the bundle is run, as in `Device.open`.

    Raises:
        WrongBaseError: If the bundle was made from a model with another head.
        BundleError: If the bundle is incomplete.
        CorruptFileError: If a file in it was changed.
    """
    enable_workbench()
    from exporters.gate.gate import check_bundle
    from exporters.head.expanded_head import ExpandedHead

    folder, chosen = Path(bundle), runtime_from(runtime)
    described = load_bundle(folder)
    compared = _image_list(images, described.preprocessing)
    opened = _original_of(folder, described, against)
    loaded, location = opened.loaded, opened.location
    return check_bundle(
        folder,
        described,
        loaded=loaded,
        location=location,
        expanded=ExpandedHead(model=loaded.model, location=location, injected=_injected_rows(folder, described)),
        images=compared,
        runtime=chosen,
    )


def compact(
    bundle: PathLike,
    *,
    out: PathLike,
    capacity: int | None = None,
    images: PathLike | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle whose model has baked what is in another one's slots, with free slots after it.

    It takes the other one's place: `Device.replace` hands over without a pause. See `exporters/bundles/compaction.py`.

    Args:
        bundle: The bundle's folder; it is not changed.
        out: The new bundle's folder.
        capacity: Number of slots; `None` for as many as it has.
        images: An image list to compare both on; seeded inputs by default.
        overwrite: Whether a bundle at `out` may be replaced.

    Raises:
        GateFailedError: If the new bundle gives other logits than the old one.
        IncompatibleError: If the head is fused.
        MissingDependencyError: If the bundle holds a target that cannot be built on this machine.
        ICISDeployError: If something cannot be read or written.
    """
    enable_workbench()
    from exporters.bundles.compaction import CompactedFrom, write_compacted

    folder = Path(bundle)
    check_free(Path(out), overwrite=overwrite)
    described, store = load_bundle(folder), Store(folder)
    journal = store.load_journal(described)
    table = store.load_table(described, journal.current)
    return write_compacted(
        Path(out),
        CompactedFrom(folder=folder, bundle=described, journal=journal, table=table),
        capacity=described.capacity if capacity is None else capacity,
        images=_image_list(images, described.preprocessing),
        overwrite=overwrite,
    )


def _original_of(folder: Path, described: Bundle, against: Model) -> OpenedModel:
    """Open the model that a bundle was made from, or raise `WrongBaseError`."""
    from exporters.head.finding import read_head

    opened = inspect(against)
    loaded, location = opened.loaded, opened.location
    if loaded.input_dtype != np.float32:
        raise WrongBaseError(
            f"The bundle {folder} was made from a model that takes float32; {loaded.spec} takes {loaded.input_dtype}. "
            f"Verify against the model that it was exported from."
        )
    if location.num_classes != described.num_seen:
        raise WrongBaseError(
            f"The bundle {folder} was made from a head of {described.num_seen} classes; {loaded.spec} has "
            f"{location.num_classes}. Verify against the model that it was exported from."
        )
    found = read_head(loaded.model, location, described.seen_names).fingerprint
    if found != described.base_fingerprint:
        raise WrongBaseError(
            f"The bundle {folder} was made from the head {described.base_fingerprint[:16]}…; {loaded.spec} has "
            f"{found[:16]}…. Verify against the model that it was exported from."
        )
    return opened


def _injected_rows(folder: Path, bundle: Bundle) -> NDArray[np.float32]:
    """Return the rows beside the original's, `(num_injected, feature_dim + 1)` float32; baked ones come first."""
    tables = [table for table in (load_injected(folder, bundle), exported_slots(folder, bundle)) if table is not None]
    return np.concatenate([np.empty((0, bundle.feature_dim + 1), np.float32), *(table.rows() for table in tables)])


def evaluate(
    bundle: PathLike | Device,
    *,
    images: PathLike,
    unseen: PathLike | Sequence[str] | None = None,
    runtime: Runtime | str = "onnxruntime",
) -> AccuracyReport:
    """Measure how right a bundle is on labelled images.

    Args:
        bundle: The bundle's folder, or an open device.
        images: An image list: a CSV with the columns `file` and `class`.
        unseen: The classes that count as unseen, or a text file of them; by default those that were injected. One that
            the head does not know counts as never recognised: that is the classifier without injection.
        runtime: Where the bundle is run, as in `Device.open`; an open device keeps its own.

    Raises:
        MissingDependencyError: If the runtime, or the device that it needs, is not there.
        ImageError: If an image shows a class that neither the head nor `unseen` names.
        ICISDeployError: If something cannot be read or run.
    """
    device = bundle if isinstance(bundle, Device) else Device.open(bundle, runtime=runtime)
    labeled = load_image_list(Path(images))
    head_names = device.classes()
    given = load_class_list(Path(unseen)) if isinstance(unseen, str | Path) else unseen
    unseen_names = frozenset(head_names[device.bundle.num_seen :] if given is None else given)
    absent = tuple(sorted(unseen_names - set(head_names)))
    names = (*head_names, *absent)
    place = {name: index for index, name in enumerate(names)}
    unknown = sorted({label for label in labeled.labels if label not in place})
    if unknown:
        raise ImageError(
            f"The image list {images} shows {quoted(unknown)}, which the bundle's head does not know. Name them in "
            f"--unseen if they count as classes it should know, or leave their images out."
        )
    if device.bundle.preprocessing is None:
        raise UsageError("The bundle does not state how images are prepared; export it with --preprocess.")
    pieces = [labeled.paths[start : start + BATCH_SIZE] for start in range(0, len(labeled.paths), BATCH_SIZE)]
    logits = np.concatenate([device.logits(device.prepare(piece)).values for piece in pieces])
    # A class that the head lacks gets a logit that never wins.
    padded = np.pad(logits, ((0, 0), (0, len(absent))), constant_values=-np.inf)
    is_seen = np.array([name not in unseen_names for name in names])
    original_names = frozenset(device.bundle.seen_names)
    is_original = np.array([name in original_names for name in names])
    return accuracy_report(
        padded,
        np.array([place[label] for label in labeled.labels]),
        seen=is_seen,
        original_logits=np.where(is_original, padded, -np.inf)[:, is_seen],
    )


def _image_list(images: PathLike | None, preprocessing: Preprocessing | None) -> LabeledImages | None:
    """Return an image list to run models on."""
    if images is None:
        return None
    if preprocessing is None:
        raise UsageError(
            "Images can only be used where it is known how they are prepared: export with --preprocess, or leave "
            "--images out."
        )
    return load_image_list(Path(images))


def head_of(opened: OpenedModel) -> Head:
    """Return the head of a model that was opened with its class list.

    Raises:
        UsageError: If it was not.
    """
    if opened.head is None:
        raise UsageError(
            f"The classes of {opened.loaded.spec} are not known: give `classes`, a text file with one class "
            f"name a line."
        )
    return opened.head
