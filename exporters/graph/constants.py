"""Constants in an ONNX graph: which values never depend on an input, and what they are.

A head's weight is an initializer, or a few nodes over one: transposed, cast, dequantized, normalised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.edits import opset_of
from exporters.onnx_io.files import first_line
from icis_deploy.errors import ModelLoadError

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
_EVALUATED_DEQUANTIZATION_OPSET = 19
_RANDOM = ("Random", "Bernoulli", "Multinomial")


def is_constant(value: ir.Value | None) -> bool:
    """Say whether a value is the same whatever the graph's inputs are.

    An initializer that is also an input counts as constant: its default is what the model was trained to.
    """
    return value is not None and constant_nodes(value) is not None


def constant_nodes(value: ir.Value) -> list[ir.Node] | None:
    """Return the nodes that compute a constant, each after what feeds it; `None` if it depends on an input.

    For an initializer there are none.
    """
    ordered: dict[ir.Node, None] = {}
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        current, fed = stack.pop()
        node = current.producer()
        if node is None:
            if _default(current) is None:
                return None
        elif fed:
            ordered.setdefault(node)
        elif node not in ordered:
            if not _is_pure(node):
                return None
            stack.append((current, True))
            stack.extend((source, False) for source in node.inputs if source is not None)
    return list(ordered)


def constant_array(value: ir.Value) -> NDArray[Any]:
    """Return a constant's array, in the dtype that the graph gives it; of an initializer, without a copy.

    Raises:
        ModelLoadError: If it is not a constant, or the nodes that compute it cannot be evaluated.
    """
    if (stored := _default(value)) is not None:
        return np.asarray(stored.numpy())
    nodes = constant_nodes(value)
    if not nodes:
        raise ModelLoadError(
            f"The value {value.name!r} is not a constant: it depends on the model's input.",
            where=value.name,
        )
    return _evaluated(value, nodes)


def constant_shape(value: ir.Value) -> tuple[int, ...]:
    """Return a constant's shape, without computing a large one where the graph states it.

    Raises:
        ModelLoadError: As `constant_array`.
    """
    if (stored := _default(value)) is not None:
        return tuple(int(size) for size in stored.shape.numpy())
    if value.shape is not None and value.shape.is_static():
        return tuple(int(size) for size in value.shape.numpy())
    return constant_array(value).shape


def constant_size(value: ir.Value) -> int:
    """Return how many elements a constant has.

    Raises:
        ModelLoadError: As `constant_array`.
    """
    return math.prod(constant_shape(value))


def root_initializers(value: ir.Value) -> tuple[ir.Value, ...]:
    """Return the initializers that a constant is made of, the largest first; none if it is made of Constant nodes."""
    if _default(value) is not None:
        return (value,)
    sources = dict.fromkeys(
        source
        for node in constant_nodes(value) or []
        for source in node.inputs
        if source is not None and _default(source) is not None
    )
    return tuple(sorted(sources, key=lambda source: -constant_size(source)))


def _default(value: ir.Value) -> ir.TensorProtocol | None:
    """Return what an initializer holds; `None` for any other value."""
    return value.const_value if value.is_initializer() else None


def _is_pure(node: ir.Node) -> bool:
    if node.domain not in STANDARD_DOMAINS or node.op_type.startswith(_RANDOM):
        return False
    if any(kind.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for kind in node.attributes.values()):
        return False
    return node.op_type == "Constant" or any(source is not None for source in node.inputs)


def _evaluated(value: ir.Value, nodes: list[ir.Node]) -> NDArray[Any]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    inputs = (source for node in nodes for source in node.inputs if source is not None)
    sources = [source for source in inputs if _default(source) is not None]
    graph = nodes[-1].graph
    assert isinstance(graph, ir.Graph), "the nodes of a constant are in a graph"
    view = ir.GraphView((), (value,), nodes=nodes, initializers=tuple(dict.fromkeys(sources)), name="constant")
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
    try:
        graph_proto = ir.serde.serialize_graph(view)  # type: ignore[arg-type]  # the protocol asks for settable fields
        model = onnx.helper.make_model(graph_proto, opset_imports=opsets)
        (array,) = ReferenceEvaluator(model, new_ops=_operators_missing(opset_of(graph))).run(None, {})
    except Exception as error:  # the evaluator raises whatever numpy does, and its own types
        raise ModelLoadError(
            f"The constant {value.name!r} cannot be evaluated: {first_line(error)}.",
            found=first_line(error),
            where=value.name,
        ) from error
    return np.asarray(array)


def _operators_missing(opset: int) -> list[type]:
    """Return what onnx's evaluator lacks: it has DequantizeLinear in opset 19 and newer alone."""
    import onnx
    from onnx.reference.op_run import OpRun

    class DequantizeLinear(OpRun):  # the library asks for a subclass of that name
        op_domain = ""
        op_schema = onnx.defs.get_schema("DequantizeLinear", 13, "")

        def _run(
            self, x: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | None = None, axis: int = 1
        ) -> tuple[NDArray[Any]]:
            along = [1] * x.ndim
            if scale.size != 1:
                along[axis] = -1
            zero = np.float32(0) if zero_point is None else zero_point.astype(np.float32).reshape(along)
            return (((x.astype(np.float32) - zero) * scale.reshape(along)).astype(scale.dtype),)

    return [DequantizeLinear] if opset < _EVALUATED_DEQUANTIZATION_OPSET else []
