"""Features drawn instead of images: the head is as accurate on them as on images, and they spread as neutral ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from icis_deploy.api.inject import neutral_features_of
from icis_deploy.api.models import head_of, inspect
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.pseudo_features.class_means import class_directions, principal_law
from icis_deploy.injection.pseudo_features.draws import PseudoFeatures, _confidence, draw, find_feature_source
from icis_deploy.injection.pseudo_features.source import FeatureSource

FEATURE_DIM = 40


def head_rows(num_classes: int = 60, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(num_classes, FEATURE_DIM + 1)).astype(np.float32)


def neutral(seed: int = 0) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(size=(64, FEATURE_DIM)), 0).astype(np.float32) * 3


def source_of(
    rows: np.ndarray, *, neutral_features: np.ndarray | None, seen_accuracy: float, max_features: int, seed: int = 0
) -> FeatureSource:
    return find_feature_source(
        rows,
        neutral_features=neutral_features,
        seen_accuracy=seen_accuracy,
        max_features=max_features,
        seed=seed,
    )


def draw_pseudo_features(
    rows: np.ndarray, *, neutral_features: np.ndarray | None, seen_accuracy: float, max_features: int, seed: int = 0
) -> PseudoFeatures:
    source = source_of(
        rows, neutral_features=neutral_features, seen_accuracy=seen_accuracy, max_features=max_features, seed=seed
    )
    return draw(source, max_features=max_features, seed=seed).features(seen_accuracy=seen_accuracy)


def accuracy(rows: np.ndarray, features: np.ndarray, classes: np.ndarray) -> float:
    return float(((features @ rows[:, :-1].T + rows[:, -1]).argmax(axis=1) == classes).mean())


@pytest.mark.parametrize("seen_accuracy", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("has_neutral", [True, False])
def test_the_head_is_right_on_them_as_often_as_its_owner_says(seen_accuracy: float, has_neutral: bool):
    rows = head_rows()
    pseudo = draw_pseudo_features(
        rows,
        neutral_features=neutral() if has_neutral else None,
        seen_accuracy=seen_accuracy,
        max_features=3000,
        seed=0,
    )
    assert accuracy(rows, pseudo.features, pseudo.classes) == pytest.approx(seen_accuracy, abs=0.04)
    assert pseudo.accuracy == pytest.approx(accuracy(rows, pseudo.features, pseudo.classes))


def test_every_class_has_equally_many():
    pseudo = draw_pseudo_features(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=500, seed=0)
    assert np.unique(np.bincount(pseudo.classes, minlength=60)).tolist() == [8]


def test_some_classes_are_drawn_once_where_there_are_more_than_features():
    pseudo = draw_pseudo_features(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=25, seed=0)
    assert len(np.unique(pseudo.classes)) == len(pseudo.classes) == 25


def test_features_are_never_negative_where_neutral_ones_never_are():
    rows = head_rows()
    options = {"seen_accuracy": 0.8, "max_features": 300, "seed": 0}
    assert draw_pseudo_features(rows, neutral_features=neutral(), **options).features.min() == 0
    assert draw_pseudo_features(rows, neutral_features=neutral() - 1, **options).features.min() < -1


def test_the_same_seed_draws_the_same_and_another_does_not():
    options = {"neutral_features": neutral(), "seen_accuracy": 0.8, "max_features": 300}
    one, again, other = (draw_pseudo_features(head_rows(), **options, seed=seed).features for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_scaling_a_head_and_its_features_changes_nothing_but_the_scale():
    rows, options = head_rows(), {"seen_accuracy": 0.8, "max_features": 600, "seed": 0}
    rows[:, -1] = 0
    halved = rows * np.float32(0.5)
    one = draw_pseudo_features(rows, neutral_features=neutral(), **options)
    same = draw_pseudo_features(halved, neutral_features=neutral(), **options)
    np.testing.assert_allclose(same.features, one.features, rtol=1e-5)
    double = draw_pseudo_features(rows, neutral_features=2 * neutral(), **options)
    assert double.class_share == pytest.approx(one.class_share, rel=0.01)
    np.testing.assert_allclose(double.features, 2 * one.features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_classes", [30, 60])
def test_directions_are_those_of_class_means_in_a_balanced_linear_network(num_classes: int):
    """Logits `rows @ features` of a class mean, with `features = rows.T @ (rows @ rows.T) @ ...`: C times the row."""
    rows = head_rows(num_classes)
    centred = (rows[:, :-1] - rows[:, :-1].mean(axis=0)).astype(np.float64)
    expected = centred @ (centred.T @ centred)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    law = principal_law(rows, None)
    assert law.exponent == 1.0
    found = class_directions(rows, law)
    assert ((found * expected).sum(axis=1) / lengths[:, 0]).min() > 0.999  # axes without variance have a floor
    found = np.linalg.norm(class_directions(rows, law, equal_lengths=False), axis=1)
    np.testing.assert_allclose(found, lengths[:, 0] / lengths.mean(), rtol=0.02)


def test_without_neutral_features_the_head_is_about_as_sure_as_it_is_right_whatever_its_scale():
    rows, options = head_rows(), {"neutral_features": None, "max_features": 3000, "seed": 0}
    rows[:, -1] = 0
    for seen_accuracy in (0.7, 0.95):
        logits = draw_pseudo_features(rows, seen_accuracy=seen_accuracy, **options).logits.astype(np.float64)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidence = np.median(probabilities.max(axis=1) / probabilities.sum(axis=1))
        assert seen_accuracy - 0.2 < confidence < seen_accuracy + 0.05
        tripled = draw_pseudo_features(3 * rows, seen_accuracy=seen_accuracy, **options).logits
        np.testing.assert_allclose(tripled, logits, rtol=0.01, atol=0.01 * np.abs(logits).max())


def test_without_neutral_features_a_head_that_tells_siblings_apart_gets_features_of_a_size_that_it_is_right_on():
    """Stretched along what siblings share, their class means would be alike, and no scale would make the head right."""
    random = np.random.default_rng(0)
    rows = head_rows(80)
    rows[:, :-1] = np.repeat(random.normal(size=(16, FEATURE_DIM)), 5, axis=0) + 0.35 * rows[:, :-1]
    rows[:, -1] = 0
    source = source_of(rows, neutral_features=None, seen_accuracy=0.95, max_features=2400)
    assert source.law.exponent < 1.0
    pseudo = draw(source, max_features=2400, seed=0).features(seen_accuracy=0.95)
    assert pseudo.accuracy == pytest.approx(0.95, abs=0.03)
    assert np.median(pseudo.logits.max(axis=1) - pseudo.logits.mean(axis=1)) < 40


def test_a_head_whose_short_rows_never_win_gets_features_of_the_usual_strength():
    rows = head_rows()
    options = {"neutral_features": neutral(), "seen_accuracy": 0.9, "max_features": 1200, "seed": 0}
    assert draw_pseudo_features(rows, **options).accuracy > 0.85
    rows[:20] *= np.float32(0.1)
    uneven = draw_pseudo_features(rows, **options)
    assert uneven.accuracy < 0.75
    assert uneven.class_share < 0.9


@pytest.mark.parametrize("concentration", [None, 3.2])
@pytest.mark.parametrize("equal_lengths", [True, False])
def test_one_draw_gives_right_features_under_every_assumption(concentration: float | None, equal_lengths: bool):
    rows = head_rows()
    source = source_of(rows, neutral_features=neutral(), seen_accuracy=0.8, max_features=3000)
    draws = draw(source, max_features=3000, seed=1)
    draws = draws if equal_lengths else draws.with_lengths()
    for seen_accuracy in (0.8, 0.95, 0.6, 0.8):
        for neighbour_share in (0.5, 0.9):
            pseudo = draws.features(
                seen_accuracy=seen_accuracy, neighbour_share=neighbour_share, concentration=concentration
            )
            assert pseudo.accuracy == pytest.approx(seen_accuracy, abs=0.04)
            np.testing.assert_allclose(
                pseudo.logits, pseudo.features @ rows[:, :-1].T + rows[:, -1], rtol=1e-4, atol=1e-3
            )


def test_what_was_drawn_before_changes_a_draw_no_more_than_the_search_is_fine():
    source = source_of(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=3000)
    used, fresh = (draw(source, max_features=3000, seed=1) for _ in range(2))
    used.features(seen_accuracy=0.6, concentration=3.2)
    one, other = (draws.features(seen_accuracy=0.9) for draws in (used, fresh))
    assert one.class_share == pytest.approx(other.class_share, rel=0.01)
    assert one.max_blend == pytest.approx(other.max_blend, rel=0.02)


@pytest.mark.parametrize("has_neutral", [True, False])
def test_the_same_call_gives_the_same_features_whatever_was_asked_for_before(has_neutral: bool):
    neutral_features = neutral() if has_neutral else None
    source = source_of(head_rows(), neutral_features=neutral_features, seen_accuracy=0.8, max_features=3000)
    fresh = draw(source, max_features=3000, seed=1).features(seen_accuracy=0.9)
    used = draw(source, max_features=3000, seed=1)
    used.features(seen_accuracy=0.6, concentration=3.2)
    used.with_lengths().features(seen_accuracy=0.95, neighbour_share=0.5, part=0.5)
    for again in (used.features(seen_accuracy=0.9), used.features(seen_accuracy=0.9)):
        assert (again.class_share, again.max_blend) == (fresh.class_share, fresh.max_blend)
        np.testing.assert_array_equal(again.features, fresh.features)
        np.testing.assert_array_equal(again.logits, fresh.logits)


def test_on_a_real_classifier_too_the_same_call_gives_the_same_features(imagenet_mobilenet: Path):
    opened = inspect(imagenet_mobilenet / "model.onnx", classes=imagenet_mobilenet / "classes.txt")
    preprocessing = load_preprocessing(imagenet_mobilenet / "preprocess.json")
    neutral_features = neutral_features_of(opened, preprocessing=preprocessing, seed=0)
    source = source_of(
        head_of(opened).rows, neutral_features=neutral_features, seen_accuracy=0.85, max_features=2400, seed=0
    )
    fresh, used = (draw(source, max_features=2400, seed=1) for _ in range(2))
    used.features(seen_accuracy=0.99)
    for concentration in (3.2, None):
        one, other = (draws.features(seen_accuracy=0.85, concentration=concentration) for draws in (fresh, used))
        assert (one.class_share, one.max_blend, one.accuracy) == (other.class_share, other.max_blend, other.accuracy)
        np.testing.assert_array_equal(one.features, other.features)


def test_a_part_of_the_features_has_equally_many_of_each_class():
    source = source_of(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=500)
    draws = draw(source, max_features=500, seed=0)
    assert np.unique(np.bincount(draws.features(seen_accuracy=0.8, part=0.55).classes)).tolist() == [4]
    few = draw(source, max_features=40, seed=0).features(seen_accuracy=0.8, part=0.5)
    assert len(np.unique(few.classes)) == len(few.classes) == 20


def test_similar_classes_are_the_nearest_in_direction_and_not_the_class_itself():
    source = source_of(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=500)
    asked = np.array([3, 7, 50])
    found = source.neighbours(asked)
    cosines = source.directions[asked] @ source.directions.T
    for index, one in enumerate(asked):
        assert set(found[index]) == set(np.argsort(-cosines[index])[1:6])
        assert one not in found[index]


def test_every_neutral_feature_is_used_about_equally_often():
    source = source_of(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=480)
    mixture = draw(source, max_features=480, seed=0).mixture
    _, used = np.unique(mixture.rest, axis=0, return_counts=True)
    assert (len(used), set(used)) == (64, {7, 8})


def test_classes_that_are_drawn_once_are_any_of_them():
    source = source_of(head_rows(300), neutral_features=neutral(), seen_accuracy=0.8, max_features=100)
    first, second = (set(draw(source, max_features=100, seed=seed).mixture.shown.classes) for seed in (0, 1))
    assert len(first) == len(second) == 100
    assert first != second
    assert max(first) > 200
    assert min(len(first - set(range(100))), len(second - set(range(100)))) > 40


def test_a_similar_class_is_as_long_as_itself_and_not_as_the_class_that_shows_it():
    source = source_of(head_rows(), neutral_features=neutral(), seen_accuracy=0.8, max_features=500)
    draws = draw(source, max_features=500, seed=0)
    before, after = draws.mixture.shown, draws.with_lengths().mixture.shown
    assert np.ptp(source.lengths) > 0.01
    for name, classes in (("own", before.classes), ("similar", before.similar_classes)):
        expected = getattr(before, name) * source.lengths[classes][:, None]
        np.testing.assert_allclose(getattr(after, name), expected, rtol=1e-6)


def test_a_few_features_between_two_classes_do_not_lower_the_confidence():
    logits = np.tile(np.float32([4.0, 0.0]), (101, 1))
    logits[:40] = 0.0
    assert _confidence(logits) == pytest.approx(1 / (1 + np.exp(-4.0)))
