"""How certain macro averages are: bootstrap intervals over classes.

A macro average is a mean over classes, so classes are resampled, not images, the seen and the unseen ones apart. What
an interval is of is therefore other classes of the same kind, of which these are a sample.
"""

# Why: docs/decisions/0030.

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from icis_deploy.common.arrays import Bool, Float64
from icis_deploy.metrics.proportions import Interval
from icis_deploy.metrics.trade_off import Leads, resampled_ausuc

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
MIN_CLASSES = 8
"""Below this, an interval over classes says nothing."""

_CHUNK = 50
"""Resamples that are held at once."""


def class_intervals(
    class_values: dict[str, Float64], seen_mask: Bool, *, leads: Leads | None = None
) -> dict[str, Interval]:
    """Return the 95 % intervals of macro averages, of H and of AUSUC, by name.

    Args:
        class_values: By name `(num_classes,)` accuracies whose mean is taken, NaN for a class that has none. H follows
            from `U` and `S` where both are there.
        seen_mask: `(num_classes,)`.
        leads: For AUSUC; `None` leaves it out.

    Returns:
        Those of averages over at least `MIN_CLASSES` classes on each side.
    """
    num_of = {name: int((~np.isnan(values)).sum()) for name, values in class_values.items()}
    chosen = {name: values for name, values in class_values.items() if num_of[name] >= MIN_CLASSES}
    samples: dict[str, list[Float64]] = {name: [] for name in chosen}
    with_pairs = {"U", "S"} <= set(chosen)
    areas: list[Float64] = []
    for drawn in _resamples(chosen, seen_mask):
        for name, values in chosen.items():
            has_value = ~np.isnan(values)
            weights = drawn[:, has_value]
            samples[name].append(weights @ values[has_value] / weights.sum(axis=1))
        if with_pairs and leads is not None:
            areas.append(resampled_ausuc(leads, drawn))
    found = {name: np.concatenate(parts) for name, parts in samples.items()}
    if with_pairs:
        total = found["U"] + found["S"]
        found["H"] = np.divide(2 * found["U"] * found["S"], total, out=np.zeros_like(total), where=total > 0)
    if areas:
        found["AUSUC"] = np.concatenate(areas)
    return {name: _interval(values) for name, values in found.items()}


def _resamples(class_values: dict[str, Float64], seen_mask: Bool) -> Iterator[Float64]:
    """Yield `(up to 50, num_classes)`: how often each class is drawn, among those of its side that have a value."""
    has_value = np.zeros(len(seen_mask), dtype=bool)
    for values in class_values.values():
        has_value |= ~np.isnan(values)
    random = np.random.default_rng(0)
    for start in range(0, NUM_RESAMPLES if has_value.any() else 0, _CHUNK):
        drawn = np.zeros((min(_CHUNK, NUM_RESAMPLES - start), len(seen_mask)))
        for side in (seen_mask & has_value, ~seen_mask & has_value):
            count = int(side.sum())
            if count:
                drawn[:, side] = random.multinomial(count, np.full(count, 1.0 / count), size=len(drawn))
        yield drawn


def _interval(samples: Float64) -> Interval:
    low, high = np.percentile(samples, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    return Interval(low=float(np.clip(low, 0.0, 1.0)), high=float(np.clip(high, low, 1.0)))
