"""Names that edits give to values, and how passes run."""

from __future__ import annotations

from dataclasses import dataclass

import onnx.parser
import onnx_ir as ir
import pytest

from exporters.graph.edits import apply_passes, free_name, unused_name, unused_names
from icis_deploy.errors import ExportError

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


@dataclass(frozen=True)
class RenamePass(ir.passes.InPlacePass):
    """Calls the graph by another name, or raises."""

    name: str
    error: Exception | None = None
    stage: str = "call"

    def requires(self, model: ir.Model) -> None:
        self._raise_at("requires")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        is_new = model.graph.name != self.name
        model.graph.name = self.name
        self._raise_at("call")
        return ir.passes.PassResult(model, modified=is_new)

    def ensures(self, model: ir.Model) -> None:
        self._raise_at("ensures")

    def _raise_at(self, stage: str) -> None:
        if self.error is not None and self.stage == stage:
            raise self.error


def test_passes_edit_one_copy_in_order_and_leave_the_model():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))

    edited = apply_passes(model, RenamePass("first"), RenamePass("second"))

    assert (model.graph.name, edited.graph.name) == ("g", "second")
    assert edited.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value


def test_a_model_that_no_pass_modifies_is_returned_itself():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))

    assert apply_passes(model, RenamePass("g"), RenamePass("g")) is model


@pytest.mark.parametrize("stage", ["requires", "call", "ensures"])
def test_our_own_errors_come_out_of_passes_as_they_were_raised(stage: str):
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    error = ExportError("The edited graph is not valid ONNX.")

    with pytest.raises(ExportError) as caught:
        apply_passes(model, RenamePass("first"), RenamePass("second", error=error, stage=stage))

    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert model.graph.name == "g"


def test_an_error_that_is_not_ours_keeps_the_library_s_account_of_where_it_was_raised():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))

    with pytest.raises(ir.passes.PassError, match="second") as caught:
        apply_passes(model, RenamePass("first"), RenamePass("second", error=ZeroDivisionError()))

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
