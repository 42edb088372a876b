"""The model in ONNX Runtime's own format, for its builds that cannot read ONNX: mobile ones, and minimal ones.

    ort-arm/model.ort      for every processor; no layout of one kind of processor is in it
    ort-amd64/model.ort    for x86-64 alone: convolutions in blocks as wide as this machine's vectors

Slots are required inputs, as the bindings for Java, Kotlin and Swift know no others.

Source: ONNX Runtime's `tools/python/util/convert_onnx_models_to_ort.py`, whose settings these are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from exporters.head.slot_inputs import with_slots_as_inputs
from exporters.onnx_io.files import first_line, load_onnx_file, save_model
from exporters.targets.converted import keep_converted
from exporters.targets.model_comparison import compare_in_onnxruntime
from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.errors import ExportError
from icis_deploy.metrics.parity import ParityReport

PLATFORMS = ("amd64", "arm")
"""As ONNX Runtime's own converter calls them."""

COMPARED_WITH = "outputs of model.onnx with the same slots; the model in ONNX Runtime's own format"


def ort_name(platform: str) -> str:
    """Return the path of the model for a platform, relative to its bundle."""
    return f"ort-{platform}/model.ort"


def ort_obstacle() -> str | None:
    """Return why ONNX Runtime's format cannot be written here, and what to install; `None` where it can."""
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'icis-deploy[cpu]'."
    return None


def write_ort(folder: Path, platform: str) -> Sequence[str]:
    """Write a bundle's model in ONNX Runtime's format, optimized for a platform.

    Args:
        folder: The bundle's files.
        platform: One of `PLATFORMS`.

    Returns:
        The file, relative to the folder.

    Raises:
        ExportError: If ONNX Runtime cannot write the model.
        StorageError: If the disk refuses.
    """
    import onnxruntime

    name = ort_name(platform)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3  # it warns that such a file is for machines like this one
    with tempfile.TemporaryDirectory() as work:
        graph = Path(work) / MODEL_NAME
        save_model(with_slots_as_inputs(load_onnx_file(folder / MODEL_NAME)), graph)
        options.optimized_model_filepath = str(Path(work) / "model.ort")
        try:
            onnxruntime.InferenceSession(
                str(graph),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=None if platform == "amd64" else ["NchwcTransformer"],
            )
        except Exception as error:  # ONNX Runtime raises types of its own
            raise ExportError(
                f"ONNX Runtime cannot write {MODEL_NAME} in its own format: {first_line(error)}.",
                found=first_line(error),
                where=MODEL_NAME,
                hint="Leave this target out.",
            ) from error
        keep_converted(Path(work) / "model.ort", folder / name)
    return (name,)


def compare_ort(folder: Path, bundle: Bundle, platform: str) -> ParityReport:
    """Feed the same slots to `model.onnx` and to the model in ONNX Runtime's format, and compare their scores."""
    return compare_in_onnxruntime(folder, bundle, ort_name(platform), COMPARED_WITH)
