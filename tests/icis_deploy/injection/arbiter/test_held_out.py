"""Held-out classes say what new ones will have: extrapolated to all classes that are learnt from, and never absurd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.injection.arbiter.held_out import Games, play_games
from icis_deploy.injection.arbiter.pretend_new import plan_sets
from tests.icis_deploy.injection.arbiter.worlds import World, made_up_world

BUDGET = 0.05


def games_of(world: World, *, num_with_less: int = 10) -> Games:
    head = world.head
    sets = plan_sets(world.images.labels, num_seen=len(head.rows), num_new=len(head.new_rows), seed=0)
    return play_games(world.images, head, sets, num_with_less=num_with_less, seed=0)


def test_what_more_training_gives_is_extrapolated_to_all_classes():
    world = made_up_world(num_new=25)
    games, offsets = games_of(world), [0.0] * 10
    assert games.step == pytest.approx(np.log(100 / 80) / np.log(80 / 60))
    now = replace(games, step=0.0).rates(world.images, offsets, budget=BUDGET)
    less = Games(now=games.less, less=games.less, step=0.0).rates(world.images, offsets, budget=BUDGET)
    found = games.rates(world.images, offsets, budget=BUDGET)
    assert None not in (now, less, found)
    assert less.T < now.T < found.T
    for name in ("T", "U"):
        assert getattr(found, name) == pytest.approx(
            getattr(now, name) + games.step * (getattr(now, name) - getattr(less, name))
        )
    assert found.S == now.S


def test_estimates_are_nearer_with_the_learning_curve_than_without():
    errors = []
    for seed in range(12):
        world = made_up_world(num_seen=60, num_new=20, seed=seed)
        is_new = world.test_labels >= 60
        new = world.test_features[is_new] @ world.head.new_rows[:, :-1].T + world.head.new_rows[:, -1]
        T = float((new.argmax(axis=1) + 60 == world.test_labels[is_new]).mean())
        games = games_of(world)
        rates = [one.rates(world.images, [0.0] * 10, budget=BUDGET) for one in (games, replace(games, step=0.0))]
        errors.append([one.T - T for one in rates])
    with_curve, without = np.mean(errors, axis=0)
    assert without < -0.03
    assert abs(with_curve) < -without / 2


def test_some_of_the_sets_are_enough_to_see_what_training_gives():
    world = made_up_world(num_new=25)
    games = games_of(world, num_with_less=1)
    assert (len(games.now), len(games.less)) == (10, 1)
    rates = games.rates(world.images, [0.0] * 10, budget=BUDGET)
    assert rates is not None
    assert rates.T > replace(games, step=0.0).rates(world.images, [0.0] * 10, budget=BUDGET).T


def test_extrapolated_accuracies_are_fractions_in_their_order():
    world = made_up_world(num_new=25)
    games = replace(games_of(world), step=50.0)
    rates = games.rates(world.images, [0.0] * 10, budget=BUDGET)
    assert rates is not None
    assert 0.0 <= rates.U <= rates.T <= 1.0
    assert rates.U <= rates.U_top5 <= 1.0


def test_nothing_is_said_where_no_set_is_played():
    world = made_up_world()
    assert Games(now=(), less=(), step=0.0).rates(world.images, [], budget=BUDGET) is None
