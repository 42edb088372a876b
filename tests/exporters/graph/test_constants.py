"""Constants are told from what depends on the input, and computed as the graph would."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from exporters.graph.constants import (
    constant_array,
    constant_nodes,
    constant_shape,
    constant_size,
    is_constant,
    root_initializers,
)
from icis_deploy.errors import ModelLoadError
from tests.exporters.head_graphs import run_model

TEXT = """<ir_version: 10, opset_import: ["": 20, "local": 1]> g (float[b, 2] x, float[2] given) => (float y)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] small = {2, 4}, int64[1] axis = {1}, float[2] given = {7, 8}> {
    turned = Transpose (w)
    length = ReduceL2 (w, axis)
    unit = Div (w, length)
    ratio = Div (small, small)
    literal = Constant <value = float[2] {1, 2}> ()
    noise = RandomNormal <shape = [2]> ()
    noisy = Add (small, noise)
    foreign = local.Anything (small)
    dependent = Mul (x, small)
    sized = Shape (x)
    twice = Add (turned, turned)
}"""


@pytest.fixture
def values() -> dict[str, ir.Value]:
    """All values of a graph by name."""
    graph = ir.from_proto(onnx.parser.parse_model(TEXT)).graph
    found = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return {str(value.name): value for value in found}


@pytest.mark.parametrize("name", ["w", "turned", "unit", "ratio", "literal", "given", "twice"])
def test_what_never_changes_is_constant(values, name: str):
    assert is_constant(values[name])


@pytest.mark.parametrize("name", ["x", "dependent", "sized", "noise", "noisy", "foreign"])
def test_what_may_change_is_not(values, name: str):
    assert not is_constant(values[name])
    with pytest.raises(ModelLoadError, match=f"The value '{name}' is not a constant: it depends on the model's input"):
        constant_array(values[name])


def test_an_absent_input_is_not_constant():
    assert not is_constant(None)


def test_constants_are_computed_as_the_graph_would(values):
    weight = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)

    np.testing.assert_array_equal(constant_array(values["w"]), weight)
    np.testing.assert_array_equal(constant_array(values["turned"]), weight.T)
    np.testing.assert_array_equal(constant_array(values["twice"]), 2 * weight.T)
    np.testing.assert_array_equal(constant_array(values["literal"]), [1, 2])
    np.testing.assert_allclose(constant_array(values["unit"]), weight / np.linalg.norm(weight, axis=1, keepdims=True))
    assert constant_array(values["unit"]).dtype == np.float32


def test_each_node_of_a_constant_comes_after_what_feeds_it_and_once(values):
    nodes = constant_nodes(values["unit"])
    assert [node.op_type for node in nodes] == ["ReduceL2", "Div"]
    assert [node.op_type for node in constant_nodes(values["twice"])] == ["Transpose", "Add"]
    assert constant_nodes(values["w"]) == []


def test_shapes_are_known_without_computing_the_constant(values):
    values["unit"].shape = ir.Shape([3, 2])

    assert constant_shape(values["unit"]) == (3, 2)
    assert constant_shape(values["w"]) == (3, 2)
    assert constant_shape(values["turned"]) == (2, 3)
    assert constant_size(values["w"]) == 6


def test_the_largest_initializer_of_a_constant_comes_first(values):
    assert [value.name for value in root_initializers(values["unit"])] == ["w", "axis"]
    assert [value.name for value in root_initializers(values["w"])] == ["w"]
    assert root_initializers(values["literal"]) == ()


def test_bfloat16_is_read_exactly():
    array = np.array([1.5, -2.25], dtype=ml_dtypes.bfloat16)
    value = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    ir.Graph([], [], nodes=[], initializers=[value])

    np.testing.assert_array_equal(constant_array(value).astype(np.float32), [1.5, -2.25])


def test_a_constant_that_cannot_be_computed_says_so():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float y)
        <float[2] a = {1, 2}, float[3] b = {1, 2, 3}> { bad = Add (a, b) }"""
    )

    with pytest.raises(ModelLoadError, match="The constant 'bad' cannot be evaluated: ") as caught:
        constant_array(model.graph[0].outputs[0])

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opset", [13, 18, 20])
@pytest.mark.parametrize(
    ("stored", "scale", "zero_point", "axis"),
    [
        ("int8[2, 3] q = {-128, -1, 0, 1, 2, 127}", "float s = {0.5}", "int8 z = {0}", 1),
        ("int8[2, 3] q = {-128, -1, 0, 1, 2, 127}", "float[1] s = {0.5}", "int8[1] z = {3}", 0),
        ("uint8[2, 3] q = {0, 1, 128, 129, 254, 255}", "float[3] s = {0.5, 1, 2}", "uint8[3] z = {128, 0, 1}", 1),
        ("uint8[2, 3] q = {0, 1, 128, 129, 254, 255}", "float[2] s = {0.5, 3}", "uint8[2] z = {128, 0}", -2),
        ("int32[3] q = {-70000, 5, 70000}", "float[1] s = {0.001}", "", 1),
        ("int32[3] q = {-70000, 5, 70000}", "float[3] s = {0.001, 1, 2}", "", 0),
    ],
    ids=["one scale", "one scale as a vector", "per column", "per row", "bias, one scale", "bias, per row"],
)
def test_stored_integers_are_dequantized_as_the_runtime_does(
    opset: int, stored: str, scale: str, zero_point: str, axis: int
):
    given = ", ".join(part for part in (stored, scale, zero_point) if part)
    model = ir.from_proto(
        onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": {opset}]> g () => (float y) <{given}> {{
            y = DequantizeLinear <axis = {axis}> (q, s{", z" if zero_point else ""})
        }}""")
    )

    found = constant_array(model.graph.outputs[0])

    np.testing.assert_array_equal(found, run_model(model)["y"])
    assert found.dtype == np.float32
