"""Blocks that help keep their weight, and those that do not are dropped, from few seen classes to many."""

from collections.abc import Callable

import numpy as np
import pytest

from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.injection.predictors import block_weights
from icis_deploy.injection.predictors.block_space import standard_block
from icis_deploy.injection.predictors.block_weights import FEWEST_TO_WEIGH, ROUNDING, WeighedBlocks, weigh_blocks

FACTORS, FEATURE_DIM = 12, 24


class World:
    """Classes whose rows follow from hidden factors, of which blocks show some."""

    def __init__(self, num_classes: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        # Groups, as real classes have: without them a few classes say nothing of each other.
        group = self.random.integers(0, max(3, num_classes // 8), num_classes)
        centres = self.random.normal(size=(group.max() + 1, FACTORS))
        self.factors = centres[group] + 0.5 * self.random.normal(size=(num_classes, FACTORS))
        rows = self.factors @ self.random.normal(size=(FACTORS, FEATURE_DIM + 1))
        self.rows = np.asarray(rows + self.random.normal(size=rows.shape), dtype=np.float32)

    def shows(self, factors: slice, width: int, noise: float = 0.2) -> Float32:
        shown = self.factors[:, factors] @ self.random.normal(size=(len(range(FACTORS)[factors]), width))
        return np.asarray(shown + noise * self.random.normal(size=shown.shape), dtype=np.float32)

    def weigh(self, *blocks: Float32, seed: int = 0) -> WeighedBlocks:
        return weigh_blocks([points(block) for block in blocks], self.rows, seed=seed)


def points(columns: Float32) -> Float64:
    return standard_block("block", columns).points(columns)


def random_vectors(world: World, good: Float32) -> Float32:
    return np.asarray(world.random.normal(size=(len(good), 300)), dtype=np.float32)


def of_wrong_classes(world: World, good: Float32) -> Float32:
    return np.asarray(world.random.permutation(good))


def noisy_hierarchy(world: World, good: Float32) -> Float32:
    """Paths in a tree whose branches have little to do with the classes."""
    node = np.zeros(len(good), dtype=np.int64)
    levels = []
    for depth in range(1, 6):
        side = (good + 4.0 * good.std() * world.random.normal(size=good.shape)) @ world.random.normal(
            size=good.shape[1]
        )
        node = 2 * node + (side > 0)
        levels.append(np.eye(2**depth)[node])
    return np.concatenate(levels, axis=1).astype(np.float32)


def a_copy(world: World, good: Float32) -> Float32:
    return np.asarray(50.0 * good)


@pytest.fixture(autouse=True)
def classes_are_drawn_from_300_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are of more than 800: what is tested is the same, and the time grows with the cube."""
    monkeypatch.setattr(block_weights, "WEIGHING_LIMIT", 300)


@pytest.mark.parametrize("num_seen", [24, 100, 300, 400])
@pytest.mark.parametrize("bad", [random_vectors, of_wrong_classes, noisy_hierarchy, a_copy])
def test_a_poor_block_does_no_harm(bad: Callable[[World, Float32], Float32], num_seen: int):
    for seed in range(3 if num_seen <= 100 else 1):
        world = World(num_seen, seed)
        good = world.shows(slice(0, FACTORS), 20)
        weighed = world.weigh(good, bad(world, good))
        assert weighed.weights == (1.0, 0.0)
        gain = weighed.gains[1]
        assert gain is not None
        assert gain.with_it < gain.without_it + max(gain.standard_error, ROUNDING)


@pytest.mark.parametrize("num_seen", [24, 100, 300, 400])
def test_blocks_that_show_different_things_are_both_kept(num_seen: int):
    for seed in range(3 if num_seen <= 100 else 1):
        world = World(num_seen, seed)
        left, right = world.shows(slice(0, 6), 20), world.shows(slice(6, FACTORS), 50)
        weighed = world.weigh(left, right)
        assert min(weighed.weights) >= 0.2
        assert all(gain is not None and gain.with_it > gain.without_it for gain in weighed.gains)


def test_weights_differ_where_cross_validation_tells_blocks_apart():
    world = World(400, 0)
    strong, weak = world.shows(slice(0, 11), 40), world.shows(slice(11, FACTORS), 40, noise=0.1)
    weights = world.weigh(strong, weak).weights
    assert weights[0] > 0.6
    assert weights[1] > 0.0
    assert sum(weights) == pytest.approx(1.0)


def test_two_poor_blocks_and_two_good_ones_are_told_apart_in_any_order():
    world = World(200, 3)
    left, right = world.shows(slice(0, 6), 20), world.shows(slice(6, FACTORS), 20)
    poor = [random_vectors(world, left), of_wrong_classes(world, left)]
    assert [weight > 0 for weight in world.weigh(poor[0], left, poor[1], right).weights] == [False, True, False, True]
    assert [weight > 0 for weight in world.weigh(right, left, *poor).weights] == [True, True, False, False]


def test_a_block_that_half_of_the_classes_lack_does_no_harm():
    for seed in range(3):
        world = World(200, seed)
        good, half = world.shows(slice(0, FACTORS), 20), world.shows(slice(0, FACTORS), 20)
        half[world.random.random(200) < 0.5] = 0.0
        weighed = world.weigh(good, half)
        assert weighed.weights[0] > 0.0
        if weighed.weights[1] > 0.0:
            gain = weighed.gains[1]
            assert gain is not None
            assert gain.with_it > gain.without_it


def test_with_hardly_any_classes_all_blocks_count_alike():
    world = World(FEWEST_TO_WEIGH - 1, 0)
    good = world.shows(slice(0, FACTORS), 20)
    weighed = world.weigh(good, random_vectors(world, good), good)
    assert weighed.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert weighed.gains == (None, None, None)


def test_a_block_without_content_is_dropped_without_a_comparison():
    world = World(50, 0)
    good = world.shows(slice(0, FACTORS), 20)
    weighed = world.weigh(good, np.zeros((50, 3), dtype=np.float32))
    assert weighed.weights == (1.0, 0.0)
    assert weighed.gains == (None, None)


def test_weights_are_the_same_each_time_where_classes_are_drawn():
    world = World(400, 0)
    left, right = world.shows(slice(0, 6), 20), world.shows(slice(6, FACTORS), 20)
    assert world.weigh(left, right, seed=5) == world.weigh(left, right, seed=5)
