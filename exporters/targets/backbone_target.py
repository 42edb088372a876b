"""Write the backbone of a bundle's model alone, and the rows that its features are multiplied with.

For compilers of chips, which take a graph of one batch size and an older opset, and quantize all of it: it ends in
float32 features, so that no row takes part in its ranges.
"""

# Why: docs/decisions/0112.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporters.graph.constants import constant_array
from exporters.graph.edits import opset_of
from exporters.graph.reading import fixed_batch
from exporters.head.patterns import pattern_rows
from exporters.head.slot_baking import BAKED_BIAS, BAKED_WEIGHT
from exporters.head.surgery import own_backbone
from exporters.onnx_io.files import check_model, first_line, load_onnx_file, save_model
from exporters.onnx_io.shape_inference import infer_shapes
from exporters.targets.triton_split import head_pattern
from icis_deploy.bundle.baked_rows import serialize_baked_rows
from icis_deploy.bundle.manifest import BACKBONE_NAME, BAKED_ROWS_NAME, MODEL_NAME, Bundle
from icis_deploy.bundle.target_options import BackboneSettings
from icis_deploy.common.arrays import Float32
from icis_deploy.common.files import write_file
from icis_deploy.errors import ExportError, UsageError


def write_backbone(folder: Path, bundle: Bundle, settings: BackboneSettings) -> Sequence[str]:
    """Write `backbone.onnx` and `baked_rows.safetensors` into a bundle's folder.

    Args:
        folder: Holds the bundle's `model.onnx`.
        bundle: What its manifest will say.
        settings: Batch size and opset.

    Returns:
        The files, relative to the folder.

    Raises:
        ExportError: If the model cannot be cut, or brought to that opset or batch size.
        UsageError: If the model takes another batch size only.
        StorageError: If the disk refuses.
    """
    model = load_onnx_file(folder / MODEL_NAME)
    rows = rows_of(model, bundle)
    backbone = own_backbone(folder / MODEL_NAME)
    if settings.batch is not None:
        backbone = with_batch(backbone, settings.batch)
    if settings.opset is not None:
        backbone = in_opset(backbone, settings.opset)
    save_model(backbone, folder / BACKBONE_NAME)
    write_file(folder / BAKED_ROWS_NAME, serialize_baked_rows(rows))
    return sorted([BAKED_ROWS_NAME, *(path.name for path in folder.iterdir() if path.name.startswith(BACKBONE_NAME))])


def backbone_settings_of(folder: Path, bundle: Bundle) -> BackboneSettings:
    """Return how the backbone of a bundle was written; the default where it holds none."""
    if BACKBONE_NAME not in bundle.files:
        return BackboneSettings()
    backbone, model = (load_onnx_file(folder / name) for name in (BACKBONE_NAME, MODEL_NAME))
    batches = [fixed_batch(each.graph.inputs[0]) for each in (backbone, model)]
    opsets = [opset_of(each.graph) for each in (backbone, model)]
    return BackboneSettings(
        batch=batches[0] if batches[0] != batches[1] else None,
        opset=opsets[0] if opsets[0] != opsets[1] else None,
    )


def rows_of(model: ir.Model, bundle: Bundle) -> Float32:
    """Return the rows that a bundle's model multiplies features with, slots left out.

    Returns:
        `(num_baked, feature_dim + 1)` float32, in the order of the manifest's classes.
    """
    rows = pattern_rows(head_pattern(model, len(bundle.class_names), bundle.feature_dim))
    baked = [model.graph.initializers.get(name) for name in (BAKED_WEIGHT, BAKED_BIAS)]
    arrays = [constant_array(value) for value in baked if value is not None]
    if len(arrays) < len(baked):
        return rows
    return np.concatenate([rows, np.column_stack(arrays)])


def with_batch(model: ir.Model, batch: int) -> ir.Model:
    """Return a copy of a model that takes batches of one size.

    Raises:
        UsageError: If it takes another size only.
        ExportError: If its nodes do not take this size.
    """
    copy = model.clone()
    images = copy.graph.inputs[0]
    own = fixed_batch(images)
    if own is not None and own != batch:
        raise UsageError(
            f"The model takes batches of {own} only; a backbone for batches of {batch} was asked for.",
            found=own,
            expected=batch,
            where=str(images.name),
            hint=f"Ask for batches of {own}, or export the model with a dynamic batch.",
        )
    assert images.shape is not None, "a model that was exported states its input's shape"
    images.shape = ir.Shape([batch, *list(images.shape)[1:]])
    for node in copy.graph:  # what was stated for any batch says nothing about this one
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    features = copy.graph.outputs[0]
    features.shape = ir.Shape([batch, *list(features.shape or ())[1:]])
    infer_shapes(copy)
    check_model(copy)
    return copy


def in_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return a model in another version of the standard operators, by ONNX's own converter.

    Raises:
        ExportError: If an operator has no counterpart there.
    """
    if opset == opset_of(model.graph):
        return model
    import onnx
    from onnx import helper, version_converter

    try:
        converted = version_converter.convert_version(ir.to_proto(model), opset)
        converted.ir_version = helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
        onnx.checker.check_model(converted, full_check=True)
        result: ir.Model = ir.from_proto(converted)
        check_model(result)
    except Exception as error:  # the converter raises RuntimeError and others
        raise ExportError(
            f"The backbone cannot be brought from opset {opset_of(model.graph)} to {opset}: {first_line(error)}.",
            found=opset_of(model.graph),
            expected=opset,
            hint="Choose another opset, or leave it out.",
        ) from error
    return result
