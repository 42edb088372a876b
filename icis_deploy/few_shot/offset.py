"""The offset of new rows on images of known classes: how far new classes may be favoured for what may be lost.

Every image has a *lead*: the greatest logit of the rows that get the offset, less the greatest of all others. Its
answer changes where the lead is greater than the offset that is taken off the rows.
"""

from __future__ import annotations

import numpy as np

from icis_deploy.common.arrays import Float32, Float64


def offset_for_loss(leads: Float32, weights: Float64, *, may_lose: float) -> float:
    """Return the least lead that may be taken off the rows, so that no more than this is lost.

    Args:
        leads: `(num_images,)`, at least one.
        weights: `(num_images,)`, what each image's answer counts, 0 or more.
        may_lose: Sum of weights; below zero as zero, which loses nothing.

    Returns:
        One of the leads, in logits: images whose lead is greater are lost.
    """
    order = np.argsort(-leads, kind="stable")
    lost_with = np.cumsum(weights[order])  # what is lost if this image and all before it are
    index = int(np.searchsorted(lost_with, may_lose + 1e-9, side="right"))
    return float(leads[order][min(index, len(order) - 1)])


def may_lose_of(num_images: float, budget: float) -> float:
    """Return what images that set an offset may lose, so that a further one of their source is lost within the budget.

    The further image counts as much as the mean of the others and is taken to be lost; see
    `icis_deploy.injection.arbiter.budget`, rule 1.

    Args:
        num_images: Images that set the offset, right or not, above 0.
        budget: Loss of accuracy, fraction of 1.

    Returns:
        Fraction of 1; below zero where there are too few images to keep the budget by more than losing nothing.
    """
    return budget * (num_images + 1.0) / num_images - 1.0 / num_images
