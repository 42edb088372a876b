"""Inject: predict the rows of unseen classes from a head and descriptors, calibrate them, and say what to expect.

Images of seen classes, where the owner has some, decide how far new classes are favoured; none of a new class is ever
needed. With too few seen classes there is no cross-validation: then nothing is chosen, rows get the seen rows' mean
length, and there is no estimate. Each of these fallbacks is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float32, frozen_float32
from icis_deploy.common.closest import respelled
from icis_deploy.common.terminal_text import shown
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import (
    ClassConflictError,
    DescriptorError,
    IncompatibleError,
    MissingDependencyError,
    UntrustworthyError,
    UsageError,
)
from icis_deploy.head.class_names import quoted
from icis_deploy.head.head import Head
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.blocks import BlockWeight, JoinedBlocks, join_blocks
from icis_deploy.injection.estimate.estimate import Estimate
from icis_deploy.injection.operation import Operation, operate, spend_without_estimate
from icis_deploy.injection.options import AUTO, DEFAULT_SEEN_ACCURACY, InjectionOptions, aim_of
from icis_deploy.injection.owner_images import enough_to_choose, image_warnings
from icis_deploy.injection.predictors.registry import method_named
from icis_deploy.injection.promise import Promise
from icis_deploy.injection.rows.calibration import Injector, LengthFactor, RowCalibration, matching_length
from icis_deploy.injection.rows.predictors import Progress, RowPredictor
from icis_deploy.injection.validation.cross_validation import MIN_SEEN
from icis_deploy.injection.validation.evaluation import Assumptions, set_up_evaluation
from icis_deploy.injection.validation.operating_point import CurvePoint
from icis_deploy.injection.validation.selection import MethodChoice, Selection, candidate_methods, select

TOO_FEW_SEEN = (
    "The head has {num_seen} classes; with fewer than {min_seen} nothing can be cross-validated: the rows get the mean "
    "length of the seen ones, and there is no estimate."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Injection:
    """Predicted rows of unseen classes, what made them, and what to expect of them.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        further = injection.injector.rows(icis_deploy.load_descriptors("more.npz").values)

    Raises:
        IncompatibleError: On construction, if there is not one finite row for each name.
    """

    rows: Float32
    """`(num_unseen, feature_dim + 1)` float32, read-only: `[weight | bias]`, calibrated."""

    class_names: tuple[str, ...]
    """`(num_unseen,)`, unique."""

    injector: Injector | None
    """What made the rows from descriptors; it makes those of further classes too. `None` where photos alone did."""

    method: str
    """Name of the method that predicted the rows."""

    settings: Mapping[str, Any]
    """The choices that the method made, by name; JSON values."""

    blocks: tuple[BlockWeight, ...]
    """How much each block of the descriptors counts, in their order."""

    options: InjectionOptions
    """The options that took effect: without cross-validation, what replaced "auto"."""

    selection: MethodChoice | None
    """The methods that were evaluated, and why one was chosen; `None` where nothing was cross-validated."""

    estimate: Estimate | None
    """What cross-validation predicts of the calibrated rows; `None` unless it calibrated them."""

    arbiter: Float32 | None
    """`(5,)` float32, read-only: what all injected logits get per unit of each statistic of an image, in addition to
    the rows; `None` where their offset is the same for all images and part of the biases."""

    curve: tuple[CurvePoint, ...]
    """What to expect where seen classes lose 1, 2, 5 and 10 points of their accuracy; empty where nothing is known."""

    promise: Promise | None
    """The budget of seen accuracy and on what ground it is kept; `None` where none was asked for."""

    arbiter_reason: str | None
    """Why there is an arbiter, or a constant offset; `None` where images did not decide."""

    warnings: tuple[str, ...]
    """What could not be done as asked, and reasons why the rows may be worse than predicted."""

    photos: Mapping[str, Any] | None = None
    """JSON values: how many photos of which class moved the rows, their hashes, and how many of them a predicted row
    counts as; `None` without photos."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", frozen_float32(self.rows, name="injected rows", ndim=2))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.arbiter is not None:
            object.__setattr__(self, "arbiter", frozen_float32(self.arbiter, name="arbiter", ndim=1))
        if len(self.rows) != len(self.class_names):
            raise IncompatibleError(
                f"There are {len(self.rows)} injected rows but {len(self.class_names)} names.",
                found=len(self.class_names),
                expected=len(self.rows),
            )

    @property
    def row_arbiter(self) -> Float32 | None:
        """`(num_unseen, 5)` float32: the arbiter once for each row, as class updates have it; `None` without one."""
        return None if self.arbiter is None else np.tile(self.arbiter, (len(self.rows), 1))

    @property
    def provenance(self) -> dict[str, Any]:
        """How the rows were made and what to expect of them, as JSON values for a class update."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "blocks": [block.to_json() for block in self.blocks],
            "calibration": self.options.calibration,
            "seed": self.options.seed,
            "selection": None if self.selection is None else self.selection.to_json(),
            "estimate": None if self.estimate is None else self.estimate.to_json(),
            "budget": None if self.promise is None else self.promise.to_json(),
            "arbiter": {
                "is_used": self.arbiter is not None,
                "reason": self.arbiter_reason,
            },
            "curve": [point.to_json() for point in self.curve],
            "warnings": list(self.warnings),
            **({} if self.photos is None else {"photos": dict(self.photos)}),
        }

    def require_trust(self) -> None:
        """Raise `UntrustworthyError` if the estimate warns, or there is none."""
        if self.estimate is None:
            raise UntrustworthyError(
                f"Nothing vouches for these rows: without calibration 'auto' and at least {MIN_SEEN} seen classes "
                f"there is no estimate.",
                found="no estimate",
                expected="an estimate without warnings",
                hint="Leave `strict` out to have them all the same, or calibrate with `calibration='auto'`.",
            )
        if self.estimate.warnings:
            raise UntrustworthyError(
                f"The injection is not to be trusted. {' '.join(self.estimate.warnings)}",
                found=tuple(self.estimate.warnings),
                expected="an estimate without warnings",
                hint=("Give richer descriptors, or `seen_images`; leave `strict` out to have the rows all the same."),
            )


def inject(
    head: Head,
    descriptors: Descriptors,
    *,
    unseen: Sequence[str] | None = None,
    options: InjectionOptions | None = None,
    neutral_features: Float32 | None = None,
    images: SeenImages | None = None,
    progress: Progress | None = None,
) -> Injection:
    """Predict rows of unseen classes, without an image of them.

    Args:
        head: The classifier's head: the seen classes.
        descriptors: Of every seen class and of every unseen one.
        unseen: The classes to predict; every described class that the head lacks, in file order, by default.
        options: How to predict and calibrate; `InjectionOptions()` by default.
        neutral_features: `(num_neutral, feature_dim)`, the backbone's features of neutral images; they set the scale
            of features. Without them it is guessed; with enough images they are not needed.
        images: Of seen classes, as the head sees them; they replace what is assumed otherwise.
        progress: Called after each epoch, by methods that train.

    Raises:
        DescriptorError: If a class has no descriptor, or there is no unseen class.
        ClassConflictError: If the head already has an unseen class, or one is asked for twice.
        IncompatibleError: If the neutral features have another width than the head's.
        MissingDependencyError: If scipy or torch is needed and not installed.
    """
    options = options or InjectionOptions()
    names = unseen_classes(head, descriptors, unseen)
    seen, new = descriptors.select(head.class_names), descriptors.select(names)
    features = checked_neutral_features(neutral_features, head)
    _require_solver()
    if images is not None:
        _require_calibration(options)
    options, warnings = _possible_options(options, head.num_classes)
    if images is not None:
        warnings += image_warnings(images, head.class_names, seen_accuracy=options.seen_accuracy)
    warnings += _spelling_warnings(names, head.class_names)
    joined = join_blocks(seen, new, head.rows, seed=options.seed)
    if not options.needs_cross_validation:
        prepared = method_named(options.method).prepare(joined.seen, head.rows, options.seed, progress)
        predictor = prepared.fit(joined.seen, head.rows, joined.new.values)
        return _without_estimate(head, joined, options, prepared.settings, predictor, images, warnings)
    selection = _select(options, head, joined, features, images, progress)
    predictor = selection.chosen.prepared.fit(joined.seen, head.rows, joined.new.values)
    if options.calibration != AUTO:
        fixed = _fixed_calibration(options.calibration, predictor.rows(joined.new.values), head.rows)
        return _injection(joined, options, selection, predictor, fixed, None, warnings)
    operation = operate(
        selection, predictor, head, joined.new, images=images, is_arbiter_allowed=options.arbiter == AUTO
    )
    warnings += [*operation.warnings, *operation.estimate.warnings]
    return _injection(joined, options, operation.selection, predictor, operation.calibration, operation, warnings)


def _injection(
    joined: JoinedBlocks,
    options: InjectionOptions,
    selection: Selection,
    predictor: RowPredictor,
    calibration: RowCalibration,
    operation: Operation | None,
    warnings: Sequence[str],
) -> Injection:
    """Return an injection by a method that was cross-validated; the operation where it was also calibrated so."""
    choice = None if operation is None else operation.arbiter_choice
    return Injection(
        rows=calibration.apply(predictor.rows(joined.new.values)),
        class_names=joined.new.class_names,
        injector=Injector(predictor=joined.predictor(predictor), calibration=calibration),
        blocks=joined.weights,
        method=selection.chosen.method.name,
        settings=selection.chosen.prepared.settings,
        options=options,
        selection=selection.choice,
        estimate=None if operation is None else operation.estimate,
        arbiter=None if operation is None else operation.arbiter,
        curve=() if operation is None else operation.curve,
        promise=None if operation is None else operation.promise,
        arbiter_reason=None if choice is None else choice.reason,
        warnings=tuple(warnings),
    )


def _without_estimate(
    head: Head,
    joined: JoinedBlocks,
    options: InjectionOptions,
    settings: Mapping[str, Any],
    predictor: RowPredictor,
    images: SeenImages | None,
    warnings: Sequence[str],
) -> Injection:
    """Return an injection of which nothing was cross-validated; images may still set its offset."""
    calibration: RowCalibration
    promise = None
    if images is not None and options.max_seen_loss is not None:
        calibration, promise = spend_without_estimate(
            predictor, head, joined.new, images, budget=options.max_seen_loss, seed=options.seed
        )
    else:
        calibration = _fixed_calibration(options.calibration, predictor.rows(joined.new.values), head.rows)
    return Injection(
        rows=calibration.apply(predictor.rows(joined.new.values)),
        class_names=joined.new.class_names,
        injector=Injector(predictor=joined.predictor(predictor), calibration=calibration),
        blocks=joined.weights,
        method=options.method,
        settings=settings,
        options=options,
        selection=None,
        estimate=None,
        arbiter=None,
        curve=(),
        promise=promise,
        arbiter_reason=None,
        warnings=tuple(warnings),
    )


def unseen_classes(head: Head, descriptors: Descriptors, unseen: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes to predict.

    Raises:
        DescriptorError: If there are none.
        ClassConflictError: If the head already has one, or one occurs twice.
    """
    known = set(head.class_names)
    names = tuple(n for n in descriptors.class_names if n not in known) if unseen is None else tuple(unseen)
    if not names:
        raise DescriptorError(
            f"There is no unseen class: all {descriptors.num_classes} described classes are already in the head.",
            found=descriptors.num_classes,
            expected="at least one class that the head does not know",
            hint="Add descriptors of the classes to inject.",
        )
    check_new(names, head)
    return names


