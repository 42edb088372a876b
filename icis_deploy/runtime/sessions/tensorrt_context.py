"""An engine's execution context with a stream and buffers of its own. It serves one request at a time.

Rules:

1. A request's work is queued on the context's stream in order: input in, engine, outputs out. When `run` returns, the
   stream is empty, so nothing reads the slots any more that the request was given.
2. A captured graph has shapes and addresses in it. There is one for each pair of batch size and slot storage, and one
   of TensorRT's contexts for each batch size, whose shapes never change after the capture (TensorRT developer guide,
   "CUDA Graphs").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.sessions.cuda_calls import CudaCalls, DeviceMemory

MAX_GRAPH_BATCHES = 4
"""Batch sizes that get a graph, the first ones that come; each holds a context's memory. Others run without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTensor:
    """An input or output of an engine whose first dimension is the batch."""

    name: str
    dtype: np.dtype[Any]

    shape: tuple[int, ...]
    """Without the batch."""


class EngineContext:
    """What one request at a time runs an engine with; see the module."""

    def __init__(
        self,
        engine: Any,
        cuda: CudaCalls,
        *,
        image: EngineTensor,
        outputs: Sequence[EngineTensor],
        max_batch: int,
        cuda_graph: bool,
    ) -> None:
        """Make a stream and buffers for batches of up to `max_batch`."""
        self._engine, self._cuda, self._image, self._outputs = engine, cuda, image, tuple(outputs)
        self._stream = cuda.new_stream()
        tensors = (image, *outputs)
        self._host = {t.name: cuda.allocate_pinned((max_batch, *t.shape), t.dtype) for t in tensors}
        self._device: dict[str, DeviceMemory] = {t.name: cuda.allocate(self._host[t.name].nbytes) for t in tensors}
        self._context = self._new_context()
        self._graph_contexts: dict[int, Any] | None = {} if cuda_graph else None
        self._graphs: dict[tuple[int, ...], Any] = {}

    def run(self, images: NDArray[Any], slots: Mapping[str, int], wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run one batch.

        Args:
            images: `(batch, *input_shape)` in the engine's type, at most as many as the context was made for.
            slots: Addresses of the slots by input name; empty where they are no inputs.
            wanted: Names of the outputs to fetch.

        Raises:
            RuntimeFailureError: If TensorRT or the GPU fails.
        """
        batch = len(images)
        staged = self._host[self._image.name][:batch]
        np.copyto(staged, images)
        self._cuda.copy_to_device(self._device[self._image.name].pointer, staged, self._stream)
        self._compute(batch, slots)
        for name in wanted:
            self._cuda.copy_to_host(self._host[name][:batch], self._device[name].pointer, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: self._host[name][:batch].copy() for name in wanted}

    def _compute(self, batch: int, slots: Mapping[str, int]) -> None:
        contexts = self._graph_contexts
        if contexts is None or (batch not in contexts and len(contexts) == MAX_GRAPH_BATCHES):
            self._enqueue(self._context, batch, slots)
            return
        if batch not in contexts:
            contexts[batch] = self._new_context()
        context, key = contexts[batch], (batch, *slots.values())
        if key not in self._graphs:
            # Once for real, so that everything that depends on shapes and addresses is settled before the capture.
            self._enqueue(context, batch, slots)
            self._graphs[key] = self._cuda.capture(self._stream, lambda: self._execute(context))
            return
        self._cuda.launch(self._graphs[key], self._stream)

    def _enqueue(self, context: Any, batch: int, slots: Mapping[str, int]) -> None:
        if not context.set_input_shape(self._image.name, (batch, *self._image.shape)):
            raise RuntimeFailureError(
                f"TensorRT refused a batch of {batch} of shape {self._image.shape}.",
                found=batch,
            )
        addresses = {name: memory.pointer for name, memory in self._device.items()} | dict(slots)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise RuntimeFailureError(
                    f"TensorRT refused the address of {name!r}.",
                    where=name,
                )
        self._execute(context)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._stream)):
            raise RuntimeFailureError(
                "TensorRT could not run the engine; the GPU may have failed before.",
                hint=("Open the device again; if it fails again, check what nvidia-smi and the kernel's log say."),
            )

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise RuntimeFailureError(
                "TensorRT could not make an execution context: the GPU may be out of memory.",
                hint="Use fewer streams, or an engine with a smaller greatest batch.",
            )
        return context
