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

import numpy as np

from exporters.backbone.inputs import input_batches
from exporters.graph.reading import fixed_batch
from exporters.head.score_kinds import comparable_from_scores
from exporters.head.slot_inputs import with_slots_as_inputs
from exporters.onnx_io.files import load_onnx_file, save_model
from icis_deploy.bundle.manifest import MAX_SLOTS_BYTES, MODEL_NAME, SLOTS_NAME, Bundle
from icis_deploy.bundle.slot_files import parse_slots
from icis_deploy.common.files import read_capped, write_file
from icis_deploy.errors import BundleError, ExportError, SignatureError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.slots import SlotTable
from icis_deploy.metrics.parity import GATE_PROFILES, ParityReport, compare_logits
from icis_deploy.runtime.sessions.onnxruntime_session import load_session

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
    whole, web = load_session(folder / MODEL_NAME), load_session(folder / WEB_MODEL_NAME)
    graph = load_onnx_file(folder / WEB_MODEL_NAME).graph
    inputs = input_batches(bundle.model_input, bundle.preprocessing, None, fixed_batch=fixed_batch(graph.inputs[0]))
    table = _filled_table(folder, bundle)
    slots = [
        None if table is None else each.load_slots(table.weight, table.bias, table.arbiter) for each in (whole, web)
    ]
    expected, found = [], []
    for batch in inputs:
        expected.append(whole.run(batch.given, slots[0]).logits)
        found.append(web.run(batch.given, slots[1]).logits)
    return compare_logits(
        comparable_from_scores(np.concatenate(expected), bundle.score_kind),
        comparable_from_scores(np.concatenate(found), bundle.score_kind),
        profile=GATE_PROFILES["fp32"],
        compared_with=COMPARED_WITH,
    )


def _filled_table(folder: Path, bundle: Bundle) -> SlotTable | None:
    """Return the slots of a bundle with random rows in the empty ones, of which all are alike; `None` for a fused head.

    An empty slot's bias would also be the scale that errors are measured on.
    """
    if not bundle.capacity:
        return None
    data = read_capped(folder / SLOTS_NAME, max_bytes=MAX_SLOTS_BYTES, what="slots", error_type=BundleError)
    exported = parse_slots(data, capacity=bundle.capacity, feature_dim=bundle.feature_dim)
    random, filled = np.random.default_rng(0), exported.filled
    weight = random.normal(scale=0.1, size=(bundle.capacity, bundle.feature_dim)).astype(np.float32)
    bias = random.normal(size=bundle.capacity).astype(np.float32)
    arbiter = random.normal(scale=0.1, size=(bundle.capacity, len(STATISTICS))).astype(np.float32)
    weight[filled], bias[filled], arbiter[filled] = (
        exported.weight[filled],
        exported.bias[filled],
        exported.coefficients[filled],
    )
    names = tuple(name or f"random row {slot}" for slot, name in enumerate(exported.class_names))
    return SlotTable(weight=weight, bias=bias, class_names=names, arbiter=arbiter if bundle.arbiter else None)