def _spelling_warnings(names: Sequence[str], seen_names: Sequence[str]) -> list[str]:
    """Return a warning where a class to predict may be one that there is already, under another spelling."""
    pairs = respelled(names, seen_names)
    if not pairs:
        return []
    name, other = pairs[0]
    more = f", and {len(pairs) - 1} more are so" if len(pairs) > 1 else ""
    return [
        f"The class {shown(name)} to inject differs from {shown(other)} in spelling alone{more}: if both are one "
        f"class, leave it out of `unseen`, or of the descriptors."
    ]


def check_new(names: Sequence[str], head: Head) -> None:
    """Raise `ClassConflictError` if the head knows one of these classes, or one is there twice."""
    known = set(head.class_names)
    conflicts = [name for name in names if name in known] or [n for n in dict.fromkeys(names) if names.count(n) > 1]
    if conflicts:
        raise ClassConflictError(
            f"Cannot inject {quoted(conflicts)}: already in the head, or asked for twice.",
            found=tuple(conflicts),
            expected="classes that the head does not know, each once",
            hint="Name in `unseen` only classes that the model does not know, each once.",
        )


def checked_neutral_features(features: Float32 | None, head: Head) -> Float32 | None:
    """Return neutral features as float32, read-only.

    Raises:
        IncompatibleError: If they are not at least one finite feature of the head's width.
    """
    if features is None:
        return None
    checked = frozen_float32(features, name="neutral features", ndim=2)
    if checked.shape[1] != head.feature_dim or not len(checked):
        raise IncompatibleError(
            f"The neutral features have shape {checked.shape}; expected (num_neutral, {head.feature_dim}), as the "
            f"head has it.",
            found=checked.shape,
            expected=f"(num_neutral, {head.feature_dim})",
        )
    return checked


