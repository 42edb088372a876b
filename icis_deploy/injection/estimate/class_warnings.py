"""Which injected classes are likely to fail: those far from what is known, and those that are too close to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Bool, Float32, Float64, Int64
from icis_deploy.injection.predictors.mixtures import centred_similarity, cosine_similarity
from icis_deploy.injection.rows.predictors import RowPredictor, prediction_variance
from icis_deploy.injection.validation.cross_validation import HeldOutRows
from icis_deploy.injection.validation.evaluation import Candidate, EvaluationSetup
from icis_deploy.injection.validation.operating_point import recognised

COLLIDING_COSINE = 0.9
"""Cosine of descriptors from which two classes count as a collision."""

MAX_COLLISIONS = 20

MAX_NEWTON_STEPS = 100
"""Of a logistic regression, which takes about six."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """Two classes whose descriptors hardly differ.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        for collision in injection.estimate.collisions:
            print(collision)
    """

    class_name: str
    """Name of an unseen class."""

    other: str
    """Name of a seen class, or of another unseen one."""

    is_other_seen: bool
    """Whether the other class is in the head."""

    cosine: float
    """Cosine between their descriptors, -1..1."""

    def __str__(self) -> str:
        if self.is_other_seen:
            return f"{self.class_name!r} would take images of {self.other!r}: cosine {self.cosine:.2f}"
        return f"{self.class_name!r} and {self.other!r} can hardly be told apart: cosine {self.cosine:.2f}"


def class_confidence(
    candidate: Candidate, setup: EvaluationSetup, predictor: RowPredictor, unseen_descriptors: Float32
) -> tuple[float, ...]:
    """Return the predicted chance of each unseen class that its images are recognised among all classes.

    A logistic regression from a held-out class's inputs (how near the nearest seen ones are, how near its nearest
    competitor, how uncertain its row) to whether its features were recognised, over all evaluations of the
    cross-validation.

    Args:
        candidate: The method, cross-validated.
        setup: What it was evaluated on.
        predictor: The method, trained on all seen classes.
        unseen_descriptors: `(num_unseen, descriptor_dim)`.
    """
    is_recognised = recognised(candidate.outcomes, candidate.point)
    if is_recognised.all() or not is_recognised.any():
        return (float(is_recognised.mean()),) * len(unseen_descriptors)
    inputs = np.full((len(setup.rows), 4), np.nan)
    for part in candidate.held_out:
        inputs[part.fold.held_out] = _inputs_of_fold(setup.descriptors, part)
    weight, intercept = fit_logistic(inputs[candidate.outcomes.unseen_class], is_recognised)
    unseen_inputs = _inputs(
        setup.descriptors,
        unseen_descriptors,
        group_of=np.zeros(len(unseen_descriptors), dtype=np.int64),
        variance=prediction_variance(predictor, unseen_descriptors),
    )
    return tuple(float(value) for value in _logistic(unseen_inputs @ weight + intercept))


def fit_logistic(inputs: Float64, is_positive: Bool) -> tuple[Float64, float]:
    """Return weights and intercept of a logistic regression, the weights under a standard normal prior.

    By Newton's method with steps that are halved until they help; importing `scipy.optimize` for it would take longer
    than most of a whole injection's steps, and scikit-learn more.

    Args:
        inputs: `(num_examples, num_inputs)`.
        is_positive: `(num_examples,)`, some true and some not.
    """
    sign = np.where(is_positive, 1.0, -1.0)
    extended = np.column_stack([inputs, np.ones(len(inputs))])
    is_weight = np.arange(extended.shape[1]) < inputs.shape[1]

    def loss(parameters: Float64) -> float:
        """Return the negative log posterior."""
        prior = 0.5 * float(np.sum(parameters[is_weight] ** 2))
        return float(np.logaddexp(0.0, -sign * (extended @ parameters)).sum()) + prior

    parameters, reached = np.zeros(extended.shape[1]), loss(np.zeros(extended.shape[1]))
    for _ in range(MAX_NEWTON_STEPS):
        chance = _logistic(extended @ parameters)
        slope = extended.T @ (chance - is_positive) + is_weight * parameters
        # Where the classes are separable there is no curvature left for the intercept.
        curvature = (extended.T * (chance * (1.0 - chance))) @ extended + np.diag(is_weight + 1e-9)
        step, size = np.linalg.solve(curvature, slope), 1.0
        while loss(parameters - size * step) > reached and size > 1e-6:
            size *= 0.5
        before, parameters = reached, parameters - size * step
        reached = loss(parameters)
        if before - reached <= 1e-10 * before:
            break
    return parameters[:-1], float(parameters[-1])


def _logistic(margin: Float64) -> Float64:
    """Return `1 / (1 + exp(-margin))`, by a function that does not overflow."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * margin))


