"""Measure how injection grows with the number of seen classes: time and peak memory, calibration and estimate included.

The head is synthetic: rows follow from descriptors by a random linear map and noise. Each size runs in a process of its
own, so that its peak memory is its own. Prints one line a size.

Usage: python scripts/experiments/injection_scale.py [--seen 1000,5000,21000] [--unseen 1000] [--feature-dim 2048]
           [--method auto]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import inject
from icis_deploy.injection.options import InjectionOptions

DESCRIPTOR_DIM = 300
NUM_FEATURES = 128


def measure(num_seen: int, num_unseen: int, feature_dim: int, method: str) -> dict[str, object]:
    """Inject into a synthetic head in this process and return what it took."""
    random = np.random.default_rng(0)
    names = tuple(f"class{index}" for index in range(num_seen + num_unseen))
    values = random.standard_normal((len(names), DESCRIPTOR_DIM), dtype=np.float32)
    rows = values[:num_seen] @ random.standard_normal((DESCRIPTOR_DIM, feature_dim + 1), dtype=np.float32)
    rows += 10 * random.standard_normal(rows.shape, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    head = Head(rows=rows, class_names=names[:num_seen])
    described = Descriptors(values=values, class_names=names)
    neutral = np.maximum(random.standard_normal((NUM_FEATURES, feature_dim), dtype=np.float32), 0.0)
    del rows, values
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    injection = inject(head, described, options=InjectionOptions(method=method, balance=0.5), neutral_features=neutral)
    return {
        "num_seen": num_seen,
        "num_unseen": num_unseen,
        "method": injection.method,
        "inject_s": round(time.perf_counter() - start, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "before_mib": before // 1024,
    }


def main() -> None:
    """Measure every size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seen", default="1000,5000,21000")
    parser.add_argument("--unseen", type=int, default=1000)
    parser.add_argument("--feature-dim", type=int, default=2048)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--one", action="store_true", help="measure a single size in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(int(options.seen), options.unseen, options.feature_dim, options.method)))
        return
    print(f"{'seen':>6}  {'unseen':>6}  {'method':<8}  {'seconds':>7}  {'peak MiB':>8}")
    for num_seen in options.seen.split(","):
        command = [sys.executable, __file__, "--one", "--seen", num_seen, "--unseen", str(options.unseen)]
        command += ["--feature-dim", str(options.feature_dim), "--method", options.method]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this script itself
        found = json.loads(done.stdout)
        print(
            f"{found['num_seen']:>6}  {found['num_unseen']:>6}  {found['method']:<8}  {found['inject_s']:>7.1f}  "
            f"{found['peak_mib']:>8}",
            flush=True,
        )


if __name__ == "__main__":
    main()
