"""What a bundle carries so that its device can be taught a class by a few photos."""

from __future__ import annotations

import numpy as np

from icis_deploy.api.models import OpenedModel
from icis_deploy.api.reference import MadeReference, row_blocks
from icis_deploy.bundle.few_shot import FewShot
from icis_deploy.few_shot.refining import FewShotContext, levels
from icis_deploy.injection.options import DEFAULT_MAX_SEEN_LOSS


def make_few_shot(
    model: OpenedModel, made: MadeReference, generator: bytes | None, max_seen_loss: float | None
) -> FewShot | None:
    """Return what the device needs: what rows of new classes are like, and what they may cost.

    `None` where all seen rows are equal: then nothing says how long a row is.

    Rows are like those that the generator makes; without one, as long as seen rows and on their level.

    Args:
        model: The original model.
        made: The bundle's reference.
        generator: The generator's ONNX file; `None` for none, or one of an earlier release, whose rows cannot be moved.
        max_seen_loss: Loss of seen accuracy that is allowed, fraction of 1; `None` for what `inject` allows.
    """
    from exporters.generator.writing import made_rows_of

    mean = np.zeros(model.location.feature_dim + 1)
    for block in row_blocks(model):
        mean += block.sum(axis=0, dtype=np.float64) / model.location.num_classes
    mean_row = mean.astype(np.float32)
    rows = None if generator is None else made_rows_of(generator)
    if rows is not None:
        length, level = rows.length, float(levels(rows.mean[None], mean_row, made.feature_mean)[0])
    else:
        lengths = [np.linalg.norm(block[:, :-1] - mean[:-1], axis=1) for block in row_blocks(model)]
        length, level = float(np.concatenate(lengths).mean()), 0.0
    if not length > 0.0:
        return None
    return FewShot(
        context=FewShotContext(mean_row=mean_row, feature_mean=made.feature_mean, length=length, level=level),
        max_seen_loss=DEFAULT_MAX_SEEN_LOSS if max_seen_loss is None else max_seen_loss,
        seen_accuracy=made.accuracy,
        has_generator=rows is not None,
    )