def _inputs_of_fold(descriptors: Float32, part: HeldOutRows) -> Float64:
    fold = part.fold
    group_of = np.empty(len(fold.held_out), dtype=np.int64)
    for number, group in enumerate(fold.groups):
        group_of[np.searchsorted(fold.held_out, group)] = number
    return _inputs(descriptors[fold.training], descriptors[fold.held_out], group_of=group_of, variance=part.variance)


def _inputs(seen_descriptors: Float32, unseen_descriptors: Float32, *, group_of: Int64, variance: Float64) -> Float64:
    """Return the regression's inputs, `(num_unseen, 4)`: nearest seen, mean of five, nearest competitor, variance."""
    similarity = centred_similarity(unseen_descriptors, seen_descriptors)
    nearest = -np.sort(-similarity, axis=1)[:, :5]
    mean = seen_descriptors.mean(axis=0, dtype=np.float64).astype(np.float32)
    to_unseen = cosine_similarity(unseen_descriptors - mean, unseen_descriptors - mean)
    to_unseen[group_of[:, None] != group_of[None, :]] = 0.0
    np.fill_diagonal(to_unseen, 0.0)
    columns = [nearest[:, 0], nearest.mean(axis=1), to_unseen.max(axis=1), variance]
    return np.stack(columns, axis=1).astype(np.float64)


def find_collisions(
    seen_descriptors: Float32, unseen_descriptors: Float32, seen_names: Sequence[str], class_names: Sequence[str]
) -> tuple[Collision, ...]:
    """Return the pairs of an unseen class and another whose descriptors hardly differ, closest first, at most 20.

    Cosines are of descriptors as given: two names of one thing are close whatever the other classes are.

    Args:
        seen_descriptors: `(num_seen, descriptor_dim)`.
        unseen_descriptors: `(num_unseen, descriptor_dim)`.
        seen_names: `(num_seen,)`.
        class_names: `(num_unseen,)`.
    """
    found = []
    to_seen = cosine_similarity(unseen_descriptors, seen_descriptors)
    to_unseen = np.triu(cosine_similarity(unseen_descriptors, unseen_descriptors), k=1)
    for similarity, names, is_seen in ((to_seen, seen_names, True), (to_unseen, class_names, False)):
        # Attributes that are all positive lie close together: a pair must also stand out from what is usual.
        usual = float(np.quantile(similarity[similarity != 0.0], 0.99)) if similarity.any() else 0.0
        flat = similarity.ravel()
        closest = np.argpartition(-flat, min(MAX_COLLISIONS, len(flat) - 1))[:MAX_COLLISIONS]
        for index in closest[flat[closest] >= max(COLLIDING_COSINE, usual)]:
            row, column = divmod(int(index), similarity.shape[1])
            found.append(
                Collision(
                    class_name=class_names[row],
                    other=names[column],
                    is_other_seen=is_seen,
                    cosine=float(flat[index]),
                )
            )
    return tuple(sorted(found, key=lambda one: -one.cosine)[:MAX_COLLISIONS])
