"""Turning points of features that are known, and how often they are looked at."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.injection.pseudo_features.threshold_search import TurningPoints, quantile

LARGEST = 16.0


class Features:
    """Features that turn at known places, by margins that bend: none that an estimate meets at once."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.turns = np.random.default_rng(seed).gamma(3.0, 0.2, size=count)
        self.num_looks = 0
        self.num_looked_at = 0

    def look(self, which: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.num_looks, self.num_looked_at = self.num_looks + 1, self.num_looked_at + len(which)
        return np.log(places / self.turns[which]), 1.0 / places

    def find(self, points: TurningPoints, share: float) -> float:
        same = lambda value: np.full(len(self.turns), value)  # noqa: E731
        return points.find(share, same, lambda estimate, share: min(quantile(estimate, share), LARGEST))


@pytest.mark.parametrize("start", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("count", [40, 1000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_search_finds_where_a_share_has_turned(count: int, share: float, start: float) -> None:
    features = Features(count)
    found = features.find(TurningPoints(features.look, count, start=start), share)
    exact = np.sort(features.turns)[int(np.ceil(share * count)) - 1]
    assert np.mean(features.turns <= found * 1.01) >= share
    assert found == pytest.approx(exact, rel=0.02)


def test_most_features_are_looked_at_once_and_the_next_search_looks_at_few() -> None:
    features = Features(1000)
    points = TurningPoints(features.look, 1000, start=0.5)
    features.find(points, 0.5)
    assert features.num_looked_at < 1700
    features.num_looked_at = 0
    features.find(points, 0.5)
    assert features.num_looked_at < 10
    features.find(points, 0.6)
    assert features.num_looked_at < 400


def test_features_that_never_turn_are_not_counted() -> None:
    def look(which: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hopeless = which % 2 == 1
        return np.where(hopeless, -1.0 - places, places - 0.3), np.where(hopeless, -1.0, 1.0)

    points = TurningPoints(look, 100, start=0.5)
    assert points.share_at(np.full(100, LARGEST)) == 0.5
    assert points.share_at(np.full(100, 0.31)) == 0.5
    assert points.share_at(np.full(100, 0.29)) == 0.0
    found = points.find(
        0.7, lambda value: np.full(100, value), lambda estimate, share: min(quantile(estimate, share), 9)
    )
    assert found == 9


def test_a_quantile_is_the_smallest_value_that_a_share_does_not_exceed() -> None:
    values = np.array([4.0, 1.0, np.inf, 3.0])
    assert [quantile(values, share) for share in (0.0, 0.25, 0.26, 0.75, 1.0)] == [1.0, 1.0, 3.0, 4.0, np.inf]
