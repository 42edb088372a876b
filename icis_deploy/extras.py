"""What each extra of icis-deploy brings, so that whatever lacks a library can name the command that installs it.

`pyproject.toml` says the same to pip; `tests/icis_deploy/test_extras.py` compares the two. It stands here as well since
a checkout that is only on the path has no metadata, and a device should not read any to answer.
"""

# Why: docs/decisions/0123.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from icis_deploy.errors import MissingDependencyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One extra of the package."""

    purpose: str
    """What it is for, in a few words."""

    requires: Mapping[str, str]
    """By distribution, the lowest version that does."""

    includes: tuple[str, ...] = ()
    """Other extras that it brings."""


EXTRAS: Mapping[str, Extra] = {
    "cpu": Extra(purpose="ONNX Runtime on the CPU", requires={"onnxruntime": "1.20"}),
    "gpu": Extra(purpose="ONNX Runtime on an NVIDIA GPU", requires={"onnxruntime-gpu": "1.20"}),
    "train": Extra(purpose="inject", requires={"torch": "2.8", "onnx": "1.18", "onnx-ir": "0.1.14", "scipy": "1.13"}),
    "hsm": Extra(purpose="keys in PKCS #11 tokens", requires={"securesystemslib[hsm]": "1.1"}),
    "kms": Extra(purpose="keys in services", requires={"securesystemslib[awskms,azurekms,gcpkms,vault]": "1.1"}),
    "text": Extra(
        purpose="describe with a text model",
        requires={"torch": "2.8", "transformers": "4.50", "sentence-transformers": "5"},
    ),
    "llm": Extra(purpose="describe with a language model's server", requires={"openai": "2"}),
    "export": Extra(
        purpose="export and verify",
        requires={"torch": "2.8", "onnx": "1.18", "onnx-ir": "0.1.14", "onnxscript": "0.5"},
    ),
    "hub": Extra(purpose="models of transformers", requires={"transformers": "4.50"}, includes=("export",)),
    "tensorrt": Extra(purpose="TensorRT engines", requires={"tensorrt": "10.3", "cuda-python": "12.6"}),
    "tensorrt-rtx": Extra(purpose="TensorRT-RTX engines", requires={"tensorrt-rtx": "1.2", "cuda-python": "12.6"}),
    "openvino": Extra(purpose="OpenVINO on the CPU", requires={"openvino": "2025.0"}),
    "litert": Extra(purpose="LiteRT on the CPU", requires={"ai-edge-litert": "2.1"}),
    "mnn": Extra(purpose="MNN on the CPU", requires={"MNN": "3.6"}),
    "executorch": Extra(purpose="ExecuTorch on the CPU", requires={"executorch": "1.5", "torch": "2.13"}),
    "ncnn": Extra(purpose="ncnn on the CPU", requires={"ncnn": "1.0.20250503"}),
    "coreml": Extra(purpose="convert for Core ML", requires={"coremltools": "9.0"}),
    "data": Extra(purpose="inputs from Parquet and URIs, checkpoints", requires={"pyarrow": "18", "fsspec": "2024.2"}),
    "ray": Extra(purpose="evaluate on a Ray cluster", requires={"ray[data]": "2.40", "pyarrow": "18"}),
    "otel": Extra(purpose="traces of serve", requires={"opentelemetry-api": "1.30"}),
    "serve": Extra(
        purpose="serve",
        requires={"prometheus-client": "0.20", "python-multipart": "0.0.20", "starlette": "0.46", "uvicorn": "0.54"},
    ),
    "bench": Extra(
        purpose="benchmarks and reports",
        requires={
            "matplotlib": "3.9",
            "jinja2": "3.1",
            "mlcommons-loadgen": "5.1",
            "psutil": "6",
            "nvidia-ml-py": "12",
        },
    ),
    "project": Extra(purpose="run and init", requires={"pydantic": "2.10", "pyyaml": "6"}),
}
"""All extras for users, by name, in the order of `pyproject.toml`."""

_WORKBENCH = "train,export"
_EXTRAS_OF_IMPORTS: Mapping[str, str] = {
    "MNN": "mnn",
    "ai_edge_litert": "litert",
    "coremltools": "coreml",
    "cuda": "tensorrt",
    "executorch": "executorch",
    "fsspec": "data",
    "jinja2": "bench",
    "matplotlib": "bench",
    "mlperf_loadgen": "bench",
    "ncnn": "ncnn",
    "onnx": _WORKBENCH,
    "onnx_ir": _WORKBENCH,
    "onnxruntime": "cpu",
    "onnxscript": _WORKBENCH,
    "openai": "llm",
    "openvino": "openvino",
    "psutil": "bench",
    "prometheus_client": "serve",
    "pyarrow": "data",
    "pydantic": "project",
    "pynvml": "bench",
    "scipy": _WORKBENCH,
    "ray": "ray",
    "sentence_transformers": "text",
    "starlette": "serve",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "torch": _WORKBENCH,
    "transformers": "hub",
    "uvicorn": "serve",
    "yaml": "project",
}
"""By the name under which a library is imported, the extras whose installation makes up for its absence."""


def missing_library(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """Return the error of ours for an import that failed; `None` where no extra brings what is missing.

    Args:
        error: What Python raised.
    """
    library = (error.name or "").partition(".")[0]
    extras = _EXTRAS_OF_IMPORTS.get(library)
    if extras is None:
        return None
    what = "what a workbench needs" if extras == _WORKBENCH else "it"
    return MissingDependencyError(
        f"This needs {library}, which is not installed.",
        expected=library,
        hint=f"Install {what}: {install_command(extras)}.",
    )


def install_command(extras: str) -> str:
    """Return the command that installs extras, given as pip takes them: `train,export`."""
    return f"pip install 'icis-deploy[{extras}]'"
