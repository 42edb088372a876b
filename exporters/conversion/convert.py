"""Bring a classifier into the form that it is exported in: what its backbone computes in."""

# Why: docs/decisions/0043.

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import onnx_ir as ir

from exporters.backbone.inputs import gate_inputs
from exporters.conversion.fp16 import halve_model
from exporters.conversion.int8 import quantize_model
from exporters.conversion.layer_errors import NUM_BATCHES, worst_layers
from exporters.conversion.pixel_input import add_pixel_input, pixel_input
from exporters.graph.edits import Rewrite, unused_name
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.topk_output import add_top
from exporters.loading.models import LoadedModel
from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import UsageError
from icis_deploy.images.loading import LabeledImages
from icis_deploy.images.preprocessing import Preprocessing

_NUM_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FormedModel:
    """A classifier in another precision; its head is where it was."""

    model: ir.Model
    """The graph."""

    explain: Callable[[Rewrite | None], str] | None = None
    """Says which layers hurt most, for when the gate rejects it, as it is or as a target rewrites it; takes seconds."""


def in_precision(
    loaded: LoadedModel,
    location: HeadLocation,
    form: ModelForm,
    calibration: LabeledImages | None,
    *,
    model_input: ModelInput,
    preprocessing: Preprocessing | None,
) -> FormedModel:
    """Return a classifier in the precision that its form asks for.

    Args:
        loaded: The classifier; it is not changed.
        location: Its head.
        form: What to do.
        calibration: The images of its calibration, for int8.
        model_input: What it takes, with the sizes of its images.
        preprocessing: How images are prepared.

    Raises:
        IncompatibleError: If the model is not float32.
        ExportError: If it cannot be converted.
    """
    if form.precision == "fp32":
        return FormedModel(model=loaded.model)
    paths = None if calibration is None else calibration.paths
    fixed = loaded.input_shape[0]
    with closing(gate_inputs(model_input, preprocessing, paths, fixed_batch=fixed)) as images:
        if form.precision == "fp16":
            return FormedModel(model=_with_named_logits(halve_model(loaded.model, images.one_by_one), location))
        quantized = quantize_model(loaded.model, location, loaded.input_name, images.one_by_one)

    def explain(rewrite: Rewrite | None) -> str:
        few = None if paths is None else paths[:NUM_BATCHES]
        judged = quantized if rewrite is None else replace(quantized, backbone=rewrite(quantized.backbone))
        with closing(gate_inputs(model_input, preprocessing, few, fixed_batch=fixed)) as images:
            layers = worst_layers(judged, images.one_by_one(), limit=_NUM_NAMED)
        return f"the layers that add most noise are {', '.join(layer.describe() for layer in layers)}"

    return FormedModel(model=quantized.model, explain=explain)


def _with_named_logits(model: ir.Model, location: HeadLocation) -> ir.Model:
    """Give a converted head's logits their old name back, where they are no output and a cast comes after them."""
    logits = pattern_at(model, location).logits
    if location.output_name == location.logits_name and not logits.is_graph_output():
        before = next((v for node in model.graph for v in node.outputs if v.name == location.logits_name), None)
        if before is not None and before is not logits:
            before.name, logits.name = unused_name(model.graph, f"{location.logits_name}_half"), location.logits_name
    return model


def with_device_work(
    model: ir.Model,
    model_input: ModelInput,
    form: ModelForm,
    *,
    kind: str,
    preprocessing: Preprocessing | None,
) -> tuple[ir.Model, ModelInput]:
    """Return a classifier that does what its form asks for before and after its own nodes, and what it takes then.

    Args:
        model: The classifier with its final head.
        model_input: What it takes.
        form: What to do.
        kind: What its scores are.
        preprocessing: How images are prepared.

    Raises:
        UsageError: If nothing states how pixels are prepared, or it should choose more classes than it has.
        IncompatibleError: If it takes no images.
        ExportError: If the edited graph is not valid.
    """
    if form.model_input == "uint8":
        if preprocessing is None:
            raise UsageError(
                "A model that takes pixels needs to know how they are prepared.",
                hint="Give `preprocess`.",
            )
        model = add_pixel_input(model, model_input.name, preprocessing)
        model_input = pixel_input(model_input, preprocessing)
    return (add_top(model, kind, form.top) if form.top else model), model_input
