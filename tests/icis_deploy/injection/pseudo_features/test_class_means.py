"""What rows and neutral features say of class means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.injection.pseudo_features.class_means import (
    EXPONENT_STEP,
    MIN_EXPONENT,
    FeatureLaw,
    balanced_centre,
    class_directions,
    mixed_law,
    principal_law,
    recognising_law,
)

NUM_CLASSES, FEATURE_DIM = 60, 16


def rows_and_features(exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with a falling spectrum, and features that are spread along it as class means of that exponent."""
    random = np.random.default_rng(0)
    deviation = np.geomspace(1.0, 0.1, FEATURE_DIM)
    rows = np.zeros((NUM_CLASSES, FEATURE_DIM + 1), dtype=np.float32)
    rows[:, :-1] = deviation * random.normal(size=(NUM_CLASSES, FEATURE_DIM))
    features = deviation ** (1.0 + 2.0 * exponent) * random.normal(size=(4000, FEATURE_DIM))
    return rows, features.astype(np.float32)


@pytest.mark.parametrize("exponent", [-0.7, 0.0, 0.4])
def test_the_exponent_between_rows_and_features_is_found(exponent: float) -> None:
    law = principal_law(*rows_and_features(exponent))
    assert law.exponent == pytest.approx(exponent, abs=0.15)


def test_directions_are_the_rows_deviations_stretched_along_their_axes() -> None:
    rows, features = rows_and_features(0.8)
    law = principal_law(rows, features)
    directions = class_directions(rows, law)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-5)
    weights = rows[:, :-1] - rows[:, :-1].mean(axis=0)
    leading = lambda vectors: (vectors[:, :4] ** 2).sum() / (vectors**2).sum()  # noqa: E731
    assert leading(directions) > leading(weights) + 0.05


def test_a_small_share_of_classes_leaves_the_theory_and_a_large_one_what_was_measured() -> None:
    law = principal_law(*rows_and_features(-0.5))
    assert mixed_law(law, 1.0).exponent == law.exponent
    assert mixed_law(law, 0.0).exponent == 1.0


def test_the_exponent_is_lowered_until_the_head_knows_its_own_class_means() -> None:
    rows, _ = rows_and_features(0.0)
    law, classes = principal_law(rows, None), np.arange(NUM_CLASSES)
    weights = rows[:, :-1] - rows[:, :-1].mean(axis=0)

    def known(exponent_law: FeatureLaw) -> float:
        return float(((class_directions(rows, exponent_law) @ weights.T).argmax(axis=1) == classes).mean())

    assert known(law) < 0.5
    lowered = recognising_law(rows, law, classes=classes, share=0.9)
    assert known(lowered) >= 0.9
    assert known(replace(lowered, exponent=lowered.exponent + EXPONENT_STEP)) < 0.9
    assert recognising_law(rows, law, classes=classes, share=0.0) is law
    assert recognising_law(rows, law, classes=classes, share=1.1).exponent == MIN_EXPONENT  # cannot be reached


def test_the_centre_is_moved_to_where_no_class_is_favoured() -> None:
    rows, features = rows_and_features(0.0)
    random = np.random.default_rng(1)
    truth = random.normal(size=FEATURE_DIM).astype(np.float32)
    rows[:, -1] = -rows[:, :-1] @ truth  # all classes' logits are equal there
    neutral = truth + 0.7 * random.normal(size=FEATURE_DIM).astype(np.float32)
    law = principal_law(rows, features)

    def favour(centre: np.ndarray) -> float:
        return float((rows[:, :-1] @ centre + rows[:, -1]).std())

    assert favour(balanced_centre(rows, law.spectrum, neutral)) < 0.3 * favour(neutral)
