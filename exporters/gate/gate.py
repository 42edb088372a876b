"""The parity gate: run a finished bundle and what it was made from on the same inputs, and compare.

Comparisons, each of which catches what the others cannot:

1. *The expanded head in float64.* The original backbone's features, times all rows, against the bundle's logits: a
   transposed, dropped, reordered or stale row, in whatever way the head was rewritten.
2. *The original model in its own runtime.* Its logits against the bundle's logits of the seen classes: a conversion
   that changed the backbone, which the first comparison would follow into the error.
3. *The expanded head on the bundle's own features*, where its backbone computes in another precision: the error of
   that would hide an error in the head, which is as exact as its own precision.
4. *Slots and arbiter.* The defaults baked into the model must be the slots that the bundle states, and no empty slot
   may win. Slots must follow arbiters of a seed as well as those that they have, which may be none; and the lengths of
   seen rows, with which a device computes an arbiter's statistics itself, must be right.
5. *Every other output*, such as labels, ids or an embedding (`other_outputs.py`).
6. *What new classes cost*, where images of seen classes are given: an export that is as exact as can be may still take
   from an owner what the model can do today. It is over its budget only with 95 % confidence.

New logits that follow an arbiter depend on which seen class has the greatest logit. Where two are as close as a
profile's errors that is chance, and the reference takes the one that the bundle took.

The bundle is run in the runtime that is asked for, its references in ONNX Runtime on the CPU and in the original's own.

What is wrong with a head is named where its errors show it (`head_faults.py`).

Everything is run first, then compared. Models run one after the other, each released before the next is loaded, what
they give for thousands of images lies in files (`row_files.py`), and the rows of the expanded head are read in blocks:
so the gate needs the memory of loading the head once in a runtime, whatever the number of images.
"""

# Why: docs/decisions/0005.

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.backbone.features import features_of
from exporters.backbone.inputs import InputBatches, input_batches
from exporters.gate.float16_emulation import EmulateFloat16Pass
from exporters.gate.head_faults import HeadRun, clipped, name_fault
from exporters.gate.other_outputs import other_output_failures
from exporters.gate.row_files import RowFile, block_size
from exporters.graph.edits import apply_passes
from exporters.graph.reading import value_named
from exporters.head.arbiter import ROW_LENGTHS
from exporters.head.expanded_head import AnyHead, ExpandedHead, seen_row_lengths
from exporters.head.finding import HeadLocation
from exporters.head.score_kinds import (
    LEAST_LOG,
    comparable_from_device,
    comparable_from_logits,
    comparable_from_scores,
    logits_from_device,
    probabilities_from_scores,
)
from exporters.head.surgery import backbone, own_backbone
from exporters.loading.models import LoadedModel
from exporters.onnx_io.files import load_initializers, save_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.bundle.arbiter_constants import ArbiterConstants, load_row_lengths
from icis_deploy.bundle.manifest import (
    ARBITER_NAME,
    MODEL_NAME,
    SLOT_ARBITER,
    SLOT_BIAS,
    SLOT_WEIGHT,
    Bundle,
    known_names,
)
from icis_deploy.bundle.slot_files import exported_slots
from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.errors import IncompatibleError, RuntimeFailureError, SelfTestError, UsageError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.class_names import quoted
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.sources import InputSource
from icis_deploy.metrics.accuracy_loss import compare_accuracy
from icis_deploy.metrics.outcomes import OutcomeHead, Outcomes, measure_outcomes, merge
from icis_deploy.metrics.parity import (
    GATE_PROFILES,
    Errors,
    GateProfile,
    ParityReport,
    compare_blocks,
    mean_and_deviation,
    measure_errors,
    moments_of,
    num_kept_of,
    parity_of,
)
from icis_deploy.metrics.seen_loss import SeenLoss, seen_loss_of, stated_budget
from icis_deploy.runtime.changes.self_test import verify_computed
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.runtime.sessions.protocol import Session
from icis_deploy.runtime.state.head_state import make_head_state

