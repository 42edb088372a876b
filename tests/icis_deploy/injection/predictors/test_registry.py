"""All methods behind one signature, their evaluation, the choice, the learning curve, and what is estimated."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest

from icis_deploy.errors import MissingDependencyError, UsageError
from icis_deploy.injection.estimate.class_warnings import MAX_COLLISIONS, find_collisions
from icis_deploy.injection.estimate.rehearsal import learning_curve
from icis_deploy.injection.predictors.icis import ICISConfig, fit_icis, latent_predictor, predict_rows
from icis_deploy.injection.predictors.registry import METHODS, method_named
from icis_deploy.injection.rows.spectrum import mean_row
from icis_deploy.injection.validation.evaluation import Assumptions, EvaluationSetup, evaluate_method, set_up_evaluation
from icis_deploy.injection.validation.operating_point import FLATNESS, Aim
from icis_deploy.injection.validation.selection import select

FEATURE_DIM = 24
CHEAP = [method for method in METHODS.values() if not method.is_trained]


def world(num_classes: int, *, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    descriptors = random.normal(size=(num_classes, 10))
    rows = descriptors @ random.normal(size=(10, FEATURE_DIM + 1)) + noise * random.normal(
        size=(num_classes, FEATURE_DIM + 1)
    )
    return descriptors.astype(np.float32), rows.astype(np.float32)


def setup_of(num_seen: int = 80, *, noise: float = 1.0, num_unseen: int = 20) -> EvaluationSetup:
    descriptors, rows = world(num_seen + num_unseen, noise=noise)
    neutral = np.random.default_rng(3).normal(size=(64, FEATURE_DIM)).astype(np.float32)
    assumptions = Assumptions(neutral_features=neutral, seen_accuracy=0.85, is_accuracy_known=True)
    return set_up_evaluation(
        descriptors[:num_seen],
        rows[:num_seen],
        descriptors[num_seen:],
        assumptions=assumptions,
        aim=Aim(balance=0.5),
        seed=0,
    )


@pytest.mark.parametrize("method", CHEAP, ids=lambda method: method.name)
def test_every_method_gives_finite_rows_whatever_is_asked_with_them(method):
    descriptors, rows = world(50, noise=0.5)
    prepared = method.prepare(descriptors[:40], rows[:40], 0, None)
    json.dumps(dict(prepared.settings))
    predictor = prepared.fit(descriptors[:40], rows[:40], descriptors[40:])
    together = predictor.rows(descriptors[40:])
    assert together.shape == (10, FEATURE_DIM + 1)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    np.testing.assert_allclose(predictor.rows(descriptors[43:44])[0], together[3], rtol=1e-4, atol=1e-5)


def test_an_unknown_method_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"'magic'; choose among icis, icis-centred, ridge, .*, auto"):
        method_named("magic")


def test_the_arrays_of_icis_predict_what_the_network_predicts():
    descriptors, rows = world(30, noise=0.5)
    fit = fit_icis(descriptors[:24], rows[:24], descriptors[24:], config=ICISConfig(latent_dim=64, min_steps=5))
    origin = mean_row(rows)
    expected = predict_rows(fit.model, descriptors[24:]) + origin
    found = latent_predictor(fit.model, origin=origin).rows(descriptors[24:])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_icis_without_torch_names_the_command_and_the_methods_that_do_without(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "icis_deploy.injection.predictors.icis":
            raise ModuleNotFoundError("No module named 'torch'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    descriptors, rows = world(10, noise=0.5)
    with pytest.raises(MissingDependencyError, match=r"icis-deploy\[train\].*ridge, mixture"):
        METHODS["icis"].prepare(descriptors, rows, 0, None)


def test_the_better_descriptors_explain_rows_the_better_the_accuracies_predicted():
    good, bad = (evaluate_method(METHODS["ridge"], setup_of(noise=noise)) for noise in (0.5, 8.0))
    assert good.cosine > bad.cosine + 0.2
    assert good.rates.T > bad.rates.T + 0.3


def test_the_mean_row_tells_no_class_from_another():
    candidate = evaluate_method(METHODS["mean"], setup_of())
    assert pytest.approx(candidate.outcomes.chance, abs=0.05) == candidate.rates.T
    assert candidate.cosine == pytest.approx(0.0, abs=1e-3)


def test_of_the_methods_with_nearly_the_best_balance_the_one_that_predicts_rows_best_is_chosen():
    selection = select(setup_of(noise=0.3), CHEAP)
    best = max(one.rates.H for one in selection.candidates)
    equals = [one for one in selection.candidates if FLATNESS * best <= one.rates.H]
    assert selection.chosen.cosine == max(one.cosine for one in equals)
    assert selection.chosen.method.name not in {"mean", "costa"}
    assert selection.reason.startswith(selection.chosen.method.name)
    assert len(selection.candidates) == len(CHEAP)
    assert json.loads(json.dumps(selection.choice.to_json()))["num_neutral_features"] == 64


def test_a_method_that_was_asked_for_is_not_called_the_best():
    assert select(setup_of(), [METHODS["nearest"]]).reason == "nearest was asked for."


def test_accuracies_with_all_seen_classes_are_no_lower_where_more_classes_help():
    setup = setup_of(60, noise=0.3, num_unseen=30)
    candidate = evaluate_method(METHODS["ridge"], setup)
    curve = learning_curve(candidate, setup)
    assert 0 < curve.step <= 1
    expected = curve.rehearsal(setup, setup.features).rates(candidate.point)
    assert expected.T >= candidate.rates.T
    assert 0 <= expected.U <= 1
    for part, thinned in zip(candidate.held_out, curve.thinned, strict=True):
        assert len(thinned.fold.training) < len(part.fold.training)


def test_two_names_of_one_thing_are_a_collision_and_far_things_are_none():
    random = np.random.default_rng(0)
    seen, unseen = (random.normal(size=(count, 30)).astype(np.float32) for count in (20, 4))
    unseen[1] = seen[7] + 0.01 * random.normal(size=30)
    unseen[3] = unseen[2] + 0.01 * random.normal(size=30)
    names = [f"seen{index}" for index in range(20)], [f"new{index}" for index in range(4)]
    collisions = find_collisions(seen, unseen, *names)
    assert {(one.class_name, one.other, one.is_other_seen) for one in collisions} == {
        ("new1", "seen7", True),
        ("new2", "new3", False),
    }
    assert "'new1' would take images of 'seen7': cosine 1.00" in {str(one) for one in collisions}


def test_collisions_are_the_closest_and_never_more_than_are_kept():
    random = np.random.default_rng(0)
    seen = random.normal(size=(60, 5)).astype(np.float32)
    unseen = seen + np.linspace(0.0, 0.2, 60, dtype=np.float32)[:, None] * random.normal(size=(60, 5)).astype("f4")
    names = [f"seen{index}" for index in range(60)], [f"new{index}" for index in range(60)]
    collisions = find_collisions(seen, unseen, *names)
    assert len(collisions) == MAX_COLLISIONS
    cosines = [one.cosine for one in collisions]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(1.0, abs=1e-5)
