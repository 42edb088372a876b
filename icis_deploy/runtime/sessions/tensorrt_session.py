"""A session in TensorRT or TensorRT-RTX.

Two kinds of engine keep the promise that a request ends with the slots that it started with:

- *Slots as inputs* (the default): slots are written to GPU memory that no request reads, and a request passes the
  address of its own. To the next request, new slots are another address.
- *Refittable*: slots are weights of the engine: the rows, and a second one `SLOT_ARBITER` `(5, capacity)` where the
  engine takes arbiters, which the sidecar then names. A refit is not atomic and undefined while the engine runs, so an
  engine that nobody uses is refitted, and requests switch to it; the engine is therefore held twice.

Slots in memory of their own can be read back. An engine's weights cannot, and that a refit returned true proves
nothing: whoever publishes them must run the model first, as the updater does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.engine_sidecar import EngineSidecar
from icis_deploy.bundle.manifest import (
    FEATURES,
    SLOT_ARBITER,
    SLOT_BIAS,
    SLOT_WEIGHT,
    TOP_CLASS_IDS,
    TOP_PROBABILITIES,
)
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.sessions.cuda_calls import CudaCalls, DeviceMemory
from icis_deploy.runtime.sessions.fixed_batch import fetch_in_batches, fixed_batch_of
from icis_deploy.runtime.sessions.pools import ResourcePool, SlotLease, SlotStoragePool
from icis_deploy.runtime.sessions.protocol import (
    SessionOutput,
    SlotBuffers,
    SlotContents,
    TopOutput,
    arbiter_to_load,
    no_slots_error,
)
from icis_deploy.runtime.sessions.tensorrt_context import EngineContext, EngineTensor
from icis_deploy.runtime.sessions.tensorrt_library import new_logger


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """A deserialized engine and what runs it."""

    engine: Any
    """A `tensorrt.ICudaEngine`."""

    contexts: ResourcePool[EngineContext]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStorage:
    """Where slots are: in memory of their own, or in an engine."""

    loaded: LoadedEngine
    """What runs with these slots: an engine that all storages share, or, where it is refittable, one of its own."""

    memory: Mapping[str, DeviceMemory]
    """Device memory by input name; empty where slots are in the engine."""


class TensorRTSession:
    """A deserialized engine; see `Session` for what its methods promise."""

    def __init__(
        self,
        trt: Any,
        load_engine: Callable[[], Any],
        cuda: CudaCalls,
        sidecar: EngineSidecar,
        *,
        num_streams: int = 1,
        cuda_graph: bool = False,
    ) -> None:
        """Load the engine.

        Args:
            trt: The module `tensorrt` or `tensorrt_rtx`.
            load_engine: Deserializes the engine; called once, or once for each slot storage if it is refittable.
            cuda: The GPU.
            sidecar: What is stated of the engine; it was compared with this machine.
            num_streams: How many requests may run at the same time, each on a stream with buffers of its own.
            cuda_graph: Whether requests replay captured graphs, which saves the CPU the launch of each kernel.
        """
        self._trt, self._load_engine, self._cuda = trt, load_engine, cuda
        self._num_streams, self._cuda_graph = num_streams, cuda_graph
        image = sidecar.inputs[0]
        self._image = EngineTensor(name=image.name, dtype=np.dtype(image.dtype), shape=image.min_shape[1:])
        self._batches = image.min_shape[0], image.max_shape[0]
        self._batch = fixed_batch_of(image.min_shape[0]) if len(set(self._batches)) == 1 else None
        self._outputs = tuple(
            EngineTensor(name=output.name, dtype=np.dtype(output.dtype), shape=output.shape[1:])
            for output in sidecar.outputs
        )
        self._slot_shapes = {each.name: each.max_shape for each in sidecar.inputs[1:]}
        self._refittable = sidecar.refittable
        self._loading, self._copy_stream = threading.Lock(), cuda.new_stream()
        self._shared = None if self._refittable else self._load()
        self._storages: SlotStoragePool[SlotStorage] = SlotStoragePool(self._new_storage)

    def load_slots(self, weight: Float32, bias: Float32, arbiter: Float32 | None = None) -> SlotBuffers:
        """Write slots to a storage that no request reads; see `Session.load_slots`."""
        if not self._slot_shapes and not self._refittable:
            raise no_slots_error()
        given = {SLOT_WEIGHT: np.ascontiguousarray(weight), SLOT_BIAS: np.ascontiguousarray(bias)}
        is_taken = SLOT_ARBITER in self._slot_shapes or SLOT_ARBITER in self._refittable
        coefficients = arbiter_to_load(arbiter, capacity=len(bias), is_taken=is_taken)
        if coefficients is not None:
            given[SLOT_ARBITER] = coefficients
        for name, shape in self._slot_shapes.items():
            if given[name].shape != shape:
                raise RuntimeFailureError(
                    f"The slots' {name} has shape {given[name].shape}; this engine takes {shape}.",
                    found=given[name].shape,
                    expected=shape,
                    where=name,
                )
        with self._loading:
            lease = self._storages.lease()
            if self._refittable:
                self._refit(lease.storage.loaded.engine, self._refitted_weights(given))
            else:
                for name, memory in lease.storage.memory.items():
                    self._cuda.copy_to_device(memory.pointer, given[name], self._copy_stream)
                self._cuda.synchronize(self._copy_stream)
        return SlotBuffers(weight=lease, bias=lease, arbiter=None if coefficients is None else lease)

    def read_slots(self, slots: SlotBuffers) -> SlotContents | None:
        """Copy slots back from the GPU; see `Session.read_slots`. A refittable engine does not show its weights."""
        if self._refittable:
            return None
        memory = slots.weight.storage.memory
        held = {name: np.empty(shape, dtype=np.float32) for name, shape in self._slot_shapes.items()}
        with self._loading:
            for name, array in held.items():
                self._cuda.copy_to_host(array, memory[name].pointer, self._copy_stream)
            self._cuda.synchronize(self._copy_stream)
        return SlotContents(held[SLOT_WEIGHT], held[SLOT_BIAS], held.get(SLOT_ARBITER))

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run one batch; see `Session.run`. An engine holds no slots of its own, so slots must be given."""
        has_features = with_features and any(output.name == FEATURES for output in self._outputs)
        logits_name = self._outputs[0].name
        found = self._fetch([logits_name, *([FEATURES] if has_features else [])], images, slots)
        return SessionOutput(logits=found[0], features=found[1] if has_features else None)

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch and fetch the classes that the model selects itself; see `Session.top`."""
        if not {TOP_PROBABILITIES, TOP_CLASS_IDS} <= {output.name for output in self._outputs}:
            return None
        probabilities, columns = self._fetch([TOP_PROBABILITIES, TOP_CLASS_IDS], images, slots)
        return probabilities, columns

    def _fetch(self, names: Sequence[str], images: Images, slots: SlotBuffers | None) -> list[NDArray[Any]]:
        return fetch_in_batches(lambda batch: self._fetch_batch(names, batch, slots), images, self._batch)

    def _fetch_batch(self, names: Sequence[str], images: Images, slots: SlotBuffers | None) -> list[NDArray[Any]]:
        self._check_images(images)
        # The lease is held until the context's stream is empty: `slots` is a reference of this frame.
        loaded, addresses = self._shared, {}
        if slots is not None:
            lease: SlotLease[SlotStorage] = slots.weight
            loaded = lease.storage.loaded
            addresses = {name: memory.pointer for name, memory in lease.storage.memory.items()}
        if loaded is None or addresses.keys() != self._slot_shapes.keys():
            raise RuntimeFailureError(
                "An engine of an updatable head holds no slots of its own.",
                hint="Load them, and give them with each run.",
            )
        with loaded.contexts.lend() as context:
            found = context.run(images, addresses, names)
        return [found[name] for name in names]

    def _check_images(self, images: Images) -> None:
        least, greatest = self._batches
        if images.dtype != self._image.dtype or images.shape[1:] != self._image.shape:
            raise RuntimeFailureError(
                f"The engine could not run on an input of shape {images.shape} and type {images.dtype}; it expects "
                f"{('batch', *self._image.shape)} and {self._image.dtype}.",
                found=(images.shape, str(images.dtype)),
                expected=(("batch", *self._image.shape), str(self._image.dtype)),
            )
        if not least <= len(images) <= greatest:
            raise RuntimeFailureError(
                f"The engine takes batches of {least} to {greatest} images, not {len(images)}.",
                found=len(images),
                expected=f"{least} to {greatest}",
                hint="Split the batch, or build the engine with another `max_batch`.",
            )

    def _new_storage(self) -> SlotStorage:
        loaded = self._load() if self._shared is None else self._shared
        shapes = {} if self._refittable else self._slot_shapes
        memory = {name: self._cuda.allocate(4 * math.prod(shape)) for name, shape in shapes.items()}
        return SlotStorage(loaded=loaded, memory=memory)

    def _load(self) -> LoadedEngine:
        engine = self._load_engine()

        def make_context() -> EngineContext:
            return EngineContext(
                engine,
                self._cuda,
                image=self._image,
                outputs=self._outputs,
                max_batch=self._batches[1],
                cuda_graph=self._cuda_graph,
            )

        return LoadedEngine(engine=engine, contexts=ResourcePool(make_context, limit=self._num_streams))

    def _refitted_weights(self, given: Mapping[str, Float32]) -> dict[str, Float32]:
        """Return what each refittable weight is to hold, by its name: columns of slots."""
        rows = np.concatenate([given[SLOT_WEIGHT], given[SLOT_BIAS][:, None]], axis=1)
        return {
            name: np.ascontiguousarray((given[SLOT_ARBITER] if name == SLOT_ARBITER else rows).T)
            for name in self._refittable
        }

    def _refit(self, engine: Any, weights: Mapping[str, Float32]) -> None:
        """Replace the slots' weights in an engine that nobody runs."""
        logger = new_logger(self._trt)
        refitter = self._trt.Refitter(engine, logger)
        for name, values in weights.items():
            if not refitter.set_named_weights(name, self._trt.Weights(values)):
                raise RuntimeFailureError(
                    f"TensorRT refused the weight {name!r} of shape {values.shape}: {logger.last_error()}.",
                    found=values.shape,
                    where=name,
                )
        if not refitter.refit_cuda_engine():
            names = ", ".join(map(repr, weights))
            raise RuntimeFailureError(
                f"TensorRT could not refit the weight {names}: {logger.last_error()}.",
                found=logger.last_error(),
                where=names,
            )
