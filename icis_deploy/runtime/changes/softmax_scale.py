"""Logits from what a softmax made of them.

A softmax keeps differences of logits only. So the model runs once more, with the first slot at a known logit, which
gives the logits of all classes that show next to it.
"""

from __future__ import annotations

import math

import numpy as np

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float64, Images
from icis_deploy.errors import SelfTestError
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable
from icis_deploy.runtime.sessions.protocol import Session

SMALLEST = float(np.finfo(np.float32).tiny)
MIN_LOG = float(np.log(SMALLEST))
"""Logarithm of the least probability that shows: a class 87 below the greatest has it, or any lower one."""

_KNOWN_LOGIT_STEPS = (0.0, 80.0, 160.0, 320.0)
"""A float32 probability shows a logit down to 87 below the greatest."""
_FAR_LOGITS = (0.0, 80.0, 160.0, 320.0, 1e3, 1e4, 1e5)
"""For slots so far below the baked classes that a logit like theirs would not show."""
_MAX_SEARCH_RUNS = 24
"""Doubling from 80 to 1e5 takes 11 runs, and halving from there to the window of 87 as many."""


def log_scores(scores: Float64, bundle: Bundle) -> Float64:
    """Return logarithms of a model's probabilities, `(num_outputs,)` float64, at least `MIN_LOG`."""
    if bundle.score_kind == "probabilities":
        scores = np.log(np.maximum(scores, SMALLEST))
    return np.asarray(np.maximum(scores, MIN_LOG))


def logits_from_scores(
    scores: Float64,
    session: Session,
    bundle: Bundle,
    table: SlotTable,
    images: Images,
    *,
    level: float,
) -> tuple[Float64, float]:
    """Return logits from what a softmax made of them, `(num_outputs,)` float64, and the least one that would show.

    The first slot is at a known logit, from `level` upward until it shows; that gives the logit of the most probable
    baked class, and that class all others. Where none near `level` shows, no slot does, and greater ones tell that the
    runtime reads them.

    Raises:
        SelfTestError: If the known slot never shows: the runtime does not read the slots that it is given.
    """
    logs, num_baked = log_scores(scores, bundle), len(bundle.class_names)
    for known_logit in (*(level + step for step in _KNOWN_LOGIT_STEPS), *_FAR_LOGITS):
        weight, bias = table.weight.copy(), table.bias.copy()
        weight[0], bias[0] = 0.0, known_logit
        run = session.run(images, session.load_slots(weight, bias))
        known = log_scores(run.logits[0].astype(np.float64), bundle)
        if known[num_baked] > MIN_LOG:
            anchor = int(np.argmax(known[:num_baked]))
            shift = known[anchor] - known[num_baked] + known_logit - logs[anchor]
            return logs + shift, float(MIN_LOG + shift)
    raise _not_read()


def baked_logits(session: Session, bundle: Bundle, table: SlotTable, images: Images) -> tuple[Float64, bool]:
    """Return the logits of the baked classes, `(num_baked,)` float64, and whether all of the seen ones show.

    All slots are empty but the first, so that these logits do not depend on what is tested. It is searched for the
    logit at which both it and a baked class show. Logits of classes that do not show are too great.

    Raises:
        SelfTestError: If the known slot never shows: the runtime does not read the slots that it is given.
    """
    num_baked, weight = len(bundle.class_names), np.zeros_like(table.weight)
    known, low, high, shown = 0.0, -math.inf, math.inf, None
    for _ in range(_MAX_SEARCH_RUNS):
        bias = np.full(table.capacity, EMPTY_SLOT_BIAS, dtype=np.float32)
        bias[0] = known
        scores = session.run(images, session.load_slots(weight, bias)).logits[0].astype(np.float64)
        logs = log_scores(scores, bundle)
        if logs[num_baked] <= MIN_LOG:
            low = known
        else:
            # A LogSoftmax shows all of them, however improbable.
            exact = scores if bundle.score_kind == "log-probabilities" else logs
            shown = exact[:num_baked] - exact[num_baked] + known
            if logs[:num_baked].max() > MIN_LOG:
                least = -math.inf if bundle.score_kind == "log-probabilities" else MIN_LOG
                return shown, bool(exact[: bundle.num_seen].min() > least)
            high = known
        known = _between(low, high)
    if shown is None:
        raise _not_read()
    return shown, False


def _between(low: float, high: float) -> float:
    """Return the next logit to try, given one that was too low and one that was too high, or infinities."""
    if math.isinf(high):
        return max(2 * low, 80.0)
    if math.isinf(low):
        return min(2 * high, -80.0)
    return (low + high) / 2


def _not_read() -> SelfTestError:
    return SelfTestError(
        "A slot with a known logit does not show in what the model gives, however great the logit: the runtime does "
        "not read the slots that it is given."
    )
