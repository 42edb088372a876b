import numpy as np
import pytest

from icis_deploy.errors import UsageError
from icis_deploy.images import neutral
from icis_deploy.images.neutral import KINDS, gradient, neutral_images, noise

DRAW = neutral._neutral_image


@pytest.fixture(autouse=True)
def drawn_anew(small_neutral_images, monkeypatch):
    """What other tests keep of pictures would answer for how they are drawn."""
    monkeypatch.setattr(neutral, "_neutral_image", DRAW)


def test_pictures_have_the_shape_the_type_and_the_range_that_a_model_takes():
    images = neutral_images(8, 48, 64, seed=0)

    assert images.shape == (8, 3, 48, 64)
    assert images.dtype == np.float32
    assert images.min() >= 0.0
    assert images.max() <= 1.0


def test_the_same_seed_gives_the_same_pictures_in_whatever_parts():
    short, long = neutral_images(4, 32, 32, seed=7), neutral_images(6, 32, 32, seed=7)

    np.testing.assert_array_equal(long[:4], short)
    np.testing.assert_array_equal(long[3:], neutral_images(3, 32, 32, seed=7, first=3))
    assert not np.array_equal(neutral_images(4, 32, 32, seed=8), short)


def test_drawing_leaves_the_global_random_state_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    neutral_images(4, 16, 16, seed=0)

    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_no_two_pictures_are_alike_and_none_is_blank():
    images = neutral_images(16, 32, 32, seed=0).reshape(16, -1)

    assert images.std(axis=1).min() > 0.02
    distances = np.abs(images[:, None] - images[None]).mean(axis=2) + np.eye(16)
    assert distances.min() > 0.02


def test_noise_has_less_power_at_higher_frequencies():
    power = np.mean(
        [np.abs(np.fft.rfft2(noise(64, 64, np.random.default_rng(seed)))) ** 2 for seed in range(8)], axis=(0, 1)
    )

    assert power[0, 2:6].mean() > 4 * power[0, 24:32].mean()


def test_a_gradient_is_smooth():
    image = gradient(64, 64, np.random.default_rng(0))

    assert np.abs(np.diff(image, axis=1)).mean() < 0.1 * image.std() + 0.02


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (5, 2)])
def test_the_smallest_pictures_can_be_drawn(height, width):
    images = neutral_images(len(KINDS), height, width, seed=0)

    assert images.shape == (len(KINDS), 3, height, width)
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    "arguments", [(0, 8, 8, 0, 0), (1, 0, 8, 0, 0), (1, 8, -1, 0, 0), (1, 8, 8, -1, 0), (1, 8, 8, 0, -1)]
)
def test_what_cannot_be_drawn_is_refused(arguments):
    num_images, height, width, seed, first = arguments

    with pytest.raises(UsageError, match=r"Cannot draw -?\d+ neutral images"):
        neutral_images(num_images, height, width, seed=seed, first=first)
