"""Blocks become one vector in which each counts as much as its weight, whatever its scale, width and gaps."""

import numpy as np
import pytest

from icis_deploy.injection.predictors.block_space import BlockPredictor, BlockSpace, standard_block
from icis_deploy.injection.predictors.registry import METHODS

NUM_CLASSES = 40


def parts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(NUM_CLASSES, 5)).astype(np.float32),
        (random.random((NUM_CLASSES, 30)) < 0.2).astype(np.float32) + 1.0,
    )


def space_of(*columns: np.ndarray, weights: tuple[float, ...]) -> BlockSpace:
    return BlockSpace(
        blocks=tuple(standard_block(f"block {index}", one) for index, one in enumerate(columns)), weights=weights
    )


def test_the_product_of_two_vectors_is_the_weighted_sum_of_the_cosines_of_their_blocks():
    left, right = parts()
    joined = space_of(left, right, weights=(0.3, 0.7)).apply(np.concatenate([left, right], axis=1))

    def cosines(columns: np.ndarray) -> np.ndarray:
        centred = columns - columns.mean(axis=0)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        return np.asarray(unit @ unit.T)

    np.testing.assert_allclose(joined @ joined.T, 0.3 * cosines(left) + 0.7 * cosines(right), atol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 100.0, 1e9])
def test_the_scale_of_a_block_changes_nothing(factor: float):
    left, right = parts()
    expected = space_of(left, right, weights=(0.5, 0.5)).apply(np.concatenate([left, right], axis=1))
    scaled = np.asarray(factor * right, dtype=np.float32)
    found = space_of(left, scaled, weights=(0.5, 0.5)).apply(np.concatenate([left, scaled], axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_block_is_centred_on_the_classes_that_have_it():
    _, right = parts()
    right[::2] = 0.0
    block = standard_block("tags", right)
    np.testing.assert_allclose(block.centre, right[1::2].mean(axis=0), rtol=1e-6)
    points = block.points(right)
    assert not points[::2].any()
    np.testing.assert_allclose(np.linalg.norm(points[1::2], axis=1), 1.0)


def test_classes_are_not_alike_because_both_lack_a_block():
    random = np.random.default_rng(1)
    left = np.eye(NUM_CLASSES, dtype=np.float32)  # no two classes are alike in it
    right = random.normal(size=(NUM_CLASSES, 200)).astype(np.float32)
    right[:10] = 0.0
    joined = space_of(left, right, weights=(0.5, 0.5)).apply(np.concatenate([left, right], axis=1))
    cosines = joined @ joined.T
    both_lack = cosines[:10, :10][~np.eye(10, dtype=bool)]
    one_lacks = cosines[:10, 10:]
    assert abs(both_lack.mean() - one_lacks.mean()) < 0.03
    np.testing.assert_allclose(np.diagonal(cosines), 1.0, atol=1e-6)


def test_a_class_is_compared_by_the_blocks_that_it_has():
    left, right = parts()
    space = space_of(left, right, weights=(0.5, 0.5))
    alone = space.apply(np.concatenate([left, 0.0 * right], axis=1).astype(np.float32))
    assert not alone[:, 5:].any()
    np.testing.assert_allclose(alone[:, :5], standard_block("left", left).points(left), atol=1e-6)


def test_a_block_of_no_weight_is_left_out():
    left, right = parts()
    joined = space_of(left, right, weights=(1.0, 0.0)).apply(np.concatenate([left, right], axis=1))
    np.testing.assert_array_equal(joined, left)


def test_a_class_that_no_kept_block_describes_is_zero():
    left, right = parts()
    left[3] = 0.0
    joined = space_of(left, right, weights=(1.0, 0.0)).apply(np.concatenate([left, right], axis=1))
    assert not joined[3].any()
    assert joined[[0, 1, 2, 4]].any(axis=1).all()


@pytest.mark.parametrize("columns", [np.zeros((NUM_CLASSES, 4)), np.full((NUM_CLASSES, 4), 0.1)])
def test_a_block_that_says_nothing_or_the_same_of_all_classes_is_zero(columns: np.ndarray):
    block = standard_block("tags", columns.astype(np.float32))
    assert not block.points(columns.astype(np.float32)).any()


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.is_trained])
def test_every_method_predicts_rows_of_descriptors_as_they_are_given(method: str):
    left, right = parts()
    values = np.concatenate([left, right], axis=1)
    rows = np.random.default_rng(2).normal(size=(NUM_CLASSES, 9)).astype(np.float32)
    space = space_of(left[:30], right[:30], weights=(0.5, 0.5))
    prepared = METHODS[method].prepare(space.apply(values[:30]), rows[:30], 0, None)
    trained = prepared.fit(space.apply(values[:30]), rows[:30], space.apply(values[30:]))
    predictor = BlockPredictor(space=space, predictor=trained)
    np.testing.assert_array_equal(predictor.rows(values[30:]), trained.rows(space.apply(values[30:])))
