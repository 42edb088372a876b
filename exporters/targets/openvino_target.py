"""Convert a model to OpenVINO's own format, which a device loads without the ONNX frontend."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from exporters.onnx_io.files import first_line
from icis_deploy.errors import ExportError


def openvino_obstacle() -> str | None:
    """Return why OpenVINO files cannot be written here, and what to install; `None` where they can."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'icis-deploy[openvino]'."
    return None


def openvino_from_onnx(model: Path, folder: Path, name: str) -> Sequence[str]:
    """Write an ONNX model in OpenVINO's format, in the precision that it has.

    Slots become constants that keep their names, by which `load_openvino_session` finds them.

    Args:
        model: The `.onnx` file.
        folder: The bundle's folder.
        name: The `.xml` file, relative to it; the weights go into a `.bin` next to it.

    Returns:
        Both files, relative to the folder.

    Raises:
        ExportError: If OpenVINO cannot convert the model, or write it.
    """
    import openvino

    target = folder / name
    try:
        target.parent.mkdir(exist_ok=True)
        openvino.save_model(openvino.Core().read_model(model), target, compress_to_fp16=False)
    except Exception as error:  # OpenVINO raises RuntimeError for everything, even for a full disk
        raise ExportError(
            f"OpenVINO could not convert {model.name}: {first_line(error)}.",
            found=first_line(error),
            where=model.name,
            hint="Leave this target out: the runtime openvino also reads model.onnx itself.",
        ) from error
    return name, Path(name).with_suffix(".bin").as_posix()
