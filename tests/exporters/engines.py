"""Bundles with engines that a test changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from icis_deploy.bundle.manifest import MANIFEST_NAME, file_entry, load_bundle, serialize_manifest

SIDECAR = "engines/tensorrt-rtx.json"


def bundle_with_sidecar(source: Path, folder: Path, **changes: Any) -> Path:
    """Copy a bundle and change what the sidecar of its engine states; the manifest follows."""
    shutil.copytree(source, folder)
    values = {**json.loads((folder / SIDECAR).read_text()), **changes}
    (folder / SIDECAR).write_text(json.dumps(values))
    bundle = load_bundle(source)
    files = {**bundle.files, SIDECAR: file_entry(folder / SIDECAR)}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))
    return folder
