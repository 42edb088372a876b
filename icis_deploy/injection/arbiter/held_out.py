"""Estimate T, U, S and H from held-out classes with real images, for a budget of seen accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.injection.arbiter.budget import expected_threshold, images_needed
from icis_deploy.injection.arbiter.pretend_new import PretendNew
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.validation.operating_point import CurvePoint


def held_out_rates(
    images: SeenImages, played: Sequence[PretendNew], offsets: Sequence[Float32 | float], *, budget: float
) -> CurvePoint | None:
    """Return the accuracies that pretend-new classes have where the images of the others lose no more than a budget.

    S is today's accuracy less what the others lost on average, so that it never exceeds what the head has.

    Args:
        images: Of seen classes.
        played: Sets of pretend-new classes.
        offsets: Of each set, `(num_images,)` or one for all images; only their differences matter.
        budget: Loss of seen accuracy, fraction of 1.

    Returns:
        `None` where no image is of a held-out class, or a set leaves too few images, or none that is right, to set a
        threshold.
    """
    found, num_classes = [], []
    for one, offset in zip(played, offsets, strict=True):
        is_new = one.is_held_out
        if not is_new.any():
            continue
        leads = one.leads + np.asarray(offset, dtype=np.float32)
        is_right = one.is_right[~is_new]
        if len(is_right) < images_needed(budget) or not is_right.any():
            return None
        weights, of_new = images.weights(~is_new), images.weights(is_new)
        threshold = expected_threshold(leads[~is_new], is_right, weights, budget=budget)
        lost = min(budget, float(weights @ is_right))
        recognised = one.is_hit & (leads > threshold)
        is_near = one.top5_leads + np.asarray(offset, dtype=np.float32) > threshold
        found.append(
            [
                float(of_new @ one.is_hit[is_new]),
                float(of_new @ recognised[is_new]),
                float(of_new @ is_near[is_new]),
                lost,
            ]
        )
        num_classes.append(len(np.unique(images.labels[is_new])))
    if not found:
        return None
    T, U, U_top5, lost = np.average(found, axis=0, weights=num_classes)  # noqa: N806
    return CurvePoint(
        loss=budget, T=float(T), U=float(U), U_top5=float(U_top5), S=float(max(0.0, images.accuracy - lost))
    )
