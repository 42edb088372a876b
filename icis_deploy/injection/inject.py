"""Inject: predict the rows of unseen classes from a head and descriptors, calibrate them, and say what to expect.

With too few seen classes to play on there is no cross-validation: then nothing is chosen, rows get the seen rows' mean
length, and there is no estimate. Every such step down is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from icis_deploy.common.arrays import Float32, frozen_float32
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import (
    ClassConflictError,
    DescriptorError,
    IncompatibleError,
    MissingDependencyError,
    UntrustworthyError,
)
from icis_deploy.head.head import Head
from icis_deploy.injection.estimate.estimate import Estimate, estimate_injection
from icis_deploy.injection.options import AUTO, DEFAULT_SEEN_ACCURACY, InjectionOptions
from icis_deploy.injection.predictors.registry import Prepared, Progress, method_named
from icis_deploy.injection.rows.calibration import Injector, LengthFactor, RowCalibration, matching_length
from icis_deploy.injection.validation.cross_validation import MIN_SEEN
from icis_deploy.injection.validation.evaluation import Assumptions, set_up_trial
from icis_deploy.injection.validation.selection import MethodChoice, Selection, methods_to_try, select

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

    injector: Injector
    """What made the rows; it makes those of further classes too."""

    method: str
    """The method that predicted the rows."""

    settings: Mapping[str, Any]
    """The choices that the method made, JSON values."""

    options: InjectionOptions
    """What was asked for, as far as it could be done."""

    selection: MethodChoice | None
    """The methods that were tried, and the one that was chosen; `None` where nothing was cross-validated."""

    estimate: Estimate | None
    """What cross-validation predicts of the calibrated rows; `None` unless it calibrated them."""

    warnings: tuple[str, ...]
    """What was not as it should be, and reasons to doubt the rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", frozen_float32(self.rows, name="injected rows", ndim=2))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.rows) != len(self.class_names):
            raise IncompatibleError(
                f"There are {len(self.rows)} injected rows but {len(self.class_names)} names.",
                found=len(self.class_names),
                expected=len(self.rows),
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """How the rows were made and what to expect of them, as JSON values for a class update."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "calibration": self.options.calibration,
            "seed": self.options.seed,
            "selection": None if self.selection is None else self.selection.to_json(),
            "estimate": None if self.estimate is None else self.estimate.to_json(),
            "warnings": list(self.warnings),
        }

    def require_trust(self) -> None:
        """Raise `UntrustworthyError` if the estimate warns, or there is none."""
        if self.estimate is None:
            raise UntrustworthyError(
                f"Nothing vouches for these rows: without calibration 'auto' and at least {MIN_SEEN} seen classes "
                f"there is no estimate.",
                found="no estimate",
                expected="an estimate without warnings",
            )
        if self.estimate.warnings:
            raise UntrustworthyError(
                f"The injection is not to be trusted. {' '.join(self.estimate.warnings)}",
                found=tuple(self.estimate.warnings),
                expected="an estimate without warnings",
            )


def inject(
    head: Head,
    descriptors: Descriptors,
    *,
    unseen: Sequence[str] | None = None,
    options: InjectionOptions | None = None,
    neutral_features: Float32 | None = None,
    progress: Progress | None = None,
) -> Injection:
    """Predict rows of unseen classes, without an image.

    Args:
        head: The classifier's head: the seen classes.
        descriptors: Of every seen class and of every unseen one.
        unseen: The classes to predict; every described class that the head lacks, in file order, by default.
        options: How to predict and calibrate; `InjectionOptions()` by default.
        neutral_features: `(num_neutral, feature_dim)`, what the backbone makes of neutral pictures; they set the scale
            of features. Without them it is guessed.
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
    warnings = []
    if options.needs_trial and head.num_classes < MIN_SEEN:
        options = options.without_trial()
        warnings.append(TOO_FEW_SEEN.format(num_seen=head.num_classes, min_seen=MIN_SEEN))
    selection, estimate = None, None
    if options.needs_trial:
        selection = _select(options, head, seen, new, features, progress)
        prepared = selection.chosen.prepared
    else:
        prepared = method_named(options.method).prepare(seen.values, head.rows, options.seed, progress)
    injector = _train(prepared, selection, options, head, seen, new)
    if selection is not None and options.calibration == AUTO:
        estimate = estimate_injection(selection, injector.predictor, new, seen_names=head.class_names)
        warnings += estimate.warnings
    return Injection(
        rows=injector.rows(new.values),
        class_names=names,
        injector=injector,
        method=options.method if selection is None else selection.chosen.method.name,
        settings=prepared.settings,
        options=options,
        selection=None if selection is None else selection.choice,
        estimate=estimate,
        warnings=tuple(warnings),
    )


def unseen_classes(head: Head, descriptors: Descriptors, unseen: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes to predict.

    Raises:
        DescriptorError: If there are none.
        ClassConflictError: If the head already has one, or one stands twice.
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
    conflicts = [name for name in names if name in known] or [n for n in set(names) if names.count(n) > 1]
    if conflicts:
        raise ClassConflictError(
            f"Cannot inject {conflicts[:5]}: already in the head, or asked for twice.",
            found=tuple(conflicts),
            expected="classes that the head does not know, each once",
        )
    return names


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


def _assumptions(options: InjectionOptions, neutral_features: Float32 | None) -> Assumptions:
    return Assumptions(
        neutral_features=neutral_features,
        seen_accuracy=DEFAULT_SEEN_ACCURACY if options.seen_accuracy is None else options.seen_accuracy,
        is_accuracy_known=options.seen_accuracy is not None,
    )


def _select(
    options: InjectionOptions,
    head: Head,
    seen: Descriptors,
    new: Descriptors,
    features: Float32 | None,
    progress: Progress | None,
) -> Selection:
    trial = set_up_trial(
        seen.values,
        head.rows,
        new.values,
        assumptions=_assumptions(options, features),
        balance=options.balance,
        seed=options.seed,
    )
    tried = methods_to_try(trial) if options.method == AUTO else (method_named(options.method),)
    return select(trial, tried, progress=progress)


def _train(
    prepared: Prepared,
    selection: Selection | None,
    options: InjectionOptions,
    head: Head,
    seen: Descriptors,
    new: Descriptors,
) -> Injector:
    """Fit a method to all seen classes, and calibrate what it predicts."""
    predictor = prepared.fit(seen.values, head.rows, new.values)
    calibration: RowCalibration = LengthFactor(factor=1.0)
    if options.calibration == "length":
        calibration = matching_length(predictor.rows(new.values), head.rows)
    elif options.calibration == AUTO:
        assert selection is not None, "it chose the operating point"
        calibration = selection.chosen.calibration(selection.trial)
    return Injector(predictor=predictor, calibration=calibration)
