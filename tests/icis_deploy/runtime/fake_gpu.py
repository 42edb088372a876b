"""The few calls of CUDA and TensorRT that a session makes, on the CPU, with the order of a real GPU.

What is queued on a stream happens when the stream is synchronized and not before; a kernel reads the addresses that it
was launched with; a captured graph repeats what it captured. Freed memory is filled with NaN, and a refit of an engine
with work pending is a failed assertion. So a session that relies on what a GPU does not promise gives wrong answers.
"""

# Why: docs/decisions/0034.

from __future__ import annotations

import ctypes
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from icis_deploy.bundle.manifest import FEATURES, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from testing.bundles import FEATURE_DIM, INPUT_DIM, features_of, seen_head

SUCCESS, OUT_OF_MEMORY = 0, 2


def array_at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    return np.frombuffer((ctypes.c_char * (4 * size)).from_address(address), dtype=np.float32).reshape(shape)


class FakeCuda:
    """Stands for the module `cuda.bindings.runtime`."""

    cudaStreamNonBlocking = 1
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, capability: tuple[int, int] = (8, 6)) -> None:
        self.capability = capability
        self.calls: Counter[str] = Counter()
        self.failing: str | None = None
        self.loses_copies_to_device = False
        self.on_synchronize: Callable[[], None] = lambda: None
        self.held: dict[int, np.ndarray] = {}
        self._freed: list[np.ndarray] = []
        self._streams: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, list[Callable[[], None]]] = {}
        self._lock = threading.Lock()

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        self._captures.get(stream, self._streams[stream]).append(work)

    def _count(self, name: str) -> int:
        with self._lock:
            self.calls[name] += 1
        return OUT_OF_MEMORY if self.failing == name else SUCCESS

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return SUCCESS, {OUT_OF_MEMORY: b"out of memory"}[error]

    def cudaGetDevice(self) -> tuple[int, int]:
        return SUCCESS, 0

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return SUCCESS, self.capability[attribute]

    def cudaMalloc(self, num_bytes: int) -> tuple[int, int]:
        error = self._count("cudaMalloc")
        memory = np.full(num_bytes, 0xFF, np.uint8)
        if not error:
            self.held[memory.ctypes.data] = memory
        return error, memory.ctypes.data

    def cudaHostAlloc(self, num_bytes: int, flags: int) -> tuple[int, int]:
        return self.cudaMalloc(num_bytes)

    def cudaFree(self, pointer: int) -> tuple[int]:
        memory = self.held.pop(pointer)
        memory[:] = 0xFF
        self._freed.append(memory)  # so that a late reader gets NaN and not a crash
        return (SUCCESS,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> tuple[int]:
        error = self._count("cudaMemcpyAsync")
        if not error and not (self.loses_copies_to_device and kind == 1):
            self.queue(stream, lambda: ctypes.memmove(target, source, num_bytes))
        return (error,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        stream = 1000 + len(self._streams)
        self._streams[stream] = []
        return SUCCESS, stream

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        self.on_synchronize()
        work, self._streams[stream] = self._streams[stream], []
        for step in work:
            step()
        return (self._count("cudaStreamSynchronize"),)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self._captures[stream] = []
        return (self._count("cudaStreamBeginCapture"),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        return SUCCESS, self._captures.pop(stream)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        return SUCCESS, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        graph.clear()
        return (SUCCESS,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:
        for work in graph:
            self.queue(stream, work)
        return (self._count("cudaGraphLaunch"),)


class FakeEngine:
    """Computes what the models of `bundles.write_bundle` compute."""

    def __init__(self, cuda: FakeCuda, stated: dict[str, Any]) -> None:
        self.cuda, self.capacity, self.is_refittable = cuda, stated["capacity"], stated["refit"]
        self.has_arbiter = stated["arbiter"]
        self.weights = {
            "slot_rows": np.zeros((FEATURE_DIM + 1, self.capacity), np.float32),
            **({SLOT_ARBITER: np.zeros((5, self.capacity), np.float32)} if self.has_arbiter else {}),
        }
        self.ignores_slots = False
        self.num_pending = 0

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._shape, self._addresses = engine, (), {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return name == "image"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, batch, addresses = self._engine, self._shape[0], dict(self._addresses)

        def kernel() -> None:
            features = features_of(array_at(addresses["image"], (batch, INPUT_DIM)))
            logits = seen_head().logits(features)
            if engine.capacity:
                rows, arbiter = engine.weights["slot_rows"], engine.weights.get(SLOT_ARBITER)
                if not engine.is_refittable and not engine.ignores_slots:
                    weight = array_at(addresses[SLOT_WEIGHT], (engine.capacity, FEATURE_DIM))
                    rows = np.vstack([weight.T, array_at(addresses[SLOT_BIAS], (engine.capacity,))])
                    arbiter = array_at(addresses[SLOT_ARBITER], (engine.capacity, 5)).T if engine.has_arbiter else None
                new = features @ rows[:-1] + rows[-1]
                if arbiter is not None:
                    lengths = deviation_lengths(seen_head().rows)
                    new = new + seen_statistics(*(a.astype(np.float32) for a in (features, logits)), lengths) @ arbiter
                logits = np.hstack([logits, new])
                array_at(addresses[FEATURES], (batch, FEATURE_DIM))[:] = features
            array_at(addresses["logits"], logits.shape)[:] = logits
            engine.num_pending = 0

        engine.num_pending += 1
        engine.cuda.queue(stream, kernel)
        return True


class GraphEngine:
    """Computes what an ONNX file does, all of whose inputs and outputs are at addresses."""

    def __init__(self, cuda: FakeCuda, model: Path) -> None:
        self.cuda = cuda
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> GraphContext:
        return GraphContext(self)


class GraphContext(FakeContext):
    def execute_async_v3(self, stream: int) -> bool:
        session, batch, addresses = self._engine.session, self._shape[0], dict(self._addresses)

        def kernel() -> None:
            feed = {each.name: typed_array_at(addresses[each.name], each, batch) for each in session.get_inputs()}
            for each, found in zip(session.get_outputs(), session.run(None, feed), strict=True):
                typed_array_at(addresses[each.name], each, batch)[...] = found

        self._engine.cuda.queue(stream, kernel)
        return True


def typed_array_at(address: int, stated: Any, batch: int) -> np.ndarray:
    dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}[stated.type]
    shape = [size if isinstance(size, int) else batch for size in stated.shape]
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * num_bytes).from_address(address), dtype=dtype).reshape(shape)


class FakeTensorRT:
    """Stands for the module `tensorrt_rtx`."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1.116"
    Builder = object

    class ILogger:
        ERROR, INTERNAL_ERROR = 1, 0

    def __init__(self, cuda: FakeCuda, *, graph: Path | None = None) -> None:
        """With a graph, whatever is deserialized computes what that ONNX file does."""
        self.cuda, self._graph = cuda, graph
        self.engines: list[FakeEngine | GraphEngine] = []
        self.engines_ignore_slots = False
        self.refit_fault: str | None = None

    def Weights(self, array: np.ndarray) -> np.ndarray:
        return array

    def Runtime(self, logger: Any) -> Any:
        def deserialize(data: bytes) -> FakeEngine | GraphEngine | None:
            if self._graph is not None:
                self.engines.append(GraphEngine(self.cuda, self._graph))
                return self.engines[-1]
            if not data.startswith(b"{"):
                logger.log(1, "Magic tag does not match")
                return None
            engine = FakeEngine(self.cuda, json.loads(data))
            engine.ignores_slots = self.engines_ignore_slots
            self.engines.append(engine)
            return engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Refitter(self, engine: FakeEngine, logger: Any) -> Any:
        given: dict[str, np.ndarray] = {}

        def refit() -> bool:
            assert engine.num_pending == 0, "an engine was refitted while work was pending"
            if self.refit_fault == "refused":
                logger.log(1, "Refit failed.")
                return False
            # A blend of old and new rows, and True all the same: TensorRT's documentation promises no more.
            count = 2 if self.refit_fault == "blend" else engine.capacity
            for name, weights in given.items():
                if self.refit_fault != f"without {name}":
                    engine.weights[name][:, :count] = weights[:, :count]
            return True

        def set_weights(name: str, weights: np.ndarray) -> bool:
            given[name] = weights
            return name in engine.weights and weights.shape == engine.weights[name].shape

        return SimpleNamespace(set_named_weights=set_weights, refit_cuda_engine=refit)
