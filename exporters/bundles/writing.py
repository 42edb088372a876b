"""Write a bundle: head surgery, files, parity gate, and only then the folder that was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.bundles.finishing import BuiltModel, finish_bundle, versions, write_signature, write_trust
from exporters.bundles.requirements import model_input, require_exportable
from exporters.conversion.convert import ConvertedModel, convert_precision, with_pixels_and_topk
from exporters.gate.gate import compare_bundle
from exporters.graph.edits import apply_passes
from exporters.head.expanded_head import ExpandedHead, expanded_head, seen_row_lengths
from exporters.head.finding import HeadLocation
from exporters.head.score_kinds import score_kind
from exporters.head.stored_rows import StoreRowsPass
from exporters.head.surgery import AddSlotsPass, FuseHeadPass, SetSlotDefaultsPass, fused_node_name
from exporters.loading.models import LoadedModel
from exporters.onnx_io.class_names_metadata import add_class_names
from exporters.onnx_io.files import save_model
from exporters.targets.quantized import Quantizable
from exporters.targets.registry import BuiltTarget, Gate, TargetPlan
from icis_deploy.bundle.arbiter_constants import serialize_row_lengths
from icis_deploy.bundle.few_shot import FewShot, serialize_few_shot
from icis_deploy.bundle.generator_metadata import GENERATOR_NAME
from icis_deploy.bundle.manifest import (
    ARBITER_NAME,
    FEW_SHOT_NAME,
    INJECTED_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    REFERENCE_NAME,
    SLOTS_NAME,
    Bundle,
    ModelInput,
    file_entry,
    max_capacity,
)
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.bundle.reference import Reference, serialize_reference
from icis_deploy.bundle.slot_files import serialize_slots
from icis_deploy.common.arrays import Float32
from icis_deploy.common.files import check_free, new_folder, write_file
from icis_deploy.errors import IncompatibleError, UsageError, WrongBaseError
from icis_deploy.head.class_names import quoted
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.images.inputs import holds_images
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.python_values import source_from
from icis_deploy.images.sources import InputSource
from icis_deploy.metrics.parity import ParityReport
from icis_deploy.runtime.sessions.choice import Runtime

if TYPE_CHECKING:
    from securesystemslib.signer import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """Which head a bundle gets: the seen rows, and those that are in slots or baked after them."""

    seen_names: tuple[str, ...]
    """`(num_seen,)`: the classes of the original head, in its order."""

    base_fingerprint: str
    """Fingerprint of the original head. Its rows are not kept: they are read from the model."""

    table: SlotTable
    """Injected rows: the slots of an updatable head; for a fused one as many slots as there are rows."""

    head_kind: str
    """`fused` or `updatable`."""

    updates: tuple[Mapping[str, object], ...]
    """A JSON object for each class update that was applied, in order, as the manifest states it."""

    version: int
    """Version of the head: the greatest of its updates; 0 for the original head."""

    arbiter: bool = False
    """Whether the model can let the logits of injected rows follow statistics of the image."""

    generator: bytes | None = None
    """The generator's ONNX file, with which a device makes rows itself; `None` if it gets none."""

    reference: Reference | None = None
    """Images of known classes on which a device looks for answers that a change would change; `None` for none."""

    max_changed_answers: float | None = None
    """Share of these answers that one change may change, 0..1; `None` without a reference."""

    reference_source: str | None = None
    """What the reference is of; see `Bundle.reference_source`."""

    few_shot: FewShot | None = None
    """What a device needs to make rows of photos; `None` without a reference."""

    @property
    def baked_names(self) -> tuple[str, ...]:
        """The classes baked into the model, seen ones first."""
        return (*self.seen_names, *(self.table.filled_names if self.head_kind == "fused" else ()))

    @property
    def num_scores(self) -> int:
        """Number of scores that the model gives, those of empty slots included."""
        return len(self.seen_names) + self.table.capacity


