"""Does an expanded head cost more than its rows do? What a target takes longer than the original, and the roofline.

Rules:

1. An answer to one image reads every row of the head once. Rows that the original does not have, empty slots included,
   therefore cost their bytes over the rate at which a head is read from memory: that is their share.
2. That rate is not the memory's bandwidth over long arrays. The rest of the model has filled the caches, and a read of
   a few megabytes is over before it reaches its full rate. So it is measured as it happens: as many bytes as the
   largest head has are read, and nothing else done with them, right after an answer of the original. Shorter reads are
   slower still.
3. What they do cost is the measured ratio to the original, from interleaved rounds, less 1, of the original's median.
4. Only like is compared with like: the original model itself, in the same precision, runtime and provider, batch 1.
   With more images the rows are read once for all of them, and arithmetic, not memory, is the roof. Where a bundle's
   model chooses classes, that counts against it as well; `scripts/experiments/head_cost.py` looks at the head's nodes
   alone.
5. The share is far smaller than the noise of a small machine: a verdict needs the whole interval on one side of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.bench.opened import OpenTarget, noise
from benchmarks.bench.scale import head_bytes
from benchmarks.machine.bandwidth import bandwidth_after
from benchmarks.machine.environment import num_usable_cores
from benchmarks.results.values import BatchRun, HeadShare
from benchmarks.timing.percentiles import Interval
from benchmarks.timing.rounds import calls_over

NUM_INPUTS = 4
"""Different images that the original answers before the reads."""


def head_shares(targets: Sequence[OpenTarget], runs: Sequence[BatchRun]) -> tuple[HeadShare, ...]:
    """Return the shares of all targets that can be compared with the original; none where it was not measured.

    Args:
        targets: What was measured, what the others are compared with first.
        runs: Their latencies; those of batch 1 count.
    """
    run = next((run for run in runs if run.batch_size == 1), None)
    compared = [target for target in targets[1:] if is_like(target, targets[0])]
    if run is None or not compared:
        return ()
    original = targets[0]
    answer = calls_over(original.answer, [noise(original.model_input, 1, seed=seed) for seed in range(NUM_INPUTS)])
    bandwidth = bandwidth_after(
        answer,
        num_bytes=max(head_bytes(target.num_seen, feature_dim_of(target)) + target.added_bytes for target in compared),
        num_threads=original.num_threads or num_usable_cores() or 1,
    )
    return tuple(shares_of(compared, run, bandwidth))


def feature_dim_of(target: OpenTarget) -> int:
    """Return how wide the features of a target are."""
    return int(target.added_rows().shape[1]) - 1


def is_like(target: OpenTarget, reference: OpenTarget) -> bool:
    """Return whether a target differs from the original model in its rows, and a choice of classes, alone."""
    same = all(getattr(target, name) == getattr(reference, name) for name in ("precision", "runtime", "provider"))
    return same and reference.head_kind == "original" and target.added_bytes > 0


def shares_of(targets: Sequence[OpenTarget], run: BatchRun, bandwidth: float) -> Iterator[HeadShare]:
    """Yield the share of each target where rows are read at so many bytes per second."""
    medians_ms = {latency.label: latency.median_ms.value for latency in run.measurement.latencies}
    original = run.measurement.comparisons[0].against
    ratios = {each.label: each.ratio for each in run.measurement.comparisons if each.against == original}
    for target in targets:
        ratio, original_ms = ratios[target.name], medians_ms[original]
        value, low, high = ((bound - 1) * original_ms for bound in (ratio.value, ratio.low, ratio.high))
        yield HeadShare(
            target=target.name,
            added_bytes=target.added_bytes,
            bandwidth_bytes_per_s=bandwidth,
            share_ms=1e3 * target.added_bytes / bandwidth,
            measured_ms=Interval(value=value, low=low, high=high),
        )
