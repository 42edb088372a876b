"""Compact a bundle: bake what is in its slots into its model, and give it free slots.

Rules:

1. The bundle's own model is what is compacted: backbone, precision, calibration, its input and its top-k outputs stay,
   bit for bit, and neither the original model nor calibration images are needed. Rows keep their bits too.
2. The result must give the logits that the bundle gave, of every class, or it is not written (`compare_compacted`).
3. Targets that the bundle holds are built anew, as their sidecars say they were built.
4. The base fingerprint stays the original head's, so that updates made for it are accepted as before.
5. What is outside the rollback stack stays: the highest version, the last time seen, trusted keys, disabled classes
   and the history. The stack itself starts empty: there is no earlier state that a rollback could restore.
6. A class that was baked can be disabled, and no longer be replaced or removed by an update. Taught classes stay in
   slots: a signed update of the same name must still be able to replace them.
"""

# Why: docs/decisions/0048.

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporters.backbone.inputs import InputBatches, input_batches
from exporters.bundles.finishing import BuiltModel, finish_bundle, versions, write_journal, write_signature, write_trust
from exporters.bundles.writing import compacted
from exporters.gate.gate import opened_bundle, run_bundle
from exporters.gate.row_files import RowFile, block_size
from exporters.graph.edits import apply_passes
from exporters.graph.reading import fixed_batch
from exporters.head.score_kinds import comparable_from_device
from exporters.head.slot_baking import BakeRowsPass
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.backbone_target import backbone_settings_of
from exporters.targets.quantized import Quantizable
from exporters.targets.registry import TargetPlan, plan_targets, targets_of
from exporters.targets.tensorrt.target import settings_of
from exporters.targets.web_target import LIBRARY_FOLDER
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
    file_entry,
)
from icis_deploy.bundle.slot_files import load_injected, serialize_slots
from icis_deploy.bundle.target_options import TargetOptions
from icis_deploy.common.files import check_free, new_folder, write_file
from icis_deploy.errors import CapacityError, IncompatibleError, UsageError
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.images.sources import InputSource
from icis_deploy.metrics.parity import GATE_PROFILES, GateProfile, ParityReport, compare_blocks
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.state.head_state import make_head_state
from icis_deploy.runtime.state.journal import Journal
from icis_deploy.runtime.state.origins import origins_moved
from icis_deploy.runtime.state.store import TRUST_FOLDER

