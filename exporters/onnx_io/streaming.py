"""Read and write ONNX models without their large weights in memory; see `wire_format.py` for the bytes."""

# Why: docs/decisions/0028.

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx_ir as ir

from exporters.onnx_io.lazy_tensors import OpenFile, chunks_of, tensor_in_file
from exporters.onnx_io.tensor_outputs import give_tensors
from exporters.onnx_io.wire_format import Buffer, with_weights, without_weights
from icis_deploy.common.files import open_plain

MIN_LAZY_BYTES = 1 << 20
"""Size from which a weight stays in its file; smaller ones are read at once."""

MAX_GRAPH_BYTES = 1 << 29
"""Of a model without its large weights: nodes, names, shapes and small weights, which are objects in memory."""


def read_model(path: Path) -> ir.Model:
    """Read a model; its large weights stay in the file, and outputs that are sequences or maps become tensors.

    Raises:
        ModelLoadError: If all outputs are sequences or maps that no tensor stands for.
        ValueError, Exception: Ours, protobuf's and onnx-ir's own types, depending on where the file is broken.
    """
    import onnx

    with open_plain(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        stripped, runs = without_weights(data, min_bytes=MIN_LAZY_BYTES)
    if len(stripped) > MAX_GRAPH_BYTES:
        raise ValueError(f"it has {len(stripped)} bytes besides its large weights; at most {MAX_GRAPH_BYTES} are read")
    proto = onnx.ModelProto.FromString(stripped)
    give_tensors(proto)
    model: ir.Model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    source = OpenFile(path)
    for name, run in runs.items():
        value = model.graph.initializers[name]
        if value.const_value is None:
            raise ValueError(f"the weight {name!r} has no type and shape")
        tensor = _tensor_at(source, run.offset, value.const_value)
        if tensor.nbytes != run.length:
            raise ValueError(f"the weight {name!r} has {run.length} bytes; its shape needs {tensor.nbytes}")
        value.const_value = tensor
    return model


def make_external_weights_lazy(model: ir.Model) -> None:
    """Let the large external weights of a model stay in their files, each mapped only while it is read.

    Args:
        model: Whose external files are known to be readable and inside the model's folder.
    """
    files: dict[str, OpenFile] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and _can_stay_in_file(tensor):
                path = os.fspath(tensor.path)
                files[path] = files.get(path) or OpenFile(Path(path))
                value.const_value = _tensor_at(files[path], tensor.offset or 0, tensor)


def model_chunks(model: ir.Model) -> Iterator[Buffer]:
    """Yield the bytes of a model as one protobuf, large weights in pieces.

    Args:
        model: Of less than protobuf's 2 GiB.
    """
    large = {
        str(value.name): value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None and _can_stay_in_file(value.const_value)
    }
    with weights_in_memory(model), _placeholders(model, large):
        data = ir.to_proto(model).SerializeToString()
    yield from with_weights(data, {name: (tensor.nbytes, partial(chunks_of, tensor)) for name, tensor in large.items()})


@contextmanager
def weights_in_memory(model: ir.Model) -> Iterator[None]:
    """Serialize external weights as if they were inside; the model's own references are put back."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        yield
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


@contextmanager
def _placeholders(model: ir.Model, large: dict[str, ir.TensorProtocol]) -> Iterator[None]:
    """Serialize large weights of the main graph as references, which `with_weights` replaces by the bytes."""
    initializers = model.graph.initializers
    try:
        for name, tensor in large.items():
            shape = ir.Shape(tuple(tensor.shape.numpy()))
            initializers[name].const_value = ir.ExternalTensor(
                "inside", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
        yield
    finally:
        for name, tensor in large.items():
            initializers[name].const_value = tensor


def _tensor_at(file: OpenFile, offset: int, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    shape = tuple(int(size) for size in tensor.shape.numpy())
    return tensor_in_file(file, offset, dtype=tensor.dtype, shape=shape, name=str(tensor.name))


def _can_stay_in_file(tensor: ir.TensorProtocol) -> bool:
    """Say whether a weight is large, and its elements start at whole bytes."""
    return tensor.nbytes >= MIN_LAZY_BYTES and tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth % 8 == 0
