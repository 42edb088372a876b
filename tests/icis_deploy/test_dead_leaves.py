import numpy as np
import pytest

from icis_deploy.dead_leaves import LARGEST_LEAF, NUM_LEAVES, SMALLEST_LEAF, dead_leaves


def painted_one_by_one(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The same picture in the plain way: every leaf, and every pixel of it, over those before."""
    image = np.broadcast_to(random.random((3, 1, 1)), (3, height, width)).astype(np.float32)
    palette = random.random((1 + int(random.integers(3, 12)), 3))
    uniform = np.sort(random.random(NUM_LEAVES))
    radii = min(height, width) * (LARGEST_LEAF**-2 + uniform * (SMALLEST_LEAF**-2 - LARGEST_LEAF**-2)) ** -0.5
    for radius in random.permutation(radii):
        colour = palette[random.integers(len(palette))]
        centre_y, centre_x, turn, shape, kind = random.random(5) * [height, width, np.pi, 0.6, 1]
        top, bottom = max(0, int(centre_y - 1.5 * radius)), min(height, int(centre_y + 1.5 * radius) + 1)
        left, right = max(0, int(centre_x - 1.5 * radius)), min(width, int(centre_x + 1.5 * radius) + 1)
        y = ((np.arange(top, bottom) - centre_y) / radius)[:, None]
        x = ((np.arange(left, right) - centre_x) / radius)[None, :]
        along = x * np.cos(turn) + y * np.sin(turn)
        across = (y * np.cos(turn) - x * np.sin(turn)) / (0.4 + shape)
        is_box = kind < 0.3
        inside = np.maximum(abs(along), abs(across)) < 0.8 if is_box else along**2 + across**2 < 1
        shading = 0.25 * random.standard_normal() * along + 0.06 * random.standard_normal(along.shape)
        tint = colour + 0.05 * random.standard_normal(3)
        image[:, top:bottom, left:right][:, inside] = tint[:, None] + shading[inside]
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
    """Among a few hundred small pictures some have a pixel that no leaf covers."""
    shown = 0
    for seed in range(300):
        image = dead_leaves(24, 24, np.random.default_rng(seed))
        ground = np.random.default_rng(seed).random((3, 1, 1)).astype(np.float32)
        shown += int((image == ground).all(axis=0).sum())

    assert shown > 0
