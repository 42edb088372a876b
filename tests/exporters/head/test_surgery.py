"""Head surgery on every kind of head: what is read, fused and joined is what numpy says."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.graph.edits import apply_passes
from exporters.head.expanded_head import ExpandedHead
from exporters.head.finding import HeadLocation, find_head, read_head
from exporters.head.slot_inputs import SlotsAsInputsPass, with_slots_as_inputs
from exporters.head.surgery import (
    AddFeaturesOutputPass,
    AddSlotsPass,
    FuseHeadPass,
    SetSlotDefaultsPass,
    own_backbone,
)
from exporters.onnx_io.files import save_model
from icis_deploy.errors import ExportError, IncompatibleError, ModelLoadError, UsageError
from icis_deploy.head.head import Head
from icis_deploy.head.slots import EMPTY_SLOT_BIAS
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
NEW_NAMES = ("new a", "new b", "new c")
CAPACITY = 6


@pytest.fixture
def gemm() -> tuple[ir.Model, HeadLocation]:
    """A model with the plainest head, and where that is."""
    model = GRAPHS["gemm"].model(*rows(0))
    return model, find_head(model)


every_kind = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())


def assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def new_rows(seed=7):
    weight, bias = rows(seed, len(NEW_NAMES))
    return np.concatenate([weight, bias[:, None]], axis=1)


def what_follows(graph: HeadGraph, model: ir.Model, output: str):
    """Return what numpy does to logits to get the scores; of a model that gives only choices, the logits are added."""
    return graph.after if output in [value.name for value in model.graph.outputs] else identity


@every_kind
def test_the_rows_that_are_read_give_the_models_own_scores(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    head = read_head(model, location, NAMES)
    images = graph.images(1)

    outputs = run_model(apply_passes(model, AddFeaturesOutputPass(location)), x=images)

    features = outputs["features"]
    assert (location.kind, location.certainty, location.node_name) == (graph.kind, "certain", "head")
    assert (features.shape, features.dtype) == ((3, FEATURE_DIM), np.float32)
    after = what_follows(graph, model, location.output_name)
    assert_close(outputs[location.output_name], after(head.logits(features)), graph.tolerance)
    assert head.bias.any() == graph.has_bias
    if graph.kind == "cosine":
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)


@every_kind
def test_a_fused_head_computes_all_rows(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    head = read_head(model, location, NAMES).expand(new_rows(), NEW_NAMES)
    images = graph.images(2)
    features = run_model(apply_passes(model, AddFeaturesOutputPass(location)), x=images)["features"]
    original = run_model(model, x=images)

    fused = run_model(apply_passes(model, FuseHeadPass(location, head)), x=images)

    scores = fused[location.output_name]
    assert scores.shape == (3, NUM_CLASSES + len(NEW_NAMES))
    after = what_follows(graph, model, location.output_name)
    assert_close(scores, after(head.logits(features)), graph.tolerance)
    assert next(iter(fused)) == location.output_name
    assert set(fused) == {*original, location.output_name}


@every_kind
def test_an_updatable_head_keeps_the_seen_scores_and_adds_the_slots(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    head = read_head(model, location, NAMES)
    images = graph.images(3)
    reference = run_model(apply_passes(model, AddFeaturesOutputPass(location)), x=images)
    after = what_follows(graph, model, location.output_name)

    updatable = apply_passes(model, AddSlotsPass(location, CAPACITY))

    empty = run_model(updatable, x=images)
    scores = empty[location.output_name]
    assert scores.shape == (3, NUM_CLASSES + CAPACITY)
    if after is identity:
        np.testing.assert_array_equal(scores[:, :NUM_CLASSES], reference[location.output_name])
    np.testing.assert_array_equal(empty["features"], reference["features"])
    assert scores[:, NUM_CLASSES:].max() < scores[:, :NUM_CLASSES].min()

    weight, bias = rows(8, CAPACITY)
    filled = run_model(updatable, x=images, slot_weight=weight, slot_bias=bias)
    expanded = head.expand(np.c_[weight, bias], [f"slot {index}" for index in range(CAPACITY)])
    assert_close(filled[location.output_name], after(expanded.logits(reference["features"])), graph.tolerance)


@every_kind
def test_a_new_class_can_win_whatever_follows_the_head(graph: HeadGraph):
    model = graph.model(*rows(0))
    location = find_head(model)
    winner = np.zeros((1, FEATURE_DIM + 1))
    winner[0, -1] = 1000.0
    head = read_head(model, location, NAMES).expand(winner, ["winner"])

    fused = run_model(apply_passes(model, FuseHeadPass(location, head)), x=graph.images(4))

    choices = fused.get("choices", fused[location.output_name].argmax(axis=1)).reshape(3, -1)
    assert (choices[:, 0] == NUM_CLASSES).all()


@every_kind
def test_nothing_but_the_head_changes(graph: HeadGraph):
    model = graph.model(*rows(0))
    before = ir.to_proto(model).SerializeToString()
    location = find_head(model)
    head = read_head(model, location, NAMES).expand(new_rows(), NEW_NAMES)

    fused = apply_passes(model, FuseHeadPass(location, head))
    updatable = apply_passes(model, AddSlotsPass(location, CAPACITY))

    assert ir.to_proto(model).SerializeToString() == before
    own = {node.name: node.op_type for node in model.graph}
    assert {node.name: node.op_type for node in updatable.graph}.items() >= own.items()
    kept = {node.name: node.op_type for node in fused.graph if node.name in own}
    assert kept.items() <= own.items()
    assert sum(node.op_type in {"Gemm", "MatMul", "Conv"} for node in fused.graph) == sum(
        op_type in {"Gemm", "MatMul", "Conv"} for op_type in own.values()
    )
    for copy in (fused, updatable):
        assert {value.name for value in model.graph.outputs} <= {value.name for value in copy.graph.outputs}
        assert copy.graph.inputs[0].name == "x"
        batch = copy.graph.outputs[0].shape
        assert batch is not None
        assert str(batch[0]) == "batch"


@pytest.mark.parametrize("kind", ["gemm", "gemm, weight not transposed", "matmul and add", "1x1 conv after pooling"])
def test_rows_of_a_float32_head_are_the_initializers_own_bits(kind: str):
    weight, bias = rows(3)
    model = GRAPHS[kind].model(weight, bias)

    head = read_head(model, find_head(model), NAMES)

    np.testing.assert_array_equal(head.weight, weight)
    np.testing.assert_array_equal(head.bias, bias)


@pytest.mark.parametrize(
    ("steps", "nodes"),
    [
        (
            (NUM_CLASSES, 2),
            "r = DequantizeLinear <axis = 1, block_size = 2> (w, s) [head] y = Gemm <transB = 1> (h, r)",
        ),
        ((FEATURE_DIM,), "r = DequantizeLinear <axis = 1> (w, s) [head] y = Gemm <transB = 1> (h, r)"),
        ((NUM_CLASSES,), "d = DequantizeLinear <axis = 0> (w, s) r = Transpose (d) [head] y = MatMul (h, r)"),
    ],
)
def test_rows_of_integers_keep_their_values_whatever_has_a_scale(steps: tuple[int, ...], nodes: str):
    rng = np.random.default_rng(0)
    model = parsed_model(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[batch, 4] x) => (float[batch, 5] y) {{
            h = Relu (x) {nodes}
        }}""",
        w=rng.integers(-127, 128, (NUM_CLASSES, FEATURE_DIM), dtype=np.int8),
        s=rng.uniform(0.01, 0.1, steps).astype(np.float32),
    )
    location = find_head(model)
    head = read_head(model, location, NAMES)

    fused = apply_passes(model, FuseHeadPass(location, head.expand(new_rows(), NEW_NAMES)))

    assert (location.is_quantized, location.precision) == (True, "int8 (dequantized)")
    again = read_head(fused, find_head(fused), (*NAMES, *NEW_NAMES))
    np.testing.assert_allclose(again.weight[:NUM_CLASSES], head.weight, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8, one scale", "uint8, scale per row, quantized logits"])
def test_a_quantized_head_keeps_its_integers_and_gives_each_new_row_its_own_scale(kind: str):
    model = GRAPHS[kind].model(*rows(0))
    location = find_head(model)
    head = read_head(model, location, NAMES)
    small = new_rows() / 100

    fused = apply_passes(model, FuseHeadPass(location, head.expand(small, NEW_NAMES)))

    arrays = {name: value.const_value.numpy() for name, value in fused.graph.initializers.items()}
    own = model.graph.initializers["w"].const_value.numpy()
    own = own if location.kind == "gemm" else own.T
    assert location.precision == f"{own.dtype} (dequantized)"
    np.testing.assert_array_equal(arrays["head_weight_quantized"][:NUM_CLASSES], own)
    assert arrays["head_weight_quantized"].dtype == own.dtype
    spans = np.abs(arrays["head_weight_quantized"].astype(int) - arrays["head_weight_zero"][:, None]).max(axis=1)
    assert (spans[NUM_CLASSES:] == 127).all()
    read_again = read_head(fused, find_head(fused), (*NAMES, *NEW_NAMES))
    np.testing.assert_array_equal(read_again.weight[:NUM_CLASSES], head.weight)
    np.testing.assert_allclose(read_again.bias, [*head.bias, *small[:, -1]], atol=1e-3)


def test_a_weight_that_is_also_an_input_takes_the_input_with_it():
    proto = ir.to_proto(GRAPHS["gemm"].model(*rows(0)))
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("w", (5, 4)), ("b", (5,)))
    )
    model = ir.from_proto(proto)
    location = find_head(model)
    images = GRAPHS["gemm"].images(0)

    fused = apply_passes(model, FuseHeadPass(location, read_head(model, location, NAMES)))

    assert [value.name for value in fused.graph.inputs] == ["x"]
    np.testing.assert_allclose(run_model(fused, x=images)["logits"], run_model(model, x=images)["logits"], rtol=1e-6)


