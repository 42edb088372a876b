"""A session on a Qualcomm NPU: a quantized backbone in ONNX Runtime's QNN provider, the head in numpy.

The provider is a plugin, the distribution `onnxruntime-qnn`. It has wheels for Windows and Linux on arm64, where the
chips are, and for Linux on x86-64, where it compiles and runs nothing.

Without the chip the same graph runs on the CPU: an emulation, whose integers are those of the graph. What the chip
makes of them, and how fast, only the chip says.
"""

# Why: docs/decisions/0146.

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import MissingDependencyError, ModelLoadError
from icis_deploy.runtime.sessions.interpreter_session import load_converted_sidecar
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession, load_session, session_options
from icis_deploy.runtime.sessions.split_session import SplitSession, session_with_host_head

QNN_PROVIDER = "QNNExecutionProvider"
QNN_OPTIONS: Mapping[str, str] = {"backend_type": "htp", "htp_performance_mode": "burst"}
QNN_SESSION_ENTRIES: Mapping[str, str] = {"session.disable_cpu_ep_fallback": "1"}
"""A node that the NPU does not take would run on the CPU without a word."""

_HINT = "Emulate it on the CPU: `runtime='qnn-emulated'`."


def load_qnn_session(
    folder: Path, bundle: Bundle, *, num_threads: int | None = None, is_emulated: bool = False
) -> SplitSession:
    """Load a bundle's quantized backbone on an NPU, and its rows and slots in numpy.

    Args:
        folder: The bundle's files, which the caller has compared with the manifest.
        bundle: What its manifest says, or will say.
        num_threads: Threads of the emulation; `None` for every core.
        is_emulated: Whether it runs on the CPU.

    Raises:
        MissingDependencyError: If ONNX Runtime, its QNN provider or the NPU is not there.
        IncompatibleError: If the bundle holds no such backbone, or one made of another model.
        BundleError, CorruptFileError: If its sidecar, rows or slots cannot be read.
        ModelLoadError: If ONNX Runtime or the NPU's compiler cannot load it.
    """
    load_converted_sidecar(folder, bundle, "qnn")
    path = folder / CONVERTED_FILES["qnn"][0]
    backbone = load_session(path, num_threads=num_threads) if is_emulated else _npu_session(path)
    return session_with_host_head(backbone, folder, bundle)


def _npu_session(path: Path) -> ONNXRuntimeSession:
    onnxruntime, devices = _npu_devices()
    if not devices:
        raise MissingDependencyError(
            "There is no Qualcomm NPU here that ONNX Runtime's QNN provider can use.",
            expected="an NPU",
            hint=_HINT,
        )
    options = session_options()
    for name, value in QNN_SESSION_ENTRIES.items():
        options.add_session_config_entry(name, value)
    try:
        options.add_provider_for_devices(devices, dict(QNN_OPTIONS))
        return ONNXRuntimeSession(onnxruntime.InferenceSession(str(path), options))
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise ModelLoadError(
            f"The NPU's compiler cannot load {path}: {one_line(error)}.", found=one_line(error), where=path, hint=_HINT
        ) from error


@cache
def _npu_devices() -> tuple[Any, tuple[Any, ...]]:
    """Return ONNX Runtime with the provider registered, once in a process, and the NPUs that it can use."""
    try:
        import onnxruntime
        import onnxruntime_qnn
    except ImportError as error:
        raise MissingDependencyError(
            "The runtime 'qnn' needs a Qualcomm NPU, and ONNX Runtime with its QNN provider.",
            expected="onnxruntime-qnn",
            hint=f"On the device: pip install 'icis-deploy[cpu]' onnxruntime-qnn. {_HINT}",
        ) from error
    try:
        onnxruntime.register_execution_provider_library(QNN_PROVIDER, onnxruntime_qnn.get_library_path())
    except Exception as error:  # as above
        raise MissingDependencyError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load its QNN provider: {one_line(error)}.",
            found=one_line(error),
            hint=_HINT,
        ) from error
    npu = onnxruntime.OrtHardwareDeviceType.NPU
    found = [each for each in onnxruntime.get_ep_devices() if each.ep_name == QNN_PROVIDER]
    return onnxruntime, tuple(each for each in found if each.device.type == npu)
