"""A session in ncnn, on the CPU.

One network serves all threads, each with an extractor and slots of its own. ncnn knows no batch: an image is given
without its first axis, and results get it back. It computes in float32 here; by default ncnn stores in 16 bits, and is
7e-3 off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, ConvertedSidecar
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import MissingDependencyError, ModelLoadError
from icis_deploy.runtime.sessions.interpreter_session import InterpreterSession, load_converted_sidecar
from icis_deploy.runtime.sessions.native_output import printing_to_stderr

_REDUCED_PRECISION = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage"),
    *("use_int8_inference", "use_int8_packed", "use_int8_storage", "use_int8_arithmetic", "use_vulkan_compute"),
)
"""Options that are switched off, where this release of ncnn has them."""


def load_ncnn_session(folder: Path, bundle: Bundle, *, num_threads: int | None = None) -> InterpreterSession:
    """Load a bundle's ncnn model. It computes in float32.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        num_threads: Threads of one request; `None` for ncnn's own number, one per large core.

    Raises:
        MissingDependencyError: If ncnn is not installed.
        IncompatibleError: If the bundle holds no model for ncnn, or one converted from another model.
        BundleError: If its sidecar cannot be read.
        ModelLoadError: If ncnn cannot load the model, or it has not the inputs and outputs that the sidecar states.
    """
    ncnn = import_ncnn()
    sidecar = load_converted_sidecar(folder, bundle, "ncnn")
    parameters, weights = (folder / name for name in CONVERTED_FILES["ncnn"])
    network = ncnn.Net()
    for option in _REDUCED_PRECISION:
        if hasattr(network.opt, option):
            setattr(network.opt, option, False)
    if num_threads is not None:
        network.opt.num_threads = num_threads
    for path, load in ((parameters, network.load_param), (weights, network.load_model)):
        with printing_to_stderr():
            code = load(str(path))
        if code:
            raise _load_error(path, f"it ended with {code}, and says why on the standard error")
    _require_tensors(network, sidecar, parameters)
    return InterpreterSession(lambda: NcnnInterpreter(ncnn, network, sidecar), sidecar, bundle, library="ncnn")


def import_ncnn() -> Any:
    """Return the module `ncnn`.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        with printing_to_stderr():
            import ncnn
    except ImportError as error:
        raise MissingDependencyError(
            "The runtime 'ncnn' needs ncnn.", hint="Install it: pip install 'icis-deploy[ncnn]'."
        ) from error
    return ncnn


class NcnnInterpreter:
    """A network, which other threads use as well, and slots of its own; see `Interpreter`."""

    def __init__(self, ncnn: Any, network: Any, sidecar: ConvertedSidecar) -> None:
        self._ncnn, self._network = ncnn, network
        self._image = sidecar.inputs[0].runtime_name
        self._outputs = {tensor.name: tensor for tensor in sidecar.outputs}
        self._slot_inputs = {tensor.name: tensor.runtime_name for tensor in sidecar.slots}
        self._slots: dict[str, Any] = {}

    def write_slots(self, slots: Mapping[str, Float32]) -> None:
        """Copy slots into matrices of ncnn."""
        self._slots = {name: self._matrix(slots[name]) for name in self._slot_inputs}

    def read_slots(self) -> Mapping[str, Float32]:
        """Return copies of what the matrices hold."""
        return {name: np.array(matrix) for name, matrix in self._slots.items()}

    def run(self, images: Images, names: list[str]) -> list[NDArray[Any]]:
        """Run one image."""
        with self._network.create_extractor() as extractor:
            given = {self._image: self._matrix(images[0])}
            given |= {self._slot_inputs[name]: matrix for name, matrix in self._slots.items()}
            for name, matrix in given.items():
                if code := extractor.input(name, matrix):
                    raise ValueError(f"ncnn refused the input {name!r} with {code}")
            found = []
            for name in names:
                tensor = self._outputs[name]
                code, matrix = extractor.extract(tensor.runtime_name)
                if code:
                    raise ValueError(f"ncnn gave no {name!r}: it ended with {code}")
                found.append(np.array(matrix).reshape(tensor.shape))
            return found

    def _matrix(self, array: NDArray[Any]) -> Any:
        """Return a copy in ncnn's memory: a matrix made of an array alone borrows that array's."""
        return self._ncnn.Mat(array).clone()


def _require_tensors(network: Any, sidecar: ConvertedSidecar, path: Path) -> None:
    """Raise if the network has other inputs or outputs: asked for one that it has not, ncnn ends the process."""
    found = set(network.input_names()), set(network.output_names())
    expected = tuple({tensor.runtime_name for tensor in tensors} for tensors in (sidecar.inputs, sidecar.outputs))
    if found[0] != expected[0] or not expected[1] <= found[1]:
        raise _load_error(
            path, f"it has the inputs {sorted(found[0])} and outputs {sorted(found[1])}; its sidecar states others"
        )


def _load_error(path: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"ncnn cannot load the model {path}: {reason}.", found=reason, where=path, hint="Convert it again."
    )
