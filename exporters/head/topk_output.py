"""Let a model choose its top-k classes: their ids and their probabilities as two small outputs.

    scores             (batch, num_scores)  as before, first
    top_probabilities  (batch, k)           float32, the greatest first
    top_class_ids      (batch, k)           int64: which score each is of
    ...                                     the model's other outputs

A runtime computes the scores anyway, and returns only the outputs that it is asked for. So they stay an output, which a
device needs for its self-test, and where classes are disabled. Classes are ranked by their scores and not by rounded
probabilities, equal ones in the order of the head, as `Device.predict` ranks them.
"""

# Why: docs/decisions/0046.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.graph.edits import add_initializer, free_name, remove_unused, unused_name
from exporters.graph.reading import shape_of
from exporters.head.outputs import require_unused
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import TOP_CLASS_IDS, TOP_PROBABILITIES
from icis_deploy.errors import ExportError, UsageError


@dataclass(frozen=True, slots=True)
class AddTopKPass(ir.passes.InPlacePass):
    """Let a model also give the `k` most probable classes of each image.

    Raises:
        IncompatibleError: If another output has a name that the choice needs.
        UsageError: If there are not so many scores.
        ExportError: If the edited graph is not valid.
    """

    score_kind: str
    """What the scores in the first output are; see `Bundle.score_kind`."""

    k: int
    """Number of classes chosen."""

    def requires(self, model: ir.Model) -> None:
        """Raise if a name is taken, or there are fewer scores than `k`."""
        require_unused(model.graph.outputs, "output", [TOP_PROBABILITIES, TOP_CLASS_IDS])
        scores = model.graph.outputs[0]
        num_scores = scores.shape[1] if scores.shape is not None else None
        if isinstance(num_scores, int) and not 1 <= self.k <= num_scores:
            raise UsageError(
                f"The model cannot choose {self.k} classes: it gives {num_scores} scores.",
                found=self.k,
                expected=f"at most {num_scores}",
                hint="Give a smaller `top`.",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the outputs in place."""
        _add_topk(model.graph, self.score_kind, self.k)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid, or the choice does not follow the scores."""
        check_model(model)
        names = [output.name for output in model.graph.outputs[1:3]]
        if names != [TOP_PROBABILITIES, TOP_CLASS_IDS]:
            raise ExportError(
                f"The edited graph's outputs after the scores are {names}; expected the choice.",
                found=names,
            )


@dataclass(frozen=True, slots=True)
class RemoveTopKPass(ir.passes.InPlacePass):
    """Remove the choice that `AddTopKPass` added; a model that makes none is not modified.

    So a model that was exported can be exported again: the choice is no part of what follows its head.

    Raises:
        ExportError: If the edited graph is not valid.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the outputs in place."""
        graph = model.graph
        chosen = graph.outputs[1:3]
        if [output.name for output in chosen] != [TOP_PROBABILITIES, TOP_CLASS_IDS]:
            return ir.passes.PassResult(model, modified=False)
        for output in chosen:
            graph.outputs.remove(output)
        remove_unused(graph, [node for output in chosen if (node := output.producer()) is not None])
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)


def _add_topk(graph: ir.Graph, score_kind: str, k: int) -> None:
    scores = graph.outputs[0]
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
    count = add_initializer(graph, "top_count", np.array([k], dtype=np.int64))
    best = append("TopK", [values, count], num_outputs=2, axis=1, largest=1, sorted=1)
    ids = nodes[-1].outputs[1]
    probabilities = _probabilities(graph, append, values, best, score_kind)
    graph.extend(nodes)
    for index, node in enumerate(nodes):
        for output in node.outputs:
            output.name = output.name or unused_name(graph, f"top_step_{index}")
        node.name = f"node_top_{index}"
    shape = ir.Shape([shape_of(scores)[0], k])
    for value, name, dtype in (
        (probabilities, TOP_PROBABILITIES, ir.DataType.FLOAT),
        (ids, TOP_CLASS_IDS, ir.DataType.INT64),
    ):
        value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)
    graph.outputs[1:1] = [probabilities, ids]


def _attributes(values: dict[str, int]) -> list[ir.Attr]:
    return [ir.AttrInt64(name, value) for name, value in values.items()]


def _probabilities(
    graph: ir.Graph, append: Callable[..., ir.Value], scores: ir.Value, best: ir.Value, score_kind: str
) -> ir.Value:
    """Add the nodes that turn the best scores into probabilities over all classes; return those."""
    if score_kind == "log-probabilities":
        return append("Exp", [best])
    if score_kind != "logits":
        return append("Identity", [best])
    # The greatest logit is the first of the best: subtracted from all, nothing overflows.
    first = add_initializer(graph, "top_first", np.array([0], dtype=np.int64))
    greatest = append("Gather", [best, first], axis=1)
    exponentials = append("Exp", [append("Sub", [scores, greatest])])
    axes = add_initializer(graph, "top_axes", np.array([1], dtype=np.int64))
    total = append("ReduceSum", [exponentials, axes], keepdims=1)
    return append("Div", [append("Exp", [append("Sub", [best, greatest])]), total])
