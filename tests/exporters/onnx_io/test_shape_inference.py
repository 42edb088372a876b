"""Shapes that ONNX's own inference leaves open."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx_io.shape_inference import infer_shapes
from tests.exporters.head_graphs import parsed_model

VIEW = """sizes = Shape (x) batch_size = Gather (sizes, first) target = Concat <axis = 0> (batch_size, rest)
    h = Reshape (x, target)"""
CONSTANTS = "<int64[1] first = {0}, int64[1] rest = {-1}, int64[3] rest_of_map = {-1, 2, 1}>"


def value_named(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


@pytest.mark.parametrize("opset", [13, 14, 20])
@pytest.mark.parametrize(
    ("body", "weight_shape", "expected"),
    [
        (f"{VIEW} y = Gemm <transB = 1> (h, w)", (5, 12), ["batch", "12"]),
        (f"{VIEW} y = Gemm (h, w)", (12, 5), ["batch", "12"]),
        (f"{VIEW} y = MatMul (h, w)", (12, 5), ["batch", "12"]),
        (f"{VIEW.replace('rest)', 'rest_of_map)')} y = Conv (h, w)", (5, 6, 1, 1), ["batch", "6", "2", "1"]),
    ],
    ids=["gemm, rows first", "gemm", "matmul", "conv"],
)
def test_what_a_linear_operator_takes_is_as_wide_as_its_weight(
    opset: int, body: str, weight_shape: tuple[int, ...], expected: list[str]
):
    model = parsed_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[batch, 4, 3, 1] x) => (float y) {CONSTANTS} {{
            {body}
        }}""",
        w=np.ones(weight_shape, dtype=np.float32),
    )

    shape = value_named(model, "h").shape
    assert shape is not None
    assert [str(size) for size in shape] == expected
    assert model.opset_imports[""] == opset


def test_a_matrix_of_unknown_shape_has_its_weights_width():
    model = parsed_model(
        """<ir_version: 8, opset_import: ["": 20, "elsewhere": 1]> g (float[batch, 4] x) => (float y) {
            h = elsewhere.Something (x)
            l = Gemm <transB = 1> (h, w)
            m = Softmax (l)
            y = Identity (m)
        }""",
        w=np.ones((5, 7), dtype=np.float32),
    )

    shapes = [value_named(model, name).shape for name in ("h", "l", "m")]
    assert [None if shape is None else list(shape)[1] for shape in shapes] == [7, 5, 5]


def test_widths_that_are_known_and_products_of_two_values_stay_as_they_are():
    model = parsed_model(
        """<ir_version: 8, opset_import: ["": 20]> g (float[batch, n] x, float[m, k] z) => (float y) {
            h = Relu (x)
            y = MatMul (h, z)
        }"""
    )

    infer_shapes(model)

    shape = value_named(model, "h").shape
    assert shape is not None
    assert [str(size) for size in shape] == ["batch", "n"]


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(
    ("rest", "expected"),
    [("rest", ["n", "12"]), ("three, rest", ["n", "3", "4"]), ("rest, three", ["n", "4", "3"])],
)
def test_a_reshape_that_leaves_one_size_open_gives_as_many_numbers_as_it_takes(
    opset: int, rest: str, expected: list[str]
):
    """As `x.view(len(x), -1)` of PyTorch: what follows a head of 1x1 convolutions needs the classes."""
    model = parsed_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[n, 12, 1, 1] x) => (float y)
            <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] rest = {{-1}}, int64[1] three = {{3}}> {{
            sizes = Shape (x) first = Slice (sizes, zero, one) target = Concat <axis = 0> (first, {rest})
            flat = Reshape (x, target) y = Relu (flat)
        }}"""
    )

    for name in ("flat", "y"):
        shape = value_named(model, name).shape
        assert shape is not None
        assert [str(size) for size in shape] == expected


def test_a_reshape_that_no_size_fits_is_left_open():
    model = parsed_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[n, 12] x) => (float y)
            <int64[1] zero = {0}, int64[1] one = {1}, int64[2] rest = {5, -1}> {
            sizes = Shape (x) first = Slice (sizes, zero, one) target = Concat <axis = 0> (first, rest)
            y = Reshape (x, target)
        }"""
    )

    shape = value_named(model, "y").shape
    assert shape is not None
    assert not isinstance(shape[2], int)
