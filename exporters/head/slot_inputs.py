"""Make the slots of an exported model required inputs, for runtimes and converters that know no inputs with defaults.

`AddSlotsPass` makes slots of inputs that have an initializer of the same name, which ONNX Runtime takes for a default.
onnxruntime-web and ONNX Runtime's Java binding refuse to be fed such an input; OpenVINO, MNN and TensorRT make a
constant of it. Without the initializers, every one of them has to be fed.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.graph.edits import apply_passes
from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import UsageError


def with_slots_as_inputs(model: ir.Model) -> ir.Model:
    """Return a bundle's model with its slots as required inputs, of fixed shape; a fused one as it is.

    Args:
        model: A bundle's `model.onnx`; it is not changed.

    Raises:
        ExportError: If the edited graph is not valid.
    """
    return apply_passes(model, SlotsAsInputsPass()) if has_slots(model) else model


def has_slots(model: ir.Model) -> bool:
    """Say whether a model has slots with defaults, as `AddSlotsPass` makes them."""
    return {SLOT_WEIGHT, SLOT_BIAS} <= model.graph.initializers.keys()


def require_slots(model: ir.Model) -> None:
    """Raise `UsageError` if a model has no slots with defaults."""
    if not has_slots(model):
        raise UsageError(
            "The model has no slots, so there is nothing to refit or to feed.",
            hint="Export it with `head='updatable'`.",
        )


@dataclass(frozen=True, slots=True)
class SlotsAsInputsPass(ir.passes.InPlacePass):
    """Make the slots inputs without defaults, of fixed shape.

    Raises:
        UsageError: If the model has no slots.
        ExportError: If the edited graph is not valid.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise if there are no slots."""
        require_slots(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the defaults in place."""
        for name in (SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER):
            model.graph.initializers.pop(name, None)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise if the graph is not valid."""
        check_model(model)
