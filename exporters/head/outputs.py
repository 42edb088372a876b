"""The outputs of an edited classifier: scores first, features last.

scores    (batch, num_classes)  under the name that the original has for them
...                             the original's other outputs, unchanged
features  (batch, feature_dim)  float32, if asked for
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporters.graph.edits import add_node, free_name, unused_name
from exporters.graph.reading import shape_of
from exporters.head.feature_matrix import add_feature_matrix
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.patterns import HeadPattern
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import FEATURES
from icis_deploy.errors import ExportError, IncompatibleError


def require_room_for_features(location: HeadLocation, model: ir.Model) -> None:
    """Raise `IncompatibleError` if `features` is an input, or an output that does not feed the head in float32."""
    require_unused(model.graph.inputs, "input", [FEATURES])
    pattern = pattern_at(model, location)
    for output in model.graph.outputs:
        if output.name == FEATURES and not has_features(pattern):
            raise IncompatibleError(
                f"The model has an output {FEATURES!r} already, which is not what feeds the head {location.node_name} "
                f"in float32.",
                found=FEATURES,
                hint="Rename it in the model.",
            )


def require_unused(values: Sequence[ir.Value], kind: str, names: Sequence[str]) -> None:
    """Raise `IncompatibleError` if an input or output of a model has a name that an export needs.

    Args:
        values: All inputs, or all outputs.
        kind: `input` or `output`.
        names: Those that must be free.
    """
    for value in values:
        if value.name in names:
            raise IncompatibleError(
                f"The model has an {kind} {value.name!r}; a bundle's model uses that name itself.",
                found=value.name,
                hint="Rename it in the model.",
            )


def has_features(pattern: HeadPattern) -> bool:
    """Say whether the model gives its head's features already, in the form that `add_features` adds."""
    features = pattern.features
    is_output = features.name == FEATURES and features.is_graph_output()
    return is_output and not pattern.positions and features.dtype == ir.DataType.FLOAT


def add_features(graph: ir.Graph, pattern: HeadPattern) -> ir.Value:
    """Make the features the last output, called `features` and in float32, and return it."""
    if has_features(pattern):
        graph.outputs[:] = [*(output for output in graph.outputs if output is not pattern.features), pattern.features]
        return pattern.features
    features = add_feature_matrix(graph, pattern)
    free_name(graph, FEATURES)
    if features.dtype == ir.DataType.FLOAT and features.producer() is not None and not features.is_graph_output():
        features.name = FEATURES
        graph.outputs.append(features)
        return features
    # An input, or another output's name, cannot be changed; and a device reads float32 whatever the model's precision.
    output = add_node(
        graph,
        "Cast",
        [features],
        name=FEATURES,
        dtype=ir.DataType.FLOAT,
        shape=shape_of(features),
        attributes={"to": ir.DataType.FLOAT},
    )
    graph.outputs.append(output)
    return output


def put_scores_first(graph: ir.Graph, location: HeadLocation, logits: ir.Value) -> None:
    """Make the output with the scores the first one, and `(batch, n)`; `logits` if there is no such output.

    Logits that were no output become one in float32, whatever the model's precision: a device reads them.
    """
    outputs = list(graph.outputs)
    scores = next((output for output in outputs if output.name == location.output_name), None)
    first = _flattened(graph, _in_float32(graph, logits) if scores is None else scores)
    graph.outputs[:] = [first, *(output for output in outputs if output is not scores)]


def ensure_outputs(location: HeadLocation, model: ir.Model, *, num_classes: int, features: bool) -> None:
    """Raise `ExportError` if an edited graph is not valid, or its outputs are not what surgery promises.

    Args:
        location: The head.
        model: The edited graph.
        num_classes: How many scores the first output must have.
        features: Whether the last output must be the features.
    """
    check_model(model)
    scores, last = model.graph.outputs[0], model.graph.outputs[-1]
    fits = scores.shape is not None and len(scores.shape) == 2 and scores.shape[1] == num_classes
    if scores.name != location.output_name or not fits:
        raise ExportError(
            f"The first output of the edited graph is {scores.name!r} {scores.shape}; expected "
            f"{location.output_name!r} with {num_classes} classes.",
            found=(scores.name, str(scores.shape)),
            expected=(location.output_name, num_classes),
        )
    wanted = (location.feature_dim, ir.DataType.FLOAT)
    if features and (last.shape is None or (last.shape[1], last.dtype) != wanted or last.name != FEATURES):
        raise ExportError(
            f"The edited graph ends in the output {last.name!r} {last.shape}; expected {FEATURES!r}.",
            found=last.name,
            expected=FEATURES,
        )


def _in_float32(graph: ir.Graph, logits: ir.Value) -> ir.Value:
    """Return logits in float32 under their own name."""
    if logits.dtype == ir.DataType.FLOAT:
        return logits
    name = str(logits.name)
    logits.name = unused_name(graph, f"{name}_narrow")
    to = int(ir.DataType.FLOAT)
    return add_node(
        graph, "Cast", [logits], name=name, dtype=ir.DataType.FLOAT, shape=shape_of(logits), attributes={"to": to}
    )


def _flattened(graph: ir.Graph, scores: ir.Value) -> ir.Value:
    """Return scores as `(batch, n)` under their own name; the axes that go have length 1."""
    batch, *rest = shape_of(scores)
    if len(rest) == 1:
        return scores
    name = str(scores.name)
    (num_classes,) = [dim for dim in rest if dim != 1] or [1]
    flat = add_node(
        graph,
        "Flatten",
        [scores],
        name=name,
        dtype=scores.dtype,
        shape=ir.Shape([batch, num_classes]),
        attributes={"axis": 1},
    )
    scores.name, flat.name = flat.name, name
    return flat
