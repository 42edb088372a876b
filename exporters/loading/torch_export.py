"""torch -> ONNX: `.pt2` programs and modules become ONNX graphs with a dynamic batch.

Rules:

1. A program whose tensors are stored as pickles is refused before torch reads it. torch also runs the guards that a
   program carries, so a `.pt2` has to be trusted as much as the code that it was made from.
2. torch's notes on where each node came from hold this machine's paths and source lines: they are dropped.
"""

from __future__ import annotations

import inspect
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.graph.edits import apply_passes, unused_name
from exporters.graph.plain_forms import PlainFormsPass
from exporters.loading.torch_modules import MAX_MEMBERS, import_torch, quiet_torch
from exporters.onnx_io.files import check_model, first_line, normalized
from exporters.onnx_io.foreign_files import foreign_file
from icis_deploy.common.archives import open_archive
from icis_deploy.common.closest import did_you_mean_path
from icis_deploy.common.files import open_plain
from icis_deploy.common.json_fields import load_strict
from icis_deploy.errors import ExportError, ModelLoadError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

OPSET = 20
BATCH = "batch"
LOGITS = "logits"
_PICKLED_NAMES = ("custom_obj_", "opaque_obj_")
_MAX_MEMBER_BYTES = 1 << 26
"""Of a configuration, or of a sample input: an image of 2,000 by 2,000 pixels in float32."""