DEFAULT_CAPACITY = 256
"""Slots of an updatable head where nobody says how many; 256 rows of 1,280 features are 1.3 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSettings:
    """What a bundle gets besides its head, and what it is compared on."""

    preprocessing: Preprocessing | None = None
    """How images are prepared, for the manifest; `None` where users prepare them."""

    images: InputSource | None = None
    """Image files or arrays for the gate; `None` for the calibration images, or seeded inputs where there are none."""

    form: ModelForm = field(default_factory=ModelForm)
    """What is done to the model besides its head."""

    trust: tuple[Path, ...] = ()
    """Public keys for the bundle's `trust/` folder."""

    targets: TargetPlan = field(default_factory=TargetPlan)
    """What the bundle holds besides `model.onnx`."""

    max_seen_loss: float | None = None
    """How much of the accuracy on seen classes the new ones may cost, fraction of 1; `None` for what the updates
    state."""

    signer: Signer | None = None
    """What signs the bundle; `None` leaves it unsigned."""


def plan_head(
    seen: Head,
    updates: Sequence[ClassUpdate],
    *,
    head_kind: str,
    capacity: int | None,
    arbiter: str = "auto",
    score_kind: str = "logits",
) -> HeadPlan:
    """Apply class updates to a head, one after the other.

    Args:
        seen: The original head.
        updates: Made for it.
        head_kind: `fused` or `updatable`.
        capacity: Number of slots of an updatable head; must be `None` for a fused one.
        arbiter: `auto`: the model gets an arbiter where it may need one; `off`: it gets none.
        score_kind: What the model makes of its logits; see `Bundle.score_kind`.

    Raises:
        WrongBaseError: If an update was made for another head.
        IncompatibleError: If an update has an arbiter, and the model gets none.
        UsageError: If the capacity does not fit the kind of head.
        CapacityError, ClassConflictError, IncompatibleError: As `SlotTable.apply`.
    """
    can_have_arbiter = arbiter == "auto" and score_kind != "sigmoid"
    for update in updates:
        if update.base_fingerprint != seen.fingerprint:
            raise WrongBaseError(
                f"A class update (version {update.version}) was made for the head {update.base_fingerprint[:16]}…; "
                f"this model's head is {seen.fingerprint[:16]}….",
                found=update.base_fingerprint,
                expected=seen.fingerprint,
                hint="Inject again with this model and this class list.",
            )
        if not can_have_arbiter:
            _refuse_arbiter(update, score_kind)
    if head_kind == "fused":
        if capacity is not None:
            raise UsageError(
                "A fused head has no slots.",
                found=capacity,
                hint="Give `capacity` with `head='updatable'` only.",
            )
        table = empty_slots(sum(len(update.added) for update in updates), seen.feature_dim)
    elif capacity is None:
        table = empty_slots(_default_capacity(updates, seen.feature_dim), seen.feature_dim)
    elif capacity < 1:
        raise UsageError(
            f"An updatable head needs a capacity of at least 1 slot; found {capacity}.",
            found=capacity,
            expected="at least 1",
            hint="Give `capacity`.",
        )
    else:
        _require_room(capacity, seen.feature_dim)
        table = empty_slots(capacity, seen.feature_dim)
    for update in updates:
        table = table.apply(update, seen_names=frozenset(seen.class_names))
    return HeadPlan(
        seen_names=seen.class_names,
        base_fingerprint=seen.fingerprint,
        table=compacted(table) if head_kind == "fused" else table,
        head_kind=head_kind,
        updates=tuple(_describe_update(update) for update in updates),
        version=max((update.version for update in updates), default=0),
        arbiter=can_have_arbiter and (head_kind == "updatable" or table.arbiter is not None),
    )


def _refuse_arbiter(update: ClassUpdate, score_kind: str) -> None:
    """Raise `IncompatibleError` if an update has an arbiter."""
    if update.arbiter is None or not update.arbiter.any():
        return
    names = quoted(update.class_names)
    if score_kind == "sigmoid":
        raise IncompatibleError(
            f"The class update of {names} (version {update.version}) has an arbiter, which sets new classes against "
            f"seen ones; this model gives a probability for each class by itself.",
            found="an arbiter",
            expected="constant offsets",
            hint="Inject again with `arbiter='off'`.",
        )
    raise IncompatibleError(
        f"The class update of {names} (version {update.version}) has an arbiter; the model shall get none.",
        found="an arbiter",
        expected="constant offsets",
        hint="Export with `arbiter='auto'`, or inject again with `arbiter='off'`.",
    )


