import numpy as np
import pytest

from icis_deploy.images.dead_leaves import LARGEST_LEAF, NUM_LEAVES, SMALLEST_LEAF, dead_leaves


def painted_one_by_one(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The same image in the plain way: every leaf, and every pixel of it, over those before."""
    image = np.broadcast_to(random.random((3, 1, 1)), (3, height, width)).astype(np.float32)
    palette = random.random((1 + int(random.integers(3, 12)), 3))
    colours = palette[random.integers(len(palette), size=NUM_LEAVES)]
    radii, *others = random.random((6, NUM_LEAVES))
    radii = min(height, width) * (LARGEST_LEAF**-2 + radii * (SMALLEST_LEAF**-2 - LARGEST_LEAF**-2)) ** -0.5
    centre_y, centre_x, turns, shapes, kinds = others
    slopes, tints = 0.25 * random.standard_normal(NUM_LEAVES), 0.05 * random.standard_normal((3, NUM_LEAVES)).T
    grain = 0.06 * random.standard_normal((height, width), dtype=np.float32)
    for leaf in range(NUM_LEAVES):
        y = ((np.arange(height) - centre_y[leaf] * height) / radii[leaf])[:, None]
        x = ((np.arange(width) - centre_x[leaf] * width) / radii[leaf])[None, :]
        turn = np.pi * turns[leaf]
        along = x * np.cos(turn) + y * np.sin(turn)
        across = (y * np.cos(turn) - x * np.sin(turn)) / (0.4 + 0.6 * shapes[leaf])
        is_box = kinds[leaf] < 0.3
        inside = np.maximum(abs(along), abs(across)) < 0.8 if is_box else along**2 + across**2 < 1
        shading = slopes[leaf] * along + grain
        image[:, inside] = (colours[leaf] + tints[leaf])[:, None] + shading[inside]
    return np.clip(image, 0, 1)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (97, 97), (5, 2), (1, 9), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_a_picture_is_the_one_that_painting_leaf_over_leaf_gives(height, width, seed):
    image = dead_leaves(height, width, np.random.default_rng(seed))

    expected = painted_one_by_one(height, width, np.random.default_rng(seed))
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6)


def test_leaves_hide_the_ground():
    image = dead_leaves(128, 128, np.random.default_rng(0))
    colours, counts = np.unique(image.reshape(3, -1), axis=1, return_counts=True)

    assert counts.max() / counts.sum() < 0.1, f"one flat colour, {colours[:, counts.argmax()]}, shows through"


def test_where_no_leaf_lies_the_ground_shows():
    """Among a few hundred small images some have a pixel that no leaf covers."""
    shown = 0
    for seed in range(300):
        image = dead_leaves(24, 24, np.random.default_rng(seed))
        ground = np.random.default_rng(seed).random((3, 1, 1)).astype(np.float32)
        shown += int((image == ground).all(axis=0).sum())

    assert shown > 0
