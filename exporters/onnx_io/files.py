"""Read and write ONNX files: checked on the way in, one file on the way out unless protobuf cannot hold it.

Rules:

1. A file that the ONNX checker refuses is refused; nothing tries to repair it.
2. What is loaded is brought to one form: no local functions, no initializer listed as an input by IR 3's rule, opset 13
   or newer, dimensions that are positive numbers or open, shapes inferred. The caller's file is never changed.
3. A model is written as one file; over protobuf's 2 GiB its large tensors go into `<name>.data`.
4. Large weights are not in memory for being read or written: they stay in their file until something uses them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from exporters.onnx_io.foreign_files import foreign_file
from exporters.onnx_io.shape_inference import derive_shapes
from exporters.onnx_io.streaming import make_external_weights_lazy, model_chunks, read_model, weights_in_memory
from icis_deploy.common.closest import did_you_mean_path
from icis_deploy.common.files import open_plain, write_failure, write_file
from icis_deploy.errors import ExportError, ModelLoadError

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13
"""From 13 on, Squeeze, Unsqueeze and ReduceSum take axes as inputs, Softmax means one axis and Q/DQ are per channel."""

MIN_CONVERTIBLE_OPSET = 7
"""The ONNX version converter has no adapters for what is older."""

OVERRIDABLE_IR_VERSION = 4
"""From 4 on, an initializer that is also an input is a default that may be overridden."""

MAX_PROTOBUF_BYTES = 2**31 - 1
_GRAPH_BYTES = 64 << 20
"""Size that a protobuf may need besides its tensors: no graph of nodes, names and shapes comes near it."""

_MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph, where shape inference can read them."""


