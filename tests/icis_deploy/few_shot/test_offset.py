"""The offset of new rows: what is lost at it, and at a lesser one."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.few_shot.offset import may_lose_of, offset_for_loss

LEADS = np.array([3.0, -1.0, 2.0, 0.5, -4.0], dtype=np.float32)


def lost(offset: float, weights: np.ndarray) -> float:
    return float(weights @ (offset < LEADS))


@pytest.mark.parametrize("may_lose", [-1.0, 0.0, 0.19, 0.2, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("weights", [np.full(5, 0.2), np.array([0.05, 0.3, 0.05, 0.5, 0.1])])
def test_no_more_is_lost_than_may_be_and_a_lesser_offset_loses_more(may_lose: float, weights: np.ndarray):
    offset = offset_for_loss(LEADS, weights, may_lose=may_lose)

    assert lost(offset, weights) <= max(0.0, may_lose) + 1e-9
    assert lost(offset - 1e-3, weights) > max(0.0, may_lose)


def test_whoever_may_lose_all_gets_the_least_lead():
    assert offset_for_loss(LEADS, np.full(5, 0.2), may_lose=1.0) == -4.0


def test_a_further_image_is_counted_as_lost():
    # Of 99 images and one more, at most two may be lost at 2 %: one of the 99.
    assert may_lose_of(99, 0.02) * 99 == pytest.approx(1.0)
    assert may_lose_of(49, 0.02) == pytest.approx(0.0)
    assert may_lose_of(48, 0.02) < 0.0