EXPANDED_HEAD = "features of the original backbone and the expanded head in float64"
ORIGINAL_MODEL = "logits of the original model in its own runtime, seen classes only"
OWN_FEATURES = "features that the bundle's own backbone computes and the expanded head in float64"
VANISHING = {"sigmoid": 1e-6, "probabilities": math.exp(LEAST_LOG)}
"""By score kind, the probability below which it counts as 0."""
MAX_TIE = 0.5
"""Greatest difference of two logits between which it may be chance which is greater, in standard deviations."""
MAX_DIAGNOSED = 256
"""Images on which the fault of a head is looked for, those with the greatest errors."""
_LOG_VARIANCE = STATISTICS.index("log_variance")
TOPK_TOLERANCE = 1e-5
EMPTY_SLOT_FAILURE = "an empty slot has a greater logit than a class"
"""Greatest error of a probability that a model gives with its top-k classes."""


def compare_bundle(
    folder: Path,
    bundle: Bundle,
    *,
    loaded: LoadedModel,
    location: HeadLocation,
    expanded: AnyHead,
    images: InputSource | None = None,
    runtime: Runtime | None = None,
    rewrite: ir.passes.PassBase | None = None,
    max_seen_loss: float | None = None,
    served: ServedState | None = None,
) -> tuple[ParityReport, ...]:
    """Run a bundle and what it was made from on the same inputs, and compare.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        loaded: The original model.
        location: Its head.
        expanded: The original head's rows and the injected ones, in the order of the bundle's classes.
        images: Image files or arrays to compare on; `None` for seeded inputs.
        runtime: Where the bundle is run; `None` for the default.
        rewrite: A pass that its model is rewritten by first, in the default runtime.
        max_seen_loss: How much of the accuracy on seen classes the new ones may cost, fraction of 1; `None` for what
            the bundle's updates state.
        served: What a device answers from since a change on it; `None` for what was exported. Disabled classes are
            compared nowhere: no answer has them, and what an arbiter makes of the others is without them.

    Returns:
        A report for each comparison.

    Raises:
        ModelLoadError: If a runtime cannot load the exported model.
        RuntimeFailureError: If a runtime cannot run it.
        IncompatibleError: If the original model fails on more than one image, although it states that it takes them.
        UsageError: If `max_seen_loss` is given, and there is nothing to measure it on.
    """
    is_reference = runtime is None or runtime.is_reference
    inputs = input_batches(
        bundle.model_input,
        bundle.preprocessing,
        images,
        fixed_batch=loaded.fixed_batch,
        value_range=loaded.value_range,
    )
    features = _features(backbone(loaded.model, location), inputs, prepared=True)
    original = _original_scores(loaded, location, inputs)
    loaded.release()
    ran = run_bundle(folder, bundle, inputs, runtime, rewrite, served)
    profile = _profile(bundle, location, loaded.model)
    others = []
    if is_reference and rewrite is None:
        others = other_output_failures(
            folder, bundle, ran.known_names, loaded=loaded, location=location, inputs=inputs, profile=profile
        )
        loaded.release()
    own = None
    if bundle.precision != "fp32" and is_reference:
        checked = _rewrite_for(bundle, runtime, rewrite)
        own_features = own_backbone(folder / MODEL_NAME)
        own = _features(
            own_features if checked is None else apply_passes(own_features, checked), inputs, prepared=False
        )
    where = "" if runtime is None or is_reference else f"; the bundle in {runtime.name}"
    where += "" if served is None else served.describe()
    labels = () if images is None or images.labels is None else images.labels
    compared = _compare_features(
        expanded, features, ran, bundle, profile=profile, compared_with=EXPANDED_HEAD + where, labels=labels
    )
    reports = [compared.report]
    if ran.num_seen:
        reports.append(_compare_with_original(original, ran, bundle, profile=profile, where=where))
    diagnosed: tuple[RowFile, _Compared] | None = (features, compared)
    if own is not None:
        is_finite = all(np.isfinite(block).all() for block in own.blocks(block_size(own.width)))
        diagnosed = (own, _compare_with_own(expanded, own, ran, bundle)) if is_finite else None
        reports += [] if diagnosed is None else [diagnosed[1].report]
    if (min_kept := profile.min_seen_kept) is not None and images is not None:
        reports[0] = _with_accuracy(reports[0], compared, min_seen_kept=min_kept)
    fault = None
    if ran.class_names == ran.known_names and diagnosed is not None:
        fault = _fault(*diagnosed, ran, bundle, expanded)
    named = [] if fault is None else [fault]
    if bundle.arbiter:
        named += _length_failures(folder, bundle, seen_row_lengths(loaded.model, location))
    loss = _seen_loss(ran, bundle, compared.after, max_seen_loss)
    over = [] if loss is None or loss.failure is None else [loss.failure]
    failures = (*reports[0].failures, *sorted(ran.failures), *others, *named, *over)
    return replace(reports[0], failures=failures, seen_loss=loss), *reports[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedState:
    """What a device answers from after changes on it."""

    table: SlotTable | None
    """What the slots hold; `None` for a fused head."""

    version: int
    """Of the last class update in it."""

    disabled: tuple[str, ...] = ()
    """Classes that answers leave out."""

    def describe(self) -> str:
        """Return the state as a clause, for what a report compares with."""
        slots = "" if self.table is None else f"; slots of version {self.version}, as a device serves them"
        return slots + (f"; without {quoted(self.disabled)}, disabled" if self.disabled else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRun:
    """What a device with the bundle gives."""

    logits: RowFile
    """`(num_images, num_classes)`, as a device gives them."""

    class_names: tuple[str, ...]
    """`(num_classes,)`, in the order of the logits; disabled classes are none of them."""

    enabled: NDArray[np.intp]
    """`(num_classes,)`: the index of each class among all, disabled ones included."""

    num_seen: int
    """How many of the classes the original model knows."""

    known_names: tuple[str, ...]
    """Names of all classes, disabled ones included."""

    failures: frozenset[str]
    """What is wrong with its slots, or with the top-k classes that it chooses itself, as clauses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """What came of one comparison."""

    report: ParityReport
    max_errors: Float64
    """`(num_images,)`: the greatest error of each image."""

    before: Outcomes | None = None
    """Of the logits that there should be, on images of classes of the bundle; `None` where there are none."""

    after: Outcomes | None = None
    """Of the bundle's logits, likewise."""


def _compare_features(
    expanded: AnyHead,
    features: RowFile,
    ran: BundleRun,
    bundle: Bundle,
    *,
    profile: GateProfile,
    compared_with: str,
    labels: Sequence[str] = (),
) -> _Compared:
    """Compare a bundle's logits with those that a head makes of features, block by block."""
    num_kept = num_kept_of(len(features), len(ran.class_names))
    is_seen = np.arange(len(ran.class_names)) < ran.num_seen
    head = OutcomeHead(class_names=ran.class_names, is_seen=is_seen, is_original=is_seen, has_original=True)
    errors: list[Errors] = []
    before, after = [], []
    start = 0
    for expected, found in _expected_and_found(expanded, features, ran, profile):
        comparable = comparable_from_logits(expected, bundle.score_kind)
        errors.append(
            measure_errors(
                comparable,
                comparable_from_device(found, bundle.score_kind),
                num_kept=num_kept,
                compared_with=compared_with,
            )
        )
        known = [index for index, label in enumerate(labels[start : start + len(found)]) if label in head.columns]
        if known:
            columns = np.array([head.columns[labels[start + index]] for index in known], dtype=np.int64)
            keys = [str(start + index) for index in known]
            before.append(_outcomes(comparable[known], columns, head, keys))
            after.append(_outcomes(found[known], columns, head, keys))
        start += len(found)
    return _Compared(
        report=parity_of(errors, profile=profile, compared_with=compared_with),
        max_errors=np.concatenate([each.rows["max_error"] for each in errors]),
        before=merge(before) if before else None,
        after=merge(after) if after else None,
    )


def _outcomes(scores: Float64, columns: NDArray[np.int64], head: OutcomeHead, keys: Sequence[str]) -> Outcomes:
    ordered = np.nan_to_num(scores, nan=-np.inf)  # a NaN is a failure of parity, and said there
    return measure_outcomes(
        ordered, columns, head, keys=keys, original_scores=np.where(head.is_original, ordered, -np.inf)
    )


def _expected_and_found(
    expanded: AnyHead, features: RowFile, ran: BundleRun, profile: GateProfile
) -> Iterator[tuple[Float64, Float64]]:
    """Yield the logits that a head should give, and those of the bundle, `(block, num_classes)` float64 each."""
    size = block_size(expanded.num_classes)
    deviation = _seen_deviation(expanded, features, ran)
    for given, found in zip(features.blocks(size), ran.logits.blocks(size), strict=True):
        wide = found.astype(np.float64)
        yield _expected_logits(expanded, given, wide, ran, profile, deviation), wide


def _seen_deviation(expanded: AnyHead, features: RowFile, ran: BundleRun) -> float:
    """Return the standard deviation of the logits that arbiters weigh new classes against; 0 where there are none."""
    if not isinstance(expanded, ExpandedHead) or expanded.arbiter is None:
        return 0.0
    columns = _weighed_against(expanded, ran)
    moments = [
        moments_of(expanded.products(block)[:, columns]) for block in features.blocks(block_size(expanded.num_classes))
    ]
    means, squares = (np.concatenate(each) for each in zip(*moments, strict=True))
    return mean_and_deviation(means, squares, len(columns))[1]


def _weighed_against(expanded: ExpandedHead, ran: BundleRun) -> NDArray[np.intp]:
    """Return the seen classes whose statistics arbiters follow; all of them where none is enabled."""
    return ran.enabled[: ran.num_seen] if ran.num_seen else np.arange(expanded.location.num_classes)


def _fault(features: RowFile, compared: _Compared, ran: BundleRun, bundle: Bundle, expanded: AnyHead) -> str | None:
    """Return what is wrong with the head, if the report that compares it is negative and its errors show it.

    Of many images those are looked at that are off most: on them it shows.
    """
    if compared.report.passed:
        return None
    worst = np.sort(np.argsort(-compared.max_errors, kind="stable")[:MAX_DIAGNOSED])
    return _fault_on(features.rows(worst), ran.logits.rows(worst), ran, bundle, expanded, compared.report)


def _fault_on(
    features: NDArray[np.float32],
    logits: NDArray[np.floating[Any]],
    ran: BundleRun,
    bundle: Bundle,
    expanded: AnyHead,
    report: ParityReport,
) -> str | None:
    kind = bundle.score_kind
    found = logits_from_device(logits, kind)
    if isinstance(expanded, ExpandedHead) and expanded.arbiter is not None:
        expected = expanded.products(features)
        # By the seen logits that the bundle gives: else a wrong seen row would be an error of every new class.
        seen = _unnormalised(found[:, : bundle.num_seen], expected[:, : bundle.num_seen], kind)
        statistics = expanded.statistics(features, seen, seen.argmax(axis=1))
        expanded.add_offsets(expected, statistics)
    else:
        expected, statistics = expanded.logits(features), None
    spread = float((clipped(expected) if kind == "sigmoid" else comparable_from_logits(expected, kind)).std())
    run = HeadRun(
        features=features,
        expected=expected,
        found=found,
        head=expanded,
        statistics=statistics,
        class_names=ran.class_names,
        num_seen=bundle.num_seen,
        tolerance=report.profile.max_scaled_error * spread,
        score_kind=kind,
    )
    return name_fault(run)


def _unnormalised(found: Float64, expected: Float64, kind: str) -> Float64:
    """Return found logits with what a softmax took from all classes of an image, as far as its scores show it."""
    if kind == "logits":
        return found
    shifted = found + np.median(expected - found, axis=1, keepdims=True)
    return np.where(found > LEAST_LOG, shifted, expected)


def _expected_logits(
    expanded: AnyHead,
    features: NDArray[np.float32],
    given: Float64,
    ran: BundleRun,
    profile: GateProfile,
    deviation: float,
) -> Float64:
    """Return the logits that a head should give for features, `(num_images, num_classes)` float64.

    Args:
        expanded: The head.
        features: `(num_images, feature_dim)`.
        given: `(num_images, num_classes)`: the bundle's logits for the same images.
        ran: What a device with the bundle gives.
        profile: How far two logits may be off.
        deviation: `_seen_deviation` of all images.
    """
    if not isinstance(expanded, ExpandedHead) or expanded.arbiter is None:
        return expanded.logits(features)[:, ran.enabled]
    logits, columns = expanded.products(features), _weighed_against(expanded, ran)
    seen, images = logits[:, columns], np.arange(len(logits))
    found = columns[(given[:, : ran.num_seen] if ran.num_seen else seen).argmax(axis=1)]
    top = columns[seen.argmax(axis=1)]
    gap = seen.max(axis=1) - logits[images, found]
    is_chance = gap <= min(2 * profile.max_scaled_error, MAX_TIE) * deviation
    top = np.where(is_chance, found, top)
    statistics = expanded.statistics(features, seen, top)
    if len(columns) == 1:  # of one class there is no variance (`statistics_change`)
        of_all = expanded.statistics(features, logits[:, : expanded.location.num_classes], top)
        statistics[:, _LOG_VARIANCE] = of_all[:, _LOG_VARIANCE]
    expanded.add_offsets(logits, statistics)
    return logits[:, ran.enabled]


def _features(model: ir.Model, inputs: InputBatches, *, prepared: bool) -> RowFile:
    """Return features `(num_inputs, feature_dim)` float32: of prepared images, or of the bundle's own inputs."""
    with tempfile.TemporaryDirectory() as folder:  # a file, and not bytes: a backbone may be larger than a protobuf
        path = Path(folder) / "backbone.onnx"
        save_model(model, path)
        return RowFile(_feature_batches(load_session(path), inputs, prepared=prepared))


def _feature_batches(session: Session, inputs: InputBatches, *, prepared: bool) -> Iterator[NDArray[np.float32]]:
    for batch in inputs:
        images = batch.prepared if prepared else batch.given
        try:
            yield features_of(session, images)[: batch.count]
        except RuntimeFailureError as error:
            _refuse_stated_batch(session, images, error)
            raise


def _refuse_stated_batch(session: Session, images: NDArray[np.generic], error: RuntimeFailureError) -> None:
    """Raise `IncompatibleError` if a model fails on a batch that it states to take, and not on one image."""
    try:
        session.run(images[:1], with_features=True)
    except RuntimeFailureError:
        return
    raise IncompatibleError(
        f"The model states that it takes any number of images, and fails on {len(images)}; on one it runs. A size was "
        f"fixed when it was exported.",
        found=len(images),
        hint="Export it with a batch that is dynamic throughout, or with a fixed batch of 1.",
    ) from error


def _original_scores(loaded: LoadedModel, location: HeadLocation, inputs: InputBatches) -> RowFile:
    return RowFile(loaded.original_logits(batch.prepared, location.output_name)[: batch.count] for batch in inputs)


def run_bundle(
    folder: Path,
    bundle: Bundle,
    inputs: InputBatches,
    runtime: Runtime | None,
    rewrite: ir.passes.PassBase | None,
    served: ServedState | None = None,
) -> BundleRun:
    """Run a bundle's files on inputs, and check its slots and its top-k classes."""
    device = opened_bundle(folder, bundle, runtime, rewrite)
    failures = _baked_slot_failures(folder / MODEL_NAME, state_of(device).table, has_arbiter=bundle.arbiter)
    if served is not None:
        session = session_of(device)
        state = make_head_state(
            bundle,
            session,
            table=served.table,
            version=served.version,
            disabled=served.disabled,
            constants=ArbiterConstants(folder, bundle) if served.disabled else None,
        )
        device = Device(folder=folder, bundle=bundle, session=session, state=state, runtime=runtime)
    failures |= _statistics_failures(folder, device)
    logits = RowFile(_device_logits(device, inputs, failures))
    names, class_names = known_names(bundle, state_of(device).table), device.classes()
    disabled = frozenset(() if served is None else served.disabled)
    enabled = np.array([index for index, name in enumerate(names) if name not in disabled], dtype=np.intp)
    return BundleRun(
        logits=logits,
        class_names=class_names,
        enabled=enabled,
        num_seen=int((enabled < bundle.num_seen).sum()),
        known_names=names,
        failures=frozenset(failures),
    )


def _device_logits(device: Device, inputs: InputBatches, failures: set[str]) -> Iterator[NDArray[np.floating[Any]]]:
    """Yield a device's logits batch by batch, and add what is wrong with its slots and top-k classes to `failures`."""
    state = state_of(device)
    for batch in inputs:
        yield device.logits(batch.given).values[: batch.count]
        if state.table is not None or device.bundle.top:
            scores = session_of(device).run(batch.given, state.buffers).logits
            failures |= _empty_slot_failures(device, scores) | _topk_failures(device, batch.given, scores)


def opened_bundle(folder: Path, bundle: Bundle, runtime: Runtime | None, rewrite: ir.passes.PassBase | None) -> Device:
    """Open a bundle; a float16 one with the rounding that ONNX Runtime omits on a CPU (`float16_emulation.py`)."""
    rewrite = _rewrite_for(bundle, runtime, rewrite)
    if rewrite is None:
        return Device.from_parts(folder, bundle, runtime=runtime)
    model = ir.load(folder / MODEL_NAME)
    infer_shapes(model)
    with tempfile.TemporaryDirectory() as checked:
        path = Path(checked) / MODEL_NAME
        save_model(apply_passes(model, rewrite), path)
        session = load_session(path)
    state = make_head_state(bundle, session, table=exported_slots(folder, bundle), version=bundle.head_version)
    return Device(folder=folder, bundle=bundle, session=session, state=state)


def _rewrite_for(
    bundle: Bundle, runtime: Runtime | None, rewrite: ir.passes.PassBase | None
) -> ir.passes.PassBase | None:
    is_reference = runtime is None or runtime.is_reference
    return EmulateFloat16Pass() if rewrite is None and bundle.precision == "fp16" and is_reference else rewrite


def _compare_with_original(
    original: RowFile, ran: BundleRun, bundle: Bundle, *, profile: GateProfile, where: str
) -> ParityReport:
    size, columns = block_size(original.width), ran.enabled[: ran.num_seen]
    # A device gives logits, or logarithms of scores, which have to be normalised again over fewer classes.
    blocks = (
        (
            comparable_from_scores(expected[:, columns], bundle.score_kind),
            comparable_from_device(found[:, : ran.num_seen], bundle.score_kind),
        )
        for expected, found in zip(original.blocks(size), ran.logits.blocks(size), strict=True)
    )
    return compare_blocks(
        blocks,
        num_images=len(original),
        num_classes=len(columns),
        profile=profile,
        compared_with=ORIGINAL_MODEL + where,
    )


def _profile(bundle: Bundle, location: HeadLocation, model: ir.Model) -> GateProfile:
    """Return the thresholds of a precision; a model exported without conversion may have a head of fewer bits."""
    if bundle.precision != "fp32":
        return GATE_PROFILES[bundle.precision]
    if location.is_quantized:
        return GATE_PROFILES["int8 head"]
    if bundle.head_precision == "int8":
        return GATE_PROFILES["int8 rows"]
    logits = value_named(model.graph, location.logits_name).dtype
    if location.is_16_bit or logits in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}:
        return GATE_PROFILES["fp16 head"]
    return GATE_PROFILES["fp32" if bundle.head_precision == "fp32" else "fp16 rows"]


def _compare_with_own(expanded: AnyHead, features: RowFile, ran: BundleRun, bundle: Bundle) -> _Compared:
    # The error of a precision is in the backbone; the head must be as exact as its own precision allows.
    if bundle.head_precision == "int8":
        name = "int8 rows"
    elif bundle.precision == "fp16":
        name = "fp16 head"
    else:
        name = "fp32" if bundle.head_precision == "fp32" else "fp16 rows"
    return _compare_features(expanded, features, ran, bundle, profile=GATE_PROFILES[name], compared_with=OWN_FEATURES)


def _with_accuracy(report: ParityReport, compared: _Compared, *, min_seen_kept: float) -> ParityReport:
    """Return a report that also says how much accuracy is left, and fails if that is too little."""
    kept = compare_accuracy(
        compared.before,
        compared.after,
        num_images=report.num_images,
        agreement=report.agreement,
        min_seen_kept=min_seen_kept,
        max_h_loss=report.profile.max_h_loss,
    )
    return replace(report, accuracy=kept, failures=(*report.failures, *kept.failures))


def _seen_loss(
    ran: BundleRun, bundle: Bundle, outcomes: Outcomes | None, max_seen_loss: float | None
) -> SeenLoss | None:
    """Return what the new classes cost on images of seen ones; `None` where there are no such images or classes."""
    is_known = outcomes is not None and outcomes.of_labels(outcomes.head.is_seen).any()
    if max_seen_loss is not None and not is_known:
        raise UsageError(
            "A greatest loss of seen accuracy is given, and no image of a class that the original model knows.",
            found=0,
            expected="at least 1 such image",
            hint="Give labelled images of these classes in `images`, or leave `max_seen_loss` out.",
        )
    if outcomes is None or len(ran.class_names) == ran.num_seen:
        return None
    return seen_loss_of(
        outcomes.column("label"),
        outcomes.column("answer_among_original"),
        outcomes.column("answer"),
        is_original=outcomes.head.is_original,
        class_names=ran.class_names,
        max_seen_loss=stated_budget(bundle.updates) if max_seen_loss is None else max_seen_loss,
    )


def _baked_slot_failures(model: Path, table: SlotTable | None, *, has_arbiter: bool) -> set[str]:
    """Return a failure if the defaults of a model's slots are not those of the table."""
    if table is None:
        return set()
    stated = {SLOT_WEIGHT: table.weight, SLOT_BIAS: table.bias}
    if has_arbiter:
        stated[SLOT_ARBITER] = table.coefficients
    baked = load_initializers(model, tuple(stated))
    if all(np.array_equal(found, array) for found, array in zip(baked, stated.values(), strict=True)):
        return set()
    return {"the slots baked into model.onnx are not those of slots.safetensors"}


def _statistics_failures(folder: Path, device: Device) -> set[str]:
    """Return a failure if slots do not follow arbiters as they are given: the rows of an export may have none yet."""
    bundle, session, table = device.bundle, session_of(device), state_of(device).table
    if table is None or not bundle.arbiter:
        return set()
    probe = SlotTable(
        weight=table.weight,
        bias=np.zeros(table.capacity, dtype=np.float32),
        class_names=tuple(f"slot {index}" for index in range(table.capacity)),
        arbiter=np.random.default_rng(0).normal(size=(table.capacity, len(STATISTICS))).astype(np.float32),
    )
    buffers = session.load_slots(probe.weight, probe.bias, probe.coefficients)
    try:
        verify_computed(session, bundle, probe, buffers, seed=0, constants=ArbiterConstants(folder, bundle))
    except SelfTestError as error:
        return {f"slots do not follow the arbiters that they are given: {error.what.rstrip('.')}"}
    return set()


def _length_failures(folder: Path, bundle: Bundle, expected: Float32) -> list[str]:
    """Return what is wrong with the lengths of seen rows, in the model and in the file that a device reads."""
    (baked,) = load_initializers(folder / MODEL_NAME, (ROW_LENGTHS,))
    stated = load_row_lengths(folder, bundle)
    return [
        f"the row lengths in {name} are not those of the seen rows"
        for name, lengths in ((MODEL_NAME, baked), (ARBITER_NAME, stated))
        if lengths.shape != expected.shape or not np.allclose(lengths, expected, rtol=1e-5)
    ]


def _empty_slot_failures(device: Device, given: NDArray[np.float32]) -> set[str]:
    """Return a failure if an empty slot comes near a class in these scores; a fused head has none."""
    state = state_of(device)
    if state.table is None:
        return set()
    is_empty = np.array([name is None for name in state.score_names])
    greatest = given[:, is_empty].max(initial=-np.inf)
    # Probabilities underflow near zero, where an empty slot and an improbable class are the same.
    vanishes = greatest < VANISHING.get(device.bundle.score_kind, -np.inf)
    if is_empty.any() and not vanishes and not (greatest < given[:, ~is_empty].min()):
        return {EMPTY_SLOT_FAILURE}
    return set()


def _topk_failures(device: Device, inputs: NDArray[Any], scores: NDArray[np.float32]) -> set[str]:
    """Return a failure if a model that chooses its top-k classes gives others than those with the greatest scores."""
    if not device.bundle.top:
        return set()
    chosen = session_of(device).top(inputs, state_of(device).buffers)
    if chosen is None:
        return {f"the model makes no choice of {device.bundle.top} classes, as its manifest states"}
    probabilities, columns = chosen
    order = np.argsort(-scores, axis=1, kind="stable")[:, : device.bundle.top]
    wanted = np.take_along_axis(probabilities_from_scores(scores, device.bundle.score_kind), order, axis=1)
    if not _is_topk(columns, order, scores):
        return {"the classes that the model chooses are not those with the greatest scores"}
    if not np.abs(probabilities - wanted).max() <= TOPK_TOLERANCE:
        return {"the probabilities that the model gives are not those of its scores"}
    return set()


def _is_topk(columns: NDArray[np.int64], order: NDArray[np.int64], scores: NDArray[np.float32]) -> bool:
    """Say whether these columns have the greatest scores; those of equal scores, as of empty slots, come in any order.

    ONNX promises the least column first, and ONNX Runtime keeps that; others, as on a GPU, do not. Nor need two runs
    agree in the last bits there, so scores are compared to the precision of float32.
    """
    are_columns = bool(((columns >= 0) & (columns < scores.shape[1])).all())
    are_distinct = bool((np.diff(np.sort(columns, axis=1), axis=1) > 0).all())
    if columns.shape != order.shape or not are_columns or not are_distinct:
        return False
    found, greatest = (np.take_along_axis(scores, each, axis=1) for each in (columns, order))
    return bool(np.allclose(found, greatest, rtol=1e-5, atol=1e-6))
