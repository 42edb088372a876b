"""What a file that cannot be read as a model is instead, by its first bytes.

A download leaves pages, error answers and pointers under a model's name; copying such a file again gives the same one.
Sources: git-lfs specification (pointer files), and the signatures of gzip, zip, HDF5, TFLite and ORT files.
"""

from __future__ import annotations

from pathlib import Path

from icis_deploy.common.files import open_plain

_NUM_BYTES = 64
_ZIP = b"PK\x03\x04"
_STARTS: tuple[tuple[int, bytes, str, str], ...] = (
    (
        *(0, b"version https://git-lfs", "a pointer of Git LFS, which stands for the file"),
        "Fetch the file itself, with git lfs pull where the repository is, or hf download.",
    ),
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it, and give the file that was in it."),
    (
        *(0, _ZIP, "a zip archive, as torch and many exporters write"),
        "Unpack it if a model is in it; a torch file is given under its own ending.",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "Export the model of it to ONNX, and give that."),
    (4, b"TFL3", "a TFLite model", "Convert it to ONNX, with tf2onnx, and give that."),
    (4, b"ORTM", "a model in the .ort format of ONNX Runtime", "Give the .onnx file that it was converted from."),
)
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
_PAGE = (
    "a page or other text, as a server answers",
    "Download the file itself: open the address to see what it gives.",
)


def foreign_file(path: Path, *, may_be_zip: bool = False) -> tuple[str, str] | None:
    """Return what a file is instead of a model, and what to do; `None` where its first bytes do not tell.

    Args:
        path: The file; a pipe or device is not read.
        may_be_zip: Whether the file that was expected is a zip archive itself, as torch's are.
    """
    try:
        with open_plain(path) as file:
            start = file.read(_NUM_BYTES)
    except OSError:
        return None
    for offset, signature, found, hint in _STARTS:
        if start[offset:].startswith(signature) and not (may_be_zip and signature == _ZIP):
            return found, hint
    text = start.lstrip().lower()
    return _PAGE if text.startswith(_PAGE_STARTS) or _is_json(text) else None


def _is_json(text: bytes) -> bool:
    return text.startswith((b'{"', b'["', b"{\n", b"{\r\n"))