def load_onnx_file(path: Path) -> ir.Model:
    """Load and check an ONNX file, external data included.

    Returns:
        The model with functions inlined, at opset 13 or newer, with inferred shapes.

    Raises:
        ModelLoadError: If the file is missing, truncated, not ONNX, refused by the ONNX checker, without its external
            data, or of an opset that is too new or cannot be converted.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a name that is too long is none
        if os.path.isdir(path):  # noqa: PTH112
            raise ModelLoadError(
                f"{path} is a folder; expected a .onnx file.",
                found="a folder",
                expected="a .onnx file",
                where=path,
                hint="Check the path.",
            )
        raise ModelLoadError(
            f"There is no model file {path}.",
            where=path,
            hint=f"{did_you_mean_path(path)}Check the path.",
        )
    try:
        model = read_model(path)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{path}: {error.what}", found=error.found, expected=error.expected, where=path, hint=error.hint
        ) from error
    except Exception as error:  # protobuf's, onnx-ir's and our own types, depending on where the file is broken
        foreign = foreign_file(path)
        found = first_line(error) if foreign is None else f"it is {foreign[0]}"
        raise ModelLoadError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as ONNX: {found}.",
            found=found,
            where=path,
            hint=_unread_hint(path) if foreign is None else foreign[1],
        ) from error
    _check_external_weights(model, path)
    common.TopologicalSortPass()(model)  # runtimes take a graph in any order, and some converters write one
    try:
        check_model(model)
    except ExportError as error:
        raise ModelLoadError(
            f"{path} is not a valid ONNX model: {first_line(error.__cause__ or error)}{_without_shape(model)}.",
            where=path,
            hint="Export it again, or check it with onnx.checker.",
        ) from error
    return normalized(model, where=str(path))


def _without_shape(model: ir.Model) -> str:
    """Return which outputs state no shape, which the format asks for and the checker refuses without a name."""
    names = [str(output.name) for output in model.graph.outputs if output.shape is None]
    return f"; the output {names[0]!r} states no shape" if names else ""


def _unread_hint(path: Path) -> str:
    """Say what to do about a file that cannot be held in memory as a graph, valid or not."""
    import onnx

    try:
        # Lazily: a valid file of gigabytes is rare here, and one that is damaged is refused at its first bytes.
        onnx.checker.check_model(str(path))
    except Exception:  # the checker's, protobuf's and the system's own types
        return "It may be truncated or another kind of file; copy it again."
    return (
        "It is valid ONNX, of a kind that cannot be edited here, such as outputs that are sequences or maps; export it "
        "with tensors as outputs (scikit-learn: options={'zipmap': False})."
    )


def newest_opset() -> int:
    """Return the newest version of the standard operators that is known here."""
    import onnx

    return int(onnx.defs.onnx_opset_version())


def load_initializers(path: Path, names: Sequence[str]) -> tuple[NDArray[Any], ...]:
    """Return weights of an ONNX file by name, without checking anything else of it.

    Raises:
        ModelLoadError: If the file cannot be read, or has no such weight.
    """
    try:
        initializers = read_model(path).graph.initializers
        tensors = [initializers[name].const_value for name in names]
        return tuple(np.array(tensor.numpy()) for tensor in tensors if tensor is not None)
    except Exception as error:  # as load_onnx_file; KeyError for a name
        raise ModelLoadError(
            f"The weights {', '.join(names)} cannot be read from {path}: {first_line(error)}.",
            found=first_line(error),
            where=path,
            hint="Export it again.",
        ) from error


def normalized(model: ir.Model, *, where: str) -> ir.Model:
    """Bring a valid model to the one form that head surgery works on, in place where possible.

    Inputs may have defaults in it (IR 4 and newer), as slots do.

    Args:
        model: A model that the ONNX checker accepts.
        where: What to call it in messages.

    Raises:
        ModelLoadError: If its opset is too old and cannot be converted.
    """
    _open_dimensions(model)
    model = _with_current_opset(model, where=where)
    if model.functions:
        common.InlinePass()(model)
    if model.ir_version < OVERRIDABLE_IR_VERSION:
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(OVERRIDABLE_IR_VERSION, _least_ir_version(model))
    for node in model.graph.all_nodes():
        node.name = node.name or node.outputs[0].name  # as viewers label a node without a name
    common.NameFixPass()(model)
    derive_shapes(model)
    return model


def _least_ir_version(model: ir.Model) -> int:
    """Return the oldest version of the format that holds the operators that a model imports."""
    import onnx

    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return int(onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True))


def check_model(model: ir.Model) -> None:
    """Run the ONNX checker without serializing the weights.

    Raises:
        ExportError: With the checker's first line.
    """
    try:
        common.CheckerPass()(model)
    except Exception as error:  # onnx's C++ checker raises several types
        raise ExportError(
            f"The edited graph is not valid ONNX: {first_line(error)}.",
            found=first_line(error),
        ) from error


def save_model(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write a model to `path`, with its weights in `<name>.data` only if it does not fit into one protobuf.

    Returns:
        The files that were written.

    Raises:
        StorageError: If the disk refuses; a model that was at `path` is then still there.
    """
    if weights_bytes(model) + _GRAPH_BYTES <= MAX_PROTOBUF_BYTES:
        write_file(path, model_chunks(model))
        return (path,)
    weights = path.with_name(f"{path.name}.data")
    try:
        ir.save(model, path, external_data=weights.name, size_threshold_bytes=_MIN_EXTERNAL_BYTES)
        weights.chmod(0o644)  # a device's user is another one than who exported
    except OSError as error:
        raise write_failure(path, error) from error
    return path, weights


def serialize_model(model: ir.Model) -> bytes:
    """Return the bytes of a model as one protobuf, external weights included.

    Raises:
        ExportError: If it is larger than the 2 GiB that protobuf can hold.
    """
    if weights_bytes(model) > MAX_PROTOBUF_BYTES:
        raise ExportError(
            f"The model holds {weights_bytes(model)} bytes of weights; one protobuf holds {MAX_PROTOBUF_BYTES}.",
            found=weights_bytes(model),
            expected=MAX_PROTOBUF_BYTES,
            hint="Save it to a file, which puts the weights next to it.",
        )
    with weights_in_memory(model):
        return bytes(ir.to_proto(model).SerializeToString())


