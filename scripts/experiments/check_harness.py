"""Check the benchmark harness on this machine, in real time, against latencies that are known.

Prints one line per claim, with what was found, and exits with 1 if a claim does not hold:

    known latency   busy-waits of 1, 2 and 5 ms, 2 % of the calls 10 times slower: median within 3 %, p99 within 10 %
    A/A             the same thing under two labels is `equal` in at least 95 of 100 comparisons
    5 %             something that takes 5 % longer is `slower` in at least 90 of 100 comparisons
    overhead        the harness adds less than 20 us to what it measures, and to the time between queries
    bare loop       with --bundle: a bundle through Device.logits is within 2 % of a bare ONNX Runtime session.run

Comparisons are made of two workloads: the busy-wait with slow calls, and matrix products, which are slowed down by
everything else that runs on the machine. A busy-wait is longer than asked for when another process takes the processor
from it, so `known latency` runs with real-time priority where that is allowed; where others still disturbed it, the
line says so.
Up to 5 % are not due to another process: Linux never gives real-time work more than 95 % of a second.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.timing.latency import Plan, measure
from benchmarks.timing.rounds import Call

SLOW_SHARE, SLOW_FACTOR = 0.02, 10
NUM_RUNS = 100
EQUAL_SHARE, SLOWER_SHARE = 0.95, 0.90
MAX_OVERHEAD_NS = 20_000
LEFT, RIGHT = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
PRODUCT = np.empty_like(LEFT)
COMPARISON_PLAN = Plan(num_queries=64, budget_s=5.0)


def busy_wait(latency_ms: float, seed: int) -> Call:
    """Return a callable that keeps the processor busy for a known time, and 10 times as long in 2 % of its calls."""
    slow = iter(np.random.default_rng(seed).random(1_000_000) < SLOW_SHARE)
    usual_ns = int(latency_ms * 1e6)
    clock = time.perf_counter_ns

    def call() -> None:
        end_ns = clock() + (usual_ns * SLOW_FACTOR if next(slow) else usual_ns)
        while clock() < end_ns:
            pass

    return call


def matrix_products(num_products: int) -> Call:
    """Return a callable that multiplies two matrices so many times.

    The matrices are the same for all: each call with matrices of its own would get another alignment, and be up to
    10 % faster.
    """

    def call() -> None:
        for _ in range(num_products):
            np.matmul(LEFT, RIGHT, out=PRODUCT)

    return call


def products_per_ms() -> int:
    """Return how many matrix products take about a millisecond here, at least 100 so that 5 % are a whole number."""
    call = matrix_products(1000)
    call()
    start_ns = time.perf_counter_ns()
    call()
    return max(100, round(1e9 / (time.perf_counter_ns() - start_ns) / 20) * 20)


@contextmanager
def real_time_priority() -> Iterator[None]:
    """Run with real-time priority where the system allows it, and return to the usual priority at the end."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    usual = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *usual)


def check_known_latency(latency_ms: float) -> bool:
    """Say whether median and p99 of a known latency are found."""
    with real_time_priority():
        measurement = measure({"busy-wait": busy_wait(latency_ms, seed=1)}, plan=Plan(num_queries=1000))
    report = measurement.latencies[0]
    p99 = next(each for each in report.percentiles if each.percent == 99.0)
    median_error = report.median_ms.value / latency_ms - 1
    p99_error = math.nan if p99.value_ms is None else p99.value_ms / (latency_ms * SLOW_FACTOR) - 1
    return claim(
        abs(median_error) <= 0.03 and abs(p99_error) <= 0.10,
        f"known latency {latency_ms:g} ms: median {report.median_ms.value:.3f} ms ({median_error:+.1%}, within 3 %), "
        f"p99 {p99.text} ({p99_error:+.1%}, within 10 %), {report.num_queries} queries"
        + "".join(f"; {sign}" for sign in measurement.steadiness.interference),
    )


