"""Images of seen classes: what counts as right, how much each counts, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.errors import IncompatibleError
from icis_deploy.injection.arbiter.seen_images import macro_weights, seen_images

ROWS = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1).astype(np.float32)
FEATURES = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 2]]


def test_labelled_images_are_right_where_the_head_is_and_classes_count_the_same():
    images = seen_images(FEATURES, ROWS, np.array([0, 0, 2, 2, 2]))
    np.testing.assert_array_equal(images.is_right, [True, False, True, True, True])
    np.testing.assert_allclose(images.weights(), [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6])
    assert images.accuracy == pytest.approx(0.75)
    np.testing.assert_allclose(images.weights(np.array([True, False, True, False, False])), [0.5, 0.5])


def test_unlabelled_images_are_right_whatever_the_answer_and_count_the_same():
    images = seen_images(FEATURES, ROWS, None)
    np.testing.assert_array_equal(images.labels, [0, 1, 2, 2, 2])
    assert images.is_right.all()
    np.testing.assert_allclose(images.weights(), 0.2)
    assert images.accuracy == pytest.approx(1.0)


def test_macro_weights_give_each_class_that_has_images_the_same_sum():
    labels = np.array([4, 4, 4, 7])
    np.testing.assert_allclose(macro_weights(labels), [1 / 6, 1 / 6, 1 / 6, 1 / 2])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 3, 0]), r"Image 3 is labelled 3; the head has the classes 0 to 2\."),
        (np.array([-1, 1, 2, 2, 0]), r"Image 0 is labelled -1"),
        (np.array([1, 2, 0, 0, 0]), r"right on none of the 5 images"),
        (np.array([1, 2, 0]), r"labels of shape \(3,\); expected one of each for every image"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, message):
    with pytest.raises(IncompatibleError, match=message):
        seen_images(FEATURES, ROWS, labels)


def test_no_image_is_refused():
    with pytest.raises(IncompatibleError, match="There is no image of a seen class"):
        seen_images(np.zeros((0, 3), np.float32), ROWS, np.zeros(0, np.int64))
