"""How fast this machine reads memory: no head that is read from memory can be faster.

After STREAM (J. McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers"): arrays far
larger than the caches, several passes, the best one counts. Two kernels, since neither is the faster one everywhere: a
copy, which reads and writes, and a maximum, which only reads. numpy releases the interpreter lock in both, so threads
run side by side.

A short read that comes right after other work is slower than that by half: see `bandwidth_after`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.errors import UsageError

ARRAY_BYTES = 256 << 20
NUM_PASSES = 7
NUM_READS = 50


def memory_bandwidth(num_threads: int, *, array_bytes: int = ARRAY_BYTES, num_passes: int = NUM_PASSES) -> float:
    """Return the memory bandwidth in bytes per second.

    Args:
        num_threads: Threads that read at the same time, each its own part.
        array_bytes: Size of all arrays read in a pass together; several times the last cache.
        num_passes: Passes, of which the best counts.

    Raises:
        UsageError: If a number is not positive.
    """
    if num_threads < 1 or array_bytes < 8 * num_threads or num_passes < 1:
        raise UsageError(
            "The memory bandwidth needs at least one thread, one pass, and an array for each thread.",
            found=(num_threads, num_passes, array_bytes),
            expected="at least 1 thread, 1 pass and 8 bytes for each thread",
        )
    per_thread = array_bytes // num_threads // 4
    sources = [np.ones(per_thread, dtype=np.float32) for _ in range(num_threads)]
    copies = [np.zeros(per_thread, dtype=np.float32) for _ in range(num_threads)]

    def copy(index: int) -> None:
        np.copyto(copies[index], sources[index])

    def read(index: int) -> None:
        np.maximum.reduce(sources[index])

    total = 4 * per_thread * num_threads
    with ThreadPoolExecutor(num_threads) as pool:
        return max(
            2 * total / best_seconds(pool, copy, num_threads, num_passes),
            total / best_seconds(pool, read, num_threads, num_passes),
        )


def bandwidth_after(
    call: Callable[[], object], *, num_bytes: int, num_threads: int, num_reads: int = NUM_READS
) -> float:
    """Return at how many bytes per second memory is read right after something else has filled the caches.

    Args:
        call: What is done before every read.
        num_bytes: Bytes that are read, each once.
        num_threads: Threads that read at the same time, each its own part; one of them is the caller's.
        num_reads: Reads, of which the median counts: it is to be compared with medians.
    """
    parts = np.array_split(np.ones(max(num_bytes // 4, num_threads), dtype=np.float32), num_threads)

    def seconds_to_read(part: Float32) -> float:
        np.maximum.reduce(part[:1])  # waking up the thread and finding the code are no part of reading
        start = time.perf_counter()
        np.maximum.reduce(part)
        return time.perf_counter() - start

    seconds = []
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(num_reads):
            call()
            others = [pool.submit(seconds_to_read, part) for part in parts[1:]]
            seconds.append(max(seconds_to_read(parts[0]), *(other.result() for other in others), 1e-9))
    return float(sum(part.nbytes for part in parts) / np.median(seconds))


def best_seconds(pool: ThreadPoolExecutor, kernel: Callable[[int], None], num_threads: int, num_passes: int) -> float:
    """Return the shortest time in which every thread ran a kernel once."""
    seconds = []
    for _ in range(num_passes):
        start = time.perf_counter()
        list(pool.map(kernel, range(num_threads)))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
