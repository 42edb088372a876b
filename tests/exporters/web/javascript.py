"""A process of Node with JavaScript devices in it, and bundles for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from exporters.targets.web_target import write_web_target
from icis_deploy.bundle.manifest import MANIFEST_NAME, file_entry, load_manifest, serialize_manifest

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGE = REPOSITORY / "exporters" / "web"
DRIVER = Path(__file__).with_name("driver.mjs")


def node_modules() -> Path:
    """Return a folder with onnxruntime-web, or skip the test."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    found = Path(os.environ.get("ICIS_DEPLOY_NODE_MODULES", REPOSITORY / "node_modules"))
    if not (found / "onnxruntime-web").is_dir():
        pytest.skip(f"needs onnxruntime-web in {found}: npm install --no-save onnxruntime-web")
    return found


def with_web_files(folder: Path) -> Path:
    """Add the files of the target `web` to a bundle that was written by hand; return its folder."""
    bundle = load_manifest(folder)
    files = write_web_target(folder, bundle, None)
    bundle = replace(bundle, files={**bundle.files, **{name: file_entry(folder / name) for name in files}})
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    return folder


class JavaScriptError(Exception):
    """What a JavaScript device threw."""

    def __init__(self, name: str, message: str, *, is_ours: bool) -> None:
        super().__init__(message)
        self.name = name
        self.is_ours = is_ours


class Node:
    """A process that opens bundles and calls their devices; each call waits for its answer."""

    def __init__(self, library: Path) -> None:
        runtime = library / "onnxruntime-web" / "dist" / "ort.node.min.mjs"
        command = ["node", str(DRIVER), str(PACKAGE / "src"), str(runtime)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, what: str, **values: Any) -> Any:
        """Return what a function of the driver gives.

        Raises:
            JavaScriptError: If it throws.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": what, **values}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            error = answer["error"]
            raise JavaScriptError(error["name"], error["message"], is_ours=error["isOurs"])
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        with self._process:  # which closes the pipes, and waits
            pass

    def open(self, folder: Path, *, state: Path | None = None, **options: Any) -> NodeDevice:
        """Open a bundle in a folder; its state is kept in another one, or forgotten."""
        number = self.call("open", folder=str(folder), state=None if state is None else str(state), **options)
        return NodeDevice(self, number)


class NodeDevice:
    """A JavaScript device."""

    def __init__(self, node: Node, number: int) -> None:
        self._node = node
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return lambda **values: self._node.call(name, device=self._number, **values)

    def apply(self, data: bytes | Path, **options: Any) -> Any:
        """Apply the bytes of a file."""
        given = data if isinstance(data, bytes) else data.read_bytes()
        return self._node.call("apply", device=self._number, data=base64.b64encode(given).decode(), options=options)

    def logits(self, values: ArrayLike) -> np.ndarray:
        """Return the logits of prepared images, `(batch, num_classes)`."""
        array = np.asarray(values)
        found = self._node.call("logits", device=self._number, values=array.ravel().tolist(), dtype=str(array.dtype))
        return np.array(found["values"], np.float32).reshape(len(array), -1)
