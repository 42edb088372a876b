"""The self-test of slots: the runtime has the rows that it was given, and computes with them.

Two questions, asked at different times:

- *Does the runtime's memory hold the rows?* With each change (`verify_loaded`): the memory that requests read is
  compared, bit for bit, with the rows that were verified and with the slots before the change. No model runs.
- *Does the model compute with them?* At export, when another runtime than the default opens a bundle, and with each
  change of an engine that shows nobody its weights (`verify_computed`).

For the second question: an updatable model's second output is its features. For one seeded input, the slots' logits
must therefore be `features @ weight.T + bias + arbiter @ statistics`, whatever the runtime, its precision and its
memory did to the rows on their way. The statistics are computed from the features and from the model's own seen logits.

Rules:

1. A slot passes if its logit is within `TOLERANCE` of the sum of its products' magnitudes. Reading rows and features as
   float16 or TF32 (11 significant bits) stays below that; a slot with another row, a stale row or a blend does not.
2. A model that ends in a softmax has no logits to compare. A second run with one known slot gives its scale; slots
   with an arbiter are compared only where that run shows all seen logits, which their statistics are of.
3. An input whose features are all zero tests nothing; the next seed is taken, up to `NUM_SEEDS` of them. Where single
   features are zero, it does not see their column: it finds slots that are not read, or are read wrongly, and not every
   wrong number in one. These are for the comparison of memory to find.
"""

# Why: docs/decisions/0085.

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.manifest import ARBITER_NAME, Bundle
from icis_deploy.common.arrays import Bool, Float32, Float64, Images
from icis_deploy.errors import SelfTestError
from icis_deploy.head.arbiter import STATISTICS, no_arbiter, seen_statistics
from icis_deploy.head.class_names import quoted
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable
from icis_deploy.runtime.changes.softmax_scale import (
    MIN_LOG,
    SMALLEST,
    baked_logits,
    log_scores,
    logits_from_scores,
)
from icis_deploy.runtime.sessions.protocol import Session, SessionOutput, SlotBuffers, SlotContents, TopOutput

TOLERANCE = 1e-3
NUM_SEEDS = 4
_NOISE_PERIOD = 16381
"""A prime, so that no row or channel of an image that repeats the noise is like another."""
_NUM_STARTS, _START_STEP, _SEED_STEP = 1023, 16, 401
"""Seeds start at so many offsets in the noise, 64 bytes of float32 apart; one seed's is far from the next one's."""
_MAX_CACHED_VALUES = 1 << 19
"""An image of 3 channels of 418 by 418 values; larger inputs are made anew for every self-test."""

_LEAST_SIGMOID = 1e-4
"""Runtimes cut a sigmoid off near 1e-8, and its error there is as great; above this it is below a thousandth."""
_SOFTMAX_SLACK = 1e-3
"""Error of a logit that is recovered from a float32 softmax by a logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestResult:
    """What a self-test measured that the slots passed."""

    max_error: float
    """Greatest error of a filled slot's logit, as a fraction of what the rule allows."""

    inference_seconds: float
    """How long the model ran, in seconds."""


def self_test_input(bundle: Bundle, seed: int) -> Images:
    """Return the seeded input, `(1, *input_shape)`: noise of 256 levels in -1..1, the range of prepared images.

    It is read-only, and repeats itself after `_NOISE_PERIOD` values; the seed says which of them comes first. An input
    of whole numbers gets noise over its positive range.
    """
    shape = (1, *bundle.model_input.shape)
    size, start = math.prod(shape), _START_STEP * (_SEED_STEP * seed % _NUM_STARTS)
    make = _cached_noise if size <= _MAX_CACHED_VALUES else _noise
    return make(bundle.model_input.dtype, size + _NOISE_PERIOD)[start : start + size].reshape(shape)