def load_program(path: Path) -> ExportedProgram:
    """Load a `.pt2` program.

    Raises:
        ModelLoadError: If there is no such file, it is no program that this torch can read, or it holds pickles.
        MissingDependencyError: If torch is not installed.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a name that is too long is none
        raise ModelLoadError(
            f"There is no model file {path}.",
            where=path,
            hint=f"{did_you_mean_path(path)}Check the path.",
        )
    torch = import_torch()
    _refuse_pickles(path)
    try:
        with quiet_torch():
            program: ExportedProgram = torch.export.load(path)
    except Exception as error:  # zipfile, json and torch's own types, depending on where the file is broken
        raise ModelLoadError(
            f"{path} is not a torch.export program that torch {torch.__version__} can read: {first_line(error)}.",
            found=first_line(error),
            where=path,
            hint="Save it again with torch.export.save.",
        ) from error
    return program


def export_module(module: Module, image_shape: tuple[int, ...]) -> ExportedProgram:
    """Trace a module with a dynamic batch.

    Args:
        module: In evaluation mode; its forward takes a batch of images first, and needs nothing else.
        image_shape: Shape of one image, such as `(3, 224, 224)`.

    Raises:
        ExportError: If torch cannot trace it.
        MissingDependencyError: If torch is not installed.
    """
    torch = import_torch()
    parameters = list(inspect.signature(module.forward).parameters.values())
    if not parameters:
        raise ExportError(
            f"{type(module).__name__}.forward takes no argument; expected a batch of images.",
            expected="a batch of images",
            where=type(module).__name__,
            hint="Let forward take a batch of images.",
        )
    batch: Any = {0: torch.export.Dim.DYNAMIC}
    if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        batch = (batch,)
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    images = torch.zeros(2, *image_shape, dtype=dtype)  # of a batch of 1 torch would make a constant
    try:
        with quiet_torch(), torch.no_grad():
            program: ExportedProgram = torch.export.export(
                module, (images,), dynamic_shapes={parameters[0].name: batch}, strict=False
            )
    except Exception as error:  # whatever the module's forward and torch's tracer raise
        raise ExportError(
            f"torch.export cannot trace {type(module).__name__} on inputs of shape {image_shape}, "
            f"{str(dtype).removeprefix('torch.')}: {first_line(error)}.",
            found=first_line(error),
            where=type(module).__name__,
            hint="Check `input_shape`, let forward cast what it takes where it needs integers, or export the model "
            "yourself and give the .onnx or .pt2 file.",
        ) from error
    return program


def onnx_from_program(program: ExportedProgram) -> ir.Model:
    """Convert a program to ONNX, opset 20.

    The input keeps its name; a dynamic first dimension is called `batch`; an only output is called `logits`, as torch
    names it after an operator.

    Raises:
        ExportError: If torch's exporter fails.
        MissingDependencyError: If torch or onnxscript is not installed.
    """
    torch = import_torch()
    try:
        with quiet_torch():
            converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:  # torch.onnx raises its own types and those of every pass behind it
        raise ExportError(
            f"torch.onnx cannot convert the model to ONNX opset {OPSET}: {first_line(error)}.",
            found=first_line(error),
            hint="Export it yourself and give the .onnx file.",
        ) from error
    model: ir.Model = converted.model
    _clear_notes(model)
    graph = model.graph
    if len(graph.outputs) == 1 and graph.outputs[0].producer() is not None and unused_name(graph, LOGITS) == LOGITS:
        graph.outputs[0].name = LOGITS
    _name_batch(model)
    check_model(model)
    return apply_passes(normalized(model, where="the exported model"), PlainFormsPass())


# Why: docs/decisions/0016.
def _refuse_pickles(path: Path) -> None:
    """Raise if reading a program would unpickle anything with code in it.

    Source: torch.export's archive format; each tensor's entry in the weights' and constants' configuration says whether
    it is a pickle, and objects have file names of their own. Archives of torch before 2.8 hold pickles throughout.
    """
    try:
        with open_plain(path) as file, open_archive(file, max_members=MAX_MEMBERS, max_bytes=2**63) as archive:
            configs = [
                name for name in archive.namelist() if re.search(r"/data/(weights|constants)/[^/]*\.json$", name)
            ]
            payloads = {name: load_strict(_read_capped(archive, name)).get("config", {}) for name in configs}
            samples = [_read_capped(archive, name) for name in archive.namelist() if "/data/sample_inputs/" in name]
    except (zipfile.BadZipFile, OSError, ValueError, AttributeError, EOFError) as error:
        foreign = foreign_file(path, may_be_zip=True)
        found = first_line(error) if foreign is None else f"it is {foreign[0]}"
        hint = "It may be truncated or another kind of file; save it again with torch.export.save."
        raise ModelLoadError(
            f"{path} ({path.stat().st_size} bytes) is not a .pt2 archive: {found}.",
            found=found,
            where=path,
            hint=hint if foreign is None else foreign[1],
        ) from error
    if len(payloads) < 2:
        raise ModelLoadError(
            f"{path} is no torch.export archive of torch 2.8 or newer, or it is truncated.",
            where=path,
            hint="Save it again with torch.export.save; weights and TorchScript are no such program.",
        )
    for config in payloads.values():
        for name, payload in config.items():
            if payload.get("use_pickle") or str(payload.get("path_name", "")).startswith(_PICKLED_NAMES):
                raise ModelLoadError(
                    f"{path} stores {name!r} as a pickle, which can run any code when it is read; refused.",
                    found=name,
                    where=path,
                    hint="Save the program with plain tensors, or give a .onnx file.",
                )
    _check_sample_inputs(samples, path)


def _read_capped(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _MAX_MEMBER_BYTES:
        raise ValueError(f"{name} is {size} bytes long; at most {_MAX_MEMBER_BYTES} are read of such a member")
    return archive.read(name)


def _check_sample_inputs(samples: list[bytes], path: Path) -> None:
    """Raise if sample inputs are not plain tensors: torch would unpickle others without checks."""
    import io

    torch = import_torch()
    for sample in samples:
        if not sample:
            continue
        try:
            with quiet_torch():
                torch.load(io.BytesIO(sample), weights_only=True)
        except Exception as error:  # pickle's and torch's own types
            raise ModelLoadError(
                f"{path} holds sample inputs that are not plain tensors: {first_line(error)}.",
                found=first_line(error),
                where=path,
                hint="Save the program without them.",
            ) from error


def _clear_notes(model: ir.Model) -> None:
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in nodes:
        node.metadata_props.clear()
    for value in values:
        value.metadata_props.clear()


def _name_batch(model: ir.Model) -> None:
    """Call the symbol of the input's first dimension `batch`, wherever it occurs."""
    shape = model.graph.inputs[0].shape
    if shape is None or len(shape) == 0 or not isinstance(shape[0], ir.SymbolicDim) or not shape[0].value:
        return
    symbol = re.compile(rf"\b{re.escape(shape[0].value)}\b")
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbol) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, symbol: re.Pattern[str]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or not dim.value:
        return dim
    return ir.SymbolicDim(symbol.sub(BATCH, dim.value))
