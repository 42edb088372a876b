"""A session in LiteRT (TensorFlow Lite), on the CPU.

LiteRT never reuses the memory of inputs for anything else (`arena_planner.cc`), so slots stay in an interpreter from
one run to the next. Tensors of a converted model have names of their own, which the sidecar maps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, ConvertedSidecar, ConvertedTensor
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import MissingDependencyError, ModelLoadError
from icis_deploy.runtime.sessions.interpreter_session import InterpreterSession, load_converted_sidecar
from icis_deploy.runtime.sessions.native_output import printing_to_stderr
from icis_deploy.runtime.sessions.protocol import Session
from icis_deploy.runtime.sessions.split_session import session_with_host_head


def load_litert_session(folder: Path, bundle: Bundle, *, num_threads: int | None = None) -> Session:
    """Load a bundle's LiteRT model; of one that ends in features, as int8 ones do, with the head on the host.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        num_threads: Threads of one request; `None` for one per core.

    Raises:
        MissingDependencyError: If LiteRT is not installed.
        IncompatibleError: If the bundle holds no model for LiteRT, or one converted from another model.
        BundleError, CorruptFileError: If its sidecar, or the rows of a head on the host, cannot be read.
        ModelLoadError: If LiteRT cannot load the model, or it has not the tensors that the sidecar states.
    """
    make_interpreter = import_litert()
    sidecar = load_converted_sidecar(folder, bundle, "litert")
    path = folder / CONVERTED_FILES["litert"][0]
    threads = num_threads or os.cpu_count() or 1

    def make() -> LiteRTInterpreter:
        try:
            with printing_to_stderr():
                interpreter = make_interpreter(model_path=str(path), num_threads=threads)
                interpreter.allocate_tensors()
            return LiteRTInterpreter(interpreter, sidecar)
        except Exception as error:  # LiteRT raises ValueError and RuntimeError
            raise ModelLoadError(
                f"LiteRT cannot load the model {path}: {one_line(error)}.",
                found=one_line(error),
                where=path,
                hint="Convert it again.",
            ) from error

    session = InterpreterSession(make, sidecar, bundle, library="LiteRT")
    return session_with_host_head(session, folder, bundle) if sidecar.ends_in_features else session


def import_litert() -> Any:
    """Return the class `ai_edge_litert.interpreter.Interpreter`.

    Raises:
        MissingDependencyError: If LiteRT is not installed.
    """
    try:
        with printing_to_stderr():
            from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependencyError(
            "The runtime 'litert' needs LiteRT.", hint="Install it: pip install 'icis-deploy[litert]'."
        ) from error
    return Interpreter


class LiteRTInterpreter:
    """An interpreter of LiteRT; see `Interpreter`.

    Raises:
        ValueError: On construction, if the model has not the tensors that the sidecar states.
    """

    def __init__(self, interpreter: Any, sidecar: ConvertedSidecar) -> None:
        self._interpreter = interpreter
        self._image, *slots = _indices(interpreter.get_input_details(), sidecar.inputs)
        self._slots = {tensor.name: index for tensor, index in zip(sidecar.inputs[1:], slots, strict=True)}
        outputs = _indices(interpreter.get_output_details(), sidecar.outputs)
        self._outputs = {tensor.name: index for tensor, index in zip(sidecar.outputs, outputs, strict=True)}

    def write_slots(self, slots: Mapping[str, Float32]) -> None:
        """Copy slots into the interpreter's inputs."""
        for name, index in self._slots.items():
            self._interpreter.set_tensor(index, slots[name])

    def read_slots(self) -> Mapping[str, Float32]:
        """Return copies of the interpreter's inputs."""
        return {name: self._interpreter.get_tensor(index) for name, index in self._slots.items()}

    def run(self, images: Images, names: list[str]) -> list[NDArray[Any]]:
        """Run the one batch that the model takes."""
        self._interpreter.set_tensor(self._image, images)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[name]) for name in names]


def _indices(details: list[dict[str, Any]], tensors: tuple[ConvertedTensor, ...]) -> list[int]:
    by_name = {detail["name"]: detail for detail in details}
    found = []
    for tensor in tensors:
        detail = by_name.get(tensor.runtime_name)
        if detail is None or tuple(detail["shape"]) != tensor.shape or np.dtype(detail["dtype"]).name != tensor.dtype:
            raise ValueError(
                f"its sidecar states the tensor {tensor.runtime_name!r}, {tensor.dtype} of shape {tensor.shape}, which "
                f"it has not"
            )
        found.append(int(detail["index"]))
    return found
