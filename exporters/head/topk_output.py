"""Let a model choose: the most probable classes and their probabilities as two small outputs.

    scores             (batch, num_outputs)  as before, first
    top_probabilities  (batch, top)          float32, the greatest first
    top_class_ids      (batch, top)          int64: which score each is of
    ...                                      what else the model gives

A runtime computes the scores anyway, and hands over what it is asked for: so they stay an output, which a device needs
for its self-test, and where classes are disabled. Classes are ranked by their scores and not by rounded probabilities,
equal ones in the order of the head, as `Device.predict` ranks them.
"""

# Why: docs/decisions/0046.

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import GraphPass, add_initializer, free_name, remove_unused, run_pass, unused_name
from exporters.head.outputs import require_unused
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import TOP_CLASS_IDS, TOP_PROBABILITIES
from icis_deploy.errors import ExportError, UsageError


def add_top(model: ir.Model, score_kind: str, top: int) -> ir.Model:
    """Return a copy that also gives the `top` most probable classes of each image.

    Args:
        model: Its first output holds the scores.
        score_kind: What they are; see `Bundle.score_kind`.
        top: How many classes.

    Raises:
        IncompatibleError: If another output has a name that the choice needs.
        UsageError: If there are not so many scores.
        ExportError: If the edited graph is not valid.
    """
    return run_pass(top_pass(score_kind, top), model).model


def without_top(model: ir.Model) -> ir.Model:
    """Return a copy without the choice that `add_top` added; the model itself where it makes none.

    So a model that was exported can be exported again: the choice is no part of what follows its head.
    """
    if [output.name for output in model.graph.outputs[1:3]] != [TOP_PROBABILITIES, TOP_CLASS_IDS]:
        return model
    return run_pass(GraphPass(requires=lambda _model: None, call=_remove, ensures=check_model), model).model


def _remove(model: ir.Model) -> bool:
    graph = model.graph
    chosen = graph.outputs[1:3]
    for output in chosen:
        graph.outputs.remove(output)
    remove_unused(graph, [node for output in chosen if (node := output.producer()) is not None])
    return True


def top_pass(score_kind: str, top: int) -> GraphPass:
    """Return the pass of `add_top`."""
    return GraphPass(requires=partial(_require_scores, top), call=partial(_add, score_kind, top), ensures=_ensure)


def _require_scores(top: int, model: ir.Model) -> None:
    require_unused(model.graph.outputs, "output", [TOP_PROBABILITIES, TOP_CLASS_IDS])
    scores = model.graph.outputs[0]
    num_outputs = scores.shape[1] if scores.shape is not None else None
    if isinstance(num_outputs, int) and not 1 <= top <= num_outputs:
        raise UsageError(
            f"The model cannot choose {top} classes: it gives {num_outputs} scores.",
            found=top,
            expected=f"at most {num_outputs}",
            hint="Give a smaller `top`.",
        )


def _add(score_kind: str, top: int, model: ir.Model) -> bool:
    graph, scores = model.graph, model.graph.outputs[0]
    assert scores.shape is not None
    for name in (TOP_PROBABILITIES, TOP_CLASS_IDS):
        free_name(graph, name)
    nodes: list[ir.Node] = []

    def append(op_type: str, inputs: list[ir.Value], num_outputs: int = 1, **attributes: Any) -> ir.Value:
        node = ir.Node("", op_type, inputs, attributes=[*_attributes(attributes)], num_outputs=num_outputs)
        nodes.append(node)
        return node.outputs[0]

    values = scores
    if scores.dtype != ir.DataType.FLOAT:
        values = append("Cast", [scores], to=int(ir.DataType.FLOAT))
    count = add_initializer(graph, "top_count", np.array([top], dtype=np.int64))
    best = append("TopK", [values, count], num_outputs=2, axis=1, largest=1, sorted=1)
    ids = nodes[-1].outputs[1]
    probabilities = _probabilities(graph, append, values, best, score_kind)
    graph.extend(nodes)
    for index, node in enumerate(nodes):
        for output in node.outputs:
            output.name = output.name or unused_name(graph, f"top_step_{index}")
        node.name = f"node_top_{index}"
    shape = ir.Shape([scores.shape[0], top])
    for value, name, dtype in (
        (probabilities, TOP_PROBABILITIES, ir.DataType.FLOAT),
        (ids, TOP_CLASS_IDS, ir.DataType.INT64),
    ):
        value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)
    graph.outputs[1:1] = [probabilities, ids]
    return True


def _attributes(values: dict[str, int]) -> list[ir.Attr]:
    return [ir.AttrInt64(name, value) for name, value in values.items()]


def _probabilities(graph: ir.Graph, append: Any, scores: ir.Value, best: ir.Value, score_kind: str) -> ir.Value:
    """Add what makes probabilities of the best scores, over all of them."""
    if score_kind == "log-probabilities":
        return append("Exp", [best])  # type: ignore[no-any-return]
    if score_kind != "logits":
        return append("Identity", [best])  # type: ignore[no-any-return]
    # The greatest logit is the first of the best: subtracted from all, nothing overflows.
    first = add_initializer(graph, "top_first", np.array([0], dtype=np.int64))
    greatest = append("Gather", [best, first], axis=1)
    exponentials = append("Exp", [append("Sub", [scores, greatest])])
    axes = add_initializer(graph, "top_axes", np.array([1], dtype=np.int64))
    total = append("ReduceSum", [exponentials, axes], keepdims=1)
    return append("Div", [append("Exp", [append("Sub", [best, greatest])]), total])  # type: ignore[no-any-return]


def _ensure(model: ir.Model) -> None:
    check_model(model)
    names = [output.name for output in model.graph.outputs[1:3]]
    if names != [TOP_PROBABILITIES, TOP_CLASS_IDS]:
        raise ExportError(
            f"The edited graph's outputs after the scores are {names}; expected the choice.",
            found=names,
        )