def test_a_shared_weight_is_copied_and_not_changed():
    graph = GRAPHS["weight shared with another node"]
    weight, bias = rows(0)
    model = graph.model(weight, bias)
    location = find_head(model)
    head = read_head(model, location, NAMES).expand(new_rows(), NEW_NAMES)
    images = graph.images(5)

    fused = apply_passes(model, FuseHeadPass(location, head))

    np.testing.assert_array_equal(fused.graph.initializers["w"].const_value.numpy(), weight)
    np.testing.assert_array_equal(run_model(fused, x=images)["again"], run_model(model, x=images)["again"])


def test_weights_that_did_not_change_are_shared_and_not_copied():
    model = GRAPHS["two linear layers, the last is the head"].model(*rows(0))

    updatable = apply_passes(model, AddSlotsPass(find_head(model), CAPACITY))

    assert updatable.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value


def test_slots_are_overridable_inputs_whose_defaults_are_empty():
    model = GRAPHS["gemm"].model(*rows(0))

    proto = ir.to_proto(apply_passes(model, AddSlotsPass(find_head(model), CAPACITY)))

    onnx.checker.check_model(proto, full_check=True)
    inputs = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
    }
    assert inputs == {"x": ["batch", 4], "slot_weight": [CAPACITY, 4], "slot_bias": [CAPACITY]}
    defaults = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert not defaults["slot_weight"].any()
    np.testing.assert_array_equal(defaults["slot_bias"], np.full(CAPACITY, EMPTY_SLOT_BIAS, dtype=np.float32))
    assert [value.name for value in proto.graph.output] == ["logits", "features"]