def check_comparisons(what: str, verdict: str, share: float, num_runs: int, pairs: list[tuple[Call, Call]]) -> bool:
    """Say whether enough comparisons of a pair give the verdict."""
    start = time.perf_counter()
    verdicts: Counter[str] = Counter()
    ratios = []
    for run in range(num_runs):
        first, second = pairs[run % len(pairs)]
        comparison = measure({"first": first, "second": second}, plan=COMPARISON_PLAN).comparisons[0]
        verdicts[comparison.verdict] += 1
        ratios.append(comparison.ratio.value)
    found = ", ".join(f"{count} {name}" for name, count in verdicts.most_common())
    return claim(
        verdicts[verdict] >= share * num_runs,
        f"{what}: {found} of {num_runs} (at least {share * num_runs:.0f} {verdict}); ratios {min(ratios):.3f} to "
        f"{max(ratios):.3f}; {(time.perf_counter() - start) / num_runs:.1f} s each",
    )


def check_overhead() -> bool:
    """Say whether the harness adds little to a latency, and little between queries."""
    num_queries = 100_000
    calls: list[int] = []
    clock = time.perf_counter_ns
    measurement = measure({"nothing": lambda: calls.append(clock())}, plan=Plan(num_queries=num_queries, budget_s=20.0))
    within_ns = measurement.latencies[0].median_ms.value * 1e6
    between_ns = float(np.mean(np.diff(calls[-num_queries:])))
    return claim(
        within_ns < MAX_OVERHEAD_NS and between_ns < MAX_OVERHEAD_NS,
        f"overhead: an empty query is stated as {within_ns:.0f} ns; from one empty query to the next, everything "
        f"between rounds included, {between_ns:.0f} ns (both under {MAX_OVERHEAD_NS:,} ns)",
    )


def check_bare_loop(bundle: Path) -> bool:
    """Say whether a bundle answers as fast as a bare session on the same file, the same input and as many threads."""
    import onnxruntime

    from benchmarks.bench.opened import noise
    from icis_deploy.runtime.device import Device

    device = Device.open(bundle, num_threads=1)
    images = noise(device.bundle.model_input, 1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
    wanted, feed = [session.get_outputs()[0].name], {session.get_inputs()[0].name: images}
    calls: dict[str, Call] = {"bare": lambda: session.run(wanted, feed), "bundle": lambda: device.logits(images)}
    comparison = measure(calls, plan=Plan(num_queries=662, budget_s=60.0)).comparisons[0]
    ratio = comparison.ratio
    return claim(
        comparison.verdict == "equal",
        f"bare loop: {bundle.name} takes {ratio.value:.4f} times as long as a bare session.run ({ratio.low:.4f} to "
        f"{ratio.high:.4f}; within 2 % is {comparison.verdict})",
    )


def claim(holds: bool, text: str) -> bool:
    """Print a claim and whether it holds."""
    print("ok  " if holds else "FAIL", text, flush=True)
    return holds


def main() -> int:
    """Check every claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=NUM_RUNS, help="comparisons per claim (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="a bundle to compare with a bare session")
    parser.add_argument("--only-bundle", action="store_true", help="leave the other claims out")
    arguments = parser.parse_args()
    runs = arguments.runs
    bundle_holds = True if arguments.bundle is None else check_bare_loop(arguments.bundle)
    if arguments.only_bundle:
        return 0 if bundle_holds else 1

    seeds = range(0, 20, 2)
    same = [(busy_wait(1.0, seed), busy_wait(1.0, seed + 1)) for seed in seeds]
    longer = [(busy_wait(1.0, seed), busy_wait(1.05, seed + 1)) for seed in seeds]
    products = products_per_ms()
    same_work = [(matrix_products(products), matrix_products(products))]
    more_work = [(matrix_products(products), matrix_products(products * 21 // 20))]
    results = [
        bundle_holds,
        check_overhead(),
        *(check_known_latency(latency_ms) for latency_ms in (1.0, 2.0, 5.0)),
        check_comparisons("A/A, busy-wait", "equal", EQUAL_SHARE, runs, same),
        check_comparisons("5 %, busy-wait", "slower", SLOWER_SHARE, runs, longer),
        check_comparisons("A/A, matrix products", "equal", EQUAL_SHARE, runs, same_work),
        check_comparisons("5 %, matrix products", "slower", SLOWER_SHARE, runs, more_work),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
