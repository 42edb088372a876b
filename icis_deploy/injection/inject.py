"""Inject: predict the rows of unseen classes from a head and descriptors, calibrate them, and say what to expect.

With too few seen classes there is no cross-validation: then nothing is chosen, rows get the seen rows' mean
length, and there is no estimate. Each of these fallbacks is a warning.
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
from icis_deploy.injection.predictors.registry import method_named
from icis_deploy.injection.rows.calibration import Injector, LengthFactor, RowCalibration, matching_length
from icis_deploy.injection.rows.predictors import Progress
from icis_deploy.injection.validation.cross_validation import MIN_SEEN
from icis_deploy.injection.validation.evaluation import Assumptions, set_up_evaluation
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

    injector: Injector
    """What made the rows; it makes those of further classes too."""

    method: str
    """Name of the method that predicted the rows."""

    settings: Mapping[str, Any]
    """The choices that the method made, by name; JSON values."""

    options: InjectionOptions
    """The options that took effect: without cross-validation, what replaced "auto"."""

    selection: MethodChoice | None
    """The methods that were evaluated, and why one was chosen; `None` where nothing was cross-validated."""

    estimate: Estimate | None
    """What cross-validation predicts of the calibrated rows; `None` unless it calibrated them."""

    warnings: tuple[str, ...]
    """What could not be done as asked, and reasons why the rows may be worse than predicted."""

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
        neutral_features: `(num_neutral, feature_dim)`, the backbone's features of neutral images; they set the scale
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
    options, warnings = _possible_options(options, head.num_classes)
    selection, estimate = None, None
    if options.needs_cross_validation:
        selection = _select(options, head, seen, new, features, progress)
        prepared = selection.chosen.prepared
    else:
        prepared = method_named(options.method).prepare(seen.values, head.rows, options.seed, progress)
    predictor = prepared.fit(seen.values, head.rows, new.values)
    if selection is not None and options.calibration == AUTO:
        calibration: RowCalibration = selection.chosen.calibration(selection.setup)
        estimate = estimate_injection(selection, predictor, new, seen_names=head.class_names)
        warnings += estimate.warnings
    else:
        calibration = _fixed_calibration(options.calibration, predictor.rows(new.values), head.rows)
    injector = Injector(predictor=predictor, calibration=calibration)
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
    seen: Descriptors,
    new: Descriptors,
    features: Float32 | None,
    progress: Progress | None,
) -> Selection:
    setup = set_up_evaluation(
        seen.values,
        head.rows,
        new.values,
        assumptions=_assumptions(options, features),
        balance=options.balance,
        seed=options.seed,
    )
    methods = candidate_methods(setup) if options.method == AUTO else (method_named(options.method),)
    return select(setup, methods, progress=progress)