def test_new_defaults_are_what_a_run_without_slots_uses():
    graph = GRAPHS["gemm"]
    model = graph.model(*rows(0))
    updatable = apply_passes(model, AddSlotsPass(find_head(model), CAPACITY))
    weight, bias = rows(9, CAPACITY)
    images = graph.images(6)

    filled = apply_passes(updatable, SetSlotDefaultsPass(weight, bias))

    fed = run_model(updatable, x=images, slot_weight=weight, slot_bias=bias)
    np.testing.assert_array_equal(run_model(filled, x=images)["logits"], fed["logits"])
    assert run_model(updatable, x=images)["logits"][:, NUM_CLASSES:].max() == EMPTY_SLOT_BIAS


def test_slots_of_a_negative_head_do_not_win_while_they_are_empty():
    weight, bias = rows(0)
    model = GRAPHS["gemm"].model(-np.abs(weight), bias - 100)

    updatable = apply_passes(model, AddSlotsPass(find_head(model), CAPACITY))
    scores = run_model(updatable, x=GRAPHS["gemm"].images(1))["logits"]

    assert (scores.argmax(axis=1) < NUM_CLASSES).all()


def test_names_that_surgery_needs_are_taken_from_inner_values():
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            slot_weight = Relu (x)
            features = Sigmoid (slot_weight)
            head_weight = Tanh (features)
            logits = Gemm <transB = 1> (head_weight, slot_bias, head_bias)
        }}""",
        slot_bias=rows(0)[0],
        head_bias=rows(0)[1],
    )
    location = find_head(model)
    head = read_head(model, location, NAMES)
    images = GRAPHS["gemm"].images(1)

    updatable = run_model(apply_passes(model, AddSlotsPass(location, CAPACITY)), x=images)
    fused = run_model(apply_passes(model, FuseHeadPass(location, head)), x=images)

    expected = run_model(model, x=images)["logits"]
    np.testing.assert_array_equal(updatable["logits"][:, :NUM_CLASSES], expected)
    assert_close(head.logits(updatable["features"]), expected, 1e-6)
    assert_close(fused["logits"], expected, 1e-6)


def test_a_features_output_that_is_there_is_kept():
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits, float[batch, 4] features) {{
            features = Relu (x)
            logits = Gemm <transB = 1> (features, w, b)
        }}""",
        w=rows(0)[0],
        b=rows(0)[1],
    )
    location = find_head(model)

    features_output = AddFeaturesOutputPass(location)

    assert not features_output(model.clone()).modified
    assert apply_passes(model, features_output) is model
    updatable = apply_passes(model, AddSlotsPass(location, 2))
    assert list(run_model(updatable, x=GRAPHS["gemm"].images(1))) == ["logits", "features"]


