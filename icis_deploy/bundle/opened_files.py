"""Which files a runtime would open besides those that it is given, found before it sees any of them, without onnx.

- A model may keep weights in other files (`TensorProto.external_data`), or be a compiled one that lies in another file
  (`EPContext`). It names them by paths from its own folder. A runtime opens them when it loads the model; old ones take
  absolute paths, `..` and links.
- OpenVINO opens the `.bin` next to a `.xml`. Triton takes any version of a model that is in its folder.

So models name files of the manifest alone, whose hashes were compared, and the folder of a target holds no others.

Source: onnx.proto3 of ONNX 1.19 for the numbers of fields; the encoding of Protocol Buffers for the rest; ONNX
Runtime's "EP context design" for `EPContext`.
"""

# Why: docs/decisions/0081.

from __future__ import annotations

import mmap
import os
import posixpath
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
_ATTRIBUTE_NAME, _ATTRIBUTE_TEXT = 1, 4
_CONTEXT = b"ep_cache_context"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_external_weights(folder: Path, model: str, names: Mapping[str, object]) -> None:
    """Raise `BundleError` if a model names a file that is none of its bundle's.

    Args:
        folder: The bundle.
        model: The model's path in it.
        names: The files of the manifest, by their paths in it.

    Raises:
        BundleError: If it does, or is no ONNX file, or cannot be read.
    """
    path = folder / model
    try:
        with open_plain(path) as file:
            if file.seek(0, 2) == 0:
                return  # the runtime says what is wrong with it
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                # A search takes a hundredth of the walk, and nearly no model has what it finds.
                is_suspect = data.find(b"location") >= 0 or data.find(_CONTEXT) >= 0
                locations = set(external_locations(data)) if is_suspect else set()
    except (OSError, ValueError) as error:
        raise BundleError(
            f"Cannot read the model {path}: {error}.",
            found=str(error),
            where=path,
            hint="Copy the whole folder of the bundle again.",
        ) from error
    for location in sorted(locations):
        if posixpath.join(posixpath.dirname(model), location) not in names:
            raise BundleError(
                f"The model {path} keeps weights in {shown(location)}, which is no file of the bundle's manifest. "
                f"Not opened.",
                found=location,
                expected="files of the manifest",
                where=path,
                hint="Fetch the bundle again, and do not run it if it is the same.",
            )


def check_target_folders(folder: Path, names: Mapping[str, object]) -> None:
    """Raise `BundleError` if there is a file in the folder of a target that the manifest does not name.

    Hidden files, which no runtime looks for, are left alone.

    Args:
        folder: The bundle.
        names: The files of the manifest, by their paths in it.

    Raises:
        BundleError: If there is one.
    """
    for target in sorted({name.partition("/")[0] for name in names if "/" in name}):
        # Not through links: what lies behind one is found under its own name, or is the link's own fault.
        for parent, folders, files in os.walk(folder / target):
            linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
            for file in sorted((*files, *linked)):
                name = Path(parent, file).relative_to(folder).as_posix()
                if name not in names and not file.startswith("."):
                    raise BundleError(
                        f"{folder / name} is in the folder of a target, and no file of the bundle's manifest: a "
                        f"runtime that opens the folder would take it.",
                        found=name,
                        expected="files of the manifest",
                        where=folder / name,
                        hint="Remove it, or fetch the bundle again.",
                    )


def external_locations(data: bytes | mmap.mmap) -> Iterator[str]:
    """Yield the paths of files that a serialized model names, wherever in it they are named.

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
        if message == "attribute":
            texts = {
                number: data[begin:stop]
                for number, begin, stop in _fields(data, start, end)
                if number <= _ATTRIBUTE_TEXT
            }
            if texts.get(_ATTRIBUTE_NAME) == _CONTEXT:
                yield texts.get(_ATTRIBUTE_TEXT, b"").decode("utf-8", "backslashreplace")
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
