"""The few calls of the CUDA runtime that a session needs, each checked; through `cuda.bindings.runtime`.

Pointers are addresses (`int`), streams and graphs the handles of `cuda.bindings.runtime`. Copies and launches are
queued on a stream and done when `synchronize` returns.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.errors import MissingDependencyError, RuntimeFailureError

_INSTALL = "pip install 'icis-deploy[tensorrt]' or 'icis-deploy[tensorrt-rtx]'"


class DeviceMemory:
    """Memory of the GPU, from `CudaCalls.allocate`."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
        """Its address."""


class CudaCalls:
    """The CUDA runtime on its current device."""

    def __init__(self, cudart: Any) -> None:
        """Use a module like `cuda.bindings.runtime`: each of its functions returns an error code, then its results."""
        self._cudart = cudart

    def compute_capability(self) -> str:
        """Return the GPU's architecture, such as `8.6`."""
        attributes = self._cudart.cudaDeviceAttr
        device = self._call("cudaGetDevice")
        major = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
        minor = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
        return f"{major}.{minor}"

    def allocate(self, num_bytes: int) -> DeviceMemory:
        """Return device memory, which is given back when nothing refers to it any more."""
        memory = DeviceMemory(int(self._call("cudaMalloc", max(num_bytes, 1))))
        self._at_end_of(memory, self._cudart.cudaFree, memory.pointer)
        return memory

    def allocate_pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array in host memory that the GPU copies from and to by itself, given back as `allocate` does."""
        size = math.prod(shape)
        pointer = int(self._call("cudaHostAlloc", max(size * dtype.itemsize, 1), 0))
        memory = (ctypes.c_char * max(size * dtype.itemsize, 1)).from_address(pointer)
        self._at_end_of(memory, self._cudart.cudaFreeHost, pointer)
        array: NDArray[Any] = np.frombuffer(memoryview(memory).cast("B"), dtype=dtype, count=size)
        return array.reshape(shape)

    def copy_to_device(self, pointer: int, source: NDArray[Any], stream: Any) -> None:
        """Queue a copy of a contiguous array, which must stay until the stream has been synchronized."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: NDArray[Any], pointer: int, stream: Any) -> None:
        """Queue a copy into a contiguous array."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, pointer, target.nbytes, kind, stream)

    def new_stream(self) -> Any:
        """Return a stream that does not wait for the default stream."""
        return self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)

    def synchronize(self, stream: Any) -> None:
        """Wait until everything queued on a stream is done; errors of what was queued come up here."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Return what `work` queues on a stream as a graph that can be launched; nothing of it is run."""
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:  # a stream that is left capturing is of no use any more
            graph = self._call("cudaStreamEndCapture", stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    @staticmethod
    def _at_end_of(owner: object, give_back: Callable[[int], object], pointer: int) -> None:
        # Not at the end of the process, when the driver may be gone already and takes everything back anyway.
        weakref.finalize(owner, give_back, pointer).atexit = False

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cudart, name)(*arguments)
        if int(error) != 0:
            _, text = self._cudart.cudaGetErrorString(error)
            words = text.decode() if isinstance(text, bytes) else str(text)
            raise RuntimeFailureError(
                f"The GPU failed in {name}: {words} (CUDA error {int(error)}).",
                found=int(error),
                expected=0,
                where=name,
                hint=("Open the device again; if it fails again, check what nvidia-smi and the kernel's log say."),
            )
        return values[0] if values else None


def load_cuda() -> CudaCalls:
    """Return the CUDA runtime, if there is a GPU to use.

    Raises:
        MissingDependencyError: If cuda-python is not installed, or there is no NVIDIA GPU or no driver for it.
    """
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise MissingDependencyError(
            "Using a GPU needs cuda-python.",
            hint=f"Install it: {_INSTALL}.",
        ) from error
    try:
        error_code, count = cudart.cudaGetDeviceCount()
    except RuntimeError as error:  # the bindings raise where the driver's library is missing
        raise MissingDependencyError(
            f"There is no NVIDIA GPU that can be used here: {error}.",
            found=str(error),
            hint="Check what nvidia-smi says, or use `runtime='onnxruntime'`.",
        ) from error
    if int(error_code) != 0 or count == 0:
        text = cudart.cudaGetErrorString(error_code)[1]
        reason = text.decode() if int(error_code) != 0 else "none was found"
        raise MissingDependencyError(
            f"There is no NVIDIA GPU that can be used here: {reason}.",
            found=reason,
            hint="Do this on a machine with an NVIDIA GPU and its driver.",
        )
    return CudaCalls(cudart)