def weights_bytes(model: ir.Model) -> int:
    """Return how many bytes the initializers of all graphs hold."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def first_line(error: BaseException) -> str:
    """Return an exception's first non-empty line, without its full stop, or its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _check_external_weights(model: ir.Model, path: Path) -> None:
    """Check that external weights are there and inside the model's folder, and read those that are small.

    The shapes and axes among the small ones are what shape inference and the checker need.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            try:
                with open_plain(Path(tensor.path)) as file:  # no pipe, which would be waited for, and no device
                    size, end = os.fstat(file.fileno()).st_size, (tensor.offset or 0) + tensor.nbytes
                if end <= size:
                    array = tensor.numpy()  # memory-mapped: this opens the file, and reads none of it
            except Exception as error:  # onnx-ir's, numpy's and the system's own types
                raise ModelLoadError(
                    f"{path} keeps the weight {value.name!r} in {tensor.location}, which cannot be read: "
                    f"{first_line(error)}.",
                    found=first_line(error),
                    where=tensor.location,
                    hint="Put that file next to the model.",
                ) from error
            if end > size:
                raise ModelLoadError(
                    f"{path} keeps the weight {value.name!r} in {tensor.location}, which cannot be read: the file has "
                    f"{size} bytes, and the weight ends at byte {end}.",
                    found=size,
                    expected=f"at least {end} bytes",
                    where=tensor.location,
                    hint="It was cut short, or belongs to another export: copy both files again, from the same export.",
                )
            if tensor.nbytes < _MIN_EXTERNAL_BYTES:
                value.const_value = ir.Tensor(np.array(array), dtype=tensor.dtype, name=tensor.name)
    make_external_weights_lazy(model)


def _open_dimensions(model: ir.Model) -> None:
    """Let dimensions that are no positive numbers be of any size, in place.

    Converters write -1, 0 or "-1" where a size is open; for ONNX Runtime 0 alone is a size. The ONNX standard has no
    negative dimension, and a constant without elements keeps its 0: it is no stated shape, but its own.
    """
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in values:
        if value.shape is not None and value.const_value is None and any(_is_open(dim) for dim in value.shape):
            value.shape = ir.Shape([None if _is_open(dim) else dim for dim in value.shape])


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    if isinstance(dim, int):
        return dim <= 0
    return dim.value is not None and dim.value.lstrip("+-").isdigit()


def _with_current_opset(model: ir.Model, *, where: str) -> ir.Model:
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is not None and opset > (newest := newest_opset()):
        raise ModelLoadError(
            f"{where} uses ONNX opset {opset}, which is too new: the onnx that is installed here knows {newest}.",
            found=opset,
            expected=f"at most {newest}",
            where=where,
            hint=f"Export it again with opset {newest} or older, or install a newer onnx and onnxruntime.",
        )
    if opset is None or opset >= MIN_OPSET:
        return model
    if opset < MIN_CONVERTIBLE_OPSET:
        raise ModelLoadError(
            f"{where} uses ONNX opset {opset}, which is too old: expected {MIN_CONVERTIBLE_OPSET} or newer.",
            found=opset,
            expected=f"at least {MIN_CONVERTIBLE_OPSET}",
            where=where,
            hint=f"Export it again with opset {MIN_OPSET} or newer.",
        )
    return with_opset(model, MIN_OPSET, where=where)


def with_opset(model: ir.Model, version: int, *, where: str) -> ir.Model:
    """Return a model in a newer version of the standard operators; the model itself if it has that already.

    Args:
        model: A valid model, which is not changed.
        version: Of the operators.
        where: What to call it in messages.

    Raises:
        ModelLoadError: If it cannot be converted.
    """
    import onnx

    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is None or opset >= version:
        return model
    try:
        with weights_in_memory(model):
            before = ir.to_proto(model)
        converted = onnx.version_converter.convert_version(before, version)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises RuntimeError, ValueError and protobuf's own types
        raise ModelLoadError(
            f"{where} uses ONNX opset {opset} and cannot be converted to {version}: {first_line(error)}.",
            found=opset,
            expected=f"at least {version}",
            where=where,
            hint=f"Export it again with opset {version} or newer.",
        ) from error
    _keep_description(before, converted)
    return ir.from_proto(converted)


def _keep_description(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Give a converted model what its file says of it: metadata, producer and description, which conversion drops."""
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(after, name, getattr(before, name))
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
