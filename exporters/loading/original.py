"""Run the user's ONNX file in ONNX Runtime: what it computes is unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx_io.files import first_line
from icis_deploy.errors import IncompatibleError, MissingDependencyError, ModelLoadError
from icis_deploy.runtime.sessions.onnxruntime_session import session_options


class OriginalOnnx:
    """An ONNX file that can be run: takes inputs by name and the name of a value, and returns that value.

    A session is made at the first call, and another one for each value that is no output of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sessions: dict[str | None, Any] = {}

    def __call__(self, feed: Mapping[str, NDArray[np.generic]], output: str) -> NDArray[np.generic]:
        """Return a value."""
        session = self._session_with(None)
        if output not in [value.name for value in session.get_outputs()]:
            session = self._session_with(output)
        (array,) = session.run([output], dict(feed))
        return np.asarray(array)

    def release(self) -> None:
        """Release the sessions: each holds all weights of the model."""
        self._sessions.clear()

    def _session_with(self, output: str | None) -> Any:
        if output not in self._sessions:
            model = self._path if output is None else _edited(self._path, output)
            session = _session(model, self._path)
            if output is None and any(0 in value.shape for value in session.get_inputs()):
                session = _session(_edited(self._path), self._path)
            self._sessions[output] = session
        return self._sessions[output]


def _edited(path: Path, output: str | None = None) -> bytes:
    """Return the bytes of a model with one more output, and inputs of size 0 of any size; nothing else is changed.

    ONNX Runtime takes 0, which converters write for an open size, at its word, and then takes nothing else. External
    weights stay in their files: with them a model may exceed what a protobuf holds.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value == 0:
                dim.Clear()
    if output is None:
        return bytes(model.SerializeToString())
    if not any(output in node.output for node in model.graph.node):
        raise IncompatibleError(
            f"{path} has no value {output!r}.",
            expected=output,
            where=path,
        )
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    return bytes(model.SerializeToString())


def _session(model: Path | bytes, path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Running an ONNX model needs ONNX Runtime.",
            hint="Install it: pip install 'icis-deploy[cpu]' (or 'icis-deploy[gpu]', never both).",
        ) from error
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, which share no base
        raise ModelLoadError(
            f"ONNX Runtime cannot run {path}: {first_line(error)}.",
            found=first_line(error),
            where=path,
            hint=(
                "Check that the model runs by itself; where the message speaks of an opset or IR "
                "version, install a newer onnxruntime."
            ),
        ) from error
