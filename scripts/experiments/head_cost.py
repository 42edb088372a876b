"""What do rows cost inside a model, by ONNX Runtime's own clock, and would another form of the head be faster?

    python scripts/experiments/head_cost.py model.onnx fused updatable --threads 2

Prints three tables:

    in the model    the time of each node of the head (ONNX Runtime's profiler), in the original and in each bundle
    added rows      how much longer a bundle's head takes than the original's, and the added rows' share of bytes,
                    with a verdict: a file is not equally fast each time it is opened, so all are opened ten times
    forms           heads of several forms and sizes, and a plain read of as many bytes: right after the backbone has
                    run, which leaves the caches as a model does, and alone, when the head stays in a cache

The model must end in a Gemm (transB=1), as torch exports a linear layer. Let nothing else run at the same time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.bench.scale import head_bytes
from benchmarks.machine.bandwidth import bandwidth_after
from benchmarks.timing.comparison import pseudomedian
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.runtime.sessions.onnxruntime_session import session_options

HEAD_OPERATORS = {"Gemm", "MatMul", "Concat"}
ORIGINAL = "original"
NUM_ROUNDS, NUM_QUERIES = 30, 8
NUM_OPENINGS, NUM_TURNS = 10, 60

Call = Callable[[], object]


def session(model: str | bytes, num_threads: int, *, profile: Path | None = None) -> Any:
    """Return a session with the options of every session of icis-deploy."""
    options = session_options(num_threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def query(opened: Any) -> Call:
    """Return a callable that answers one image; its first output alone is fetched, as a device does."""
    image = opened.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in image.shape]
    feed = {image.name: np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    return partial(opened.run, [opened.get_outputs()[0].name], feed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What was found while all models were open, each in a session of its own."""

    nodes_us: Mapping[str, Mapping[str, float]]
    """Median time of each node of the head, by model."""

    bytes_per_s: float
    """At what rate as many bytes as the largest head has are read right after an answer of the original."""

    def added_us(self, name: str) -> float:
        """Return how much longer the head of a bundle takes than the original's."""
        return sum(self.nodes_us[name].values()) - sum(self.nodes_us[ORIGINAL].values())


