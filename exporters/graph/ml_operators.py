"""Write the linear operators of ai.onnx.ml in ONNX's own: classifiers of scikit-learn as every other graph.

    LinearClassifier    Gemm, Softmax or Sigmoid after it; ArgMax and a table of labels
    Scaler              (x - offset) * scale
    Normalizer (L1)     nothing, after a Softmax, whose probabilities add up to 1 already

Source: ONNX ai.onnx.ml LinearClassifier-1, Scaler-1, Normalizer-1; what ONNX Runtime computes for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import STANDARD_DOMAINS
from exporters.graph.edits import add_initializer, add_node, remove_unused, unused_name
from exporters.graph.label_tables import ML_DOMAIN
from exporters.graph.reading import input_of, label
from icis_deploy.errors import ModelLoadError

_TRANSFORMS = {"NONE": None, "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}

UNLINEAR_CLASSIFIERS = {
    "SVMClassifier": "a support vector machine, which decides between pairs of classes",
    "TreeEnsembleClassifier": "an ensemble of trees",
    "TreeEnsemble": "an ensemble of trees",
    "TreeEnsembleRegressor": "an ensemble of trees",
}
"""Operators of ai.onnx.ml that classify without a row for each class, and what they are."""


@dataclass(frozen=True, slots=True)
class ReplaceMLOperatorsPass(ir.passes.InPlacePass):
    """Replace linear operators of ai.onnx.ml; a model without them is not modified.

    Raises:
        ModelLoadError: If a LinearClassifier does not have one row for each of its classes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them in place."""
        graph, modified = model.graph, False
        for node in list(graph):
            replace = _REPLACEMENTS.get(node.op_type) if node.domain == ML_DOMAIN else None
            modified |= replace is not None and replace(graph, node)
        return ir.passes.PassResult(model, modified=modified)


def _replace_linear_classifier(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace a LinearClassifier; its outputs, labels and scores, keep their names."""
    transform = node.attributes.get_string("post_transform", "NONE") or "NONE"
    names = node.attributes.get("classlabels_strings")
    numbers = node.attributes.get("classlabels_ints")
    labels = list(names.as_strings()) if names is not None else [] if numbers is None else list(numbers.as_ints())
    weight = np.array(node.attributes["coefficients"].as_floats(), dtype=np.float32)
    bias = np.array(node.attributes["intercepts"].as_floats() if "intercepts" in node.attributes else [], np.float32)
    rows = len(bias) or len(labels)
    if len(labels) != rows or rows < 2 or len(weight) % rows or transform not in _TRANSFORMS:
        raise ModelLoadError(
            f"The LinearClassifier {label(node)} has {rows} rows for {len(labels)} classes, followed by {transform}; "
            f"expected one row for each class, followed by {', '.join(_TRANSFORMS)}.",
            found=(rows, len(labels), transform),
            expected="one row for each class",
            where=label(node),
            hint="Train it with one row for each class (scikit-learn: at least 3 classes, or a softmax over 2).",
        )
    labelled, scores = node.outputs[0], node.outputs[1]
    base, features = str(scores.name), _as_float32(graph, node, input_of(node, 0))
    operands = [add_initializer(graph, f"{base}_weight", weight.reshape(rows, -1))]
    operands.append(add_initializer(graph, f"{base}_bias", bias if len(bias) else np.zeros(rows, np.float32)))
    batch = None if features.shape is None else features.shape[0]
    shape = ir.Shape([batch, rows])
    linear = add_node(
        graph,
        "Gemm",
        [features, *operands],
        before=node,
        name=f"{base}_logits",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        attributes={"transB": 1},
    )
    after = _TRANSFORMS[transform]
    attributes = {"axis": 1} if after == "Softmax" else {}
    given = add_node(
        graph,
        after or "Identity",
        [linear],
        before=node,
        name=f"{base}_given",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        attributes=attributes,
    )
    _take_over(graph, scores, given)
    if labelled.uses() or labelled.is_graph_output():
        best = add_node(
            graph,
            "ArgMax",
            [linear],
            before=node,
            name=f"{labelled.name}_id",
            dtype=ir.DataType.INT64,
            shape=ir.Shape([batch]),
            attributes={"axis": 1, "keepdims": 0},
        )
        found = add_node(
            graph,
            "Gather",
            [_table(graph, labels, f"{labelled.name}_table"), best],
            before=node,
            name=f"{labelled.name}_given",
            dtype=ir.DataType.STRING if names is not None else ir.DataType.INT64,
            shape=ir.Shape([batch]),
            attributes={"axis": 0},
        )
        _take_over(graph, labelled, found)
    remove_unused(graph, [node])
    return True


def _replace_scaler(graph: ir.Graph, node: ir.Node) -> bool:
    source = _as_float32(graph, node, input_of(node, 0))
    output = node.outputs[0]
    value = source
    for op_type, name in (("Sub", "offset"), ("Mul", "scale")):
        if name not in node.attributes:
            continue
        factor = add_initializer(
            graph, f"{output.name}_{name}", np.array(node.attributes[name].as_floats(), dtype=np.float32)
        )
        value = add_node(
            graph,
            op_type,
            [value, factor],
            before=node,
            name=f"{output.name}_{op_type.lower()}",
            dtype=ir.DataType.FLOAT,
            shape=source.shape if source.shape is not None else ir.Shape([None, None]),
        )
    if value is source:
        return False
    _take_over(graph, output, value)
    remove_unused(graph, [node])
    return True


def _replace_normalizer(graph: ir.Graph, node: ir.Node) -> bool:
    """Bypass a Normalizer that does nothing; where another one stays, it is refused as what follows a head."""
    before = input_of(node, 0).producer()
    is_softmax = before is not None and before.op_type == "Softmax" and before.domain in STANDARD_DOMAINS
    if not is_softmax or node.attributes.get_string("norm", "MAX") != "L1":
        return False
    source = input_of(node, 0)
    passed = add_node(
        graph,
        "Identity",
        [source],
        before=node,
        name=f"{node.outputs[0].name}_given",
        dtype=source.dtype,
        shape=source.shape if source.shape is not None else ir.Shape([None, None]),
    )
    _take_over(graph, node.outputs[0], passed)
    remove_unused(graph, [node])
    return True


_REPLACEMENTS = {
    "LinearClassifier": _replace_linear_classifier,
    "Normalizer": _replace_normalizer,
    "Scaler": _replace_scaler,
}


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let a value be used wherever another one was, under its name."""
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    name = str(old.name)
    old.name = unused_name(graph, f"{name}_replaced")
    new.name = name


def _as_float32(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return a value in float32, which these operators compute in."""
    if value.dtype == ir.DataType.FLOAT:
        return value
    return add_node(
        graph,
        "Cast",
        [value],
        before=node,
        name=f"{value.name}_float",
        dtype=ir.DataType.FLOAT,
        shape=value.shape if value.shape is not None else ir.Shape([None, None]),
        attributes={"to": int(ir.DataType.FLOAT)},
    )


def _table(graph: ir.Graph, labels: list[str] | list[int], name: str) -> ir.Value:
    name = unused_name(graph, name)
    shape = ir.Shape([len(labels)])
    tensor: ir.TensorProtocol
    if isinstance(labels[0], str):
        tensor = ir.StringTensor([str(each).encode() for each in labels], shape=shape, name=name)
    else:
        tensor = ir.Tensor(np.array(labels, dtype=np.int64), name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