if TYPE_CHECKING:
    from securesystemslib.signer import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionPlan:
    """Where the rows of a bundle go."""

    baked: SlotTable
    """Every row that is baked after the original's, those of an earlier compaction first; no slot of it is empty."""

    slots: SlotTable
    """What the slots hold afterwards: taught classes, and empty ones after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerBundle:
    """The bundle that is compacted, as it was when it was read: updates that a device applies later are not in it."""

    folder: Path

    bundle: Bundle
    """Its manifest."""

    journal: Journal
    """Head version, taught and disabled classes, and what is outside the rollback stack."""

    table: SlotTable | None
    """What its slots hold; `None` for a fused head."""

    def slot_table(self) -> SlotTable:
        """Return what its slots hold.

        Raises:
            IncompatibleError: If the head is fused.
        """
        if self.table is None:
            raise IncompatibleError(
                f"The bundle {self.folder} has a fused head: there are no slots to bake.",
                found="fused",
                expected="updatable",
                where=self.folder,
                hint="Export the model again with all its updates, which bakes them.",
            )
        return self.table


def plan_compaction(former: FormerBundle, capacity: int) -> CompactionPlan:
    """Return which rows of a bundle are baked, and what its slots hold afterwards.

    Args:
        former: The bundle, which may have been compacted before.
        capacity: Number of slots afterwards.

    Raises:
        IncompatibleError: If the head is fused.
        UsageError: If there would be no slot.
        CapacityError: If the slots do not hold the taught classes.
        BundleError, CorruptFileError: If its baked rows cannot be read.
    """
    table = former.slot_table()
    if capacity < 1:
        raise UsageError(
            f"An updatable head needs a capacity of at least 1 slot, not {capacity}.",
            found=capacity,
            expected="at least 1",
            hint="Give `capacity` as 1 or more.",
        )
    taught = [name for name in table.filled_names if name in former.journal.current.taught]
    published = compacted(table.without(taught))
    baked = load_injected(former.folder, former.bundle)
    baked = published if baked is None else _joined(baked, published)
    if (num_scores := former.bundle.num_seen + baked.capacity + capacity) < former.bundle.top:
        raise UsageError(
            f"With {capacity} slots the model would give {num_scores} scores, and it chooses {former.bundle.top} "
            f"classes itself.",
            found=num_scores,
            expected=f"at least {former.bundle.top}",
            hint="Give a larger `capacity`, or export the bundle again with a smaller `top`.",
        )
    return CompactionPlan(baked=baked, slots=_in_slots(compacted(table.without(published.filled_names)), capacity))


def write_compacted(
    out: Path,
    former: FormerBundle,
    *,
    capacity: int,
    images: InputSource | None,
    overwrite: bool,
    signer: Signer | None = None,
) -> Bundle:
    """Write a bundle that replaces another one, with free slots, if it gives the same logits.

    Args:
        out: The new bundle's folder.
        former: The bundle; it is not changed.
        capacity: Number of its slots, including those of taught classes.
        images: Image files or arrays to compare on; `None` for seeded inputs.
        overwrite: Whether a bundle at `out` may be replaced.
        signer: What signs it; `None` leaves it unsigned, as the former one's signature does not fit it.

    Raises:
        GateFailedError: If it does not. What was built is kept in `<out>.rejected` with its report.
        MissingDependencyError: If the bundle holds a target that cannot be built on this machine.
        ICISDeployError: As `plan_compaction`, and if a file cannot be read or written; `out` is as it was.
    """
    check_free(out, overwrite=overwrite, makes_folders=True)
    plan, bundle = plan_compaction(former, capacity), former.bundle
    targets = _targets(former)
    with new_folder(out, overwrite=overwrite, marker=MANIFEST_NAME) as building:
        start = time.perf_counter()
        model = load_onnx_file(former.folder / MODEL_NAME)
        baking = BakeRowsPass(num_seen=bundle.num_seen, baked=plan.baked, slots=plan.slots)
        save_model(apply_passes(model, baking), building / MODEL_NAME)
        _write_tables(building, former, plan)
        described = _describe(building, former, plan)
        seconds = time.perf_counter() - start
        gate = partial(
            compare_compacted,
            building,
            former=former,
            fixed_batch=fixed_batch(model.graph.inputs[0]),
            images=images,
        )
        built = BuiltModel(folder=building, bundle=described, build_seconds=seconds, reports=gate(described))
        write_trust(building, sorted((former.folder / TRUST_FOLDER).glob("*.pub")))
        described = finish_bundle(built, gate, out=out, targets=targets, quantizable=Quantizable(former=former.folder))
        write_journal(building, journal_after_compaction(former, described, plan))
        if signer is not None:
            write_signature(building, signer)
    return described


def journal_after_compaction(former: FormerBundle, described: Bundle, plan: CompactionPlan) -> Journal:
    """Return the journal of a compacted bundle (rule 5); who signed a class goes with it."""
    current = former.journal.current
    origins = origins_moved(
        current.origins,
        (*former.bundle.class_names, *former.slot_table().class_names),
        (*described.class_names, *plan.slots.class_names),
    )
    return replace(former.journal, states=(replace(current, slots=None, origins=origins),), bundle_sha256=None)


def _targets(former: FormerBundle) -> TargetPlan:
    """Return the targets that a bundle holds, to be built as they were (rule 3)."""
    names = targets_of(former.bundle)
    library = (
        former.folder / LIBRARY_FOLDER if any(name.startswith(LIBRARY_FOLDER) for name in former.bundle.files) else None
    )
    options = TargetOptions(
        engine=settings_of(former.folder, former.bundle),
        backbone=backbone_settings_of(former.folder, former.bundle),
        onnxruntime_web=library,
    )
    return plan_targets(names, options)


def _write_tables(folder: Path, former: FormerBundle, plan: CompactionPlan) -> None:
    write_file(folder / SLOTS_NAME, serialize_slots(plan.slots))
    if plan.baked.capacity:
        write_file(folder / INJECTED_NAME, serialize_slots(plan.baked))
    for name in (GENERATOR_NAME, ARBITER_NAME, REFERENCE_NAME, FEW_SHOT_NAME):
        if name in former.bundle.files:
            shutil.copyfile(former.folder / name, folder / name)


def _describe(folder: Path, former: FormerBundle, plan: CompactionPlan) -> Bundle:
    return replace(
        former.bundle,
        class_names=(*former.bundle.seen_names, *plan.baked.filled_names),
        capacity=plan.slots.capacity,
        head_version=former.journal.current.version,
        files={path.name: file_entry(path) for path in sorted(folder.iterdir())},
        parity=(),
        created_by=versions(),
    )


def _in_slots(filled: SlotTable, capacity: int) -> SlotTable:
    """Return filled slots with empty ones after them."""
    if filled.capacity > capacity:
        raise CapacityError(
            f"The bundle was taught {filled.capacity} classes, which stay in slots; a capacity of {capacity} does not "
            f"hold them.",
            found=capacity,
            expected=f"at least {filled.capacity}",
            hint="Give a greater `capacity`.",
        )
    return _joined(filled, empty_slots(capacity - filled.capacity, filled.feature_dim))


def _joined(first: SlotTable, second: SlotTable) -> SlotTable:
    return SlotTable(
        weight=np.concatenate([first.weight, second.weight]),
        bias=np.concatenate([first.bias, second.bias]),
        class_names=(*first.class_names, *second.class_names),
        arbiter=np.concatenate([first.coefficients, second.coefficients]),
    )


COMPARED_WITH = "logits of the bundle before it was compacted"


def compare_compacted(
    folder: Path,
    bundle: Bundle,
    *,
    former: FormerBundle,
    fixed_batch: int | None = None,
    images: InputSource | None = None,
    runtime: Runtime | None = None,
    rewrite: ir.passes.PassBase | None = None,
) -> tuple[ParityReport, ...]:
    """Run a compacted bundle and the one before it on the same inputs, and compare.

    Both have the same backbone, in the same precision, so that one comparison sees everything that compacting does: the
    logits of all classes, in whatever slot or row they are, must stay the same. Slots and top-k classes are checked as
    in an export. In a runtime other than the reference, both are run in it.

    Args:
        folder: The compacted bundle's files.
        bundle: Its manifest.
        former: The bundle that was compacted, with an updatable head.
        fixed_batch: Batch size of a model that takes no other; `None` for one that takes any.
        images: Image files or arrays to compare on; `None` for seeded inputs.
        runtime: Where both are run; `None` for the default.
        rewrite: A pass that both models are rewritten by first, in the default runtime.

    Raises:
        ModelLoadError: If a runtime cannot load one of them.
        RuntimeFailureError: If a runtime cannot run one of them.
    """
    before = former.bundle
    inputs = input_batches(before.model_input, before.preprocessing, images, fixed_batch=fixed_batch)
    opened = opened_bundle(former.folder, before, runtime, rewrite)
    names, expected = _former_logits(former.folder, opened, former.slot_table(), inputs)
    ran = run_bundle(folder, bundle, inputs, runtime, rewrite)
    where = "" if runtime is None or runtime.is_reference else f"; both in {runtime.name}"
    column_of = {name: index for index, name in enumerate(ran.class_names)}
    columns, size = [column_of[name] for name in names], block_size(expected.width)
    blocks = (
        (comparable_from_device(former, before.score_kind), comparable_from_device(now[:, columns], before.score_kind))
        for former, now in zip(expected.blocks(size), ran.logits.blocks(size), strict=True)
    )
    report = compare_blocks(
        blocks,
        num_images=len(expected),
        num_classes=expected.width,
        profile=_profile(before.precision, runtime),
        compared_with=COMPARED_WITH + where,
    )
    return (replace(report, failures=(*report.failures, *sorted(ran.failures))),)


def _former_logits(
    folder: Path, opened: Device, table: SlotTable, inputs: InputBatches
) -> tuple[tuple[str, ...], RowFile]:
    """Return the classes and their logits, disabled ones included."""
    bundle, session = opened.bundle, session_of(opened)
    state = make_head_state(bundle, session, table=table, version=bundle.head_version)
    device = Device(folder=folder, bundle=bundle, session=session, state=state)
    return state.class_names, RowFile(device.logits(batch.given).values[: batch.count] for batch in inputs)


def _profile(precision: str, runtime: Runtime | None) -> GateProfile:
    # Integers and their scales are the same on both sides. Only a runtime that builds kernels anew may round otherwise.
    if runtime is None or runtime.is_reference:
        return GATE_PROFILES["fp16 head" if precision == "fp16" else "fp32"]
    return GATE_PROFILES["fp32" if precision == "fp32" else "fp16"]
