"""The operating point in worlds whose best point is known, and what a balance does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.errors import UsageError
from icis_deploy.injection.validation.cross_validation import Outcomes
from icis_deploy.injection.validation.operating_point import (
    Aim,
    OperatingPoint,
    Rates,
    choose_operating_point,
    choose_within_budget,
    choose_within_budgets,
    predicted_rates,
    recognised,
    weighted_harmonic_mean,
)


def outcomes(seen_margin, unseen_margin, *, seen_deviation=0.0, unseen_deviation=0.0, is_hit=True) -> Outcomes:
    seen, unseen = np.asarray(seen_margin, np.float32), np.asarray(unseen_margin, np.float32)
    return Outcomes(
        seen_margin=seen,
        seen_deviation=np.broadcast_to(np.float32(seen_deviation), seen.shape),
        unseen_margin=unseen,
        unseen_deviation=np.broadcast_to(np.float32(unseen_deviation), unseen.shape),
        is_hit=np.broadcast_to(is_hit, unseen.shape),
        unseen_class=np.arange(len(unseen)),
        group_sizes=np.array([10]),
    )


def test_the_offset_falls_between_what_unseen_classes_need_and_what_seen_ones_bear():
    world = outcomes(np.full(100, 5.0), np.full(100, 1.0))
    point = choose_operating_point(world)
    assert 1.0 < point.offset <= 5.0
    assert predicted_rates(world, point) == Rates(T=1.0, U=1.0, S=1.0)


def test_the_scale_is_the_one_that_separates_the_two_sides():
    """Where unseen features have deviation 10 and seen ones 0, only the scale can tell them apart."""
    world = outcomes(np.full(50, 6.0), np.full(50, 12.0), seen_deviation=0.0, unseen_deviation=10.0)
    rates = predicted_rates(world, choose_operating_point(world))
    assert (rates.U, rates.S) == (1.0, 1.0)
    assert predicted_rates(world, OperatingPoint(scale=0.25, offset=6.0)).U == 0.0


def test_it_predicts_as_much_balance_as_any_scale_and_offset_but_for_what_flatness_gives_away():
    random = np.random.default_rng(0)
    world = outcomes(
        random.normal(3, 2, 2000),
        random.normal(6, 2, 2000),
        seen_deviation=random.normal(2, 1, 2000),
        unseen_deviation=random.normal(4, 1, 2000),
        is_hit=random.random(2000) < 0.6,
    )
    best = max(
        predicted_rates(world, OperatingPoint(scale=scale, offset=offset)).H
        for scale in np.linspace(0.25, 1.6, 30)
        for offset in np.linspace(-8, 8, 100)
    )
    chosen = predicted_rates(world, choose_operating_point(world))
    assert 0.9 * best < chosen.H <= best * 1.01


@given(seed=st.integers(0, 50), low=st.floats(0.05, 0.45), high=st.floats(0.55, 0.95))
@settings(deadline=None, max_examples=25)
def test_more_balance_never_gives_unseen_classes_less(seed: int, low: float, high: float):
    random = np.random.default_rng(seed)
    world = outcomes(random.normal(3, 2, 400), random.normal(4, 2, 400), is_hit=random.random(400) < 0.7)
    fewer, more = (predicted_rates(world, choose_operating_point(world, balance=balance)) for balance in (low, high))
    assert more.U >= fewer.U
    assert more.S <= fewer.S


def test_a_head_that_is_never_right_and_classes_never_hit_give_a_point_all_the_same():
    world = outcomes(np.full(10, -np.inf), np.full(10, 1.0), is_hit=False)
    point = choose_operating_point(world)
    assert np.isfinite([point.scale, point.offset]).all()
    assert predicted_rates(world, point) == Rates(T=0.0, U=0.0, S=0.0)


def test_recognised_classes_are_those_that_count_in_u():
    random = np.random.default_rng(0)
    world = outcomes(random.normal(size=50), random.normal(size=50), is_hit=random.random(50) < 0.5)
    point = OperatingPoint(scale=1.0, offset=0.2)
    assert recognised(world, point).mean() == pytest.approx(predicted_rates(world, point).U)
    assert not recognised(world, point)[~world.is_hit].any()


@given(unseen=st.floats(0.01, 1), seen=st.floats(0.01, 1))
def test_the_harmonic_mean_is_weighted_from_one_side_to_the_other(unseen: float, seen: float):
    assert weighted_harmonic_mean(unseen, seen, 0.5) == pytest.approx(2 * unseen * seen / (unseen + seen))
    assert weighted_harmonic_mean(unseen, seen, 1e-9) == pytest.approx(seen, rel=1e-3)
    assert weighted_harmonic_mean(unseen, seen, 1 - 1e-9) == pytest.approx(unseen, rel=1e-3)
    assert weighted_harmonic_mean(0.0, seen, 0.5) == 0.0
    assert weighted_harmonic_mean(0.0, 0.0, 0.5) == 0.0


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05, 0.3])
def test_a_budget_is_kept_on_every_kind_of_features_and_spent_on_one(loss: float):
    random = np.random.default_rng(0)
    kinds = [
        outcomes(
            np.where(random.random(2000) < 0.9, random.normal(mean, 2, 2000), -np.inf),
            random.normal(6, 2, 2000),
            seen_deviation=random.normal(2, 1, 2000),
            unseen_deviation=random.normal(4, 1, 2000),
        )
        for mean in (4, 5)
    ]
    point = choose_within_budget(kinds, max_seen_loss=loss)
    lost = [float(np.isfinite(one.seen_margin).mean()) - predicted_rates(one, point).S for one in kinds]
    assert loss - 0.001 <= max(lost) <= loss + 1e-9


def test_more_budget_never_gives_unseen_classes_less():
    random = np.random.default_rng(1)
    world = outcomes(random.normal(3, 2, 400), random.normal(4, 2, 400), is_hit=random.random(400) < 0.7)
    found = [predicted_rates(world, choose_within_budget([world], max_seen_loss=loss)).U for loss in (0.01, 0.1, 0.5)]
    assert found == sorted(found)


def test_a_head_that_is_never_right_has_nothing_to_lose():
    world = outcomes(np.full(10, -np.inf), np.full(10, 1.0))
    assert np.isfinite(choose_within_budget([world], max_seen_loss=0.02).offset)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "expected one of them"),
        ({"max_seen_loss": 0.02, "balance": 0.5}, "expected one of them"),
        ({"max_seen_loss": 1.0}, "expected a fraction between 0 and 1"),
        ({"balance": 1.0}, "expected a number between 0"),
    ],
)
def test_an_aim_is_a_budget_or_a_balance(numbers, message):
    with pytest.raises(UsageError, match=message):
        Aim(**numbers)


@pytest.mark.parametrize("balance", [0.0, 1.0, -1.0, float("nan")])
def test_a_balance_out_of_range_is_refused(balance: float):
    with pytest.raises(UsageError, match="expected a number between 0"):
        choose_operating_point(outcomes([1.0], [1.0]), balance=balance)


def test_several_budgets_at_once_give_each_its_own_point():
    random = np.random.default_rng(2)
    kinds = [
        outcomes(random.normal(mean, 2, 400), random.normal(4, 2, 400), unseen_deviation=random.normal(3, 1, 400))
        for mean in (3, 4)
    ]
    losses = (0.0, 0.01, 0.05, 0.3)
    together = choose_within_budgets(kinds, losses)
    assert together == tuple(choose_within_budget(kinds, max_seen_loss=loss) for loss in losses)
    assert [point.offset for point in together] != [together[0].offset] * len(losses)
