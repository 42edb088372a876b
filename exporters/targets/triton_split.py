"""Cut an exported classifier into two models: the backbone, and the head with everything after it.

The head is small and changes with the classes; the backbone is large and stays. A server that holds both apart
loads only the head when classes change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.graph.reading import value_named
from exporters.head.patterns import HeadPattern, has_rows, is_linear, match_head
from exporters.head.slot_baking import BAKED_ARBITER, BAKED_WEIGHT
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import FEATURES, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitModel:
    """A classifier in two parts that are run one after the other."""

    backbone: ir.Model = field(repr=False)
    """From the images to the features `(batch, feature_dim)`."""

    head: ir.Model = field(repr=False)
    """From the features to the classifier's own outputs; slots are constants in it."""

    features_name: str
    """Name of the backbone's output and of the head's input."""


def split_model(model: ir.Model, *, num_classes: int, feature_dim: int) -> SplitModel:
    """Cut a bundle's model where its features feed the head.

    Args:
        model: As head surgery left it; it is not changed.
        num_classes: Rows of the head, without slots.
        feature_dim: Width of a row without its bias.

    Raises:
        ExportError: If the head is not found, or what follows it uses another value of the backbone.
    """
    name = str(head_pattern(model, num_classes, feature_dim).features.name)
    return SplitModel(backbone=_backbone(model, name), head=_head(model, name), features_name=name)


def head_pattern(model: ir.Model, num_classes: int, feature_dim: int) -> HeadPattern:
    """Return the head in a bundle's model, without rows that a compaction baked and without slots.

    Args:
        model: As head surgery left it.
        num_classes: Rows of the head, without slots.
        feature_dim: Width of a row without its bias.

    Raises:
        ExportError: If it is not found.
    """
    # Rows that a compaction baked are next to the head, in a Gemm of their own.
    baked = model.graph.initializers.get(BAKED_WEIGHT)
    num_rows = num_classes - (0 if baked is None or baked.const_value is None else len(baked.const_value.numpy()))
    for node in reversed(list(model.graph)):
        if not is_linear(node) or not has_rows(node) or _multiplies_other_rows(node):
            continue
        pattern = match_head(node)
        if isinstance(pattern, HeadPattern) and (pattern.num_classes, pattern.feature_dim) == (num_rows, feature_dim):
            return pattern
    raise ExportError(
        f"The model cannot be cut: it has no linear operator of {num_rows} x {feature_dim}, as its manifest states.",
        expected=(num_rows, feature_dim),
    )


def _multiplies_other_rows(node: ir.Node) -> bool:
    others = {SLOT_WEIGHT, SLOT_ARBITER, BAKED_WEIGHT, BAKED_ARBITER}
    return any(value is not None and value.name in others for value in node.inputs)


def _backbone(model: ir.Model, features_name: str) -> ir.Model:
    copy = model.clone()
    features = value_named(copy.graph, features_name)
    copy.graph.outputs[:] = [features]
    _drop_unused(copy)
    return copy


def _head(model: ir.Model, features_name: str) -> ir.Model:
    copy = model.clone()
    graph = copy.graph
    features = value_named(graph, features_name)
    given = ir.Value(name=features_name, shape=features.shape, type=features.type)
    # Other outputs of the user's model that the backbone computes stay with the backbone.
    graph.outputs[:] = [output for output in graph.outputs if output.name != FEATURES and _depends(output, features)]
    features.name = f"{features_name}_of_backbone"
    for node, index in list(features.uses()):
        node.replace_input_with(index, given)
    slots = {SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER}
    graph.inputs[:] = [given, *(value for value in graph.inputs if value.name not in slots)]
    _drop_unused(copy)
    others = [str(value.name) for value in graph.inputs if value is not given]
    if others:
        raise ExportError(
            f"The model cannot be cut: its head uses {', '.join(others)} besides the features.",
            found=tuple(others),
        )
    return copy


def _drop_unused(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    kept = [value for value in graph.inputs if value.uses() or value.is_graph_output()]
    for value in graph.inputs:
        if value not in kept:
            graph.initializers.pop(str(value.name), None)
    graph.inputs[:] = kept
    check_model(model)


def _depends(value: ir.Value, source: ir.Value) -> bool:
    waiting, known = [value], {value}
    while waiting:
        current = waiting.pop()
        if current is source:
            return True
        node = current.producer()
        for each in () if node is None else node.inputs:
            if each is not None and each not in known:
                known.add(each)
                waiting.append(each)
    return False
