"""Fit an arbiter on pretend-new classes, or say why a constant offset is the better choice.

A logistic regression tells images of pretend-new classes whose best new row is right from images that the remaining
head gets right, by the greatest new logit and the statistics of `icis_deploy.head.arbiter`:

    score = c_new * best new logit + c . statistics + bias;   a new class wins where score > threshold

Divided by `c_new` this is a comparison of the best new logit and the greatest seen one: what is left on the side of the
new classes depends on the image alone and is their offset.

    best new logit + offset > top seen logit;   offset = top seen logit + (c . statistics + bias - threshold) / c_new

So the weights are `c / c_new`, that of the top seen logit is 1 more, and the rest is the constant, which a budget sets.

An arbiter is refused, for a constant offset:

1. below `MIN_SEEN` seen classes: of 14 heads with 24 to 48 classes it harmed 4, and held-out classes hardly warn;
2. where fewer than `MIN_HITS` images of pretend-new classes are recognised among the pretend-new classes: without
   positive samples there is nothing to fit;
3. where `c_new` is not positive: a greater new logit does not speak for a new class;
4. where held-out classes show no more U at the same budget than with a constant offset.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icis_deploy.common.arrays import Bool, Float32
from icis_deploy.errors import UntrustworthyError
from icis_deploy.head.arbiter import Arbiter
from icis_deploy.injection.arbiter.logistic import fit_logistic
from icis_deploy.injection.arbiter.pretend_new import PretendNew

MIN_SEEN = 80
"""Seen classes below which a constant offset is kept."""

MIN_HITS = 10
"""Images of pretend-new classes whose best new row must be right."""

NUM_FOLDS = 5
"""Folds of images for `cross_fitted_offsets`."""


def fit_arbiter(played: Sequence[PretendNew], *, is_used: Bool) -> Arbiter:
    """Fit the weights of an arbiter; its constant means nothing until a budget sets it.

    Args:
        played: Sets of pretend-new classes.
        is_used: `(num_images,)`, the images to fit on.

    Raises:
        UntrustworthyError: If there are too few images to learn from, or a greater new logit does not speak for a new
            class.
    """
    is_hit = [one.is_hit & is_used for one in played]
    is_right = [one.is_right & is_used for one in played]
    num_hits = int(np.logical_or.reduce(is_hit).sum())
    if num_hits < MIN_HITS or not any(right.any() for right in is_right):
        raise UntrustworthyError(
            f"When seen classes played new ones, {num_hits} of their images were recognised among them; an arbiter "
            f"needs at least {MIN_HITS}."
        )
    inputs, is_positive = [], []
    for one, hit, right in zip(played, is_hit, is_right, strict=True):
        chosen = hit | right
        inputs.append(np.concatenate([one.best_new[chosen, None], one.statistics[chosen]], axis=1))
        is_positive.append(hit[chosen])
    slopes, bias = fit_logistic(np.concatenate(inputs), np.concatenate(is_positive))
    of_new = slopes[0]
    if of_new <= 0.0:
        raise UntrustworthyError(
            "When seen classes played new ones, a greater logit of a new class did not speak for it: the predicted "
            "rows do not recognise their classes."
        )
    weights = slopes[1:] / of_new
    weights[0] += 1.0
    return Arbiter(weights=weights.astype(np.float32), constant=bias / of_new)


def cross_fitted_offsets(played: Sequence[PretendNew], statistics: Float32, *, seed: int) -> Float32:
    """Return offsets of images, each from an arbiter that was not fitted on the image, `(num_images,)` float32.

    An arbiter knows the images that it was fitted on a little too well: a threshold that their own offsets set would
    be too low, and spend a fifth more than the budget on others (measured on birds with 600 images).

    Args:
        played: Sets of pretend-new classes.
        statistics: `(num_images, 5)`, of the whole head.
        seed: Of the folds.

    Raises:
        UntrustworthyError: If one of the folds leaves too little to learn from.
    """
    fold = np.random.default_rng(seed).permutation(len(statistics)) % NUM_FOLDS
    offsets = np.empty(len(statistics), dtype=np.float32)
    for number in range(NUM_FOLDS):
        is_out = fold == number
        offsets[is_out] = fit_arbiter(played, is_used=~is_out).offsets(statistics[is_out])
    return offsets


def held_out_offsets(played: Sequence[PretendNew]) -> tuple[Float32, ...]:
    """Return offsets of all images in each set, from an arbiter that saw no image of the set's held-out classes.

    Raises:
        UntrustworthyError: If a set leaves too little to learn from.
    """
    return tuple(fit_arbiter(played, is_used=~one.is_held_out).offsets(one.statistics) for one in played)