def time_nodes(models: Mapping[str, str], num_threads: int, num_bytes: int, seed: int) -> Opening:
    """Open all models in random order, let them take turns, and close them."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        opened = {
            name: session(models[name], num_threads, profile=Path(folder) / name)
            for name in random.permutation(list(models)).tolist()
        }
        calls = {name: query(each) for name, each in opened.items()}
        for _ in range(NUM_TURNS):
            for name in random.permutation(list(calls)):
                for _ in range(3):
                    calls[name]()
        rate = bandwidth_after(calls[ORIGINAL], num_bytes=num_bytes, num_threads=num_threads)
        nodes = {name: times_in(each.end_profiling()) for name, each in opened.items()}
    return Opening(nodes_us={name: nodes[name] for name in models}, bytes_per_s=rate)


def times_in(profile: str) -> dict[str, float]:
    """Return the median time of each node of the head from a profile of ONNX Runtime."""
    found = defaultdict(list)
    for event in json.loads(Path(profile).read_text()):
        if event["cat"] == "Node" and event["args"].get("op_name") in HEAD_OPERATORS:
            found[event["name"].removesuffix("_kernel_time")].append(event["dur"])
    return {name: float(np.median(times)) for name, times in found.items()}


def head_model(num_rows: int, feature_dim: int, form: str) -> bytes:
    """Return a head alone, in a form of those that exporters meet."""
    weight = np.random.default_rng(0).normal(size=(num_rows, feature_dim)).astype(np.float32)
    names = ["features", "weight", "bias"]
    if form == "MatMul":
        nodes = [
            helper.make_node("MatMul", names[:2], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["y"]),
        ]
    else:
        nodes = [helper.make_node("Gemm", names, ["y"], transB=int(form == "Gemm transB=1"))]
    stored = weight if form == "Gemm transB=1" else np.ascontiguousarray(weight.T)
    initializers = [numpy_helper.from_array(stored, "weight"), numpy_helper.from_array(np.zeros(num_rows, "f"), "bias")]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, width])
        for name, width in (("features", feature_dim), ("y", num_rows))
    ]
    graph = helper.make_graph(nodes, "head", values[:1], values[1:], initializers)
    model: bytes = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]
    ).SerializeToString()
    return model


def backbone(path: Path) -> tuple[bytes, int, int]:
    """Return a model up to its features, its number of rows, and the width of its features."""
    model = onnx.load(path)
    head = model.graph.node[-1]
    weights = {each.name: each for each in model.graph.initializer}
    if head.op_type != "Gemm" or head.input[1] not in weights:
        sys.exit(f"Error: {path} ends in {head.op_type}; expected a Gemm with its rows in the file.")
    num_rows, feature_dim = weights[head.input[1]].dims
    features = helper.make_tensor_value_info(head.input[0], onnx.TensorProto.FLOAT, [None, feature_dim])
    del model.graph.node[-1], model.graph.output[:]
    model.graph.output.append(features)
    return model.SerializeToString(), num_rows, feature_dim


def time_forms(calls: Mapping[str, Call], before: Call) -> dict[str, tuple[float, float]]:
    """Return the median time of each call in microseconds, after `before` and alone."""
    times: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in calls}
    random = np.random.default_rng(0)
    for _ in range(NUM_ROUNDS):
        for name in random.permutation(list(calls)):
            for alone in (False, True):
                for query_index in range(1 + NUM_QUERIES):
                    if not alone:
                        before()
                    start = time.perf_counter_ns()
                    calls[name]()
                    if query_index:
                        times[name][alone].append(time.perf_counter_ns() - start)
    return {
        name: (float(np.median(after)) / 1e3, float(np.median(alone)) / 1e3) for name, (after, alone) in times.items()
    }


def print_forms(model: Path, num_threads: int) -> None:
    """Time heads of several forms and sizes, and print them."""
    source, num_rows, feature_dim = backbone(model)
    before = query(session(source, num_threads))
    features: NDArray[np.float32] = np.random.default_rng(1).normal(size=(1, feature_dim)).astype(np.float32)
    calls, rows = {}, {}
    for count in (num_rows, num_rows + 200, num_rows + 256):
        for form in ("Gemm transB=1", "Gemm transB=0", "MatMul"):
            name = f"{form}, {count} rows"
            opened = session(head_model(count, feature_dim, form), num_threads)
            calls[name], rows[name] = partial(opened.run, None, {"features": features}), count
    print(f"\n{'forms':32}{'after the backbone':>22}{'alone':>22}")
    for name, both in time_forms(calls, before).items():
        texts = [f"{time_us:.0f} us {4e-3 * rows[name] * feature_dim / time_us:5.1f} GB/s" for time_us in both]
        print(f"{name:32}{texts[0]:>22}{texts[1]:>22}")
    for count in (num_rows, num_rows + 200):
        speed = bandwidth_after(before, num_bytes=4 * count * feature_dim, num_threads=num_threads, num_reads=200)
        text = f"{4e6 * count * feature_dim / speed:.0f} us {speed / 1e9:5.1f} GB/s"
        print(f"{f'a plain read of {count} rows':32}{text:>22}")


def print_nodes(openings: Sequence[Opening]) -> None:
    """Print the median over all openings of each node of the head."""
    print(f"{'in the model':32}{'head':>10}   nodes")
    for name, nodes in openings[0].nodes_us.items():
        medians = {node: float(np.median([each.nodes_us[name][node] for each in openings])) for node in nodes}
        parts = ", ".join(f"{node} {time_us:.0f}" for node, time_us in medians.items())
        print(f"{name:32}{sum(medians.values()):7.0f} us   {parts}")


def print_added(openings: Sequence[Opening], added_bytes: Mapping[str, int]) -> None:
    """Print what added rows take and their share, paired within each opening, and whether they take more."""
    print(f"\n{'added rows':32}{'share':>10}{'measured':>11}   {'above the share (99 % interval)':33}verdict")
    for name, num_bytes in added_bytes.items():
        shares_us = np.array([1e6 * num_bytes / each.bytes_per_s for each in openings])
        added_us = np.array([each.added_us(name) for each in openings])
        above = pseudomedian(added_us - shares_us)
        verdict = "at most its share" if above.high <= 0 else "more than its share" if above.low > 0 else "cannot tell"
        print(
            f"{name:32}{np.median(shares_us):7.1f} us{np.median(added_us):+8.1f} us   "
            f"{f'{above.value:+.1f} us ({above.low:+.1f} to {above.high:+.1f})':33}{verdict}"
        )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="the original, .onnx")
    parser.add_argument("bundles", nargs="*", type=Path, help="bundles made of it, in its precision")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--openings", type=int, default=NUM_OPENINGS, help="8 or more give an interval")
    arguments = parser.parse_args()
    models = {ORIGINAL: str(arguments.model), **{each.name: str(each / "model.onnx") for each in arguments.bundles}}
    bundles = [load_manifest(each) for each in arguments.bundles]
    added_bytes = {
        path.name: head_bytes(len(each.class_names) + each.capacity - each.num_seen, each.feature_dim)
        for path, each in zip(arguments.bundles, bundles, strict=True)
    }
    _, num_rows, feature_dim = backbone(arguments.model)
    largest = head_bytes(num_rows, feature_dim) + max(added_bytes.values(), default=0)
    openings = [time_nodes(models, arguments.threads, largest, seed) for seed in range(arguments.openings)]
    print_nodes(openings)
    print_added(openings, added_bytes)
    print_forms(arguments.model, arguments.threads)


if __name__ == "__main__":
    main()
