"""Predicted rows and a few photos: who moves what, and how far."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.errors import IncompatibleError
from icis_deploy.few_shot.refining import FewShotContext, PhotoFeatures, levels, refine_rows

DIM = 8
RANDOM = np.random.default_rng(0)
PRIOR = RANDOM.normal(size=(3, DIM + 1)).astype(np.float32)


def context(**changed) -> FewShotContext:
    given = {
        "mean_row": np.full(DIM + 1, 0.1, dtype=np.float32),
        "feature_mean": np.linspace(0.0, 1.0, DIM, dtype=np.float32),
        "length": 2.0,
        "level": -0.5,
        "prior_photos": 1.5,
    }
    return FewShotContext(**{**given, **changed})


def photos(*classes: int) -> PhotoFeatures:
    features = np.random.default_rng(1).normal(size=(len(classes), DIM)).astype(np.float32)
    return PhotoFeatures(features=features, classes=np.array(classes, dtype=np.int64))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_without_a_photo_rows_keep_their_bits():
    refined = refine_rows(PRIOR, photos(), context())
    assert refined.tobytes() == PRIOR.tobytes()


def test_only_classes_with_photos_move():
    refined = refine_rows(PRIOR, photos(1, 1), context())
    assert refined[[0, 2]].tobytes() == PRIOR[[0, 2]].tobytes()
    assert not np.allclose(refined[1], PRIOR[1])


def test_a_refined_row_is_as_long_as_its_prior():
    refined, mean = refine_rows(PRIOR, photos(0, 1, 2), context()), context().mean_row
    np.testing.assert_allclose(
        np.linalg.norm((refined - mean)[:, :-1], axis=1), np.linalg.norm((PRIOR - mean)[:, :-1], axis=1), rtol=1e-5
    )


def test_without_a_prior_the_row_points_to_its_photos_at_the_given_length_and_level():
    shown, given = photos(0), context()
    row = refine_rows(np.zeros((1, DIM + 1), np.float32), shown, given, has_prior=np.array([False]))
    weights = (row[0] - given.mean_row)[:-1]
    assert cosine(weights, shown.features[0] - given.feature_mean) == pytest.approx(1.0, abs=1e-6)
    assert np.linalg.norm(weights) == pytest.approx(2.0, rel=1e-5)
    np.testing.assert_allclose(levels(row, given.mean_row, given.feature_mean), [-0.5], atol=1e-5)


def test_a_prior_fades_with_the_number_of_photos():
    shown = photos(0)
    found = []
    for count in (1, 2, 5, 10):
        repeated = PhotoFeatures(features=np.repeat(shown.features, count, axis=0), classes=np.zeros(count, np.int64))
        row = refine_rows(PRIOR[:1], repeated, context())[0]
        found.append(cosine((row - context().mean_row)[:-1], shown.features[0] - context().feature_mean))
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_prior_that_counts_nothing_leaves_the_direction_to_the_photos():
    shown, given = photos(0), context(prior_photos=0.0)
    row = refine_rows(PRIOR[:1], shown, given)[0]
    assert cosine((row - given.mean_row)[:-1], shown.features[0] - given.feature_mean) == pytest.approx(1.0, abs=1e-6)


def test_a_bright_photo_counts_no_more_than_another():
    shown, given = photos(0, 0), context()
    centre = given.feature_mean
    stretched = shown.features.copy()
    stretched[0] = centre + 50.0 * (stretched[0] - centre)
    longer = PhotoFeatures(features=stretched, classes=shown.classes)
    np.testing.assert_allclose(refine_rows(PRIOR, longer, given), refine_rows(PRIOR, shown, given), atol=1e-5)


@pytest.mark.parametrize(
    ("prior", "shown", "has_prior", "message"),
    [
        (PRIOR[:, :-1], photos(0), None, "expected \\(num_new, 9\\)"),
        (PRIOR, photos(3), None, "new class 3; there are 3"),
        (PRIOR, photos(0), np.array([True, False, True]), "New class 1 has neither"),
    ],
)
def test_what_does_not_fit_is_refused(prior, shown, has_prior, message):
    with pytest.raises(IncompatibleError, match=message):
        refine_rows(prior, shown, context(), has_prior=has_prior)


def test_a_photo_without_direction_is_refused():
    mean = PhotoFeatures(features=context().feature_mean[None], classes=np.zeros(1, np.int64))
    with pytest.raises(IncompatibleError, match="no direction"):
        refine_rows(PRIOR[:1], mean, context(), has_prior=np.array([False]))


@pytest.mark.parametrize("changed", [{"length": 0.0}, {"level": np.nan}, {"prior_photos": -1.0}])
def test_a_context_checks_itself(changed):
    with pytest.raises(IncompatibleError, match="Rows cannot have the length"):
        context(**changed)
    with pytest.raises(IncompatibleError, match="expected a row one wider"):
        context(mean_row=np.zeros(DIM, np.float32))
