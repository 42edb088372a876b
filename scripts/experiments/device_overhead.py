"""Measure what a device costs compared with a bare session of ONNX Runtime: each request, opening, peak memory.

    python scripts/experiments/device_overhead.py BUNDLE [--rounds 500] [--starts 15] [--threads 1]

Nothing is written to BUNDLE. Memory is measured on Linux only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.bench.overhead import measure_overhead, text_of


def main() -> None:
    """Measure the bundle that was named, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    report = measure_overhead(
        arguments.bundle,
        num_rounds=arguments.rounds,
        num_starts=arguments.starts,
        num_threads=arguments.threads,
    )
    print(text_of(report))


if __name__ == "__main__":
    main()
