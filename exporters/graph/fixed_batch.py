"""A graph for one batch size alone, as converters need that do not follow an open batch through every operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.onnx_io.files import check_model


@dataclass(frozen=True, slots=True)
class FixBatchPass(ir.passes.InPlacePass):
    """Fix the batch of a graph's first input, and every other size that has the same name.

    Sizes under other names stay open, for the converter to compute.

    Raises:
        ExportError: If the edited graph is not valid.
    """

    size: int
    """The batch."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fix it in place; a batch that is a number already stays as it is."""
        image = model.graph.inputs[0]
        batch = None if image.shape is None else image.shape[0]
        if image.shape is None or isinstance(batch, int):
            return ir.passes.PassResult(model, modified=False)
        _fix_first(image, self.size)
        outputs = [output for node in model.graph.all_nodes() for output in node.outputs]
        for value in outputs:
            if value.shape is not None and batch is not None and batch.value is not None:
                sizes = [
                    self.size if isinstance(size, ir.SymbolicDim) and size == batch else size for size in value.shape
                ]
                value.shape = ir.Shape(sizes)
        for value in model.graph.outputs:
            if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
                _fix_first(value, self.size)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


def _fix_first(value: ir.Value, size: int) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([size, *list(value.shape)[1:]])
