"""Convert a classifier to the form that it is exported in: its precision, its input, its top-k outputs."""

# Why: docs/decisions/0043.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from exporters.backbone.inputs import input_batches
from exporters.backbone.splitting import with_backbone
from exporters.conversion.fp16 import convert_to_float16
from exporters.conversion.int8 import CalibratedBackbone, quantize_model
from exporters.conversion.layer_errors import NUM_BATCHES, worst_layers
from exporters.conversion.pixel_input import AddPixelInputPass, pixel_input
from exporters.graph.edits import apply_passes, unused_name
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.surgery import backbone
from exporters.head.topk_output import AddTopKPass
from exporters.loading.models import LoadedModel
from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import UsageError
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.sources import InputSource

_NUM_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedModel:
    """A classifier in another precision; its head is where it was."""

    model: ir.Model
    """The converted graph; weights that did not change are shared with the original."""

    explain: Callable[[ir.passes.PassBase | None], str] | None = None
    """Returns which layers lose most accuracy, of the model itself or of it after a rewrite; `None` where none were
    quantized. Takes seconds, so it is called only where the gate rejects the model."""

    calibrated: Callable[[], CalibratedBackbone] | None = None
    """Returns the float32 backbone that was quantized, for the quantizers of other runtimes; `None` where none was."""


def convert_precision(
    loaded: LoadedModel,
    location: HeadLocation,
    form: ModelForm,
    calibration: InputSource | None,
    *,
    model_input: ModelInput,
    preprocessing: Preprocessing | None,
) -> ConvertedModel:
    """Return a classifier in the precision that its form asks for.

    Args:
        loaded: The classifier; it is not changed.
        location: Its head.
        form: States the precision.
        calibration: Images or arrays that activations are calibrated on, for int8.
        model_input: Its input, with the sizes of its images.
        preprocessing: How images are prepared.

    Raises:
        IncompatibleError: If the model is not float32.
        ExportError: If it cannot be converted.
    """
    if form.precision == "fp32":
        return ConvertedModel(model=loaded.model)
    images = input_batches(
        model_input,
        preprocessing,
        calibration,
        fixed_batch=loaded.fixed_batch,
        value_range=loaded.value_range,
    )
    if form.precision == "fp16":
        return ConvertedModel(model=_with_named_logits(convert_to_float16(loaded.model, images.one_by_one), location))
    quantized = quantize_model(loaded.model, location, loaded.input_name, images.one_by_one)

    def explain(rewrite: ir.passes.PassBase | None) -> str:
        few = None if calibration is None else calibration.select(range(min(NUM_BATCHES, len(calibration))))
        judged = (
            quantized if rewrite is None else replace(quantized, backbone=apply_passes(quantized.backbone, rewrite))
        )
        images = input_batches(
            model_input, preprocessing, few, fixed_batch=loaded.fixed_batch, value_range=loaded.value_range
        )
        layers = worst_layers(judged, images.one_by_one(), limit=_NUM_NAMED)
        return f"the layers that add most noise are {', '.join(layer.describe() for layer in layers)}"

    def calibrated() -> CalibratedBackbone:
        of_float = with_backbone(loaded.model, location, loaded.input_name, quantized.float_backbone.clone())
        return CalibratedBackbone(model=backbone(of_float, location), calibration=images.one_by_one)

    return ConvertedModel(model=quantized.model, explain=explain, calibrated=calibrated)


def _with_named_logits(model: ir.Model, location: HeadLocation) -> ir.Model:
    """Give a converted head's logits their old name back, where a cast comes after them and they are no output."""
    logits = pattern_at(model, location).logits
    if location.output_name == location.logits_name and not logits.is_graph_output():
        before = next((v for node in model.graph for v in node.outputs if v.name == location.logits_name), None)
        if before is not None and before is not logits:
            before.name, logits.name = unused_name(model.graph, f"{location.logits_name}_half"), location.logits_name
    return model


def with_pixels_and_topk(
    model: ir.Model,
    model_input: ModelInput,
    form: ModelForm,
    *,
    kind: str,
    preprocessing: Preprocessing | None,
) -> tuple[ir.Model, ModelInput]:
    """Return a classifier that takes pixels and chooses its top-k classes as its form asks, and its new input.

    Args:
        model: The classifier with its final head.
        model_input: Its present input.
        form: Whether it takes pixels, and how many classes it chooses.
        kind: Its score kind; see `Bundle.score_kind`.
        preprocessing: How images are prepared.

    Raises:
        UsageError: If it is to take pixels and no preprocessing is given, or choose more classes than it has.
        IncompatibleError: If it takes no images.
        ExportError: If the edited graph is not valid.
    """
    passes: list[ir.passes.PassBase] = []
    if form.model_input == "uint8":
        if preprocessing is None:
            raise UsageError(
                "A model that takes pixels needs to know how they are prepared.",
                hint="Give `preprocess`.",
            )
        passes.append(AddPixelInputPass(model_input.name, preprocessing))
        model_input = pixel_input(model_input, preprocessing)
    if form.top:
        passes.append(AddTopKPass(kind, form.top))
    return (apply_passes(model, *passes) if passes else model), model_input
