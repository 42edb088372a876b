"""A bundle's classifier as a torch program of fixed sizes, for compilers that take nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx_io.files import first_line, load_onnx_file
from exporters.targets.head_parts import HeadParts, backbone_for_conversion, head_parts, head_tensors
from icis_deploy.bundle.converted_sidecar import ConvertedTensor
from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.errors import ExportError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchClassifier:
    """A bundle's model in torch."""

    backbone: ir.Model
    """What was translated."""

    head: HeadParts
    """What follows it."""

    inputs: tuple[ConvertedTensor, ...]
    """In the order of the module's arguments: the image, then slots where there are any."""

    outputs: tuple[ConvertedTensor, ...]
    """What `model.onnx` has of the module's two results: the scores, then features."""

    def module(self) -> nn.Module:
        """Return the module.

        Raises:
            ExportError: If an operator has no translation; it is named.
        """
        from exporters.targets.torch_from_onnx import BackboneModule, ClassifierModule

        return ClassifierModule(BackboneModule(self.backbone), self.head).eval()


def torch_classifier(folder: Path, bundle: Bundle) -> TorchClassifier:
    """Return a bundle's model for torch.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Raises:
        IncompatibleError: If the model does not compute in float32.
        ExportError: If it cannot be cut.
    """
    backbone, head = backbone_for_conversion(folder, bundle), head_parts(folder, bundle)
    inputs, outputs = head_tensors(load_onnx_file(folder / MODEL_NAME), backbone, head)
    return TorchClassifier(backbone=backbone, head=head, inputs=inputs, outputs=outputs)


def save_program(classifier: TorchClassifier, path: Path) -> None:
    """Trace a classifier and write it as a torch program.

    Raises:
        ExportError: If an operator has no translation, or torch cannot trace the model.
    """
    import torch

    try:
        program = torch.export.export(classifier.module(), _examples(classifier.inputs))
        torch.export.save(program, path)
    except ExportError:
        raise
    except Exception as error:  # torch raises types of many modules
        raise ExportError(
            f"torch cannot trace the model: {first_line(error)}.", found=first_line(error), where=MODEL_NAME
        ) from error


def _examples(inputs: Sequence[ConvertedTensor]) -> tuple[object, ...]:
    import torch

    return tuple(torch.rand(*tensor.shape).to(getattr(torch, tensor.dtype)) for tensor in inputs)
