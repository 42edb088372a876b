"""Measure what an arbiter costs in a model: heads with one and without one, in turn in the rounds of one run.

    python scripts/experiments/arbiter_cost.py [--model model.onnx] [--seen 800] [--new 200] [--capacity 256]

Without a model the heads stand alone, behind a Relu of features. All new rows have an arbiter. Before anything is
measured, the answers are compared with what `icis_deploy.head.arbiter` computes in numpy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.timing.latency import Plan, measure
from exporters.graph.edits import apply_passes
from exporters.head.expanded_head import ExpandedHead, expanded_head, seen_row_lengths
from exporters.head.finding import find_head, read_head
from exporters.head.surgery import AddFeaturesOutputPass, AddSlotsPass, FuseHeadPass, SetSlotDefaultsPass
from exporters.onnx_io.files import load_onnx_file, normalized, serialize_model
from icis_deploy.common.arrays import Float32
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession, load_session

PAIRS = (("fused, arbiter", "fused"), ("updatable, arbiter", "updatable"))
NUM_DECISIONS = 1000


def head_alone(num_seen: int, feature_dim: int) -> ir.Model:
    """Return a model of one linear layer with random rows."""
    rng = np.random.default_rng(0)
    arrays = {
        "weight": (rng.normal(size=(num_seen, feature_dim)) / np.sqrt(feature_dim)).astype(np.float32),
        "bias": rng.normal(size=num_seen).astype(np.float32),
    }
    given = ir.Value(name="x", shape=ir.Shape(["batch", feature_dim]), type=ir.TensorType(ir.DataType.FLOAT))
    constants = [ir.Value(name=name, const_value=ir.Tensor(array, name=name)) for name, array in arrays.items()]
    features = ir.node("Relu", [given], name="features")
    head = ir.node("Gemm", [features.outputs[0], *constants], attributes={"transB": 1}, name="head")
    features.outputs[0].name, head.outputs[0].name = "positive", "logits"
    head.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    head.outputs[0].shape = ir.Shape(["batch", num_seen])
    graph = ir.Graph(
        [given], head.outputs, nodes=[features, head], initializers=constants, opset_imports={"": 20}, name="head"
    )
    return normalized(ir.Model(graph, ir_version=10), where="the head")


def new_rows(num_new: int, feature_dim: int) -> SlotTable:
    """Return random rows, all with the same coefficients."""
    rng = np.random.default_rng(1)
    return SlotTable(
        weight=(rng.normal(size=(num_new, feature_dim)) / np.sqrt(feature_dim)).astype(np.float32),
        bias=rng.normal(size=num_new).astype(np.float32),
        class_names=tuple(f"new {index}" for index in range(num_new)),
        arbiter=np.tile(np.array([0.3, -0.2, 0.5, 0.1, -0.4], np.float32), (num_new, 1)),
    )


def in_slots(table: SlotTable, capacity: int) -> SlotTable:
    """Return a table with empty slots after these."""
    empty = empty_slots(capacity - table.capacity, table.feature_dim)
    return SlotTable(
        weight=np.concatenate([table.weight, empty.weight]),
        bias=np.concatenate([table.bias, empty.bias]),
        class_names=(*table.class_names, *empty.class_names),
        arbiter=np.concatenate([table.coefficients, empty.coefficients]),
    )


def heads(model: ir.Model, table: SlotTable, capacity: int) -> dict[str, ir.Model]:
    """Return the model with each head."""
    location = find_head(model)
    lengths, slots = seen_row_lengths(model, location), in_slots(table, capacity)
    without = ExpandedHead(model=model, location=location, injected=table.rows())
    return {
        "original": model,
        "fused": apply_passes(model, FuseHeadPass(location, without)),
        "fused, arbiter": apply_passes(model, FuseHeadPass(location, expanded_head(model, location, [table]))),
        "updatable": apply_passes(
            model, AddSlotsPass(location, capacity), SetSlotDefaultsPass(slots.weight, slots.bias)
        ),
        "updatable, arbiter": apply_passes(
            model,
            AddSlotsPass(location, capacity, lengths),
            SetSlotDefaultsPass(slots.weight, slots.bias, slots.arbiter),
        ),
    }


def check_decisions(model: ir.Model, sessions: dict[str, ONNXRuntimeSession], table: SlotTable, inputs: Float32) -> int:
    """Return how many answers of both heads with an arbiter are those of numpy, of `2 * len(inputs)`."""
    location = find_head(model)
    reference = load_session(serialize_model(apply_passes(model, AddFeaturesOutputPass(location))))
    head = read_head(model, location, [str(index) for index in range(location.num_classes)])
    lengths, same = deviation_lengths(head.rows), 0
    for start in range(0, len(inputs), 50):
        batch = inputs[start : start + 50]
        seen, features = reference.run(batch, with_features=True)
        assert features is not None
        statistics = seen_statistics(features, seen, lengths)
        new = features @ table.weight.T + table.bias + statistics @ table.coefficients.T
        expected = np.concatenate([seen, new], axis=1).argmax(axis=1)
        for name, _ in PAIRS:
            same += int((sessions[name].run(batch).logits.argmax(axis=1) == expected).sum())
    return same


def main() -> int:
    """Build, check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seen", type=int, default=800, help="classes of a head alone")
    parser.add_argument("--features", type=int, default=1280, help="width of a head alone")
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="budget of each batch size")
    given = parser.parse_args()

    model = head_alone(given.seen, given.features) if given.model is None else load_onnx_file(given.model)
    table = new_rows(given.new, find_head(model).feature_dim)
    sessions = {
        name: load_session(serialize_model(each), num_threads=given.threads)
        for name, each in heads(model, table, given.capacity).items()
    }
    shape = [size if isinstance(size, int) else 224 for size in list(model.graph.inputs[0].shape or ())[1:]]
    inputs = np.random.default_rng(2).standard_normal((NUM_DECISIONS, *shape), dtype=np.float32)
    same = check_decisions(model, sessions, table, inputs)
    print(f"{given.model or 'head alone'}: {same} of {2 * NUM_DECISIONS} decisions as in numpy")
    print("| batch | head | median us | arbiter / without (99 % interval) | verdict at 2 % | rounds |")
    print("|---|---|---|---|---|---|")
    for batch in (int(size) for size in given.batch.split(",")):
        calls: dict[str, Callable[[], object]] = {
            name: partial(session.run, inputs[:batch]) for name, session in sessions.items()
        }
        measurement = measure(calls, further_pairs=PAIRS, plan=Plan(budget_s=given.seconds))
        compared = {(each.label, each.against): each for each in measurement.comparisons}
        pairs = dict(PAIRS)
        for report in measurement.latencies:
            row = f"| {batch} | {report.label} | {1e3 * report.median_ms.value:.1f} |"
            if (against := pairs.get(report.label)) is not None:
                found = compared[report.label, against]
                ratio = f"{found.ratio.value:.3f} ({found.ratio.low:.3f} to {found.ratio.high:.3f})"
                row += f" {ratio} | {found.verdict} | {measurement.num_rounds} |"
            else:
                row += " | | |"
            print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
