"""Thresholds of features that are known, and how often these are evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.injection.pseudo_features.threshold_search import Thresholds, first_thresholds, quantile

LARGEST = 16.0


class Features:
    """Features that turn at known levels, by margins that bend: none that an estimate meets at once."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.turns = np.random.default_rng(seed).gamma(3.0, 0.2, size=count)
        self.num_evaluated = 0

    def evaluate(self, which: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.num_evaluated += len(which)
        return np.log(levels / self.turns[which]), 1.0 / levels

    def find(self, thresholds: Thresholds, share: float) -> tuple[float, Thresholds]:
        same = lambda value: np.full(len(self.turns), value)  # noqa: E731
        return thresholds.find(share, same, lambda estimate, share: min(quantile(estimate, share), LARGEST))


@pytest.mark.parametrize("start", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("count", [40, 1000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_search_finds_where_a_share_has_turned(count: int, share: float, start: float) -> None:
    features = Features(count)
    found, _ = features.find(first_thresholds(features.evaluate, count, start=start), share)
    exact = np.sort(features.turns)[int(np.ceil(share * count)) - 1]
    assert np.mean(features.turns <= found * 1.01) >= share
    assert found == pytest.approx(exact, rel=0.02)


def test_most_features_are_evaluated_once_and_the_next_search_evaluates_few() -> None:
    features = Features(1000)
    _, thresholds = features.find(first_thresholds(features.evaluate, 1000, start=0.5), 0.5)
    assert features.num_evaluated < 1700
    features.num_evaluated = 0
    _, thresholds = features.find(thresholds, 0.5)
    assert features.num_evaluated < 10
    features.find(thresholds, 0.6)
    assert features.num_evaluated < 400


def test_a_search_changes_nothing_that_the_next_one_starts_from() -> None:
    features = Features(1000)
    thresholds = first_thresholds(features.evaluate, 1000, start=0.5)
    before = [array.copy() for array in (thresholds.estimate, thresholds.evaluated, thresholds.below, thresholds.above)]
    found, _ = features.find(thresholds, 0.5)
    features.find(thresholds, 0.9)
    assert features.find(thresholds, 0.5)[0] == found
    now = (thresholds.estimate, thresholds.evaluated, thresholds.below, thresholds.above)
    for array, kept in zip(now, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_features_that_never_turn_are_not_counted() -> None:
    def evaluate(which: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hopeless = which % 2 == 1
        return np.where(hopeless, -1.0 - levels, levels - 0.3), np.where(hopeless, -1.0, 1.0)

    thresholds = first_thresholds(evaluate, 100, start=0.5)
    for level, share in ((LARGEST, 0.5), (0.31, 0.5), (0.29, 0.0)):
        levels = np.full(100, level)
        thresholds = thresholds.settled(levels)
        assert thresholds.share_at(levels) == share
    found, _ = thresholds.find(
        0.7, lambda value: np.full(100, value), lambda estimate, share: min(quantile(estimate, share), 9)
    )
    assert found == 9


def test_a_quantile_is_the_smallest_value_that_a_share_does_not_exceed() -> None:
    values = np.array([4.0, 1.0, np.inf, 3.0])
    assert [quantile(values, share) for share in (0.0, 0.25, 0.26, 0.75, 1.0)] == [1.0, 1.0, 3.0, 4.0, np.inf]
