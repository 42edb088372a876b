"""Convert a model to ExecuTorch: a torch program, which its compiler gives to XNNPACK, with slots as inputs."""

# Why: docs/decisions/0130.

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

from exporters.targets.converted import (
    conversion_failed,
    keep_converted,
    run_converter,
    unsupported_operators,
    write_sidecar,
)
from exporters.targets.torch_program import save_program, torch_classifier
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, ConvertedTensor
from icis_deploy.bundle.manifest import Bundle

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
    classifier = torch_classifier(folder, bundle)
    with tempfile.TemporaryDirectory() as work:
        save_program(classifier, Path(work) / "model.pt2")
        printed = run_converter([sys.executable, "-I", "-c", _LOWER], converter="ExecuTorch", folder=Path(work))
        if (found := _LACKING.search(printed)) is not None:
            raise unsupported_operators("ExecuTorch", classifier.backbone, json.loads(found[1]))
        written = Path(work) / "model.pte"
        if not written.is_file():
            raise conversion_failed("ExecuTorch", printed)
        keep_converted(written, folder / name)
    sidecar = write_sidecar(
        folder,
        bundle,
        "executorch",
        converter=f"ExecuTorch {metadata.version('executorch')}",
        inputs=_in_order(classifier.inputs),
        outputs=_in_order(classifier.outputs),
    )
    return name, sidecar


def _in_order(tensors: Sequence[ConvertedTensor]) -> tuple[ConvertedTensor, ...]:
    """Return tensors under their positions: a program of ExecuTorch has no names."""
    return tuple(replace(tensor, runtime_name=str(index)) for index, tensor in enumerate(tensors))
