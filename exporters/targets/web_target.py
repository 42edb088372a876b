"""Files for a browser: the model with its slots as required inputs, a page, and the JavaScript that the page runs.

    web/index.html      the page: classifies an image or what a camera sees, and takes an update by drag and drop
    web/page.js         what the page does
    web/icis-deploy/    the package of `exporters/web`, as it is
    web/model.onnx      the bundle's model, whose slots have to be fed
    web/keys.json       the keys in `trust/`: a server of files lists no folder
    web/ort/            onnxruntime-web, where its place was given

Rules:

1. The manifest states every file, so that a bundle's signature is over the page, the keys and the model.
2. The JavaScript reads the manifest and the slots of the bundle itself: a page is served with the whole bundle.
3. The gate feeds the slots of the bundle, with random rows in the empty ones, to both models.
"""

from __future__ import annotations

import json
from pathlib import Path

from exporters.head.slot_inputs import with_slots_as_inputs
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.model_comparison import compare_in_onnxruntime
from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.common.files import read_capped, write_file
from icis_deploy.errors import ExportError, SignatureError
from icis_deploy.metrics.parity import ParityReport

WEB_FOLDER = "web"
WEB_MODEL_NAME = f"{WEB_FOLDER}/{MODEL_NAME}"
KEYS_NAME = f"{WEB_FOLDER}/keys.json"
LIBRARY_FOLDER = f"{WEB_FOLDER}/ort"
LIBRARY_NAMES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of onnxruntime-web (1.20 and newer) that a page needs."""

COMPARED_WITH = "outputs of model.onnx with the same slots; the model whose slots are required inputs"
PACKAGE = Path(__file__).resolve().parents[1] / "web"
PACKAGE_FILES = ("package.json", "index.d.ts", "node.d.ts", "README.md")
_MAX_KEY_BYTES = 1 << 12
_MAX_LIBRARY_BYTES = 1 << 27


def library_files(place: Path) -> tuple[Path, ...] | None:
    """Return the files of onnxruntime-web in a place where it may be; `None` where they are not there.

    Args:
        place: A `node_modules` folder, the package's own folder, or a folder with the files.
    """
    for folder in (place / "onnxruntime-web" / "dist", place / "dist", place):
        files = tuple(folder / name for name in LIBRARY_NAMES)
        if all(path.is_file() for path in files):
            return files
    return None


def web_obstacle(place: Path | None) -> str | None:
    """Return why a page cannot be written here, and what to install; `None` where it can."""
    if place is None or library_files(place) is not None:
        return None
    return f"{place} holds no onnxruntime-web ({' and '.join(LIBRARY_NAMES)}): npm install onnxruntime-web."


def write_web_target(folder: Path, bundle: Bundle, place: Path | None) -> tuple[str, ...]:
    """Write the files for a browser into a bundle.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.
        place: Where onnxruntime-web is; `None` leaves it to whoever serves the page.

    Returns:
        The files that were written, relative to `folder`.

    Raises:
        ExportError: If the model keeps its weights in a file of their own, or the edited graph is not valid.
        StorageError: If the disk refuses.
    """
    if any(name.startswith(f"{MODEL_NAME}.") for name in bundle.files):
        raise ExportError(
            "The model keeps its weights in a file of their own, which is larger than a page can hold.",
            found=f"{MODEL_NAME}.data",
            expected="a model of less than 2 GB",
            where=MODEL_NAME,
            hint="Leave `targets=['web']` out.",
        )
    (folder / WEB_FOLDER).mkdir()
    written = save_model(with_slots_as_inputs(load_onnx_file(folder / MODEL_NAME)), folder / WEB_MODEL_NAME)
    keys = [_text_of_key(path) for path in sorted((folder / "trust").glob("*.pub"))]
    contents = {KEYS_NAME: (json.dumps({"public_keys": keys}, indent=1) + "\n").encode()}
    for path in sorted((PACKAGE / "page").iterdir()):
        contents[f"{WEB_FOLDER}/{path.name}"] = path.read_bytes()
    for path in (*(PACKAGE / name for name in PACKAGE_FILES), *sorted((PACKAGE / "src").iterdir())):
        contents[f"{WEB_FOLDER}/icis-deploy/{path.relative_to(PACKAGE).as_posix()}"] = path.read_bytes()
    for path in () if place is None else library_files(place) or ():
        contents[f"{LIBRARY_FOLDER}/{path.name}"] = read_capped(
            path, max_bytes=_MAX_LIBRARY_BYTES, what="file of onnxruntime-web", error_type=ExportError
        )
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, data)
    return (*(path.relative_to(folder).as_posix() for path in written), *contents)


def _text_of_key(path: Path) -> str:
    return read_capped(path, max_bytes=_MAX_KEY_BYTES, what="trusted key", error_type=SignatureError).decode("ascii")


def compare_web_model(folder: Path, bundle: Bundle) -> ParityReport:
    """Feed the same slots to `model.onnx` and to the model for a browser, in ONNX Runtime, and compare all outputs."""
    return compare_in_onnxruntime(folder, bundle, WEB_MODEL_NAME, COMPARED_WITH)
