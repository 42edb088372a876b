"""Operators that were exported as they compute in training: their answers differ from call to call, or by the batch."""

from __future__ import annotations

import onnx_ir as ir

from exporters.graph.constants import STANDARD_DOMAINS, constant_array, is_constant
from exporters.graph.reading import label
from icis_deploy.errors import ModelLoadError


def refuse_training_mode(model: ir.Model, *, where: str) -> None:
    """Check that nothing drops features at random, or normalises by the batch.

    Sources: ONNX Dropout (input `training_mode`, from opset 12) and BatchNormalization (attribute, from opset 14).

    Args:
        model: Without local functions.
        where: What to call it in messages.

    Raises:
        ModelLoadError: Naming the first such operators.
    """
    training = [f"{label(node)} ({node.op_type})" for node in model.graph.all_nodes() if _is_in_training_mode(node)]
    if not training:
        return
    shown = ", ".join(training[:3]) + (", …" if len(training) > 3 else "")
    raise ModelLoadError(
        f"{where} was exported in training mode: operators that compute as in training: {shown}.",
        found=tuple(training),
        expected="a model in evaluation mode",
        where=where,
        hint="Export it again in evaluation mode (in PyTorch, call model.eval() before the export).",
    )


def _is_in_training_mode(node: ir.Node) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return False
    if node.op_type == "BatchNormalization":
        return bool(node.attributes.get_int("training_mode", 0))
    return node.op_type == "Dropout" and len(node.inputs) > 2 and _is_true(node.inputs[2]) and _drops(node.inputs[1])


def _is_true(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value) and bool(constant_array(value).all())


def _drops(ratio: ir.Value | None) -> bool:
    """Say whether a Dropout of this ratio, 0.5 where none is given, drops anything."""
    return ratio is None or not is_constant(ratio) or bool((constant_array(ratio) > 0).all())
