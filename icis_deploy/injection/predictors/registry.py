"""Methods that predict rows of unseen classes, behind one signature; most of them are controls for ICIS.

    prepare(seen descriptors, seen rows, seed, progress) -> Prepared(fit, settings)
    fit(seen descriptors, seen rows, unseen descriptors) -> RowPredictor

`prepare` makes the choices that a method has, once; `fit` is then called on folds of the seen classes and finally on
all of them. Lengths of predicted rows mean nothing: calibration sets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.common.given import check_choice
from icis_deploy.errors import MissingDependencyError
from icis_deploy.injection.predictors.mixtures import (
    average_weights,
    costa_weights,
    equal_weights,
    mixture_weights,
    nearest_weights,
)
from icis_deploy.injection.predictors.ridge import choose_ridge, fit_ridge, predict_ridge
from icis_deploy.injection.rows.predictors import (
    AveragePredictor,
    Fit,
    Predict,
    Prediction,
    Progress,
    RowPredictor,
    Weigh,
    WeightedPredictor,
    predict_by,
)
from icis_deploy.injection.rows.spectrum import mean_row

ENSEMBLE_MEMBERS = ("ridge", "icis-centred")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A method with its choices made."""

    fit: Fit
    """Trains a predictor."""

    predict: Predict
    """Trains and predicts a few classes, where the predictor is not needed afterwards; often faster than `fit`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's choices by name, JSON values."""


Prepare = Callable[[Float32, Float32, int, "Progress | None"], Prepared]
"""From seen descriptors, seen rows, seed and progress callback to a method with its choices made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to predict rows."""

    name: str
    """Name of the method, as users write it."""

    summary: str
    """The method in a few words, for people."""

    prepare: Prepare
    """Makes the method's choices."""

    is_trained: bool = False
    """Whether a fit trains a network, which is expensive and needs torch."""


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        UsageError: If there is none of that name.
    """
    check_choice(name, (*METHODS, "auto"), what="method", name="method")
    return METHODS[name]


def _weighted(weigh: Weigh) -> Prepare:
    """Return the preparation of a method that mixes seen rows: it has no choices."""

    def fit(seen_descriptors: Float32, seen_rows: Float32, _unseen_descriptors: Float32) -> RowPredictor:
        mean = mean_row(seen_rows)
        return WeightedPredictor(weigh=weigh, descriptors=seen_descriptors, mean_row=mean, deviations=seen_rows - mean)

    return lambda _descriptors, _rows, _seed, _progress: _prepared_by(fit)


def _prepared_by(fit: Fit, **settings: Any) -> Prepared:
    """Return a method whose predictions are those of a fitted predictor."""
    return Prepared(fit=fit, predict=predict_by(fit), settings=settings)


def _prepare_ridge(descriptors: Float32, rows: Float32, seed: int, _progress: Progress | None) -> Prepared:
    settings = choose_ridge(descriptors, rows, seed=seed)

    def fit(seen_descriptors: Float32, seen_rows: Float32, _unseen_descriptors: Float32) -> RowPredictor:
        return fit_ridge(seen_descriptors, seen_rows, settings=settings, seed=seed)

    def predict(seen_descriptors: Float32, seen_rows: Float32, descriptors: Float32) -> Prediction:
        return predict_ridge(seen_descriptors, seen_rows, descriptors, settings=settings, seed=seed)

    chosen = {"inverse_width": settings.inverse_width, "noise": settings.noise}
    return Prepared(fit=fit, predict=predict, settings=chosen)


def _prepare_icis(
    _descriptors: Float32, _rows: Float32, seed: int, progress: Progress | None, *, is_centred: bool
) -> Prepared:
    try:
        from icis_deploy.injection.predictors.icis import fit_icis, latent_predictor
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "ICIS is trained with torch, which is not installed.",
            hint=(
                "Install it: pip install 'icis-deploy[train]'. The methods ridge, mixture, wavg, costa, nearest and "
                "mean do without."
            ),
        ) from error

    def fit(seen_descriptors: Float32, seen_rows: Float32, unseen_descriptors: Float32) -> RowPredictor:
        origin = mean_row(seen_rows) if is_centred else np.zeros(seen_rows.shape[1], dtype=np.float32)
        trained = fit_icis(seen_descriptors, seen_rows - origin, unseen_descriptors, seed=seed, progress=progress)
        return latent_predictor(trained.model, origin=origin)

    return _prepared_by(fit)


def _prepare_ensemble(descriptors: Float32, rows: Float32, seed: int, progress: Progress | None) -> Prepared:
    members = [METHODS[name].prepare(descriptors, rows, seed, progress) for name in ENSEMBLE_MEMBERS]

    def fit(seen_descriptors: Float32, seen_rows: Float32, unseen_descriptors: Float32) -> RowPredictor:
        return AveragePredictor(
            members=tuple(member.fit(seen_descriptors, seen_rows, unseen_descriptors) for member in members),
            mean_row=mean_row(seen_rows),
        )

    return _prepared_by(fit, members=list(ENSEMBLE_MEMBERS), **members[0].settings)


_ALL = (
    Method(
        name="icis",
        summary="the published method",
        prepare=partial(_prepare_icis, is_centred=False),
        is_trained=True,
    ),
    Method(
        name="icis-centred",
        summary="ICIS on deviations from the mean row",
        prepare=partial(_prepare_icis, is_centred=True),
        is_trained=True,
    ),
    Method(name="ridge", summary="kernel ridge regression on deviations", prepare=_prepare_ridge),
    Method(name="mixture", summary="sparse mixture of seen rows", prepare=_weighted(mixture_weights)),
    Method(name="wavg", summary="average of the nearest seen rows", prepare=_weighted(average_weights)),
    Method(name="costa", summary="average of all seen rows", prepare=_weighted(costa_weights)),
    Method(name="nearest", summary="copy of the nearest seen row", prepare=_weighted(nearest_weights)),
    Method(name="mean", summary="the mean row", prepare=_weighted(equal_weights)),
    Method(name="ensemble", summary="ridge and icis-centred, averaged", prepare=_prepare_ensemble, is_trained=True),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""All methods by name."""