def _default_capacity(updates: Sequence[ClassUpdate], feature_dim: int) -> int:
    """Return how many slots a head gets where nobody says it: as many again as are filled, and not few."""
    num_added = sum(len(update.added) for update in updates)
    return min(max(DEFAULT_CAPACITY, 2 * num_added), max_capacity(feature_dim))


def _require_room(capacity: int, feature_dim: int) -> None:
    most = max_capacity(feature_dim)
    if capacity > most:
        raise UsageError(
            f"{capacity} slots for {feature_dim} features are more than a bundle holds; expected at most {most}.",
            found=capacity,
            expected=f"at most {most}",
            hint="Give a smaller `capacity`.",
        )


def compacted(table: SlotTable) -> SlotTable:
    """Return the filled slots alone, in slot order."""
    filled = table.filled
    return SlotTable(
        weight=table.weight[filled],
        bias=table.bias[filled],
        class_names=table.filled_names,
        arbiter=None if table.arbiter is None else table.arbiter[filled],
    )


def write_bundle(
    out: Path,
    plan: HeadPlan,
    *,
    loaded: LoadedModel,
    location: HeadLocation,
    settings: BundleSettings,
    on_target: Callable[[BuiltTarget], None] | None = None,
    overwrite: bool,
) -> Bundle:
    """Write a bundle to `out`, if it passes the parity gate.

    Args:
        out: The bundle's folder.
        plan: Which head it gets.
        loaded: The original model; it is not changed.
        location: Its head.
        settings: What else it gets, and what it is compared on.
        on_target: Told what became of each target, as soon as it is known.
        overwrite: Whether a bundle at `out` may be replaced.

    Raises:
        GateFailedError: If the gate is not passed. What was built is in `<out>.rejected` with its report, and `out`
            is as it was.
        StorageError: If a file cannot be written; `out` is as it was.
        ExportError: If a target cannot be built; `out` is as it was.
    """
    check_free(out, overwrite=overwrite, makes_folders=True)
    require_exportable(loaded, location, settings.preprocessing)
    with new_folder(out, overwrite=overwrite, marker=MANIFEST_NAME) as building:
        start = time.perf_counter()
        preprocessing = settings.preprocessing
        form = replace(settings.form, top=min(settings.form.top, plan.num_scores))
        taken, calibration = model_input(loaded, preprocessing), _calibration(form, preprocessing)
        formed = convert_precision(loaded, location, form, calibration, model_input=taken, preprocessing=preprocessing)
        lengths = seen_row_lengths(loaded.model, location) if plan.arbiter else None
        expanded = expanded_head(loaded.model, location, [plan.table], lengths=lengths)
        model = _with_head(plan, formed.model, location, expanded, lengths)
        if form.head_precision != "fp32":
            model = apply_passes(
                model, StoreRowsPass(fused_node_name(model) or location.node_name, form.head_precision)
            )
        kind = score_kind(location.node_name, location.followed_by)
        model, taken = with_pixels_and_topk(model, taken, form, kind=kind, preprocessing=preprocessing)
        _write_files(building, plan, model, lengths)
        bundle = _describe(building, plan, taken, form, location, preprocessing)
        seconds = time.perf_counter() - start
        seen = calibration if settings.images is None else settings.images
        compare = partial(
            compare_bundle,
            building,
            loaded=loaded,
            location=location,
            expanded=expanded,
            images=seen,
            max_seen_loss=settings.max_seen_loss,
        )
        gate = partial(explain_rejection, compare, formed)
        reports = gate(bundle)
        write_trust(building, settings.trust)
        bundle = finish_bundle(
            BuiltModel(folder=building, bundle=bundle, build_seconds=seconds, reports=reports),
            gate,
            out=out,
            targets=settings.targets,
            quantizable=Quantizable(backbone=formed.calibrated),
            on_target=on_target,
        )
        if settings.signer is not None:
            write_signature(building, settings.signer)
    return bundle