def test_outputs_are_brought_into_the_order_scores_others_features():
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x)
        => (float[batch, 4] features, float[batch, 5] logits, float[batch, 4] other) {{
            features = Relu (x)
            other = Sigmoid (x)
            logits = Gemm <transB = 1> (features, w, b)
        }}""",
        w=rows(0)[0],
        b=rows(0)[1],
    )
    location = find_head(model)

    for graph_pass in (AddFeaturesOutputPass(location), AddSlotsPass(location, 2)):
        edited = apply_passes(model, graph_pass)
        assert [value.name for value in edited.graph.outputs] == ["logits", "other", "features"]
    fused = apply_passes(model, FuseHeadPass(location, read_head(model, location, NAMES)))
    assert [value.name for value in fused.graph.outputs] == [
        "logits",
        "features",
        "other",
    ]


def test_features_in_another_precision_cannot_be_called_features():
    model = parsed_model(
        f"""{HEADER} g (float16[batch, 4] x) => (float16[batch, 5] logits, float16[batch, 4] features) {{
            features = Relu (x)
            logits = Gemm <transB = 1> (features, w)
        }}""",
        w=rows(0)[0].astype(np.float16),
    )

    with pytest.raises(
        IncompatibleError, match="an output 'features' already, which is not what feeds the head logits in"
    ):
        apply_passes(model, AddFeaturesOutputPass(find_head(model)))


def test_features_that_another_output_or_an_input_gives_are_given_twice():
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits, float[batch, 4] embedding) {{
            embedding = Relu (x)
            logits = Gemm <transB = 1> (embedding, w, b)
        }}""",
        w=rows(0)[0],
        b=rows(0)[1],
    )
    linear = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            logits = Gemm <transB = 1> (x, w, b)
        }}""",
        w=rows(0)[0],
        b=rows(0)[1],
    )
    images = GRAPHS["gemm"].images(1)

    outputs = run_model(apply_passes(model, AddFeaturesOutputPass(find_head(model))), x=images)
    of_input = run_model(apply_passes(linear, AddFeaturesOutputPass(find_head(linear))), x=images)

    np.testing.assert_array_equal(outputs["features"], outputs["embedding"])
    np.testing.assert_array_equal(of_input["features"], images)


@pytest.mark.parametrize("output", ["map", "scores"])
def test_scores_at_one_position_are_given_as_a_matrix(output: str):
    weight, bias = rows(0)
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5, 1, 1] {output}) {{
            pooled = GlobalAveragePool (x)
            [head] map = Conv (pooled, w, b)
            scores = Softmax <axis = 1> (map)
        }}""",
        w=weight[:, :, None, None],
        b=bias,
    )
    location = find_head(model)
    images = GRAPHS["1x1 conv after pooling"].images(0)

    updatable = run_model(apply_passes(model, AddSlotsPass(location, 2)), x=images)
    fused = run_model(apply_passes(model, FuseHeadPass(location, read_head(model, location, NAMES))), x=images)

    expected = run_model(model, x=images)[output].reshape(3, 5)
    assert list(updatable) == [output, "features"]
    np.testing.assert_array_equal(updatable[output][:, :5], expected)
    np.testing.assert_allclose(fused[output], expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    linear=st.sampled_from(
        ["Gemm <transB = 1>", "Gemm <transB = 0>", "Gemm <alpha = 0.25, beta = 2.0>", "MatMul", "Conv"]
    ),
    num_classes=st.integers(2, 9),
    feature_dim=st.integers(1, 8),
    num_new=st.integers(1, 7),
    batch=st.integers(1, 4),
    magnitude=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_any_expanded_head_equals_numpy(linear, num_classes, feature_dim, num_new, batch, magnitude, seed):
    generator = np.random.default_rng(seed)
    weight = (generator.normal(size=(num_classes, feature_dim)) * magnitude).astype(np.float32)
    bias = generator.normal(size=num_classes).astype(np.float32)
    new = (generator.normal(size=(num_new, feature_dim + 1)) * magnitude).astype(np.float32)
    images = generator.normal(size=(batch, feature_dim)).astype(np.float32)
    model = random_head(linear, weight, bias)
    location = find_head(model)
    head = read_head(model, location, [f"seen {index}" for index in range(num_classes)])
    new_names = [f"new {index}" for index in range(num_new)]
    wide = images.astype(np.float64)
    factor, offset = (0.25, 2.0) if "alpha" in linear else (1.0, 1.0)
    seen = factor * wide @ weight.astype(np.float64).T + offset * bias.astype(np.float64)
    expected = np.c_[seen, wide @ new[:, :-1].astype(np.float64).T + new[:, -1].astype(np.float64)]

    fused = run_model(apply_passes(model, FuseHeadPass(location, head.expand(new, new_names))), x=images)["logits"]
    updatable = apply_passes(model, AddSlotsPass(location, num_new), SetSlotDefaultsPass(new[:, :-1], new[:, -1]))
    joined = run_model(updatable, x=images)

    # float32 accumulates rounding with the sizes of the terms, not of their sum
    scale = np.abs(wide) @ np.abs(np.r_[weight, new[:, :-1]]).astype(np.float64).T + np.abs(np.r_[bias * 2, new[:, -1]])
    assert (np.abs(fused - expected) <= 1e-6 * scale + 1e-12).all()
    assert (np.abs(joined["logits"] - expected) <= 1e-6 * scale + 1e-12).all()
    np.testing.assert_array_equal(joined["features"], images)


def random_head(linear: str, weight, bias) -> ir.Model:
    num_classes, feature_dim = weight.shape
    signature = f"{HEADER} g (float[batch, {feature_dim}] x) => (float[batch, {num_classes}] logits)"
    if linear == "Conv":
        text = f"""{signature} <int64[2] axes = {{2, 3}}> {{
            map = Unsqueeze (x, axes)
            scores = Conv (map, w, b)
            logits = Squeeze (scores, axes)
        }}"""
        return parsed_model(text, w=weight[:, :, None, None], b=bias)
    if linear == "MatMul":
        text = f"""{signature} {{
            product = MatMul (x, w)
            logits = Add (product, b)
        }}"""
        return parsed_model(text, w=np.ascontiguousarray(weight.T), b=bias)
    stored = weight if "transB = 1" in linear else np.ascontiguousarray(weight.T)
    return parsed_model(f"{signature} {{ logits = {linear} (x, w, b) }}", w=stored, b=bias)


def test_rows_of_another_width_are_refused(gemm):
    with pytest.raises(IncompatibleError, match="The rows have feature_dim 7; the head head has 4"):
        apply_passes(gemm[0], FuseHeadPass(gemm[1], Head(rows=np.ones((2, 8)), class_names=("a", "b"))))


def test_a_class_list_of_another_length_is_refused(gemm):
    with pytest.raises(IncompatibleError, match="The class list has 4 names; the head head has 5 classes"):
        read_head(*gemm, NAMES[:-1])


def test_no_slots_are_refused(gemm):
    with pytest.raises(UsageError, match="A capacity of 0 slots was asked for; expected at least 1"):
        apply_passes(gemm[0], AddSlotsPass(gemm[1], 0))


def test_slots_on_top_of_slots_are_refused(gemm):
    model, location = gemm
    with pytest.raises(UsageError, match="The model has slots already"):
        apply_passes(model, AddSlotsPass(location, 2), AddSlotsPass(location, 2))


def test_defaults_for_a_model_without_slots_are_refused(gemm):
    with pytest.raises(UsageError, match="The model has no input 'slot_weight' with a default, so no slots"):
        apply_passes(gemm[0], SetSlotDefaultsPass(np.ones((2, 4)), np.ones(2)))


def test_defaults_of_another_shape_are_refused(gemm):
    updatable = apply_passes(gemm[0], AddSlotsPass(gemm[1], 2))
    with pytest.raises(IncompatibleError, match=r"The new slot_weight has shape \(3, 4\); this model's has \(2, 4\)"):
        apply_passes(updatable, SetSlotDefaultsPass(np.ones((3, 4)), np.ones(3)))


def test_a_location_from_another_graph_is_refused(gemm):
    other = parsed_model(f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ y = Relu (x) }}")
    with pytest.raises(ModelLoadError, match="The head head is not in this graph: there is no such linear operator"):
        apply_passes(other, AddSlotsPass(gemm[1], 2))


