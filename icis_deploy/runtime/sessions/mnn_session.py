"""A session in MNN, on the CPU.

MNN prints what it thinks of the machine when it is imported and when a model is loaded: to the standard error here.
`MNN.tools` is never imported: it installs a package with the first pip on the path, and reports the machine.
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
from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import MissingDependencyError, ModelLoadError
from icis_deploy.runtime.sessions.interpreter_session import InterpreterSession, load_converted_sidecar
from icis_deploy.runtime.sessions.native_output import printing_to_stderr


def load_mnn_session(folder: Path, bundle: Bundle, *, num_threads: int | None = None) -> InterpreterSession:
    """Load a bundle's MNN model. It computes in float32: MNN's own default may be float16 or bfloat16.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        num_threads: Threads of one request; `None` for MNN's own number, 4.

    Raises:
        MissingDependencyError: If MNN is not installed.
        IncompatibleError: If the bundle holds no model for MNN, or one converted from another model.
        BundleError: If its sidecar cannot be read.
        ModelLoadError: If MNN cannot load the model.
    """
    mnn = import_mnn()
    sidecar = load_converted_sidecar(folder, bundle, "mnn")
    path = folder / CONVERTED_FILES["mnn"][0]
    settings = {"backend": "CPU", "precision": "high", "numThread": num_threads or 4}
    try:
        with printing_to_stderr():
            manager = mnn.nn.create_runtime_manager((settings,))
            module = mnn.nn.load_module_from_file(
                str(path),
                [tensor.runtime_name for tensor in sidecar.inputs],
                [tensor.runtime_name for tensor in sidecar.outputs],
                runtime_manager=manager,
            )
    except Exception as error:  # MNN raises SystemError, RuntimeError and others
        raise ModelLoadError(
            f"MNN cannot load the model {path}: {one_line(error)}.",
            found=one_line(error),
            where=path,
            hint="Convert it again.",
        ) from error
    return InterpreterSession(lambda: MNNInterpreter(mnn, module.clone(), sidecar), sidecar, bundle, library="MNN")


def import_mnn() -> Any:
    """Return the module `MNN`.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        with printing_to_stderr():
            import MNN
    except ImportError as error:
        raise MissingDependencyError(
            "The runtime 'mnn' needs MNN.", hint="Install it: pip install 'icis-deploy[mnn]'."
        ) from error
    return MNN


class MNNInterpreter:
    """A clone of a module, which shares its weights; see `Interpreter`."""

    def __init__(self, mnn: Any, module: Any, sidecar: ConvertedSidecar) -> None:
        self._expr, self._module = mnn.expr, module
        self._dtypes = {"float32": mnn.expr.float, "uint8": mnn.expr.uint8, "int32": mnn.expr.int}
        self._positions = {tensor.name: index for index, tensor in enumerate(sidecar.outputs)}
        self._slot_order = [tensor.name for tensor in sidecar.slots]
        self._slots: list[Any] = []

    def write_slots(self, slots: Mapping[str, Float32]) -> None:
        """Make variables of slots, which hold copies."""
        self._slots = [self._variable(slots[name]) for name in self._slot_order]

    def read_slots(self) -> Mapping[str, Float32]:
        """Return copies of what the variables hold."""
        return {name: np.array(value.read()) for name, value in zip(self._slot_order, self._slots, strict=True)}

    def run(self, images: Images, names: list[str]) -> list[NDArray[Any]]:
        """Run one batch of any size."""
        outputs = self._module.forward([self._variable(images), *self._slots])
        if len(outputs) != len(self._positions):  # how MNN says that an operator refused its inputs
            raise ValueError("MNN gave no outputs; it says why on the standard error")
        return [np.array(outputs[self._positions[name]].read()) for name in names]

    def _variable(self, array: NDArray[Any]) -> Any:
        return self._expr.const(array, list(array.shape), self._expr.NCHW, self._dtypes[array.dtype.name])
