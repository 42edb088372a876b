"""A softmax in primitives becomes the operator that it is, and nothing else does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.graph.edits import apply_passes
from exporters.graph.softmax_fusion import FuseSoftmaxPass
from tests.exporters.head_graphs import parsed_model, run_model

IMAGES = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def model_of(steps: str, opset: int = 17, outputs: str = "float[n, 4] y") -> ir.Model:
    return parsed_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[n, 4] x) => ({outputs})
        <int64[1] one = {{1}}, int64[1] last = {{-1}}, int64[2] both = {{0, 1}}, int64[1] zero = {{0}},
            int64[2] column = {{-1, 1}}> {{ {steps} }}"""
    )


SHIFTED = "m = ReduceMax <axes = [1], keepdims = 1> (x) z = Sub (x, m) "


@pytest.mark.parametrize(
    ("steps", "operator"),
    [
        (SHIFTED + "e = Exp (z) s = ReduceSum (e, one) y = Div (e, s)", "Softmax"),
        (SHIFTED + "e = Exp (z) s = ReduceSum (e, last) y = Div (e, s)", "Softmax"),
        ("e = Exp (x) s = ReduceSum (e, one) y = Div (e, s)", "Softmax"),
        (SHIFTED + "e = Exp (z) s = ReduceSum (e, one) r = Reciprocal (s) y = Mul (r, e)", "Softmax"),
        (SHIFTED + "e = Exp (z) s = ReduceSum (e, one) c = Identity (s) y = Div (e, c)", "Softmax"),
        (SHIFTED + "e = Exp (z) s = ReduceSum (e, one) l = Log (s) y = Sub (z, l)", "LogSoftmax"),
        ("e = Exp (x) s = ReduceSum (e, one) l = Log (s) y = Sub (x, l)", "LogSoftmax"),
        ("s = ReduceLogSumExp <axes = [1]> (x) y = Sub (x, s)", "LogSoftmax"),
        ("s = ReduceLogSumExp <axes = [1], keepdims = 0> (x) c = Reshape (s, column) y = Sub (x, c)", "LogSoftmax"),
        ("s = ReduceLogSumExp <axes = [1]> (x) l = Sub (x, s) y = Exp (l)", "Softmax"),
        ("e = Exp (x) s = ReduceSum (e, one) r = Log (s) l = Sub (x, r) y = Exp (l)", "Softmax"),
        ("e = Exp (x) s = ReduceL1 <axes = [1]> (e) y = Div (e, s)", "Softmax"),
        ("e = Exp (x) s = ReduceL1 <axes = [-1]> (e) l = Log (s) y = Sub (x, l)", "LogSoftmax"),
        ("s = Softmax (x) y = Log (s)", "LogSoftmax"),
        ("s = Softmax <axis = 1> (x) c = Identity (s) y = Log (c)", "LogSoftmax"),
        ("l = LogSoftmax (x) y = Exp (l)", "Softmax"),
    ],
)
def test_a_softmax_in_primitives_is_one_operator(steps: str, operator: str):
    model = model_of(steps)

    fused = apply_passes(model, FuseSoftmaxPass())

    assert [node.op_type for node in fused.graph] == [operator]
    assert [output.name for output in fused.graph.outputs] == ["y"]
    np.testing.assert_allclose(run_model(fused, x=IMAGES)["y"], run_model(model, x=IMAGES)["y"], atol=1e-6)


@pytest.mark.parametrize(
    "steps",
    [
        "e = Exp (x) s = ReduceSum (e, both) y = Div (e, s)",
        "e = Exp (x) s = ReduceSum (e, zero) y = Div (e, s) f = Exp (y)",
        "e = Exp (x) t = Tanh (x) s = ReduceSum (t, one) y = Div (e, s)",
        "s = ReduceSum (x, one) y = Div (x, s)",
        "e = Exp (x) s = ReduceSum (e, one) y = Div (s, e)",
        "s = ReduceLogSumExp <axes = [0], keepdims = 0> (x) y = Sub (x, s)",
        "t = Tanh (x) s = ReduceLogSumExp <axes = [1]> (t) y = Sub (x, s)",
        "s = ReduceLogSumExp <axes = [1]> (x) y = Sub (s, x)",
    ],
)
def test_what_is_no_softmax_over_the_classes_is_left_or_keeps_its_axis(steps: str):
    model = model_of(steps)

    fused = apply_passes(model, FuseSoftmaxPass())

    np.testing.assert_allclose(run_model(fused, x=IMAGES)["y"], run_model(model, x=IMAGES)["y"], atol=1e-6)
    assert not any(node.op_type == "Softmax" and node.attributes["axis"].as_int() % 2 == 1 for node in fused.graph)


def test_a_step_that_is_an_output_too_stays():
    model = model_of(
        SHIFTED + "e = Exp (z) s = ReduceSum (e, one) y = Div (e, s)", outputs="float[n, 4] y, float[n, 4] z"
    )

    fused = apply_passes(model, FuseSoftmaxPass())

    assert sorted(node.op_type for node in fused.graph) == ["ReduceMax", "Softmax", "Sub"]
    after, before = run_model(fused, x=IMAGES), run_model(model, x=IMAGES)
    for name in ("y", "z"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