def test_a_location_of_a_head_of_another_size_is_refused(gemm):
    other = parsed_model(
        f"{HEADER} g (float[batch, 4] x) => (float[batch, 3] y) {{ [head] y = MatMul (x, w) }}",
        w=np.ones((4, 3), dtype=np.float32),
    )
    with pytest.raises(ModelLoadError, match="The head head is 3 x 4 in this graph; it was found as 5 x 4"):
        apply_passes(other, AddSlotsPass(gemm[1], 2))


def test_a_refusal_leaves_the_model_as_it_was(gemm):
    model, location = gemm
    before = ir.to_proto(model).SerializeToString()

    with pytest.raises(UsageError):
        apply_passes(model, AddSlotsPass(location, -1))

    assert ir.to_proto(model).SerializeToString() == before


def test_an_output_called_features_that_does_not_feed_the_head_is_refused():
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits, float[batch, 4] features) {{
            h = Relu (x)
            features = Sigmoid (h)
            logits = Gemm <transB = 1> (h, w, b)
        }}""",
        w=rows(0)[0],
        b=rows(0)[1],
    )

    with pytest.raises(IncompatibleError, match="has an output 'features' already, which is not what feeds the head"):
        apply_passes(model, AddSlotsPass(find_head(model), CAPACITY))


@pytest.mark.parametrize(
    ("image", "output", "message"),
    [
        ("features", "logits", "The model has an input 'features'; a bundle's model uses that name itself. Rename it"),
        ("x", "slot_weight", "The model has an output 'slot_weight'; a bundle's model uses that name itself."),
        ("x", "slot_bias", "The model has an output 'slot_bias'; a bundle's model uses that name itself."),
    ],
)
def test_an_input_or_output_with_a_name_of_the_exports_own_is_refused(image: str, output: str, message: str):
    text = GRAPHS["gemm"].text.replace("4] x)", f"4] {image})").replace("(x)", f"({image})").replace("logits", output)
    model = parsed_model(text, w=rows(0)[0], b=rows(0)[1])

    with pytest.raises(IncompatibleError, match=re.escape(message)):
        apply_passes(model, AddSlotsPass(find_head(model), CAPACITY))


# --- what is ensured ----------------------------------------------------------------------------------------------


def do_nothing(_pass: object, model: ir.Model) -> ir.passes.PassResult:
    return ir.passes.PassResult(model, modified=True)


def break_the_graph(_pass: object, model: ir.Model) -> ir.passes.PassResult:
    next(iter(model.graph)).op_type = "NoSuchOperator"
    return ir.passes.PassResult(model, modified=True)


def expanded() -> Head:
    weight, bias = rows(0)
    seen = np.concatenate([weight, bias[:, None]], axis=1)
    return Head(rows=np.concatenate([seen, new_rows()]), class_names=(*NAMES, *NEW_NAMES))


@pytest.mark.parametrize(
    ("make", "call", "message"),
    [
        (AddFeaturesOutputPass, do_nothing, "ends in the output 'logits'"),
        (lambda at: AddSlotsPass(at, CAPACITY), do_nothing, f"with {NUM_CLASSES + CAPACITY} classes"),
        (lambda at: FuseHeadPass(at, expanded()), do_nothing, f"with {NUM_CLASSES + len(NEW_NAMES)} classes"),
        (AddFeaturesOutputPass, break_the_graph, "NoSuchOperator"),
        (lambda at: AddSlotsPass(at, CAPACITY), break_the_graph, "NoSuchOperator"),
        (lambda at: FuseHeadPass(at, expanded()), break_the_graph, "NoSuchOperator"),
    ],
)
def test_a_change_that_does_not_do_what_it_promises_is_no_model(make, call, message, gemm, monkeypatch):
    model, location = gemm
    operation = make(location)
    monkeypatch.setattr(type(operation), "call", call)

    with pytest.raises(ExportError, match=re.escape(message)):
        apply_passes(model, operation)


def test_slots_that_were_set_are_still_in_a_valid_graph(gemm, monkeypatch):
    model, location = gemm
    updatable = apply_passes(model, AddSlotsPass(location, CAPACITY))
    monkeypatch.setattr(SetSlotDefaultsPass, "call", break_the_graph)

    with pytest.raises(ExportError, match="NoSuchOperator"):
        apply_passes(
            updatable, SetSlotDefaultsPass(np.zeros((CAPACITY, FEATURE_DIM)), np.full(CAPACITY, EMPTY_SLOT_BIAS))
        )


def test_a_file_without_a_head_of_an_export_has_no_backbone_of_its_own(tmp_path):
    save_model(GRAPHS["gemm"].model(*rows(0)), tmp_path / "plain.onnx")
    with pytest.raises(ExportError, match=rf"^{tmp_path / 'plain.onnx'} has no head that icis-deploy made\.") as raised:
        own_backbone(tmp_path / "plain.onnx")
    assert raised.value.where == tmp_path / "plain.onnx"

    # As an optimizer may write it anew under the old name.
    turned = parsed_model(
        f"""{HEADER} g (float[3, 4] x) => (float[3, 5] y) {{
            t = Transpose (x) [node_head_logits] y = Gemm <transA = 1, transB = 1> (t, w, b)
        }}""",
        **dict(zip("wb", rows(0), strict=True)),
    )
    save_model(turned, tmp_path / "turned.onnx")
    with pytest.raises(
        ExportError, match=r"node_head_logits of the exported model cannot be read: its features are tr"
    ):
        own_backbone(tmp_path / "turned.onnx")


def test_slots_are_made_inputs_only_where_there_are_some(gemm):
    model, location = gemm
    fused = apply_passes(model, FuseHeadPass(location, expanded()))

    assert with_slots_as_inputs(fused) is fused
    with pytest.raises(UsageError, match=r"^The model has no slots.*`head='updatable'`"):
        apply_passes(fused, SlotsAsInputsPass())
    with_slots = with_slots_as_inputs(apply_passes(model, AddSlotsPass(location, CAPACITY)))
    assert {value.name for value in with_slots.graph.inputs} == {"x", "slot_weight", "slot_bias"}
    assert not {"slot_weight", "slot_bias"} & set(with_slots.graph.initializers)


def test_labels_of_new_classes_need_their_names():
    """A model that looks labels up gives those of new classes too, which nothing else would say."""
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] l, int64[batch] y)
        <int64[5] table = {{10, 11, 12, 13, 14}}> {{
            [head] l = Gemm <transB = 1> (x, w, b) best = ArgMax <axis = 1, keepdims = 0> (l) y = Gather (table, best)
        }}""",
        **dict(zip("wb", rows(0), strict=True)),
    )
    location = find_head(model)
    nameless = ExpandedHead(model=model, location=location, injected=new_rows())

    with pytest.raises(UsageError, match=r"gives chosen classes' labels, and 0 names are known for 8 classes"):
        apply_passes(model, FuseHeadPass(location, nameless))
    named = dataclasses.replace(nameless, class_names=(*NAMES, *NEW_NAMES))
    found = run_model(apply_passes(model, FuseHeadPass(location, named)), x=GRAPHS["gemm"].images(1))
    np.testing.assert_array_equal(found["y"], 10 + found["l"].argmax(axis=1))
