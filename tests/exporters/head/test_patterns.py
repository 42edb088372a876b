"""Features of unit length are recognised by how they are made, in the ways that exporters write it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from exporters.head.patterns import is_unit_length

GRAPH = """<ir_version: 10, opset_import: ["": 20]> g (float[b, 4] x, float[b, 4] z) => (float[b, 4] y)
<int64[1] axis = {1}, float tiny = {0.000000000001}, float two = {2}, float half = {0.5}, float three = {3},
int64[2] target = {-1, 4}> {
NODES
}"""


def made_by(nodes: str) -> ir.Value:
    model = ir.from_onnx_text(GRAPH.replace("NODES", nodes))
    return model.graph.outputs[0]


@pytest.mark.parametrize(
    "nodes",
    [
        "y = LpNormalization <axis = 1, p = 2> (x)",
        "y = LpNormalization (x)",
        "n = ReduceL2 (x, axis) y = Div (x, n)",
        "n = ReduceL2 (x, axis) c = Clip (n, tiny) s = Shape (x) e = Expand (c, s) y = Div (x, e)",
        "n = ReduceL2 (x, axis) c = Max (tiny, n) y = Div (x, c)",
        "n = ReduceL2 (x, axis) c = Add (n, tiny) r = Reciprocal (c) y = Mul (x, r)",
        "n = ReduceL2 (x, axis) r = Reciprocal (n) y = Mul (r, x)",
        "q = Mul (x, x) s = ReduceSum (q, axis) r = Sqrt (s) y = Div (x, r)",
        "q = Pow (x, two) s = ReduceSum (q, axis) a = Add (s, tiny) r = Sqrt (a) y = Div (x, r)",
        "s = ReduceSumSquare (x, axis) r = Pow (s, half) y = Div (x, r)",
        "n = ReduceL2 (x, axis) d = Div (x, n) r = Reshape (d, target) y = Identity (r)",
    ],
)
def test_what_is_divided_by_its_own_length_has_unit_length(nodes: str):
    assert is_unit_length(made_by(nodes))


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Relu (x)",
        "y = LpNormalization <p = 1> (x)",
        "n = ReduceL2 (z, axis) y = Div (x, n)",
        "n = ReduceL1 (x, axis) y = Div (x, n)",
        "n = ReduceSum (x, axis) y = Div (x, n)",
        "s = ReduceSumSquare (x, axis) y = Div (x, s)",
        "q = Mul (x, z) s = ReduceSum (q, axis) r = Sqrt (s) y = Div (x, r)",
        "q = Mul (x, x) s = ReduceSum (q, axis) y = Div (x, s)",
        "q = Pow (x, three) s = ReduceSum (q, axis) r = Sqrt (s) y = Div (x, r)",
        "s = ReduceSumSquare (x, axis) r = Pow (s, three) y = Div (x, r)",
        "n = ReduceL2 (x, axis) e = Exp (n) y = Div (x, e)",
        "y = Mul (x, two)",
        "y = Div (x, z)",
        "y = Identity (x)",
        "s = ReduceSum (x, axis) r = Sqrt (s) y = Div (x, r)",
        "q = Add (x, x) s = ReduceSum (q, axis) r = Sqrt (s) y = Div (x, r)",
        # A power that is computed may be any, a constant is nobody's length, and a search has an end.
        "p = ReduceL2 (x, axis) q = Pow (x, p) s = ReduceSum (q, axis) r = Sqrt (s) y = Div (x, r)",
        "c = Max (tiny, half) y = Div (x, c)",
        "n = ReduceL2 (x, axis) a = Add (n, tiny) b = Add (a, tiny) c = Add (b, tiny) d = Add (c, tiny) "
        "e = Add (d, tiny) f = Add (e, tiny) g = Add (f, tiny) h = Add (g, tiny) y = Div (x, h)",
    ],
)
def test_anything_else_does_not(nodes: str):
    assert not is_unit_length(made_by(nodes))
