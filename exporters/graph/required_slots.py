"""The graph that other runtimes' converters get: slots are inputs without defaults.

An initializer that is also an input (ONNX IR 4) is a constant to most converters, which bake it without a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.onnx_io.files import check_model
from icis_deploy.bundle.manifest import SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import UsageError


def has_slots(model: ir.Model) -> bool:
    """Say whether a model has slots with defaults, as `AddSlotsPass` makes them."""
    return {SLOT_WEIGHT, SLOT_BIAS} <= model.graph.initializers.keys()


def require_slots(model: ir.Model) -> None:
    """Raise `UsageError` if a model has no slots with defaults."""
    if not has_slots(model):
        raise UsageError(
            "The model has no slots, so there is nothing to refit or to feed.",
            found="fused",
            expected="updatable",
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