def _noise(dtype_name: str, size: int) -> NDArray[np.generic]:
    dtype = np.dtype(dtype_name)
    # The generator's own words, which no release of numpy changes.
    words: NDArray[np.uint64] = np.random.PCG64(0).random_raw(-(-_NOISE_PERIOD // 8))
    levels = words.view(np.uint8)[:_NOISE_PERIOD]
    if dtype.kind in "ui":
        period = np.asarray(levels / 255.0 * np.iinfo(dtype).max, dtype=dtype)
    else:
        period = np.asarray(levels * (2 / 255) - 1, dtype=dtype)
    noise = np.resize(period, size)
    noise.flags.writeable = False
    return noise


_cached_noise = lru_cache(maxsize=1)(_noise)
"""Drawing an image takes a tenth of the time that an update needs without its inference."""


class Written(NamedTuple):
    """What a change writes to slots."""

    before: SlotTable
    """The slots that it started from."""

    class_names: tuple[str, ...]
    """`(num_written,)`: the classes that it added or replaced; others that are new stay out of every slot."""

    rows: Float32
    """`(num_written, feature_dim + 1)` float32, biases last, as they were verified."""

    arbiter: Float32 | None
    """`(num_written, 5)` float32; `None` where no row has an arbiter."""


def verify_loaded(session: Session, table: SlotTable, buffers: SlotBuffers, *, written: Written | None = None) -> bool:
    """Compare the memory that the runtime reads slots from with what they should hold, bit for bit.

    Where the runtime reads the table's own arrays, comparing them with the table would prove nothing. A change is
    therefore compared with what it was made of: the rows that were verified, and the slots before it.

    Args:
        session: Where the slots are loaded.
        table: What the slots should hold.
        buffers: The slots as the session has them.
        written: What made this table of the one before; `None` where no slot was written.

    Returns:
        False, and nothing was compared, where the runtime gives nobody its slots: then ask `verify_computed`.

    Raises:
        SelfTestError: If a slot does not hold its row.
        RuntimeFailureError: If the runtime fails.
    """
    held = session.read_slots(buffers)
    if held is None:
        return False
    wrong = _differs_from_table(held, table)
    if written is not None:
        wrong |= _differs_from_origin(held, table, written)
    if wrong.any():
        names = _names_of(np.flatnonzero(wrong), table)
        raise SelfTestError(
            f"{len(names)} of {table.capacity} slots do not hold their rows after they were written: {quoted(names)}. "
            f"The memory that the runtime reads has other numbers.",
            found="other numbers in memory",
            expected="the rows of the change and of the slots before it, bit for bit",
            where=names[0],
            hint="Apply the change again; if it fails again, test the memory of this machine.",
        )
    return True


def _differs_from_table(held: SlotContents, table: SlotTable) -> Bool:
    """Return which slots of a runtime's copy differ from the table, `(capacity,)`."""
    wrong = np.zeros(table.capacity, dtype=np.bool_)
    if held.weight is not table.weight:
        wrong |= _differ(held.weight, table.weight)
    if held.bias is not table.bias:
        wrong |= _differ(held.bias, table.bias)
    if held.arbiter is None:
        wrong |= table.coefficients.any(axis=1)
    elif held.arbiter is not table.arbiter:
        wrong |= _coefficients_differ(held.arbiter, table.coefficients)
    return wrong


def _differs_from_origin(held: SlotContents, table: SlotTable, written: Written) -> Bool:
    """Return which slots hold neither the row that a change writes there nor the one that was there before it.

    Those that no class is in must be empty as `SlotTable` has them. They are most of a large capacity, so they are read
    once, and not compared with as much memory of the slots before.
    """
    before = written.before
    num_used = int(table.filled[-1]) + 1 if table.filled.size else 0
    wrong = np.empty(table.capacity, dtype=np.bool_)
    wrong[:num_used] = _differ(held.weight[:num_used], before.weight[:num_used])
    wrong[:num_used] |= _differ(held.bias[:num_used], before.bias[:num_used])
    if held.arbiter is not None:
        wrong[:num_used] |= _coefficients_differ(held.arbiter[:num_used], before.coefficients[:num_used])
    targets = np.array([table.slot_of[name] for name in written.class_names], dtype=np.intp)
    wrong[targets] = _differ(held.weight[targets], written.rows[:, :-1])
    wrong[targets] |= _differ(held.bias[targets], written.rows[:, -1])
    if held.arbiter is not None:
        arbiter = no_arbiter(targets.size) if written.arbiter is None else written.arbiter
        wrong[targets] |= _coefficients_differ(held.arbiter[targets], arbiter)
    between = [slot for slot, name in enumerate(table.class_names[:num_used]) if name is None]
    for empty in (between, slice(num_used, None)):
        wrong[empty] = _are_not_empty(held, empty)
    return wrong


def _are_not_empty(held: SlotContents, slots: list[int] | slice) -> Bool:
    """Return which slots are not those of no class, to the last bit."""
    # Half of the time of a comparison with zero, which writes as many truth values as there are numbers.
    wrong = np.bitwise_or.reduce(held.weight[slots].view(np.uint32), axis=1) != 0
    wrong |= held.bias[slots] != np.float32(EMPTY_SLOT_BIAS)
    if held.arbiter is not None:
        wrong |= held.arbiter[slots].any(axis=1)
    return np.asarray(wrong, dtype=np.bool_)


def _differ(found: Float32, expected: Float32) -> Bool:
    """Return which slots differ in any bit, `(num_slots,)`; of arrays `(num_slots,)` or `(num_slots, width)`."""
    differs = found.view(np.uint32) != expected.view(np.uint32)
    return np.asarray(differs if differs.ndim == 1 else differs.any(axis=1), dtype=np.bool_)


def _coefficients_differ(found: Float32, expected: Float32) -> Bool:
    """Return which slots have other coefficients, `(num_slots,)`. A table keeps no sign of a zero, and NaN is wrong."""
    return np.asarray((found != expected).any(axis=1), dtype=np.bool_)


def _names_of(slots: NDArray[np.intp], table: SlotTable) -> tuple[str, ...]:
    return tuple(table.class_names[index] or f"(empty slot {index})" for index in slots)


def verify_computed(
    session: Session,
    bundle: Bundle,
    table: SlotTable,
    buffers: SlotBuffers,
    *,
    seed: int,
    constants: ArbiterConstants | None = None,
) -> SelfTestResult:
    """Run the model on the seeded input and compare every slot with its row.

    Args:
        session: Where the slots are loaded.
        bundle: The bundle that the model is from.
        table: What the slots should hold.
        buffers: The slots as the session has them.
        seed: Of the input.
        constants: The bundle's, which are read where a slot has an arbiter; `None` where none has.

    Raises:
        SelfTestError: If a slot does not hold its row, or the features do not show it.
        RuntimeFailureError: If the runtime fails.
        BundleError, CorruptFileError: If the constants cannot be read.
    """
    timed = _TimedSession(session)
    images, output, features = _run_on_seeded_input(timed, bundle, buffers, seed)
    expected, allowed = _expected_logits(features, table)
    found, floor = output.logits[0].astype(np.float64), -np.inf
    if table.arbiter is not None:
        lengths = _row_lengths(constants)
        if bundle.score_kind == "logits":
            _add_arbiter(expected, allowed, table, features, found[: bundle.num_seen], lengths)
        else:
            allowed += _SOFTMAX_SLACK
            baked, all_show = baked_logits(timed, bundle, table, images)
            seen = baked[: bundle.num_seen]
            _add_arbiter(expected, allowed, table, features, seen, lengths, slack=_SOFTMAX_SLACK)
            if not all_show:
                allowed[table.arbiter.any(axis=1)] = np.inf
            found, floor = _on_scale_of(baked, log_scores(found, bundle), expected, allowed)
    elif bundle.score_kind == "sigmoid":
        found, expected = np.log(np.maximum(found, _LEAST_SIGMOID)), -np.logaddexp(0.0, -expected)
        floor, allowed = float(np.log(_LEAST_SIGMOID)), allowed + _SOFTMAX_SLACK
    elif bundle.score_kind != "logits":
        level = float(expected[table.filled].max()) if table.filled.size else 0.0
        found, floor = logits_from_scores(found, timed, bundle, table, images, level=level)
        allowed = allowed + _SOFTMAX_SLACK
    expected = np.maximum(expected, floor)
    return SelfTestResult(
        max_error=_compare(found[len(bundle.class_names) :], expected, allowed, table),
        inference_seconds=timed.seconds,
    )


class _TimedSession:
    """A session that adds up how long it ran."""

    def __init__(self, session: Session) -> None:
        self.load_slots = session.load_slots
        self.seconds = 0.0
        self._session = session

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run one batch; see `Session.run`."""
        start = time.perf_counter()
        output = self._session.run(images, slots, with_features=with_features)
        self.seconds += time.perf_counter() - start
        return output

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch; see `Session.top`."""
        return self._session.top(images, slots)

    def read_slots(self, slots: SlotBuffers) -> SlotContents | None:
        """Read slots back; see `Session.read_slots`."""
        return self._session.read_slots(slots)


def _run_on_seeded_input(
    session: Session, bundle: Bundle, buffers: SlotBuffers, seed: int
) -> tuple[Images, SessionOutput, Float32]:
    """Return an input, what the model gives for it, and its features, `(feature_dim,)` float32, not all zero."""
    for offset in range(NUM_SEEDS):
        images = self_test_input(bundle, seed + offset)
        output = session.run(images, buffers, with_features=True)
        if output.features is None:
            raise SelfTestError(
                "The model has no output 'features', so its slots cannot be tested.",
                expected="an output features",
                hint="Export the bundle again.",
            )
        features = output.features[0]
        if np.count_nonzero(features):
            return images, output, features
    raise SelfTestError(
        f"The model gives features that are all zero for {NUM_SEEDS} seeded inputs (from seed {seed}), so its slots "
        f"cannot be tested.",
        found="features that are all zero",
        hint="Check the model's input in the bundle's manifest.",
    )


def _expected_logits(features: Float32, table: SlotTable) -> tuple[Float64, Float64]:
    """Return every slot's logit and the error allowed for it, both `(capacity,)` float64.

    Sums of products in float32 are off by 1e-6 of the magnitudes, a thousandth of what is allowed. `einsum` makes no
    array of the products, and wakes no threads as a product of matrices does.
    """
    filled, weight = table.filled, table.filled_weight()
    expected = table.bias.astype(np.float64)
    magnitudes = np.abs(expected)
    expected[filled] += np.einsum("ij,j->i", weight, features)
    magnitudes[filled] += np.einsum("ij,j->i", np.abs(weight), np.abs(features))
    return expected, TOLERANCE * magnitudes


def _row_lengths(constants: ArbiterConstants | None) -> Float32:
    if constants is None:
        raise SelfTestError(
            "Slots with an arbiter cannot be tested without the constants of the model.",
            found="no constants",
            expected=ARBITER_NAME,
            hint="Export the bundle again.",
        )
    return constants.row_lengths()


def _add_arbiter(
    expected: Float64,
    allowed: Float64,
    table: SlotTable,
    features: Float32,
    seen: Float64,
    lengths: Float32,
    *,
    slack: float = 0.0,
) -> None:
    """Add to each slot's logit, and to the error allowed for it, what its arbiter gives; both `(capacity,)`, in place.

    A statistic may be off by `TOLERANCE` of itself, a logarithm by as much as its argument. Where several seen classes
    have the greatest logit, any of them may be the one whose row's deviation counts.

    Args:
        expected: Logits without the arbiter.
        allowed: Their errors.
        table: What the slots should hold.
        features: `(feature_dim,)`.
        seen: `(num_seen,)`: the model's own logits.
        lengths: `(num_seen,)`, from `deviation_lengths`.
        slack: Error of `seen`.
    """
    statistics = seen_statistics(features[None], seen[None].astype(np.float32), lengths)[0].astype(np.float64)
    sizes = TOLERANCE * np.maximum(np.abs(statistics), 1.0)
    nearest = lengths[seen >= seen.max() - slack].astype(np.float64)
    sizes[STATISTICS.index("top_deviation")] += nearest.max() - nearest.min()
    coefficients = table.coefficients.astype(np.float64)
    expected += coefficients @ statistics
    allowed += np.abs(coefficients) @ sizes


def _on_scale_of(baked: Float64, logs: Float64, expected: Float64, allowed: Float64) -> tuple[Float64, float]:
    """Return logits from logarithms of probabilities, given those of the baked classes, and the least that would show.

    Where none of these shows next to the slots, the greatest slot that is compared gives the scale.

    Args:
        baked: `(num_baked,)` logits.
        logs: `(num_outputs,)`.
        expected: `(capacity,)` logits.
        allowed: `(capacity,)`, infinite for a slot that is not compared.
    """
    anchor = int(np.argmax(baked))
    shift = float(baked[anchor] - logs[anchor])
    if logs[anchor] <= MIN_LOG:
        greatest = int(np.argmax(np.where(np.isfinite(allowed), expected, -np.inf)))
        shift = float(expected[greatest] - logs[len(baked) + greatest])
    return logs + shift, MIN_LOG + shift


def _compare(found: Float64, expected: Float64, allowed: Float64, table: SlotTable) -> float:
    """Return the greatest error as a fraction of what is allowed, or raise `SelfTestError` if it is above 1."""
    fractions = np.abs(found - expected) / np.maximum(allowed, SMALLEST)
    greatest = float(fractions.max())
    if greatest <= 1.0:  # which NaN is not
        return greatest
    wrong = np.flatnonzero(~(fractions <= 1.0))
    names = _names_of(wrong, table)
    first = wrong[0]
    raise SelfTestError(
        f"{wrong.size} of {table.capacity} slots do not hold their rows after they were written: {quoted(names)}. "
        f"{names[0]!r} gave {found[first]:.6g} in the self-test; expected {expected[first]:.6g} within "
        f"{allowed[first]:.2g}.",
        found=float(found[first]),
        expected=float(expected[first]),
        where=str(names[0]),
        hint=(
            "Try again; if it happens again, use another runtime: `runtime='onnxruntime'` is the "
            "one that bundles are checked with."
        ),
    )
