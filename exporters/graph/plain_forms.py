"""Write what can be said in several ways in the one that is looked for: nothing that a model computes changes.

    Squeeze without axes     with the axes whose length is 1 in the graph
    Sum of two               Add

A Squeeze without axes takes away the batch as well where that is one image: a model that gives `(batch, classes)` for
two images would give `(classes,)` for one. That is not meant, so where the batch alone is open the others are named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import STANDARD_DOMAINS
from exporters.graph.edits import add_initializer

_NUM_ADDED = 2


@dataclass(frozen=True, slots=True)
class PlainFormsPass(ir.passes.InPlacePass):
    """Rewrite such nodes; a model without them is not modified."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite them in place."""
        graph, modified = model.graph, False
        for node in list(graph):
            if node.domain not in STANDARD_DOMAINS:
                continue
            if node.op_type == "Sum" and len(node.inputs) == _NUM_ADDED:
                node.op_type = "Add"
                modified = True
            elif node.op_type == "Squeeze":
                modified |= _name_axes(graph, node)
        return ir.passes.PassResult(model, modified=modified)


def _name_axes(graph: ir.Graph, node: ir.Node) -> bool:
    """Name the axes of a Squeeze that names none, where it is known which they are."""
    source = node.inputs[0]
    if any(value is not None for value in node.inputs[1:]) or source is None or not source.shape:
        return False
    batch, *others = source.shape
    if isinstance(batch, int) or not all(isinstance(size, int) for size in others):
        return False  # nothing is open, or more than the batch is, which may be of length 1 and meant
    axes = [axis for axis, size in enumerate(others, start=1) if size == 1]
    named = add_initializer(graph, f"{node.outputs[0].name}_axes", np.array(axes, dtype=np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, named)
    return True
