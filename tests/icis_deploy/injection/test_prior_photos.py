"""How many photos a predicted row counts as is chosen on known classes that play new ones."""

import numpy as np
import pytest

from icis_deploy.few_shot.refining import DEFAULT_PRIOR_PHOTOS
from icis_deploy.head.head import Head
from icis_deploy.injection.arbiter.seen_images import seen_images
from icis_deploy.injection.photos import MIN_TESTED, PRIOR_PHOTOS, choose_prior_photos
from icis_deploy.injection.predictors.ridge import RidgeSettings, predict_ridge

NUM_CLASSES, WIDTH, NUM_IMAGES = 80, 64, 8


@pytest.fixture(scope="module")
def world():
    """A head whose rows follow from descriptors of 12 numbers, and noisy images of its classes."""
    random = np.random.default_rng(0)
    descriptors = random.normal(size=(NUM_CLASSES, 12)).astype(np.float32)
    weights = descriptors @ random.normal(size=(12, WIDTH)) / 12**0.5 + 0.4 * random.normal(size=(NUM_CLASSES, WIDTH))
    rows = np.concatenate([weights, np.zeros((NUM_CLASSES, 1))], axis=1).astype(np.float32)
    head = Head(rows=rows, class_names=tuple(f"class {index}" for index in range(NUM_CLASSES)))
    labels = np.repeat(np.arange(NUM_CLASSES), NUM_IMAGES)
    features = weights[labels] + 2.0 * random.normal(size=(len(labels), WIDTH))
    return head, descriptors, features.astype(np.float32), labels


def predict_rows(descriptors, rows, asked):
    return predict_ridge(descriptors, rows, asked, settings=RidgeSettings(inverse_width=0.5, noise=0.1)).rows


def chosen(world, *, descriptors=None, num_images=None, num_photos=1):
    head, described, features, labels = world
    kept = slice(None) if num_images is None else np.arange(0, len(labels), len(labels) // num_images)[:num_images]
    return choose_prior_photos(
        seen_images(features[kept], head.rows, labels[kept]),
        head,
        described if descriptors is None else descriptors,
        predict_rows,
        num_new=20,
        num_photos=num_photos,
        seed=0,
    )


def test_rows_of_good_descriptors_count_as_a_photo(world):
    count, reason = chosen(world)

    assert count == DEFAULT_PRIOR_PHOTOS
    assert "counts as 1 photo: known classes that played new ones with 1 photo each were recognised in " in reason


def test_rows_of_wrong_descriptors_count_less(world):
    shuffled = np.random.default_rng(1).permutation(world[1])

    assert chosen(world, descriptors=shuffled)[0] < 0.5


def test_no_row_counts_as_more_than_one_photo(world):
    assert max(PRIOR_PHOTOS) == DEFAULT_PRIOR_PHOTOS == 1.0


def test_too_few_images_leave_the_default(world):
    count, reason = chosen(world, descriptors=world[1][::-1].copy(), num_images=MIN_TESTED // 3)

    assert count == DEFAULT_PRIOR_PHOTOS
    assert "images of known classes are too few to choose otherwise" in reason


def test_one_image_of_each_class_leaves_none_to_test_with(world):
    count, reason = chosen(world, num_images=NUM_CLASSES)

    assert (count, reason.split(": ")[1]) == (1.0, "0 images of known classes are too few to choose otherwise.")
