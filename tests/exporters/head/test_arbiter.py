"""An arbiter in a graph adds to new logits what numpy says, behind every head, and seen scores keep their bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.graph.edits import apply_passes
from exporters.head.arbiter import ROW_LENGTHS, row_lengths
from exporters.head.expanded_head import ExpandedHead, expanded_head, seen_row_lengths
from exporters.head.finding import HeadLocation, find_head, read_head
from exporters.head.slot_baking import BAKED_ARBITER, BakeRowsPass
from exporters.head.surgery import AddFeaturesOutputPass, AddSlotsPass, FuseHeadPass, SetSlotDefaultsPass
from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.slots import SlotTable, empty_slots
from tests.exporters.head_graphs import (
    FEATURE_DIM,
    GRAPHS,
    HEADER,
    NUM_CLASSES,
    HeadGraph,
    identity,
    parsed_model,
    rows,
    run_model,
)

NAMES = tuple(f"class {index}" for index in range(NUM_CLASSES))
CAPACITY = 6

every_kind = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())


def arbiters(seed: int, num_rows: int = CAPACITY) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, 5)).astype(np.float32)


def table_of(seed: int, num_rows: int = CAPACITY) -> SlotTable:
    weight, bias = rows(seed, num_rows)
    names = tuple(f"new {seed} {index}" for index in range(num_rows))
    return SlotTable(weight=weight, bias=bias, class_names=names, arbiter=arbiters(seed, num_rows))


def run_logits(graph: HeadGraph, model: ir.Model, location: HeadLocation, images: np.ndarray, **slots: np.ndarray):
    """Return what a model gives, and what numpy makes of logits to compare with it."""
    outputs = run_model(model, x=images, **slots)
    after = (
        graph.after
        if location.output_name in {value.name for value in graph.model(*rows(0)).graph.outputs}
        else identity
    )
    return outputs[location.output_name], after


def expected_logits(
    graph: HeadGraph, model: ir.Model, location: HeadLocation, images: np.ndarray, table: SlotTable
) -> np.ndarray:
    """By `icis_deploy.head.arbiter` alone: the model's own seen logits, and those of new rows with their offsets."""
    reference = apply_passes(model, AddFeaturesOutputPass(location))
    features = run_model(reference, x=images)["features"]
    head = read_head(model, location, NAMES)
    seen = np.asarray(head.logits(features), dtype=np.float32)
    statistics = seen_statistics(features, seen, deviation_lengths(head.rows))
    new = features @ table.weight.T + table.bias + statistics @ table.coefficients.T
    return np.concatenate([seen, new], axis=1)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


