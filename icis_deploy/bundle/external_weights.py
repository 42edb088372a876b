"""Which files an ONNX model would make a runtime open, read from its bytes, without onnx.

A model may keep weights in other files (`TensorProto.external_data`), named by a path. A runtime opens them when it
loads the model; old ones take absolute paths, `..` and links. So a bundle's models may name files of its manifest
alone, whose hashes were compared, and that is checked before any runtime sees the model.

Source: onnx.proto3 of ONNX 1.19 for the numbers of fields; the encoding of Protocol Buffers for the rest.
"""

# Why: docs/decisions/0081.

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from icis_deploy.common.files import open_plain
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import BundleError

_MAX_DEPTH = 100  # that of Protocol Buffers itself
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""The messages inside of each message, by field, as far as a tensor may lie in them."""
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_external_weights(path: Path, names: Mapping[str, object]) -> None:
    """Raise `BundleError` if a model names a file that is none of its bundle's.

    Args:
        path: The model, in the bundle's folder.
        names: The files of the manifest, by name.

    Raises:
        BundleError: If it does, or is no ONNX file, or cannot be read.
    """
    try:
        with open_plain(path) as file:
            if file.seek(0, 2) == 0:
                return  # the runtime says what is wrong with it
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                # A search takes a hundredth of the walk, and nearly no model has what it finds.
                locations = set(external_locations(data)) if data.find(b"location") >= 0 else set()
    except (OSError, ValueError) as error:
        raise BundleError(f"Cannot read the model {path}: {error}.", found=str(error), where=path) from error
    for location in sorted(locations):
        if location not in names:
            raise BundleError(
                f"The model {path} keeps weights in {shown(location)}, which is no file of the bundle's manifest. "
                f"Not opened.",
                found=location,
                expected="files of the manifest",
                where=path,
                hint="Fetch the bundle again, and do not run it if it is the same.",
            )


def external_locations(data: bytes | mmap.mmap) -> Iterator[str]:
    """Yield the paths that the tensors of a serialized model name, wherever they are in it.

    Raises:
        ValueError: If the bytes are no Protocol Buffers message.
    """
    pending = [("model", 0, len(data), 0)]
    while pending:
        message, start, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"its messages lie more than {_MAX_DEPTH} deep")
        if message == "entry":
            texts = {number: data[begin:stop] for number, begin, stop in _fields(data, start, end)}
            if texts.get(_KEY) == b"location":
                yield texts.get(_VALUE, b"").decode("utf-8", "backslashreplace")
            continue
        inner = _MESSAGES[message]
        pending += [
            (inner[number], begin, stop, depth + 1)
            for number, begin, stop in _fields(data, start, end)
            if number in inner
        ]


def _fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field that has a length."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError("it ends inside of a field")
            yield number, at, at + length
            at += length
        else:
            raise ValueError(f"it has a field of the kind {kind}")
    if at > end:
        raise ValueError("it ends inside of a field")


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends inside of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it has a number of more than ten bytes")
