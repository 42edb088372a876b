"""What a step depends on, as hashes of content: dates and names of folders say nothing.

A hash is of everything that the step would read: of a list of images also the images, of a model also its weights in
other files, of a folder all files in it. A model on a hub has its name and revision alone, and a factory the file that
it stands in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from icis_deploy.bundle.opened_files import external_locations
from icis_deploy.common.files import read_capped, sha256_of_file
from icis_deploy.errors import LoadError
from icis_deploy.images.loading import ListedImages, open_inputs

_LIBRARIES = (
    "icis-deploy", "numpy", "scipy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "openvino", "tensorrt", "tensorrt-rtx", "transformers", "sentence-transformers", "pillow",
)  # fmt: skip
"""Libraries whose version may change what a step makes."""
_LOCK = ".lock"
_SCANNED_BYTES = 1 << 31


def content_of(path: Path) -> str:
    """Return the SHA-256 of a file with all that belongs to it, or of a folder.

    Raises:
        LoadError: If something cannot be read.
        ImageError: If a list of images names one that is not there.
    """
    try:
        return hash_of({name: sha256_of_file(file) for name, file in _files_of(path)})
    except (OSError, ValueError) as error:
        raise LoadError(
            f"Cannot read {path}: {error}.", found=str(error), where=path, hint="Check the path and its permissions."
        ) from error


def files_in(folder: Path) -> dict[str, Path]:
    """Return the files in a folder and below it, by their paths in it."""
    found = (each for each in folder.rglob("*") if each.is_file() and each.name != _LOCK)
    return {each.relative_to(folder).as_posix(): each for each in sorted(found)}


def hash_of(values: object) -> str:
    """Return the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def factory_source(spec: str) -> Path | None:
    """Return the file of `package.module:factory`; `None` where it is not found, which is for the loader to say."""
    module = spec.partition(":")[0]
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    is_file = found is not None and found.origin is not None and Path(found.origin).is_file()
    return Path(str(found.origin)) if is_file and found is not None else None


def library_versions() -> Mapping[str, str]:
    """Return the versions of what computes here, by distribution."""
    from icis_deploy._version import __version__

    found = {"icis-deploy": __version__}
    for name in _LIBRARIES[1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_dir():
        yield from files_in(path).items()
        return
    yield "", path
    if path.suffix.lower() == ".onnx":
        yield from ((f"weights/{name}", path.parent / name) for name in _weights_of(path))
    elif path.suffix.lower() == ".csv":
        yield from _listed_images(path)


def _weights_of(path: Path) -> Iterable[str]:
    if path.stat().st_size > _SCANNED_BYTES:  # Protocol Buffers holds no more
        return ()
    data = read_capped(path, max_bytes=_SCANNED_BYTES, what="model", error_type=LoadError)
    return sorted(set(external_locations(data))) if b"location" in data else ()


def _listed_images(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the images of a list; a table of attributes has none."""
    with path.open("rb") as file:
        header = file.readline(1 << 16).decode("utf-8", "replace").strip().lstrip("\ufeff").split(",")
    if "file" not in [each.strip('" ') for each in header]:
        return
    source = open_inputs(path)
    if isinstance(source, ListedImages):
        yield from ((f"image/{index}", image) for index, image in enumerate(source.paths) if isinstance(image, Path))
