"""How many inputs a core should run a model on at once, and whether that changes a bit.

    scripts/experiments/batch_sizes.py MODEL.onnx…

One session of one thread, run by a thread a core on random inputs, sizes of batches in turn. Milliseconds of processor
time an input (medians; the clock depends on who else uses the cores), the size that `evaluate` would choose, and of how
many inputs the first output differs from that in a batch of 64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from icis_deploy.evaluation.measuring import cpu_batch_size, usable_cores
from icis_deploy.runtime.sessions.onnxruntime_session import load_session

SIZES = (1, 2, 3, 4, 8, 16, 32)
NUM_INPUTS = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    for model in given.models:
        _measure(model, given.rounds)


def _measure(path: Path, rounds: int) -> None:
    session = load_session(path, num_threads=1)
    shape = [size if isinstance(size, int) else 224 for size in session.inference_session.get_inputs()[0].shape[1:]]
    inputs = np.random.default_rng(0).standard_normal((NUM_INPUTS, *shape), dtype=np.float32)
    whole = session.run(inputs).logits

    def run(size: int, start: int) -> int:
        rows = slice(start, start + size)
        return int((session.run(inputs[rows]).logits != whole[rows]).any(axis=1).sum())

    times: dict[int, list[float]] = {}
    differ: dict[int, int] = {}
    for _ in range(rounds):
        for size in SIZES:
            with ThreadPoolExecutor(usable_cores()) as pool:
                before = time.process_time()
                differ[size] = sum(pool.map(partial(run, size), range(0, NUM_INPUTS, size)))
                times.setdefault(size, []).append(1e3 * (time.process_time() - before) / NUM_INPUTS)
    chosen = cpu_batch_size(weight_bytes=path.stat().st_size, num_values=int(np.prod(shape)))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, inputs of {shape}, chosen: {chosen}")
    for size in SIZES:
        print(f"{size:4} at once: {statistics.median(times[size]):8.3f} ms, {differ[size]} of {NUM_INPUTS} differ")


if __name__ == "__main__":
    main()
