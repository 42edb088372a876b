"""What stands in for float16 hardware rounds as float16 does, and overflows where it does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.gate.float16_emulation import EmulateFloat16Pass
from exporters.graph.edits import apply_passes
from tests.exporters.head_graphs import parsed_model, run_model

DOUBLED_AND_HALVED = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 8] x) => (float[batch, 8] y) {
    narrow = Cast <to = 10> (x)
    more = Mul (narrow, two)
    less = Mul (more, half)
    y = Cast <to = 1> (less)
}
"""


@pytest.fixture(scope="module")
def emulated() -> ir.Model:
    model = parsed_model(DOUBLED_AND_HALVED, two=np.float16([2]), half=np.float16([0.5]))
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = ir.TensorType(ir.DataType.FLOAT16)
                output.shape = ir.Shape(["batch", 8])
    return apply_passes(model, EmulateFloat16Pass())


def test_values_are_rounded_to_eleven_significant_bits(emulated: ir.Model) -> None:
    random = np.random.default_rng(0)
    x = (random.normal(size=(64, 8)) * 10 ** random.uniform(-3, 4, size=(64, 8))).astype(np.float32)
    x = x[(np.abs(x) < 3e4).all(axis=1)]

    found = run_model(emulated, x=x)["y"]

    np.testing.assert_array_equal(found, x.astype(np.float16).astype(np.float32))
    assert (found != x).mean() > 0.9


@pytest.mark.parametrize(
    ("value", "is_kept"), [(32752.0, True), (-32752.0, True), (32768.0, False), (-4e4, False), (7e4, False)]
)
def test_a_step_that_overflows_is_lost_although_the_next_would_bring_it_back(
    value: float, is_kept: bool, emulated: ir.Model
) -> None:
    """Twice 32752 is 65504, the greatest number of float16."""
    found = run_model(emulated, x=np.full((1, 8), value, np.float32))["y"]

    assert (found == value).all() if is_kept else not np.isfinite(found).any()


def test_nothing_of_float16_is_left(emulated: ir.Model) -> None:
    values = [output for node in emulated.graph for output in node.outputs]
    assert ir.DataType.FLOAT16 not in {value.dtype for value in (*values, *emulated.graph.initializers.values())}


def test_constants_that_a_node_makes_are_rounded_too() -> None:
    """A tensor in an attribute is no initializer: left in float16, the graph would mix the two types. 13653 is 1/3."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[batch, 8] x) => (float[batch, 8] y) {
        narrow = Cast <to = 10> (x)
        size = Shape (narrow)
        third = ConstantOfShape <value = float16[1] {13653}> (size)
        product = Mul (narrow, third)
        y = Cast <to = 1> (product)
    }"""
    emulated = apply_passes(parsed_model(text), EmulateFloat16Pass())

    found = run_model(emulated, x=np.full((1, 8), 3, np.float32))["y"]

    np.testing.assert_array_equal(found, np.float32(np.float16(3) * np.float16(1 / 3)))
    (node,) = (node for node in emulated.graph if node.op_type == "ConstantOfShape")
    assert node.attributes["value"].as_tensor().dtype == ir.DataType.FLOAT