def _require_solver() -> None:
    """Raise `MissingDependencyError` unless scipy is there."""
    if find_spec("scipy") is None:
        raise MissingDependencyError(
            "Injection needs scipy.",
            hint="Install it: pip install 'icis-deploy[train]'.",
        )


def _require_calibration(options: InjectionOptions) -> None:
    """Raise `UsageError` where images would do nothing."""
    if options.calibration != AUTO:
        raise UsageError(
            f"Images of seen classes would do nothing: calibration {options.calibration!r} leaves no choice.",
            found=options.calibration,
            expected=AUTO,
            hint="Leave `seen_images` out, or calibrate with `calibration='auto'`.",
        )


def _assumptions(options: InjectionOptions, neutral_features: Float32 | None) -> Assumptions:
    return Assumptions(
        neutral_features=neutral_features,
        seen_accuracy=DEFAULT_SEEN_ACCURACY if options.seen_accuracy is None else options.seen_accuracy,
        is_accuracy_known=options.seen_accuracy is not None,
    )


def _possible_options(options: InjectionOptions, num_seen: int) -> tuple[InjectionOptions, list[str]]:
    """Return options that a head with so many classes allows, and warnings of what they are not."""
    if num_seen >= MIN_SEEN or not options.needs_cross_validation:
        return options, []
    return options.without_cross_validation(), [TOO_FEW_SEEN.format(num_seen=num_seen, min_seen=MIN_SEEN)]


def _fixed_calibration(kind: str, rows: Float32, seen_rows: Float32) -> RowCalibration:
    """Return a calibration that needs no cross-validation.

    Args:
        kind: "length" or "none".
        rows: `(num_unseen, feature_dim + 1)`, as predicted.
        seen_rows: `(num_seen, feature_dim + 1)`.
    """
    return matching_length(rows, seen_rows) if kind == "length" else LengthFactor(factor=1.0)


def _select(
    options: InjectionOptions,
    head: Head,
    joined: JoinedBlocks,
    features: Float32 | None,
    images: SeenImages | None,
    progress: Progress | None,
) -> Selection:
    setup = set_up_evaluation(
        joined.seen,
        head.rows,
        joined.new.values,
        assumptions=_assumptions(options, features),
        aim=aim_of(options),
        seed=options.seed,
        images=None if images is None else enough_to_choose(images),
    )
    methods = candidate_methods(setup) if options.method == AUTO else (method_named(options.method),)
    return select(setup, methods, progress=progress)
