"""Folds never leak, and evaluations end as a plain classification ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.injection.pseudo_features.draws import PseudoFeatures
from icis_deploy.injection.rows.predictors import predict_by
from icis_deploy.injection.rows.spectrum import mean_row
from icis_deploy.injection.validation.cross_validation import (
    ENOUGH_HELD_OUT,
    MIN_SEEN,
    HeldOutRows,
    evaluate_folds,
    hold_out,
    plan_folds,
    with_less_training,
)
from icis_deploy.injection.validation.operating_point import OperatingPoint, predicted_rates


@given(num_seen=st.integers(MIN_SEEN, 400), num_unseen=st.integers(1, 500), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_no_class_is_both_held_out_and_trained_on_and_none_is_held_out_twice(num_seen, num_unseen, seed):
    folds = plan_folds(num_seen, num_unseen, seed=seed)
    held_out = np.concatenate([fold.held_out for fold in folds])
    assert len(set(held_out)) == len(held_out)
    assert len(held_out) >= min(num_seen, ENOUGH_HELD_OUT)
    for fold in (*folds, *with_less_training(folds, seed=seed)):
        assert not set(fold.held_out) & set(fold.training)
        assert sorted(np.concatenate(fold.groups)) == list(fold.held_out)
    for fold in folds:
        assert len(fold.held_out) + len(fold.training) == num_seen
        assert len(fold.held_out) <= num_seen / 3 + 1


@given(num_seen=st.integers(30, 400), num_unseen=st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_groups_are_about_as_large_as_the_classes_to_inject(num_seen, num_unseen):
    for fold in plan_folds(num_seen, num_unseen, seed=0):
        sizes = [len(group) for group in fold.groups]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) <= max(1.5 * num_unseen, 1)


def test_less_training_takes_as_many_classes_away_as_are_held_out():
    folds = plan_folds(100, 25, seed=0)
    for fold, thinned in zip(folds, with_less_training(folds, seed=0), strict=True):
        assert set(thinned.training) < set(fold.training)
        assert len(fold.training) - len(thinned.training) == len(fold.held_out)
        np.testing.assert_array_equal(thinned.held_out, fold.held_out)


def test_a_fold_is_predicted_without_its_own_rows_and_descriptors():
    random = np.random.default_rng(0)
    descriptors, rows = (random.normal(size=(30, width)).astype(np.float32) for width in (4, 6))
    folds = plan_folds(30, 10, seed=0)
    fitted_on = []

    class Recorder:
        def rows(self, descriptors):
            return np.zeros((len(descriptors), 6), np.float32)

    def fit(seen_descriptors, seen_rows, unseen_descriptors):
        fitted_on.append((seen_descriptors, seen_rows, unseen_descriptors))
        return Recorder()

    hold_out(predict_by(fit), descriptors, rows, descriptors[:7], folds)
    for fold, (seen_descriptors, seen_rows, unseen_descriptors) in zip(folds, fitted_on, strict=True):
        np.testing.assert_array_equal(seen_descriptors, descriptors[fold.training])
        np.testing.assert_array_equal(seen_rows, rows[fold.training])
        np.testing.assert_array_equal(unseen_descriptors, descriptors[fold.held_out])


def pseudo_features(rows: np.ndarray, per_class: int = 4) -> PseudoFeatures:
    random = np.random.default_rng(7)
    classes = np.tile(np.arange(len(rows)), per_class)
    features = (rows[classes, :-1] + 1.5 * random.normal(size=(len(classes), rows.shape[1] - 1))).astype(np.float32)
    logits = features @ rows[:, :-1].T + rows[:, -1]
    return PseudoFeatures(features=features, classes=classes, class_share=0.5, max_blend=0.0, logits=logits)


def in_eighths(values: np.ndarray) -> np.ndarray:
    """Round to multiples of 1/8, whose sums of products float32 holds exactly, in whatever order they are added."""
    return (np.round(8 * values) / 8).astype(np.float32)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.5, 2.0), (1.4, -3.0)])
def test_rates_are_those_of_classifying_every_feature_with_the_expanded_head(scale: float, offset: float):
    random = np.random.default_rng(0)
    rows = random.normal(size=(24, 9)).astype(np.float32)
    pseudo = pseudo_features(rows)
    folds = plan_folds(24, 6, seed=0)
    mean = mean_row(rows)
    held_out = tuple(
        HeldOutRows(
            fold=fold,
            deviations=(rows[fold.held_out] - mean + 0.7 * random.normal(size=(len(fold.held_out), 9))).astype("f4"),
            competitors=np.zeros((0, 9), np.float32),
            variance=np.zeros(len(fold.held_out)),
        )
        for fold in folds
    )
    correct = {"T": [], "U": [], "S": []}
    for part in held_out:
        (group,) = part.fold.groups
        assert sorted(group) == list(part.fold.held_out)
        injected = mean + scale * part.deviations
        injected[:, -1] += offset
        known = rows[part.fold.training]
        names = np.concatenate([part.fold.training, part.fold.held_out])
        for feature, label in zip(pseudo.features, pseudo.classes, strict=True):
            logits = np.concatenate([known, injected])[:, :-1] @ feature + np.concatenate([known, injected])[:, -1]
            is_right = names[logits.argmax()] == label
            if label in part.fold.held_out:
                correct["U"].append(is_right)
                correct["T"].append(part.fold.held_out[logits[len(known) :].argmax()] == label)
            else:
                correct["S"].append(is_right)
    rates = predicted_rates(evaluate_folds(held_out, rows, pseudo, seed=0), OperatingPoint(scale=scale, offset=offset))
    for name, outcomes in correct.items():
        assert getattr(rates, name) == pytest.approx(np.mean(outcomes), abs=1e-6)


def test_competitors_complete_groups_that_are_smaller_than_the_classes_to_inject():
    """A product with more columns may round each of them differently, so numbers are chosen that need no rounding."""
    random = np.random.default_rng(0)
    descriptors, rows, unseen = (in_eighths(random.normal(size=size)) for size in ((24, 4), (24, 9), (25, 4)))
    pseudo = pseudo_features(rows)
    pseudo = replace(pseudo, features=in_eighths(pseudo.features))
    folds = plan_folds(24, 25, seed=0)
    assert {len(fold.training) for fold in folds} == {16}  # a power of two: the mean of their rows is exact as well

    class Copier:
        def rows(self, descriptors):
            return np.tile(descriptors, (1, 3))[:, :9].astype(np.float32)

    held_out = hold_out(predict_by(lambda *_: Copier()), descriptors, rows, unseen, folds)
    for part in held_out:
        assert {len(group) + len(part.competitors) for group in part.fold.groups} == {25}
        np.testing.assert_allclose(
            part.competitors,
            Copier().rows(unseen[: len(part.competitors)]) - mean_row(rows[part.fold.training]),
            atol=1e-6,
        )
    outcomes = evaluate_folds(held_out, rows, pseudo, seed=0)
    alone = evaluate_folds(tuple(replace(part, competitors=rows[:0]) for part in held_out), rows, pseudo, seed=0)
    assert outcomes.chance == pytest.approx(1 / 25)
    assert outcomes.is_hit.mean() < alone.is_hit.mean()
    assert (outcomes.seen_deviation >= alone.seen_deviation).all()
    assert (outcomes.unseen_deviation >= alone.unseen_deviation).all()


def test_a_single_class_to_inject_has_no_other_to_be_confused_with():
    rows = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    folds = plan_folds(20, 1, seed=0)
    held_out = tuple(
        HeldOutRows(
            fold=fold,
            deviations=np.zeros((len(fold.held_out), 9), np.float32),
            competitors=np.zeros((0, 9), np.float32),
            variance=np.zeros(len(fold.held_out)),
        )
        for fold in folds
    )
    outcomes = evaluate_folds(held_out, rows, pseudo_features(rows), seed=0)
    assert outcomes.is_hit.all()
    assert outcomes.chance == 1.0
    one_group = tuple(replace(part, fold=replace(part.fold, groups=(part.fold.held_out,))) for part in held_out)
    assert evaluate_folds(one_group, rows, pseudo_features(rows), seed=0).chance < 1.0
