"""A session in ExecuTorch, on the CPU, with XNNPACK.

Methods of one program share the memory that they compute in, so each interpreter loads the program anew. Inputs are not
planned into it: a run reads slots where they lie, and they are handed over without a copy.

ExecuTorch has one pool of threads in a process. A number of threads is set once; another one is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, ConvertedSidecar
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import MissingDependencyError, ModelLoadError, UsageError
from icis_deploy.runtime.sessions.interpreter_session import InterpreterSession, load_converted_sidecar
from icis_deploy.runtime.sessions.native_output import printing_to_stderr

_METHOD = "forward"
_pool_lock = threading.Lock()
_pool_threads: list[int] = []
"""The number of threads that the process's pool was set to, if it was."""


def load_executorch_session(folder: Path, bundle: Bundle, *, num_threads: int | None = None) -> InterpreterSession:
    """Load a bundle's ExecuTorch model.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        num_threads: Threads of the process's pool; `None` for what it has, by itself one per core.

    Raises:
        MissingDependencyError: If ExecuTorch is not installed.
        IncompatibleError: If the bundle holds no model for ExecuTorch, or one converted from another model.
        BundleError: If its sidecar cannot be read.
        ModelLoadError: If ExecuTorch cannot load the model, or it has not the tensors that the sidecar states.
        UsageError: If the process's pool was set to another number of threads before.
    """
    library, torch = import_executorch()
    sidecar = load_converted_sidecar(folder, bundle, "executorch")
    path = folder / CONVERTED_FILES["executorch"][0]
    if num_threads is not None:
        _set_threads(library, num_threads)

    def make() -> ExecuTorchInterpreter:
        try:
            with printing_to_stderr():
                program = library._load_program(str(path))
                return ExecuTorchInterpreter(torch, program, sidecar)
        except Exception as error:  # ExecuTorch raises RuntimeError, with a number of its own
            raise ModelLoadError(
                f"ExecuTorch cannot load the model {path}: {one_line(error)}.",
                found=one_line(error),
                where=path,
                hint="Convert it again.",
            ) from error

    return InterpreterSession(make, sidecar, bundle, library="ExecuTorch")


def import_executorch() -> tuple[Any, Any]:
    """Return ExecuTorch's bindings, and torch, whose tensors they take.

    They are the extension itself: `executorch.runtime` is the same behind an import of the compiler and of torchao,
    which takes seconds, and keeps one method of a program for all threads.

    Raises:
        MissingDependencyError: If one of them is not installed.
    """
    try:
        with printing_to_stderr():
            import torch  # first: the extension is linked with its libraries
            from executorch.extension.pybindings import _C
    except ImportError as error:
        raise MissingDependencyError(
            "The runtime 'executorch' needs ExecuTorch and torch.",
            hint="Install them: pip install 'icis-deploy[executorch]'.",
        ) from error
    return _C, torch


class ExecuTorchInterpreter:
    """A program of its own with its method, and the slots that its runs read; see `Interpreter`.

    Raises:
        ValueError: On construction, if the method has not the tensors that the sidecar states.
    """

    def __init__(self, torch: Any, program: Any, sidecar: ConvertedSidecar) -> None:
        self._torch = torch
        self._program = program  # the method reads from it
        self._method = program.load_method(_METHOD)
        _require_tensors(self._method.method_meta(), sidecar)
        self._slot_order = [tensor.name for tensor in sidecar.slots]
        self._positions = {tensor.name: int(tensor.runtime_name) for tensor in sidecar.outputs}
        self._slots: list[Any] = []

    def write_slots(self, slots: Mapping[str, Float32]) -> None:
        """Copy slots into tensors, which runs read in place."""
        self._slots = [self._torch.from_numpy(slots[name].copy()) for name in self._slot_order]

    def read_slots(self) -> Mapping[str, Float32]:
        """Return copies of the tensors."""
        return {name: tensor.numpy().copy() for name, tensor in zip(self._slot_order, self._slots, strict=True)}

    def run(self, images: Images, names: list[str]) -> list[NDArray[Any]]:
        """Run the one batch that the model takes."""
        # torch warns of arrays that may not be written to, although nothing writes to them.
        image = self._torch.from_numpy(images if images.flags.writeable else images.copy())
        outputs = self._method.call([image, *self._slots], clone_outputs=False)
        return [np.array(outputs[self._positions[name]].numpy()) for name in names]


def _set_threads(library: Any, number: int) -> None:
    with _pool_lock:
        if _pool_threads and _pool_threads[0] != number:
            raise UsageError(
                f"ExecuTorch has one pool of threads in a process. It was set to {_pool_threads[0]}, and {number} were "
                f"asked for.",
                found=number,
                expected=_pool_threads[0],
                where="num_threads",
                hint=f"Give `num_threads={_pool_threads[0]}`, leave it out, or use another process.",
            )
        if not _pool_threads and library._threadpool_get_thread_count() != number:
            library._unsafe_reset_threadpool(number)
        _pool_threads[:] = [number]


def _require_tensors(meta: Any, sidecar: ConvertedSidecar) -> None:
    for kind, tensors, number, described in (
        ("inputs", sidecar.inputs, meta.num_inputs(), meta.input_tensor_meta),
        ("outputs", sidecar.outputs, meta.num_outputs(), meta.output_tensor_meta),
    ):
        found = [tuple(described(index).sizes()) for index in range(number)]
        stated = [tensor.shape for tensor in tensors]
        if found[: len(stated)] != stated or (kind == "inputs" and len(found) != len(stated)):
            raise ValueError(f"its sidecar states {kind} of shapes {stated}, and it has {found}")
