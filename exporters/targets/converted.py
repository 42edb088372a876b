"""What every conversion for another runtime shares: the graph, the sidecar, and a converter in a process of its own.

A converter is a program of others: it prints, exits, or crashes as it likes, and its libraries contradict ours. So each
runs as a child process, whose output is read for what it could not convert.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from exporters.graph.edits import apply_passes, remove_unused
from exporters.graph.fixed_batch import FixBatchPass
from exporters.graph.reading import label, shape_of
from exporters.head.slot_inputs import SlotsAsInputsPass, has_slots
from exporters.onnx_io.files import load_onnx_file
from icis_deploy._version import __version__
from icis_deploy.bundle.converted_sidecar import (
    ConvertedSidecar,
    ConvertedTensor,
    converted_sidecar_name,
    serialize_converted_sidecar,
)
from icis_deploy.bundle.engine_sidecar import model_sha256
from icis_deploy.bundle.manifest import FEATURES, MODEL_NAME, TOP_CLASS_IDS, TOP_PROBABILITIES, Bundle
from icis_deploy.common.files import write_file
from icis_deploy.common.terminal_text import MAX_REASON, printable
from icis_deploy.errors import ExportError, IncompatibleError, StorageError

TIMEOUT_S = 1800
"""The shared MobileNetV2 takes seconds; a large transformer minutes."""


def graph_for_conversion(folder: Path, bundle: Bundle) -> ir.Model:
    """Return the graph of a bundle's model that converters are given.

    Slots are inputs without defaults. The batch is 1, where the model does not fix another: converters lose an open one
    at operators of their own choice (MNN 3.6.1 at the statistics of an arbiter). Outputs are the scores and what a
    device asks for: labels, which are text, and others of the original would take operators that few runtimes have.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Raises:
        IncompatibleError: If the model does not compute in float32.
    """
    require_float32(bundle)
    model = load_onnx_file(folder / MODEL_NAME)
    return apply_passes(model, OwnOutputsPass(), FixBatchPass(1), *([SlotsAsInputsPass()] if has_slots(model) else []))


def require_float32(bundle: Bundle) -> None:
    """Raise `IncompatibleError` if a bundle's model does not compute in float32.

    With slots inside, the ranges of a converter's own int8 hold for the slots that it saw.
    """
    if bundle.precision != "fp32":
        raise IncompatibleError(
            f"The model computes in {bundle.precision}; it is converted for other runtimes in fp32 alone.",
            found=bundle.precision,
            expected="fp32",
            where=MODEL_NAME,
            hint="Export it with `precision='fp32'`, or leave this target out.",
        )


class OwnOutputsPass(ir.passes.InPlacePass):
    """Remove every output that no session asks for, and what computes it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them in place."""
        outputs = model.graph.outputs
        others = [value for value in outputs[1:] if value.name not in {FEATURES, TOP_PROBABILITIES, TOP_CLASS_IDS}]
        for value in others:
            outputs.remove(value)
        remove_unused(model.graph, [node for value in others if (node := value.producer()) is not None])
        return ir.passes.PassResult(model, modified=bool(others))


def tensors_of(
    values: Sequence[ir.Value], *, runtime_names: Mapping[str, str] | None = None
) -> tuple[ConvertedTensor, ...]:
    """Describe inputs or outputs of a graph for a sidecar.

    Args:
        values: Inputs or outputs.
        runtime_names: What the converted model calls them, where it has other names.
    """
    names = runtime_names or {}
    return tuple(
        ConvertedTensor(
            name=str(value.name),
            runtime_name=names.get(str(value.name), str(value.name)),
            dtype=str(value.dtype.numpy()) if value.dtype is not None else "float32",
            shape=_sizes(value),
        )
        for value in values
    )


def write_sidecar(
    folder: Path,
    bundle: Bundle,
    runtime: str,
    *,
    converter: str,
    inputs: Sequence[ConvertedTensor],
    outputs: Sequence[ConvertedTensor],
) -> str:
    """Write the sidecar of a converted model; return its path relative to the bundle.

    Raises:
        StorageError: If the disk refuses.
    """
    sidecar = ConvertedSidecar(
        runtime=runtime,
        converter=converter,
        model_sha256=model_sha256(bundle),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        created_by=__version__,
    )
    name = converted_sidecar_name(runtime)
    write_file(folder / name, serialize_converted_sidecar(sidecar))
    return name


def run_converter(command: Sequence[str], *, converter: str, folder: Path) -> str:
    """Run a converter; return what it printed.

    Args:
        command: The program and its arguments.
        converter: Its name in messages.
        folder: Where it runs, and may leave what it likes.

    Raises:
        ExportError: If it cannot be started, fails, or takes longer than `TIMEOUT_S`.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a program of ours or that the user installed, and no shell reads it
            list(command), cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"{converter} has not converted the model in {TIMEOUT_S} s.", found=TIMEOUT_S, where=converter
        ) from error
    except OSError as error:
        raise ExportError(
            f"{converter} could not be started: {error.strerror or error}.",
            found=str(error),
            where=command[0],
            hint="Install it again.",
        ) from error
    printed = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode:
        raise conversion_failed(converter, printed, found=done.returncode)
    return printed


def keep_converted(written: Path, path: Path) -> None:
    """Copy what a converter wrote into a bundle, whose folder for it may not be there yet.

    Raises:
        StorageError: If the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written, path)
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}.", found=str(error), where=path, hint="Free some space."
        ) from error


def conversion_failed(converter: str, printed: str, *, found: object = None) -> ExportError:
    """Return the error of a conversion that failed, with the last line that its converter printed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    reason = printable(lines[-1], max_length=MAX_REASON) if lines else f"it ended with {found} and said nothing"
    return ExportError(
        f"{converter} could not convert {MODEL_NAME}: {reason.rstrip('.')}.",
        found=reason,
        where=MODEL_NAME,
        hint="Leave this target out, or report it with the message to the converter's project.",
    )


def unsupported_operators(
    converter: str, model: ir.Model, operators: Sequence[str], *, converted: Mapping[str, str] | None = None
) -> ExportError:
    """Return the error of a model with operators that a runtime lacks, with a node of each.

    Args:
        converter: What refused them.
        model: The graph that it was given.
        operators: Their types.
        converted: By type, what the converter itself calls a node, for types that the graph has not.
    """
    graph_nodes = {node.op_type: label(node) for node in reversed(list(model.graph.all_nodes()))}
    first = {**({} if converted is None else converted), **graph_nodes}
    named = [f"{operator} (node {first[operator]!r})" if operator in first else operator for operator in operators]
    return ExportError(
        f"{converter} does not know the operator{'s' if len(named) > 1 else ''} {', '.join(named)}.",
        found=tuple(operators),
        where=", ".join(first[operator] for operator in operators if operator in first) or None,
        hint="Leave this target out, or replace the layer before exporting.",
    )


def _sizes(value: ir.Value) -> tuple[int, ...]:
    sizes = shape_of(value)
    unknown = [size for size in sizes if not isinstance(size, int)]
    if unknown:
        raise ExportError(
            f"The size {str(unknown[0])!r} of {value.name!r} is open; a converted model states every size.",
            found=str(value.shape),
            where=value.name,
            hint="Export the model with a fixed size of images.",
        )
    return tuple(int(size) for size in sizes if isinstance(size, int))
