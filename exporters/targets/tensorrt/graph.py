"""The graphs that TensorRT is given: a bundle's `model.onnx` with its slots as inputs, or as refittable weights.

TensorRT's parser lets an initializer win over an input of the same name, so slots with defaults would become constants.
Bytes may only be an engine's input, and nothing but a cast may take them (TensorRT developer guide, "Types"): what
`pixel_input.py` does to bytes, because there are fewer of them, is done to floats here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import GraphPass, add_initializer, add_node, remove_unused, replace_uses, run_pass
from exporters.head.tail import resized
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import UsageError

SLOT_ROWS = "slot_rows"
"""Name of the weight `(feature_dim + 1, capacity)` float32 that a refit replaces."""


def graph_for_tensorrt(model: ir.Model, *, refit: bool = False) -> ir.Model:
    """Return what TensorRT is given of a bundle's model; the model itself where it can stay as it is.

    Args:
        model: A bundle's `model.onnx`.
        refit: Whether its slots are weights that are refitted, and not inputs.

    Raises:
        UsageError: If there are no slots to refit.
        ExportError: If the edited graph is not valid.
    """
    prepared = with_pixels_cast_first(model)
    if refit:
        return with_refittable_slots(prepared)
    return with_slots_as_inputs(prepared) if has_slots(prepared) else prepared


def has_slots(model: ir.Model) -> bool:
    """Say whether a model has slots with defaults, as `add_slots` makes them."""
    return {SLOT_WEIGHT, SLOT_BIAS} <= model.graph.initializers.keys()


def with_slots_as_inputs(model: ir.Model) -> ir.Model:
    """Return a copy whose slots are inputs without defaults, of fixed shape.

    Raises:
        UsageError: If the model has no slots.
        ExportError: If the edited graph is not valid.
    """

    def call(copy: ir.Model) -> bool:
        for name in (SLOT_WEIGHT, SLOT_BIAS):
            copy.graph.initializers.pop(name)
        return True

    return run_pass(GraphPass(requires=_require_slots, call=call, ensures=check_model), model).model


def with_refittable_slots(model: ir.Model) -> ir.Model:
    """Return a copy whose slots are one weight, `SLOT_ROWS`, that a refit may replace.

    The bias is a further row of the weight, multiplied by a feature that is always 1: a refit may drop the bias of a
    GEMM and treat it as zero (TensorRT 11.3, release notes).

    Raises:
        UsageError: If the model has no slots.
        ExportError: If the edited graph is not valid.
    """

    def call(copy: ir.Model) -> bool:
        graph = copy.graph
        weight, bias = graph.initializers[SLOT_WEIGHT], graph.initializers[SLOT_BIAS]
        assert weight.const_value is not None
        assert bias.const_value is not None
        ((gemm, _index),) = weight.uses()
        features = gemm.inputs[0]
        assert features is not None
        assert features.shape is not None
        rows = np.concatenate([weight.const_value.numpy(), bias.const_value.numpy()[:, None]], axis=1)
        logits = _rows_product(graph, features, np.ascontiguousarray(rows.T))
        replace_uses(graph, gemm.outputs[0], logits)
        remove_unused(graph, [gemm])
        return True

    return run_pass(GraphPass(requires=_require_slots, call=call, ensures=check_model), model).model


def with_pixels_cast_first(model: ir.Model) -> ir.Model:
    """Return a copy that casts pixels to float32 before anything else; the model itself where it takes none.

    Raises:
        ExportError: If the edited graph is not valid.
    """
    return run_pass(GraphPass(requires=lambda _model: None, call=_cast_pixels, ensures=check_model), model).model


def _cast_pixels(model: ir.Model) -> bool:
    graph = model.graph
    pixels = next((value for value in graph.inputs if value.dtype == ir.DataType.UINT8), None)
    if pixels is None or pixels.shape is None or all(node.op_type == "Cast" for node, _ in pixels.uses()):
        return False
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
    return True


def _rows_product(graph: ir.Graph, features: ir.Value, rows: np.ndarray) -> ir.Value:
    """Add `[features | 1] @ rows`; return the logits."""
    assert features.shape is not None
    feature_dim, capacity = rows.shape[0] - 1, rows.shape[1]
    pads = add_initializer(graph, "slot_pads", np.array([0, 0, 0, 1], dtype=np.int64))
    one = add_initializer(graph, "slot_one", np.array(1, dtype=np.float32))
    padded = add_node(
        graph,
        "Pad",
        [features, pads, one],
        name="features_and_one",
        dtype=ir.DataType.FLOAT,
        shape=resized(features.shape, 1, feature_dim + 1),
    )
    return add_node(
        graph,
        "MatMul",
        [padded, add_initializer(graph, SLOT_ROWS, rows)],
        name="slot_products",
        dtype=ir.DataType.FLOAT,
        shape=resized(features.shape, 1, capacity),
    )


def _require_slots(model: ir.Model) -> None:
    if not has_slots(model):
        raise UsageError(
            "The model has no slots, so there is nothing to refit or to feed.",
            hint="Export it with `head='updatable'`.",
        )
