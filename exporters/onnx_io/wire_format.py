"""The bytes of an ONNX file, split and joined without its large weights in memory.

protobuf reads and writes a message as a whole: a file of one gigabyte takes two to load and three to save. But a weight
is one run of bytes in the file. Here it is left out of the message when a file is read, and inserted between the
message's bytes when it is written.

Source: https://protobuf.dev/programming-guides/encoding/; field numbers from onnx.proto3 (ModelProto, GraphProto,
TensorProto). Only initializers of the main graph are treated so; everything else is small, or stays in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_NAME = 8
_TENSOR_RAW_DATA = 9
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_EXTERNAL = 1
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Buffer = bytes | memoryview
Chunks = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Position of one field of a message in a buffer; offsets are in bytes from its start."""

    number: int
    """Number of the field in its message's definition."""

    start: int
    """Offset of its tag."""

    value: int
    """Offset of its value, after tag and length."""

    end: int
    """Offset after its last byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Position of the bytes of a weight in a file."""

    offset: int
    """In bytes from the start of the file."""

    length: int
    """In bytes."""


def without_weights(data: Buffer, *, min_bytes: int) -> tuple[bytes, Mapping[str, Run]]:
    """Return a model's bytes without its large weights, and the positions of those.

    Args:
        data: The file; only what is between the weights is read.
        min_bytes: Size from which a weight is left out.

    Returns:
        The bytes of a ModelProto in which those initializers are marked as external; their positions by name.

    Raises:
        ValueError: If these are not the bytes of a message.
    """
    view = memoryview(data)
    runs: dict[str, Run] = {}
    model: list[Buffer] = []
    for field in fields(view, 0, len(view)):
        if field.number != _MODEL_GRAPH:
            model.append(view[field.start : field.end])
            continue
        graph: list[Buffer] = []
        for part in fields(view, field.value, field.end):
            stripped = None
            if part.number == _GRAPH_INITIALIZER:
                stripped = _without_raw_data(view, part, min_bytes, runs)
            graph.append(view[part.start : part.end] if stripped is None else stripped)
        model.append(_message(_MODEL_GRAPH, b"".join(graph)))
    return b"".join(model), runs


def with_weights(data: bytes, weights: Mapping[str, tuple[int, Chunks]]) -> Iterator[Buffer]:
    """Yield the bytes of a model with weights put into it.

    Args:
        data: A ModelProto whose initializers of these names are marked as external.
        weights: For each name the number of bytes, and what yields them.

    Raises:
        ValueError: If a weight does not have the number of bytes that was promised.
    """
    view = memoryview(data)
    for field in fields(view, 0, len(view)):
        if field.number != _MODEL_GRAPH:
            yield view[field.start : field.end]
            continue
        parts: list[tuple[Buffer, tuple[str, int, Chunks] | None]] = []
        for part in fields(view, field.value, field.end):
            name = _tensor_name(view, part) if part.number == _GRAPH_INITIALIZER else ""
            if name in weights:
                size, chunks = weights[name]
                parts.append((_head_of_tensor(view, part, size), (name, size, chunks)))
            else:
                parts.append((view[part.start : part.end], None))
        length = sum(len(head) + (0 if weight is None else weight[1]) for head, weight in parts)
        yield _tag(_MODEL_GRAPH, _LENGTH_DELIMITED) + _varint(length)
        for head, weight in parts:
            yield head
            if weight is not None:
                yield from _counted(*weight)


def fields(view: memoryview, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two offsets.

    Raises:
        ValueError: If there is none.
    """
    while start < end:
        tag, position = _read_varint(view, start, end)
        number, wire_type = tag >> 3, tag & 7
        value = position
        if wire_type == _VARINT:
            _, stop = _read_varint(view, position, end)
        elif wire_type in {_FIXED64, _FIXED32}:
            stop = position + (8 if wire_type == _FIXED64 else 4)
        elif wire_type == _LENGTH_DELIMITED:
            length, value = _read_varint(view, position, end)
            stop = value + length
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if number == 0 or stop > end:
            raise ValueError(f"field {number} at byte {start} ends at byte {stop} of {end}")
        yield Field(number=number, start=start, value=value, end=stop)
        start = stop


def _without_raw_data(view: memoryview, tensor: Field, min_bytes: int, runs: dict[str, Run]) -> bytes | None:
    """Return an initializer marked as external, and record where its bytes are; `None` if it is small or not raw."""
    if tensor.end - tensor.value < min_bytes:
        return None
    parts = list(fields(view, tensor.value, tensor.end))
    raw = [part for part in parts if part.number == _TENSOR_RAW_DATA]
    name = _tensor_name(view, tensor)
    if len(raw) != 1 or raw[0].end - raw[0].value < min_bytes or not name or name in runs:
        return None
    runs[name] = Run(offset=raw[0].value, length=raw[0].end - raw[0].value)
    kept = [view[part.start : part.end] for part in parts if part is not raw[0]]
    location = _message(_TENSOR_EXTERNAL_DATA, _message(1, b"location") + _message(2, b"inside"))
    mark = _tag(_TENSOR_DATA_LOCATION, _VARINT) + _varint(_EXTERNAL)
    return _message(_GRAPH_INITIALIZER, b"".join([*kept, location, mark]))


def _head_of_tensor(view: memoryview, tensor: Field, size: int) -> bytes:
    """Return an initializer up to the point where its `size` bytes follow."""
    dropped = {_TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION}
    parts = fields(view, tensor.value, tensor.end)
    head = b"".join([view[part.start : part.end] for part in parts if part.number not in dropped])
    head += _tag(_TENSOR_RAW_DATA, _LENGTH_DELIMITED) + _varint(size)
    return _tag(_GRAPH_INITIALIZER, _LENGTH_DELIMITED) + _varint(len(head) + size) + head


def _counted(name: str, size: int, chunks: Chunks) -> Iterator[bytes]:
    left = size
    for chunk in chunks():
        left -= len(chunk)
        yield chunk
    if left:
        raise ValueError(f"the weight {name!r} has {size - left} bytes; its shape needs {size}")


def _tensor_name(view: memoryview, tensor: Field) -> str:
    for part in fields(view, tensor.value, tensor.end):
        if part.number == _TENSOR_NAME:
            return bytes(view[part.value : part.end]).decode()
    return ""


def _message(number: int, content: bytes) -> bytes:
    return _tag(number, _LENGTH_DELIMITED) + _varint(len(content)) + content


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(view: memoryview, start: int, end: int) -> tuple[int, int]:
    value = 0
    for position in range(start, min(end, start + _MAX_VARINT_BYTES)):
        value |= (view[position] & 0x7F) << 7 * (position - start)
        if view[position] < 0x80:
            return value, position + 1
    raise ValueError(f"no number at byte {start}")
