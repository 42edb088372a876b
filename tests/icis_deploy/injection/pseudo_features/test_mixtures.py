"""Classes mixed into noise and into neutral images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.injection.pseudo_features.mixtures import ImageMixture, NoiseMixture, ShownClasses

NUM_FEATURES, FEATURE_DIM = 4000, 32


def unit(seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_FEATURES, FEATURE_DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def shown() -> ShownClasses:
    return ShownClasses(
        classes=np.arange(NUM_FEATURES),
        similar_classes=np.arange(NUM_FEATURES)[::-1],
        own=unit(0),
        similar=unit(1) * np.float32(0.5),
        moments=(1.0, 0.0, 0.25),
    )


def image_mixture(concentration: float | None = None) -> ImageMixture:
    return ImageMixture(
        shown=shown(),
        centre=np.full(FEATURE_DIM, 5.0, dtype=np.float32),
        rest=3.0 * unit(2),
        spread=3.0,
        clarity=np.random.default_rng(3).random(NUM_FEATURES),
        concentration=concentration,
        is_rectified=False,
    )


def noise_mixture() -> NoiseMixture:
    return NoiseMixture(shown=shown(), centre=np.ones(FEATURE_DIM, dtype=np.float32), noise=2.0 * unit(4))


@pytest.mark.parametrize("concentration", [None, 3.2, 20.0])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_classes_take_the_place_of_something_else_and_their_share_on_average(
    share: float, concentration: float | None
) -> None:
    mixture = image_mixture(concentration)
    around = mixture.features(mixture.strengths(share), 0.0) - mixture.centre
    assert (around**2).sum(axis=1).mean() == pytest.approx(9.0, rel=0.05)
    towards = (around * mixture.shown.own).sum(axis=1)
    assert (towards**2).mean() / 9.0 == pytest.approx(share + (1.0 - share) / FEATURE_DIM, abs=0.03)
    assert mixture.class_share(share) == share


def test_the_less_the_concentration_the_more_images_differ() -> None:
    spread = []
    for concentration in (3.2, 20.0, None):
        mixture = image_mixture(concentration)
        spread.append(
            float(
                ((mixture.features(mixture.strengths(0.6), 0.0) - mixture.centre) * mixture.shown.own).sum(axis=1).std()
            )
        )
    assert spread == sorted(spread, reverse=True)


def test_every_feature_shows_more_of_its_class_as_the_share_grows() -> None:
    """The search for a share relies on it."""
    mixture = replace(image_mixture(3.2), rest=np.zeros((NUM_FEATURES, FEATURE_DIM), np.float32))
    towards = [
        ((mixture.features(mixture.strengths(share), 0.0) - 5.0) * mixture.shown.own).sum(axis=1)
        for share in (0.2, 0.5, 0.8)
    ]
    assert (towards[0] <= towards[1] + 1e-5).all()
    assert (towards[1] <= towards[2] + 1e-5).all()


def test_a_blend_does_not_make_features_longer() -> None:
    mixture = image_mixture()
    around = mixture.features(mixture.strengths(1.0), 2.0) - mixture.centre
    assert (around**2).sum(axis=1).mean() == pytest.approx(9.0, rel=0.05)


def test_on_noise_the_amount_is_the_length_of_the_class() -> None:
    mixture = noise_mixture()
    np.testing.assert_allclose(
        mixture.features(mixture.strengths(6.0), 0.0) - mixture.noise - 1.0, 6.0 * mixture.shown.own, atol=1e-5
    )
    assert mixture.class_share(6.0) == pytest.approx(36.0 / 40.0)


@pytest.mark.parametrize("mixture", [image_mixture(3.2), noise_mixture()])
def test_a_part_of_the_features_is_what_it_is_among_all(mixture: ImageMixture | NoiseMixture) -> None:
    which, part = np.array([3, 17, 400]), mixture.part(np.array([3, 17, 400]))
    np.testing.assert_array_equal(
        part.features(part.strengths(0.5), 0.3), mixture.features(mixture.strengths(0.5), 0.3)[which]
    )


@pytest.mark.parametrize("mixture", [image_mixture(), image_mixture(3.2), noise_mixture()])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_the_amount_at_which_a_share_is_strong_enough_is_found(
    mixture: ImageMixture | NoiseMixture, share: float
) -> None:
    needed = mixture.largest_strength * np.random.default_rng(5).beta(2.0, 3.0, size=NUM_FEATURES)
    amount = mixture.amount_at(needed, share)
    for factor in (1.001, 0.999):
        is_enough = mixture.strengths(factor * amount) >= needed
        assert is_enough.mean() == pytest.approx(share, abs=0.003)
        assert (is_enough.mean() >= share) == (factor > 1.0)


@pytest.mark.parametrize("mixture", [image_mixture(), image_mixture(3.2), noise_mixture()])
def test_no_amount_is_larger_than_the_largest_where_too_few_can_be_strong_enough(
    mixture: ImageMixture | NoiseMixture,
) -> None:
    needed = np.where(np.arange(NUM_FEATURES) % 2, 0.5, np.inf)
    assert mixture.strengths(mixture.amount_at(needed, 0.8)).max() == pytest.approx(mixture.largest_strength, rel=0.01)


def test_blends_and_strengths_may_differ_from_feature_to_feature() -> None:
    for mixture in (image_mixture(), noise_mixture()):
        random = np.random.default_rng(6)
        strengths, blends = random.uniform(0.1, 0.9, NUM_FEATURES), random.uniform(0.0, 2.0, NUM_FEATURES)
        together = mixture.features(strengths, blends)
        for index in (0, 9, 77):
            alone = mixture.part(np.array([index])).features(strengths[[index]], float(blends[index]))
            np.testing.assert_allclose(together[[index]], alone, rtol=1e-5, atol=1e-5)
