"""Convert a model to MNN, with slots as inputs."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from exporters.onnx_io.files import save_model
from exporters.targets.converted import (
    conversion_failed,
    graph_for_conversion,
    run_converter,
    tensors_of,
    unsupported_operators,
    write_sidecar,
)
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
from icis_deploy.bundle.manifest import Bundle

_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
"""The wheel's converter itself. `MNN.tools`, and `mnnconvert` with it, installs a package when it is imported."""
_UNSUPPORTED = re.compile(r"These Op Not Support: (.*)")


def mnn_obstacle() -> str | None:
    """Return why MNN files cannot be written here, and what to install; `None` where they can."""
    if find_spec("MNN") is None or find_spec("_tools") is None:
        return "MNN is not installed: pip install 'icis-deploy[mnn]'."
    return None


def write_mnn(folder: Path, bundle: Bundle) -> Sequence[str]:
    """Convert a bundle's model to MNN.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Returns:
        The model and its sidecar, relative to the folder.

    Raises:
        IncompatibleError: If the model does not compute in float32.
        ExportError: If MNN cannot convert the model; operators that it does not know are named.
        StorageError: If the disk refuses.
    """
    (name,) = CONVERTED_FILES["mnn"]
    model = graph_for_conversion(folder, bundle)
    (folder / name).parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        save_model(model, Path(work) / "model.onnx")
        printed = run_converter(
            [
                *(sys.executable, "-I", "-c", _CONVERT, "-f", "ONNX", "--bizCode", "icis-deploy"),
                *("--modelFile", "model.onnx", "--MNNModel", str((folder / name).resolve())),
            ],
            converter="MNN",
            folder=Path(work),
        )
    if (found := _UNSUPPORTED.search(printed)) is not None:
        raise unsupported_operators("MNN", model, [part.rpartition("::")[2] for part in found[1].split()])
    if not (folder / name).is_file():  # it ends with 0 and prints that it failed
        raise conversion_failed("MNN", printed)
    sidecar = write_sidecar(
        folder,
        bundle,
        "mnn",
        converter=f"MNN {metadata.version('MNN')}",
        inputs=tensors_of(model.graph.inputs),
        outputs=tensors_of(model.graph.outputs),
    )
    return name, sidecar
