"""Run the user's ONNX file as it is, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx_files import first_line
from icis_deploy.errors import IncompatibleError, MissingDependencyError, ModelLoadError


def original_onnx(path: Path) -> Callable[[Mapping[str, NDArray[np.generic]], str], NDArray[np.generic]]:
    """Return a function that runs a file: inputs by name and the name of a value in, that value out.

    A session is made at the first call, and another one for each value that is no output of the file.
    """

    @cache
    def session_with(output: str | None) -> Any:
        return _session(path if output is None else _with_output(path, output), where=str(path))

    def run(feed: Mapping[str, NDArray[np.generic]], output: str) -> NDArray[np.generic]:
        session = session_with(None)
        if output not in [value.name for value in session.get_outputs()]:
            session = session_with(output)
        (array,) = session.run([output], dict(feed))
        return np.asarray(array)

    return run


def _with_output(path: Path, output: str) -> bytes:
    """Return the bytes of a model with one more output, nothing else changed."""
    import onnx

    model = onnx.load(path)
    if not any(output in node.output for node in model.graph.node):
        raise IncompatibleError(f"{path} has no value {output!r}.")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    return bytes(model.SerializeToString())


def _session(model: Path | bytes, *, where: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Running an ONNX model needs ONNX Runtime: pip install 'icis-deploy[cpu]' (or 'icis-deploy[gpu]', never "
            "both)."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters comes as an exception
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, which share no base
        raise ModelLoadError(f"ONNX Runtime cannot run {where}: {first_line(error)}.") from error
