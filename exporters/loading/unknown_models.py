"""What somebody gave as a model that is none that can be loaded, and what to give instead."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from icis_deploy.bundle.manifest import MANIFEST_NAME
from icis_deploy.common.closest import did_you_mean_path
from icis_deploy.errors import ModelLoadError

_CONVERTED = "Convert it to ONNX, with {}, and give that."
_FOR_A_RUNTIME = "It was converted for one runtime: give the .onnx or torch model that it was made from."
_WEIGHTS = (
    "Weights alone are no model: give them as `weights`, and package.module:factory as the model. Of TorchScript, "
    "export the module that it was made from."
)
_INSTEAD: Mapping[str, str] = {
    ".h5": _CONVERTED.format("tf2onnx"),
    ".icis": "It is a class update: give the model that it was made for, and the update to `Device.apply()`, or to "
    "`export()` as one of its updates.",
    ".joblib": _CONVERTED.format("skl2onnx"),
    ".keras": _CONVERTED.format("the export of Keras: model.export(path, format='onnx')"),
    ".pb": _CONVERTED.format("tf2onnx"),
    ".pdmodel": _CONVERTED.format("paddle2onnx"),
    ".pkl": _CONVERTED.format("the converter of what wrote it, such as skl2onnx"),
    ".tflite": _CONVERTED.format("tf2onnx"),
    ".zip": "Unpack it, and give the model that is in it.",
    ".gz": "Unpack it, and give the model that is in it.",
    **dict.fromkeys((".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".torchscript"), _WEIGHTS),
    **dict.fromkeys((".engine", ".mlmodel", ".mlpackage", ".mnn", ".ort", ".param", ".plan", ".pte"), _FOR_A_RUNTIME),
    **dict.fromkeys((".rknn", ".trt", ".xml"), _FOR_A_RUNTIME),
}
"""By the ending of a file that is no model, what to do instead."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def unknown_model(spec: str) -> ModelLoadError:
    """Return the error for what is no model.

    Args:
        spec: A path or name, as it was given.
    """
    found, hint = _found(spec)
    return ModelLoadError(
        f"{spec or repr(spec)} is no model that can be loaded: found {found}. Expected a .onnx file, a .pt2 "
        f"torch.export program, a folder of transformers or the name of a model on its hub, or package.module:factory "
        f"with weights.",
        found=found,
        expected="a .onnx file, a .pt2 program, a folder of transformers, or package.module:factory",
        where=spec,
        hint=hint,
    )


def _found(spec: str) -> tuple[str, str]:
    """Return what stands at a path, and what to do."""
    if not spec:
        return "an empty text", "Name the model; where a variable says it, set that."
    path = Path(spec)
    if "://" in spec:
        return "an address", "Download the model, and give the file or folder."
    if os.path.isdir(path):  # noqa: PTH112 - a name that is too long is none
        return _found_folder(path)
    suffix = path.suffix.lower()
    if os.path.exists(path):  # noqa: PTH110 - a name that is too long is none
        return f"a file of type {suffix or 'unknown'}", _INSTEAD.get(
            suffix, "Give the model itself; what is ONNX ends in .onnx."
        )
    hint = did_you_mean_path(spec)
    if not hint and _DOTTED.fullmatch(spec):
        module, _, name = spec.rpartition(".")
        hint = f"If it is a function of a module, write {module}:{name}. "
    return "nothing of that name", f"{hint}Check the path, or give a factory with `weights`."


def _found_folder(folder: Path) -> tuple[str, str]:
    if (folder / MANIFEST_NAME).is_file():
        hint = "Give the model that it was exported from; class updates and new classes go into the bundle afterwards."
        return "a bundle, which was made of a model", hint
    models = sorted(each.name for each in folder.glob("*.onnx"))
    found = "a folder without a config.json of transformers"
    if models:
        return found, f"Give the file: {folder / models[0]}."
    return found, "Give the folder that save_pretrained() wrote, or a .onnx file."