def _calibration(form: ModelForm, preprocessing: Preprocessing | None) -> InputSource | None:
    if form.calibration_images is None:
        return None
    source = source_from(form.calibration_images, where="the calibration inputs")
    if preprocessing is None and holds_images(source):
        raise UsageError(
            "Calibration needs to know how images are prepared.",
            hint="Give `preprocess`.",
        )
    return source


def explain_rejection(
    compare: Gate,
    formed: ConvertedModel,
    bundle: Bundle,
    *,
    runtime: Runtime | None = None,
    rewrite: ir.passes.PassBase | None = None,
) -> tuple[ParityReport, ...]:
    """Run the gate; the first negative report also names the layers that lose most accuracy, where that is measurable.

    It is where the quantized graph was compared in ONNX Runtime, itself or as a target rewrites it.
    """
    reports = compare(bundle, runtime=runtime, rewrite=rewrite)
    wrong = next((index for index, report in enumerate(reports) if report.parity_failures), None)
    if wrong is None or formed.explain is None or runtime is not None:
        return reports
    report = replace(reports[wrong], failures=(*reports[wrong].failures, formed.explain(rewrite)))
    return (*reports[:wrong], report, *reports[wrong + 1 :])


def _with_head(
    plan: HeadPlan, base: ir.Model, location: HeadLocation, expanded: ExpandedHead, lengths: Float32 | None
) -> ir.Model:
    if plan.head_kind == "fused":
        fused = apply_passes(base, FuseHeadPass(location, replace(expanded, class_names=plan.baked_names)))
        add_class_names(fused, plan.table.filled_names, num_seen=len(plan.seen_names))
        return fused
    table = plan.table
    return apply_passes(
        base,
        AddSlotsPass(location, table.capacity, lengths),
        SetSlotDefaultsPass(table.weight, table.bias, table.arbiter),
    )


def _write_files(folder: Path, plan: HeadPlan, model: ir.Model, lengths: Float32 | None) -> None:
    save_model(model, folder / MODEL_NAME)
    if lengths is not None:
        write_file(folder / ARBITER_NAME, serialize_row_lengths(lengths))
    if plan.table.capacity:
        name = INJECTED_NAME if plan.head_kind == "fused" else SLOTS_NAME
        write_file(folder / name, serialize_slots(plan.table))
    if plan.generator is not None:
        write_file(folder / GENERATOR_NAME, plan.generator)
    if plan.reference is not None:
        write_file(folder / REFERENCE_NAME, serialize_reference(plan.reference))
    if plan.few_shot is not None:
        write_file(folder / FEW_SHOT_NAME, serialize_few_shot(plan.few_shot))


def _describe(
    folder: Path,
    plan: HeadPlan,
    taken: ModelInput,
    form: ModelForm,
    location: HeadLocation,
    preprocessing: Preprocessing | None,
) -> Bundle:
    fused = plan.head_kind == "fused"
    return Bundle(
        head_kind=plan.head_kind,
        class_names=plan.baked_names,
        num_seen=len(plan.seen_names),
        feature_dim=plan.table.feature_dim,
        capacity=0 if fused else plan.table.capacity,
        base_fingerprint=plan.base_fingerprint,
        head_version=plan.version,
        model_input=taken,
        precision=form.precision,
        head_precision=form.head_precision,
        top=form.top,
        arbiter=plan.arbiter,
        score_kind=score_kind(location.node_name, location.followed_by),
        preprocessing=preprocessing,
        files={path.name: file_entry(path) for path in sorted(folder.iterdir())},
        parity=(),
        updates=plan.updates,
        max_changed_answers=plan.max_changed_answers,
        reference_source=plan.reference_source,
        created_by=versions(),
    )


def _describe_update(update: ClassUpdate) -> Mapping[str, object]:
    return {
        "version": update.version,
        "added": list(update.added),
        "replaced": list(update.replaced),
        "removed": list(update.removed),
        "provenance": dict(update.provenance),
    }