@every_kind
def test_slots_follow_their_arbiters_and_seen_scores_keep_their_bits(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    images, table = graph.images(3, batch=7), table_of(8)
    plain = apply_passes(model, AddSlotsPass(location, CAPACITY))

    updatable = apply_passes(model, AddSlotsPass(location, CAPACITY, seen_row_lengths(model, location)))

    empty, after = run_logits(graph, updatable, location, images)
    np.testing.assert_array_equal(empty, run_logits(graph, plain, location, images)[0])
    rows_only = {"slot_weight": table.weight, "slot_bias": table.bias}
    without, _ = run_logits(graph, updatable, location, images, **rows_only)
    np.testing.assert_array_equal(without, run_logits(graph, plain, location, images, **rows_only)[0])
    filled, _ = run_logits(graph, updatable, location, images, **rows_only, slot_arbiter=table.coefficients)
    assert_close(filled, after(expected_logits(graph, model, location, images, table)), 5 * graph.tolerance)
    if after is identity:
        np.testing.assert_array_equal(filled[:, :NUM_CLASSES], without[:, :NUM_CLASSES])
        assert np.abs(filled - without)[:, NUM_CLASSES:].max() > 0.1


@every_kind
def test_a_fused_head_follows_the_arbiters_of_its_new_rows(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    images, table = graph.images(3, batch=7), table_of(8)
    plain = ExpandedHead(model=model, location=location, injected=table.rows())
    expanded = expanded_head(model, location, [table])

    fused = apply_passes(model, FuseHeadPass(location, expanded))

    found, after = run_logits(graph, fused, location, images)
    assert_close(found, after(expected_logits(graph, model, location, images, table)), 5 * graph.tolerance)
    # Between a Gemm and a cast to float32, ONNX Runtime does not round to float16 on a CPU; before a Slice it does.
    if after is identity and not location.is_16_bit:
        same, _ = run_logits(graph, apply_passes(model, FuseHeadPass(location, plain)), location, images)
        np.testing.assert_array_equal(found[:, :NUM_CLASSES], same[:, :NUM_CLASSES])


@every_kind
def test_baked_rows_keep_their_arbiters(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    images, first, second = graph.images(3, batch=7), table_of(8, 2), table_of(9, 3)
    both = SlotTable(
        weight=np.concatenate([first.weight, second.weight]),
        bias=np.concatenate([first.bias, second.bias]),
        class_names=(*first.class_names, *second.class_names),
        arbiter=np.concatenate([first.coefficients, second.coefficients]),
    )
    updatable = apply_passes(
        model,
        AddSlotsPass(location, 5, seen_row_lengths(model, location)),
        SetSlotDefaultsPass(both.weight, both.bias, both.arbiter),
    )
    expected, _ = run_logits(graph, updatable, location, images)

    once = apply_passes(updatable, BakeRowsPass(num_seen=NUM_CLASSES, baked=first, slots=second))
    twice = apply_passes(once, BakeRowsPass(num_seen=NUM_CLASSES, baked=both, slots=empty_slots(2, FEATURE_DIM)))

    for baked, num_empty in ((once, 0), (twice, 2)):
        found, after = run_logits(graph, baked, location, images)
        found = found[:, : found.shape[1] - num_empty]
        assert_close(found, expected, graph.tolerance)
        if after is identity:
            np.testing.assert_array_equal(found[:, :NUM_CLASSES], expected[:, :NUM_CLASSES])
    assert twice.graph.initializers[BAKED_ARBITER].shape == (5, 5)
    plain = SlotTable(weight=first.weight, bias=first.bias, class_names=first.class_names)
    offsets_only = apply_passes(updatable, BakeRowsPass(num_seen=NUM_CLASSES, baked=plain, slots=second))
    assert BAKED_ARBITER not in offsets_only.graph.initializers


def test_statistics_are_finite_where_a_variance_overflows_or_vanishes():
    """A row without an arbiter multiplies them by zero, and its logit must stay a number."""
    weight, bias = rows(0)
    for scale in (0.0, 1e25):
        model = GRAPHS["gemm"].model(weight * np.float32(scale), bias * np.float32(scale))
        location = find_head(model)
        updatable = apply_passes(model, AddSlotsPass(location, 2, seen_row_lengths(model, location)))
        ones = np.ones((2, FEATURE_DIM), np.float32)
        scores = run_model(updatable, x=GRAPHS["gemm"].images(1), slot_weight=ones, slot_bias=np.zeros(2, np.float32))[
            "logits"
        ]
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_the_nodes_are_those_of_the_models_own_opset(opset: int):
    weight, bias = rows(0)
    text = HEADER.replace("20", str(opset))
    model = parsed_model(
        f"""{text} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            seen_row_lengths = Relu (x)
            logits = Gemm <transB = 1> (seen_row_lengths, w, b)
        }}""",
        w=weight,
        b=bias,
    )
    location = find_head(model)
    lengths = seen_row_lengths(model, location)
    updatable = apply_passes(model, AddSlotsPass(location, CAPACITY, lengths))
    np.testing.assert_array_equal(updatable.graph.initializers[ROW_LENGTHS].const_value.numpy(), lengths)
    np.testing.assert_allclose(lengths, deviation_lengths(np.c_[weight, bias]), rtol=1e-6)
    assert "slot_arbiter" in {value.name for value in updatable.graph.inputs}


def test_row_lengths_do_not_depend_on_the_blocks():
    values = np.random.default_rng(0).normal(size=(103, 9)).astype(np.float32)
    blocks = row_lengths(lambda: (values[start : start + 10] for start in range(0, 103, 10)))
    np.testing.assert_allclose(blocks, deviation_lengths(values), rtol=1e-6)


def test_a_thousand_decisions_are_those_of_numpy():
    """A head of the usual size: the graph and `icis_deploy.head.arbiter` are written independently."""
    rng = np.random.default_rng(0)
    num_seen, num_new, dim = 300, 50, 128
    weight = (rng.normal(size=(num_seen, dim)) * 0.1).astype(np.float32)
    model = parsed_model(
        f"""{HEADER} g (float[batch, {dim}] x) => (float[batch, {num_seen}] logits) {{
            h = Relu (x)
            logits = Gemm <transB = 1> (h, w, b)
        }}""",
        w=weight,
        b=rng.normal(size=num_seen).astype(np.float32),
    )
    location = find_head(model)
    head = read_head(model, location, [str(index) for index in range(num_seen)])
    new = (rng.normal(size=(num_new, dim + 1)) * 0.1).astype(np.float32)
    table = SlotTable(
        weight=new[:, :-1],
        bias=new[:, -1],
        class_names=tuple(f"new {index}" for index in range(num_new)),
        arbiter=np.tile(np.array([0.4, -0.3, 0.5, 0.2, -0.6], np.float32), (num_new, 1)),
    )
    images = rng.normal(size=(1000, dim)).astype(np.float32)
    features = np.maximum(images, 0)
    seen = features @ head.weight.T + head.bias
    statistics = seen_statistics(features, seen, deviation_lengths(head.rows))
    expected = np.concatenate([seen, features @ new[:, :-1].T + new[:, -1] + statistics @ table.coefficients.T], axis=1)
    updatable = apply_passes(
        model,
        AddSlotsPass(location, num_new, seen_row_lengths(model, location)),
        SetSlotDefaultsPass(table.weight, table.bias, table.arbiter),
    )
    fused = apply_passes(model, FuseHeadPass(location, expanded_head(model, location, [table])))
    for edited in (updatable, fused):
        found = run_model(edited, x=images)["logits"]
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).sum() == 1000
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 0 < (expected.argmax(axis=1) >= num_seen).sum() < 1000
    exact = expanded_head(model, location, [table]).logits(features)
    np.testing.assert_allclose(exact, expected, atol=1e-4)


def test_what_does_not_fit_is_refused():
    model = GRAPHS["gemm"].model(*rows(0))
    location = find_head(model)
    lengths = seen_row_lengths(model, location)
    plain = apply_passes(model, AddSlotsPass(location, 2))
    table = table_of(1, 2)
    with pytest.raises(IncompatibleError, match=r"row lengths have shape \(4,\); the head has 5 classes"):
        apply_passes(model, AddSlotsPass(location, 2, lengths[1:]))
    with pytest.raises(UsageError, match=r"no input 'slot_arbiter' with a default, so no arbiter.* `arbiter='auto'`"):
        apply_passes(plain, SetSlotDefaultsPass(table.weight, table.bias, table.arbiter))
    with pytest.raises(IncompatibleError, match="cannot be baked into a model without the input 'slot_arbiter'"):
        apply_passes(plain, BakeRowsPass(num_seen=NUM_CLASSES, baked=table, slots=empty_slots(1, FEATURE_DIM)))
    with pytest.raises(IncompatibleError, match=r"arbiter of the injected rows has shape \(1, 5\); expected \(2, 5\)"):
        ExpandedHead(
            model=model, location=location, injected=table.rows(), arbiter=table.coefficients[:1], lengths=lengths
        )
