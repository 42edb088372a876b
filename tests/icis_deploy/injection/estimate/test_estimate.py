"""The estimate against a world that can be looked at: what was predicted is measured on features of all classes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import UntrustworthyError
from icis_deploy.head.head import Head
from icis_deploy.injection import operation
from icis_deploy.injection.estimate import rehearsal
from icis_deploy.injection.estimate.estimate import NO_NEUTRAL_FEATURES, _beats_chance
from icis_deploy.injection.estimate.rehearsal import rehearse
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import DEFAULT_SEEN_ACCURACY, InjectionOptions
from icis_deploy.injection.pseudo_features.class_means import class_directions, principal_law
from icis_deploy.injection.pseudo_features.draws import draw
from icis_deploy.injection.validation.evaluation import NUM_PSEUDO_FEATURES

NUM_SEEN, NUM_UNSEEN, FEATURE_DIM = 120, 30, 48


class World:
    """Classes whose rows follow from descriptors, and whose features follow from rows as theory says that they do."""

    def __init__(self, *, noise: float = 1.0, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.descriptors = random.normal(size=(NUM_SEEN + NUM_UNSEEN, 12)).astype(np.float32)
        rows = self.descriptors @ random.normal(size=(12, FEATURE_DIM + 1)) / 12**0.5
        rows = (rows + 0.7 * random.normal(size=rows.shape)).astype(np.float32)
        rows[:, -1] *= 0.1
        rows[:, :-1] *= 7 / np.linalg.norm(rows[:, :-1], axis=1, keepdims=True)
        self.means = 7 * class_directions(rows, principal_law(rows, None))
        self.noise = noise
        self.names = tuple(f"class{index:03d}" for index in range(len(rows)))
        self.head = Head(rows=rows[:NUM_SEEN], class_names=self.names[:NUM_SEEN])
        self.neutral = (noise * random.normal(size=(64, FEATURE_DIM))).astype(np.float32)

    def inject(self, *, has_backbone: bool = True, **options) -> Injection:
        described = Descriptors(values=self.descriptors, class_names=self.names)
        chosen = InjectionOptions(method="ridge", seen_accuracy=self.measure(None)[1], **{"balance": 0.5, **options})
        return inject(self.head, described, options=chosen, neutral_features=self.neutral if has_backbone else None)

    def measure(self, injection: Injection | None) -> tuple[float, float]:
        """Return accuracy on unseen and on seen classes, among all classes that the head then has."""
        head = self.head if injection is None else self.head.expand(injection.rows, injection.class_names)
        labels = np.tile(np.arange(NUM_SEEN + NUM_UNSEEN), 20)
        random = np.random.default_rng(9)
        features = self.means[labels] + self.noise * random.normal(size=(len(labels), FEATURE_DIM))
        is_right = head.logits(features).argmax(axis=1) == labels
        return float(is_right[labels >= NUM_SEEN].mean()), float(is_right[labels < NUM_SEEN].mean())


@pytest.fixture(scope="module")
def injected() -> tuple[World, Injection]:
    world = World()
    return world, world.inject()


def test_the_intervals_hold_what_is_then_measured(injected):
    world, injection = injected
    U, S = world.measure(injection)
    estimate = injection.estimate
    assert estimate.U.low <= U <= estimate.U.high
    assert estimate.H.low <= 2 * U * S / (U + S) <= estimate.H.high
    assert abs(estimate.H.value - 2 * U * S / (U + S)) < 0.12


def test_calibrated_rows_compete_and_raw_rows_do_not(injected):
    world, injection = injected
    raw = world.inject(calibration="none")
    assert world.measure(injection)[0] > world.measure(raw)[0] + 0.2


def test_the_operating_point_is_near_the_best_that_measuring_would_find(injected):
    world, injection = injected

    def balance(rows: np.ndarray) -> float:
        U, S = world.measure(replace(injection, rows=rows))
        return 2 * U * S / max(U + S, 1e-9)

    best = 0.0
    for offset in np.linspace(-12, 12, 25):
        rows = injection.rows.copy()
        rows[:, -1] += offset
        best = max(best, balance(rows))
    assert balance(injection.rows) > 0.9 * best


def test_without_a_backbone_the_estimate_warns(injected):
    world, _ = injected
    injection = world.inject(has_backbone=False)
    assert injection.estimate.warnings == (NO_NEUTRAL_FEATURES,)
    with pytest.raises(UntrustworthyError, match="not run on neutral images"):
        injection.require_trust()


def test_a_head_that_is_better_than_any_features_drawn_for_it_is_warned_of():
    """Some rows are so short that they never win, and yet the owner says that they do."""
    world = World()
    rows = world.head.rows.copy()
    rows[:30] = 0.05 * rows[:30] + rows.mean(axis=0)
    world.head = Head(rows=rows, class_names=world.head.class_names)
    assert not any("No features" in message for message in world.inject().estimate.warnings)
    world.measure = lambda _injection: (0.0, 0.98)
    estimate = world.inject().estimate
    (message,) = (message for message in estimate.warnings if "No features" in message)
    assert "98.0 % of images are" in message
    assert (estimate.H.low, estimate.H.high) == (0.0, 1.0)


def test_confidence_is_a_probability_for_each_class_and_on_average_the_games_won(injected):
    estimate, chosen = injected[1].estimate, injected[1].selection.chosen
    assert len(estimate.confidence) == NUM_UNSEEN
    assert all(0 <= value <= 1 for value in estimate.confidence)
    assert np.mean(estimate.confidence) == pytest.approx(chosen.rates.U, abs=0.1)


def test_the_update_names_the_least_confident_classes_first(injected):
    estimate = injected[1].estimate
    values = list(estimate.to_json()["confidence"].values())
    assert values == sorted(values)
    assert set(estimate.to_json()["confidence"]) == set(estimate.class_names)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_descriptors_of_other_classes_are_never_called_trustworthy(seed: int):
    world = World(seed=seed)
    world.descriptors = np.random.default_rng(100 + seed).permutation(world.descriptors)
    injection = world.inject()
    assert not injection.estimate.is_trustworthy
    assert "say nothing" in injection.estimate.warnings[0]


def test_few_seen_classes_and_more_unseen_than_seen_ones_are_warned_of():
    world = World()
    described = Descriptors(values=world.descriptors, class_names=world.names)
    head = Head(rows=world.head.rows[:12], class_names=world.names[:12])
    options = InjectionOptions(method="ridge")
    injection = inject(head, described, options=options, neutral_features=world.neutral)
    assert any("12 seen classes" in message for message in injection.warnings)
    assert any("138 classes are injected into a head of 12" in message for message in injection.warnings)


@pytest.mark.parametrize(("num_hits", "is_better"), [(2, False), (5, False), (6, False), (8, True), (20, True)])
def test_hits_are_better_than_chance_where_guessing_gives_them_less_than_once_in_a_thousand(num_hits, is_better):
    """Of 20 classes at a chance of 0.1, guessing hits 6 or more in 11 of 1,000 cases, and 8 or more in 0.4."""
    is_hit = np.repeat(np.arange(20) < num_hits, 3)  # a class is one observation, however many features it has
    outcomes = SimpleNamespace(chance=0.1, unseen_class=np.repeat(np.arange(20), 3), is_hit=is_hit)

    assert _beats_chance(SimpleNamespace(outcomes=outcomes)) == is_better


def test_the_prediction_is_the_mean_of_two_kinds_of_features_on_other_draws_than_the_choice(monkeypatch):
    rehearsed, drawn = [], []

    def rehearse_and_keep(candidate, setup):
        rehearsed.append((candidate, setup, rehearse(candidate, setup)))
        return rehearsed[-1][-1]

    def draw_and_keep(*given, **named):
        drawn.append(draw(*given, **named))
        return drawn[-1]

    monkeypatch.setattr(operation, "rehearse", rehearse_and_keep)
    monkeypatch.setattr(rehearsal, "draw", draw_and_keep)
    estimate = World().inject().estimate

    ((candidate, setup, rehearsals),) = rehearsed
    first, second = (one.rates(candidate.point) for one in rehearsals.likely)
    assert first != second
    for name in ("T", "U"):
        expected = (getattr(first, name) + getattr(second, name)) / 2
        assert getattr(rehearsals.expected(candidate.point), name) == pytest.approx(expected)
        assert getattr(estimate, name).value == pytest.approx(expected, abs=0.05)  # at the point that was then chosen
    same = draw(setup.sample.source, max_features=NUM_PSEUDO_FEATURES, seed=setup.seed)
    assert same.mixture.clarity.shape == drawn[0].mixture.clarity.shape
    assert not np.array_equal(same.mixture.clarity, drawn[0].mixture.clarity)


def test_an_accuracy_that_nobody_stated_widens_what_is_predicted():
    world = World()
    described = Descriptors(values=world.descriptors, class_names=world.names)
    unknown, known = (
        inject(
            world.head,
            described,
            options=InjectionOptions(method="ridge", balance=0.5, seen_accuracy=accuracy),
            neutral_features=world.neutral,
        ).estimate
        for accuracy in (None, DEFAULT_SEEN_ACCURACY)
    )

    assert unknown.U.value == pytest.approx(known.U.value)
    assert unknown.U.low < known.U.low - 0.001
    assert unknown.U.high >= known.U.high
    assert unknown.S.high > known.S.high
