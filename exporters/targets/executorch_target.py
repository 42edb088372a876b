"""Convert a model to ExecuTorch: a torch program, which its compiler gives to XNNPACK, with slots as inputs."""

# Why: docs/decisions/9011.

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from exporters.onnx_io.files import first_line, load_onnx_file
from exporters.targets.converted import (
    conversion_failed,
    keep_converted,
    run_converter,
    unsupported_operators,
    write_sidecar,
)
from exporters.targets.head_parts import HeadParts, backbone_for_conversion, head_parts, head_tensors
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, ConvertedTensor
from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.errors import ExportError

_LOWER = """
import json, re, torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.pybindings.portable_lib import _get_operator_names

edge = to_edge_transform_and_lower(torch.export.load("model.pt2"), partitioner=[XnnpackPartitioner()])
# Inputs stay in the caller's memory: planned ones would be copied with each run, slots included.
planning = MemoryPlanningPass(alloc_graph_input=False)
try:
    program = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    (plan,) = program.executorch_program.execution_plan
    names = [each.name + ("." + each.overload if each.overload else "") for each in plan.operators]
    lacking = sorted(set(names) - set(_get_operator_names()))
except RuntimeError as error:
    found = re.search(r"Missing out variants: \\{(.*?)\\}", str(error))
    if found is None:
        raise
    lacking = [each.strip(" '") for each in found[1].split(",")]
if lacking:
    print("LACKING " + json.dumps(lacking))
else:
    with open("model.pte", "wb") as file:
        program.write_to_file(file)
"""
"""What compiles. It is a process of its own: it takes seconds to import, and prints what it thinks of the machine."""
_LACKING = re.compile(r"^LACKING (\[.*\])$", re.MULTILINE)


def executorch_obstacle() -> str | None:
    """Return why ExecuTorch files cannot be written here, and what to install; `None` where they can."""
    if find_spec("executorch") is None:
        return "ExecuTorch is not installed: pip install 'icis-deploy[executorch]'."
    return None


def write_executorch(folder: Path, bundle: Bundle) -> Sequence[str]:
    """Convert a bundle's model to ExecuTorch.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Returns:
        The model and its sidecar, relative to the folder.

    Raises:
        IncompatibleError: If the model does not compute in float32.
        ExportError: If an operator has no translation to torch, or no kernel in ExecuTorch; it is named.
        StorageError: If the disk refuses.
    """
    (name,) = CONVERTED_FILES["executorch"]
    backbone, head = backbone_for_conversion(folder, bundle), head_parts(folder, bundle)
    inputs, outputs = head_tensors(load_onnx_file(folder / MODEL_NAME), backbone, head)
    with tempfile.TemporaryDirectory() as work:
        _save_program(backbone, head, inputs, Path(work) / "model.pt2")
        printed = run_converter([sys.executable, "-I", "-c", _LOWER], converter="ExecuTorch", folder=Path(work))
        if (found := _LACKING.search(printed)) is not None:
            raise unsupported_operators("ExecuTorch", backbone, json.loads(found[1]))
        written = Path(work) / "model.pte"
        if not written.is_file():
            raise conversion_failed("ExecuTorch", printed)
        keep_converted(written, folder / name)
    sidecar = write_sidecar(
        folder,
        bundle,
        "executorch",
        converter=f"ExecuTorch {metadata.version('executorch')}",
        inputs=_in_order(inputs),
        outputs=_in_order(outputs),
    )
    return name, sidecar


def _save_program(backbone: ir.Model, head: HeadParts, inputs: Sequence[ConvertedTensor], path: Path) -> None:
    """Write the whole classifier as a torch program of fixed sizes."""
    import torch

    from exporters.targets.torch_from_onnx import BackboneModule, ClassifierModule

    module = ClassifierModule(BackboneModule(backbone), head).eval()
    # Not zeros: a program is traced with values that no operator may specialize for.
    examples = tuple(torch.rand(*tensor.shape).to(getattr(torch, tensor.dtype)) for tensor in inputs)
    try:
        torch.export.save(torch.export.export(module, examples), path)
    except ExportError:
        raise
    except Exception as error:  # torch raises types of many modules
        raise ExportError(
            f"torch cannot trace the model: {first_line(error)}.", found=first_line(error), where=MODEL_NAME
        ) from error


def _in_order(tensors: Sequence[ConvertedTensor]) -> tuple[ConvertedTensor, ...]:
    """Return tensors under their positions: a program of ExecuTorch has no names."""
    return tuple(replace(tensor, runtime_name=str(index)) for index, tensor in enumerate(tensors))
