"""An arbiter is the regression that it was fitted as, does not know the images that it is asked of, and can refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.errors import UntrustworthyError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.injection.arbiter.fitting import cross_fitted_offsets, fit_arbiter, held_out_offsets
from icis_deploy.injection.arbiter.logistic import fit_logistic
from icis_deploy.injection.arbiter.pretend_new import plan_sets, play_sets
from tests.icis_deploy.injection.arbiter.worlds import made_up_world

WORLD = made_up_world()
PLAYED = play_sets(WORLD.images, WORLD.head, plan_sets(WORLD.images.labels, num_seen=100, num_new=20, seed=0))
ALL = np.ones(WORLD.images.num_images, bool)
STATISTICS = seen_statistics(WORLD.images.features, WORLD.images.logits, deviation_lengths(WORLD.head.rows))


def test_a_lead_above_zero_is_a_score_above_zero():
    inputs, is_positive = [], []
    for one in PLAYED:
        chosen = one.is_hit | one.is_right
        inputs.append(np.concatenate([one.best_new[chosen, None], one.statistics[chosen]], axis=1))
        is_positive.append(one.is_hit[chosen])
    slopes, bias = fit_logistic(np.concatenate(inputs), np.concatenate(is_positive))
    arbiter = fit_arbiter(PLAYED, is_used=ALL)
    for one, samples in zip(PLAYED, inputs, strict=True):
        chosen = one.is_hit | one.is_right
        leads = (one.leads + arbiter.offsets(one.statistics))[chosen]
        np.testing.assert_allclose(leads * slopes[0], samples.astype(np.float64) @ slopes + bias, atol=1e-3)


def test_images_that_are_not_used_change_nothing():
    is_used = np.arange(len(ALL)) % 3 > 0
    emptied = [
        replace(one, best_new=np.where(is_used, one.best_new, np.float32(1e3)).astype(np.float32)) for one in PLAYED
    ]
    np.testing.assert_array_equal(
        fit_arbiter(PLAYED, is_used=is_used).values(), fit_arbiter(emptied, is_used=is_used).values()
    )


def test_cross_fitted_offsets_of_an_image_do_not_follow_from_that_image():
    offsets = cross_fitted_offsets(PLAYED, STATISTICS, seed=0)
    changed = [
        replace(one, is_hit=one.is_hit & (np.arange(len(ALL)) != 7), is_right=one.is_right & (np.arange(len(ALL)) != 7))
        for one in PLAYED
    ]
    again = cross_fitted_offsets(changed, STATISTICS, seed=0)
    assert again[7] == offsets[7]
    assert (again != offsets).sum() > 0.7 * len(ALL)


def test_offsets_of_held_out_classes_come_from_the_others():
    offsets = held_out_offsets(PLAYED)
    one = PLAYED[0]
    blinded = [
        replace(other, is_hit=other.is_hit & ~one.is_held_out, is_right=other.is_right & ~one.is_held_out)
        for other in PLAYED
    ]
    np.testing.assert_array_equal(offsets[0], fit_arbiter(blinded, is_used=ALL).offsets(one.statistics))


def test_too_few_recognised_images_are_refused():
    hits = np.flatnonzero(np.logical_or.reduce([one.is_hit for one in PLAYED]))
    few = ~np.isin(np.arange(len(ALL)), hits[9:])
    with pytest.raises(
        UntrustworthyError, match=r"9 of their images were recognised among them; an arbiter needs at least 10"
    ):
        fit_arbiter(PLAYED, is_used=few)


def test_a_new_logit_that_speaks_against_its_class_is_refused():
    backwards = [replace(one, best_new=-one.best_new) for one in PLAYED]
    with pytest.raises(UntrustworthyError, match="a greater logit of a new class did not speak for it"):
        fit_arbiter(backwards, is_used=ALL)
