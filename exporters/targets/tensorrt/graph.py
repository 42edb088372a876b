"""The graphs that TensorRT is given: a bundle's `model.onnx` with its slots as inputs, or as refittable weights.

TensorRT's parser lets an initializer win over an input of the same name, so slots with defaults would become constants.
Bytes may only be an engine's input, and nothing but a cast may take them (TensorRT developer guide, "Types"): what
`pixel_input.py` does to bytes, which are fewer, is done to floats here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import constant_array
from exporters.graph.edits import add_initializer, add_node, apply_passes, remove_unused, replace_uses
from exporters.graph.reading import input_of, shape_of
from exporters.head.slot_inputs import SlotsAsInputsPass, has_slots, require_slots
from exporters.head.stored_rows import UnpackRowsPass
from exporters.head.tail import resized
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT

SLOT_ROWS = "slot_rows"
"""Name of the weight `(feature_dim + 1, capacity)` float32 that a refit replaces; of a model with an arbiter it also
replaces `SLOT_ARBITER`, `(5, capacity)` float32."""


def graph_for_tensorrt(model: ir.Model, *, refit: bool = False) -> ir.Model:
    """Return the graph of a bundle's model that TensorRT is given; the model itself where it needs no change.

    Args:
        model: A bundle's `model.onnx`.
        refit: Whether its slots are weights that are refitted, and not inputs.

    Raises:
        UsageError: If there are no slots to refit.
        ExportError: If the edited graph is not valid.
    """
    slots = [RefittableSlotsPass()] if refit else [SlotsAsInputsPass()] if has_slots(model) else []
    return apply_passes(model, UnpackRowsPass(), CastPixelsFirstPass(), *slots)


def refittable_weights(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the weights that a refit replaces, of a model with slots."""
    return (SLOT_ROWS, SLOT_ARBITER) if SLOT_ARBITER in model.graph.initializers else (SLOT_ROWS,)


@dataclass(frozen=True, slots=True)
class RefittableSlotsPass(ir.passes.InPlacePass):
    """Make the slots one weight, `SLOT_ROWS`, that a refit may replace, and their arbiters another one, `SLOT_ARBITER`.

    The bias is a further row of the weight, multiplied by a feature that is always 1: a refit may drop the bias of a
    GEMM and treat it as zero (TensorRT 11.3, release notes).

    Raises:
        UsageError: If the model has no slots.
        ExportError: If the edited graph is not valid.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise if there are no slots."""
        require_slots(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the slots' Gemm in place."""
        graph = model.graph
        weight, bias = graph.initializers[SLOT_WEIGHT], graph.initializers[SLOT_BIAS]
        ((gemm, _index),) = weight.uses()
        rows = np.concatenate([constant_array(weight), constant_array(bias)[:, None]], axis=1)
        logits = _rows_product(graph, input_of(gemm, 0), np.ascontiguousarray(rows.T))
        replace_uses(graph, gemm.outputs[0], logits)
        remove_unused(graph, [gemm])
        if (arbiter := graph.initializers.get(SLOT_ARBITER)) is not None:
            _make_columns(graph, arbiter)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


@dataclass(frozen=True, slots=True)
class CastPixelsFirstPass(ir.passes.InPlacePass):
    """Cast pixels to float32 before anything else; a model that takes none is not modified.

    Raises:
        ExportError: If the edited graph is not valid.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move the cast in place."""
        graph = model.graph
        pixels = next((value for value in graph.inputs if value.dtype == ir.DataType.UINT8), None)
        if pixels is None or pixels.shape is None or all(node.op_type == "Cast" for node, _ in pixels.uses()):
            return ir.passes.PassResult(model, modified=False)
        users = list(pixels.uses())
        cast = add_node(
            graph,
            "Cast",
            [pixels],
            name=f"{pixels.name}_cast",
            dtype=ir.DataType.FLOAT,
            shape=pixels.shape,
            before=graph[0],
            attributes={"to": int(ir.DataType.FLOAT)},
        )
        for node, index in users:
            node.replace_input_with(index, cast)
        # What only moves bytes moves floats now; the cast that ended it casts nothing any more, which is allowed.
        for node in graph:
            for output in node.outputs:
                if output.dtype == ir.DataType.UINT8:
                    output.type = ir.TensorType(ir.DataType.FLOAT)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


def _rows_product(graph: ir.Graph, features: ir.Value, rows: np.ndarray) -> ir.Value:
    """Add `[features | 1] @ rows`; return the logits."""
    shape, feature_dim, capacity = shape_of(features), rows.shape[0] - 1, rows.shape[1]
    pads = add_initializer(graph, "slot_pads", np.array([0, 0, 0, 1], dtype=np.int64))
    one = add_initializer(graph, "slot_one", np.array(1, dtype=np.float32))
    padded = add_node(
        graph,
        "Pad",
        [features, pads, one],
        name="features_and_one",
        dtype=ir.DataType.FLOAT,
        shape=resized(shape, 1, feature_dim + 1),
    )
    return add_node(
        graph,
        "MatMul",
        [padded, add_initializer(graph, SLOT_ROWS, rows)],
        name="slot_products",
        dtype=ir.DataType.FLOAT,
        shape=resized(shape, 1, capacity),
    )


def _make_columns(graph: ir.Graph, arbiter: ir.Value) -> None:
    """Make the input with a row of coefficients for each slot a constant with a column for each."""
    ((gemm, _index),) = arbiter.uses()
    gemm.attributes["transB"] = ir.AttrInt64("transB", 0)
    columns = np.ascontiguousarray(constant_array(arbiter).T)
    graph.inputs.remove(arbiter)
    arbiter.const_value, arbiter.shape = ir.Tensor(columns, name=arbiter.name), ir.Shape(columns.shape)
