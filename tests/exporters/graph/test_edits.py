"""Names that edits give to values."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import pytest

from exporters.graph.edits import free_name, unused_name, unused_names

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[b] x) => (float[b] y) <float w = {1}> {
    a = Mul (x, w)
    y = If (c) <
        then_branch = t () => (float[b] inner) { inner = Identity (a) },
        else_branch = e () => (float[b] other) { other = Neg (a) }
    >
}"""


@pytest.fixture
def graph() -> ir.Graph:
    return ir.from_proto(onnx.parser.parse_model(TEXT)).graph


@pytest.mark.parametrize("name", ["x", "w", "a", "y", "inner", "other"])
def test_a_name_that_any_value_has_gets_a_number(graph: ir.Graph, name: str):
    assert unused_name(graph, name) == f"{name}_1"


def test_many_names_are_unused_and_differ_from_each_other(graph: ir.Graph):
    assert unused_names(graph, ["new", "a", "a_1", "a", "new"]) == ["new", "a_1", "a_1_1", "a_2", "new_1"]


def test_a_name_is_freed_of_inner_values_and_kept_by_inputs_and_outputs(graph: ir.Graph):
    for name in ("a", "x", "y"):
        free_name(graph, name)

    assert [value.name for value in graph.inputs] == ["c", "x"]
    assert graph.outputs[0].name == "y"
    assert graph[0].outputs[0].name == "a_inner"
