"""Models that take batches of one size only: images are run in pieces of that size, the last one filled up.

What fills it up is the last image again, so that nothing of it can be out of range; its answers are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Images

Fetch = Callable[[Images], list[NDArray[Any]]]


def fixed_batch_of(size: object) -> int | None:
    """Return the only batch size that a model takes, from the first number of its input's shape; `None` for any."""
    return size if isinstance(size, int) and size > 0 else None


def fetch_in_batches(fetch: Fetch, images: Images, batch: int | None) -> list[NDArray[Any]]:
    """Return what `fetch` gives of images, in batches of the only size that it takes.

    Args:
        fetch: Runs one batch; each of its arrays has the batch first.
        images: `(num_images, ...)`.
        batch: Its size; `None` where any will do.
    """
    if batch is None or len(images) in {0, batch}:
        return fetch(images)
    pieces = []
    for start in range(0, len(images), batch):
        piece = images[start : start + batch]
        filled = np.concatenate([piece, np.repeat(piece[-1:], batch - len(piece), axis=0)])
        pieces.append([array[: len(piece)] for array in fetch(filled)])
    return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]
