"""Where features turn from wrong to right, or back, as a number grows; looked at as rarely as can be.

A look is dear: the logits of all classes. What it finds of a feature is more than its side: against the strongest rival
found there, a step back gives the margin's slope for next to nothing, and both give an estimate of where the margin
vanishes. Features whose estimate lies far from where the search stands, measured by how far it is from where they were
last looked at, are not looked at again. What was found serves the next search on the same features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from icis_deploy.common.arrays import Float64, Int64

SHORTEST_UP, SHORTEST_DOWN, LONGEST = 0.5, 0.1, 3.0
"""How far the way to where a feature turns may well be, from where it was last looked at, in units of its estimate: on
the way up, on the way down, and at most. Margins grow ever more slowly, as stronger and stronger rivals come, so that a
straight line says too little on the way up, and too much on the way down."""

NEAREST_TO_ZERO = 0.1
"""Part of a place below which no estimate goes that was made there."""

MAX_LOOKS = 8
"""A search ends after so many; nearly all need three, the last two of them at a few features."""

NEGLIGIBLE = 1e-4
"""Part of a value by which it may still move."""

Look = Callable[[Int64, Float64], tuple[Float64, Float64]]
"""From features, by index, and a place for each to their margins there, positive where they have turned, and the slopes
of these margins."""


class TurningPoints:
    """Where each of some features turns, as far as it was looked at. Places are positive."""

    def __init__(self, look: Look, count: int, *, start: float) -> None:
        """Look at every feature once.

        Args:
            look: What a look finds.
            count: Number of features, at least one.
            start: Where to look first.
        """
        self._look = look
        self.estimate: Float64 = np.full(count, np.nan)
        """`(num_features,)`: where each turns; `inf` where it does not."""
        self._looked: Float64 = np.full(count, np.nan)
        self._below: Float64 = np.zeros(count)  # the largest place where it had not turned
        self._above: Float64 = np.full(count, np.inf)  # the smallest place where it had
        self._look_at(np.arange(count, dtype=np.int64), np.full(count, start))

    def share_at(self, places: Float64) -> float:
        """Return the part of the features that have turned at their places, after a look where there is doubt.

        Args:
            places: `(num_features,)`.
        """
        self._settle(places)
        return float(np.mean(self.estimate <= places))

    def find(self, share: float, places: Callable[[float], Float64], value: Callable[[Float64, float], float]) -> float:
        """Return the value at which a share of the features has turned.

        Args:
            share: Part of the features, 0..1.
            places: From a value to the place of each feature.
            value: From estimates and a share to the value at which so many features have reached them.
        """
        found = value(self.estimate, share)
        for _ in range(MAX_LOOKS):
            if not self._settle(places(found)):
                break
            before, found = found, value(self.estimate, share)
            if abs(found - before) <= NEGLIGIBLE * before:
                break
        return found

    def _settle(self, places: Float64) -> bool:
        """Look at the features whose side at their places is in doubt, and say whether there were any."""
        is_open = (self._below < places) & (places < self._above)
        way, step = places - self._looked, self.estimate - self._looked
        shortest = np.where(np.isinf(step), 0.0, np.where(step > 0.0, SHORTEST_UP * step, -SHORTEST_DOWN * step))
        is_near = ((way > 0.0) == (step > 0.0)) & (np.abs(way) >= shortest) & (np.abs(way) <= LONGEST * np.abs(step))
        which = np.flatnonzero(is_open & is_near).astype(np.int64)
        if len(which):
            self._look_at(which, places[which])
        return len(which) > 0

    def _look_at(self, which: Int64, places: Float64) -> None:
        margin, slope = self._look(which, places)
        has_turned = margin > 0.0
        self._above[which] = np.where(has_turned, np.minimum(places, self._above[which]), self._above[which])
        self._below[which] = np.where(has_turned, self._below[which], np.maximum(places, self._below[which]))
        step = -margin / np.where(slope > 0.0, slope, np.nan)
        straight = np.where(np.isnan(step), np.where(has_turned, 0.0, np.inf), places + step)
        # What was seen comes before what is guessed; of a feature that turns twice, the last look.
        lowest = np.maximum(self._below[which], NEAREST_TO_ZERO * places)
        lowest = np.where(has_turned, lowest, np.nextafter(places, np.inf))
        highest = np.where(has_turned, places, np.maximum(self._above[which], lowest))
        self.estimate[which] = np.clip(straight, lowest, highest)
        self._looked[which] = places


def quantile(estimate: Float64, share: float) -> float:
    """Return the smallest place at which a share of the features has turned, where all have the same place.

    Args:
        estimate: `(num_features,)`, where each turns.
        share: Part of the features, 0..1.
    """
    needed = min(max(int(np.ceil(share * len(estimate))), 1), len(estimate))
    return float(np.partition(estimate, needed - 1)[needed - 1])
