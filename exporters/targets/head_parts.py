"""The head of a bundle in arrays, for converters that would lose it: they convert the backbone, and we write the head.

A converter of others guesses at what multiplies an input that is no image: pnnx makes an operator of it that ncnn
lacks, or drops its transposition. The head is our own subject, and small; the gate compares the whole.
"""

# Why: docs/decisions/0129.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from exporters.graph.edits import apply_passes
from exporters.graph.fixed_batch import FixBatchPass
from exporters.graph.reading import fixed_batch
from exporters.onnx_io.files import load_onnx_file
from exporters.targets.backbone_target import rows_of
from exporters.targets.converted import require_float32, tensors_of
from exporters.targets.triton_split import split_model
from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.converted_sidecar import ConvertedTensor
from icis_deploy.bundle.manifest import FEATURES, MODEL_NAME, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT, Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.head.arbiter import STATISTICS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadParts:
    """What turns features into scores."""

    rows: Float32
    """`(num_baked, feature_dim + 1)` float32, seen classes first."""

    num_seen: int
    """Rows of seen classes: their logits are what an arbiter's statistics are of."""

    capacity: int
    """Number of slots; 0 for a fused head."""

    score_kind: str
    """What becomes of logits: one of `icis_deploy.bundle.manifest.SCORE_KINDS`."""

    lengths: Float32 | None = None
    """`(num_seen,)` float32, of `icis_deploy.head.arbiter.deviation_lengths`; `None` for a head without an arbiter."""

    baked_arbiter: Float32 | None = None
    """`(num_baked - num_seen, 5)` float32: coefficients of new classes that are baked; `None` without an arbiter."""

    @property
    def num_outputs(self) -> int:
        """How many scores the model gives."""
        return len(self.rows) + self.capacity


def backbone_for_conversion(folder: Path, bundle: Bundle) -> ir.Model:
    """Return the backbone of a bundle's model for a converter: float32, with a batch of 1 where none is fixed.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Raises:
        IncompatibleError: If the model does not compute in float32.
        ExportError: If it cannot be cut.
    """
    require_float32(bundle)
    model = load_onnx_file(folder / MODEL_NAME)
    parts = split_model(model, num_classes=len(bundle.class_names), feature_dim=bundle.feature_dim)
    return apply_passes(parts.backbone, FixBatchPass(1))


def head_tensors(
    model: ir.Model, backbone: ir.Model, head: HeadParts
) -> tuple[tuple[ConvertedTensor, ...], tuple[ConvertedTensor, ...]]:
    """Return inputs and outputs of a backbone with a head behind it, under the names of `model.onnx`.

    Args:
        model: The bundle's model.
        backbone: What was converted of it.
        head: What follows.

    Returns:
        The image, then slots where there are any; the scores, then features where the model gives them.
    """
    feature_dim = head.rows.shape[1] - 1
    slots = [(SLOT_WEIGHT, (head.capacity, feature_dim)), (SLOT_BIAS, (head.capacity,))]
    slots += [] if head.lengths is None else [(SLOT_ARBITER, (head.capacity, len(STATISTICS)))]
    scores, *others = [str(value.name) for value in model.graph.outputs]
    batch = fixed_batch(backbone.graph.inputs[0]) or 1
    outputs = [(scores, (batch, head.num_outputs))]
    outputs += [(FEATURES, (batch, feature_dim))] if FEATURES in others else []
    given = [_tensor(name, shape) for name, shape in slots if head.capacity]
    return (*tensors_of(backbone.graph.inputs), *given), tuple(_tensor(name, shape) for name, shape in outputs)


def _tensor(name: str, shape: tuple[int, ...]) -> ConvertedTensor:
    return ConvertedTensor(name=name, runtime_name=name, dtype="float32", shape=shape)


def head_parts(folder: Path, bundle: Bundle) -> HeadParts:
    """Return the head of a bundle.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Raises:
        ExportError: If the head is not found in the model.
        BundleError, CorruptFileError: If the arbiter's files cannot be read.
    """
    constants = ArbiterConstants(folder, bundle) if bundle.arbiter else None
    return HeadParts(
        rows=rows_of(load_onnx_file(folder / MODEL_NAME), bundle),
        num_seen=bundle.num_seen,
        capacity=bundle.capacity,
        score_kind=bundle.score_kind,
        lengths=None if constants is None else constants.row_lengths(),
        baked_arbiter=None if constants is None else constants.baked_coefficients(),
    )
