"""Where the time of a query goes on a GPU: copying the input there, the model, copying the logits back.

ONNX Runtime alone is measured so, by its own binding of inputs and outputs to the GPU's memory. Each phase ends when
the GPU has ended it, so their sum is a little more than a query whose phases follow each other without waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.results.values import Phases
from benchmarks.timing.percentiles import median_interval
from icis_deploy.bundle.manifest import SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import Images
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.sessions.protocol import SlotBuffers

GPU_PROVIDERS = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})
NUM_WARM = 10
NUM_QUERIES = 200
BLOCK = 10


def measure_phases(
    inference_session: Any,
    images: Images,
    slots: SlotBuffers | None,
    *,
    target: str,
    memory: str = "cuda",
    num_queries: int = NUM_QUERIES,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Phases:
    """Measure the three phases of queries, one after the other.

    Args:
        inference_session: An `onnxruntime.InferenceSession`.
        images: `(batch, *input_shape)`, prepared.
        slots: Of an updatable head, where they are kept on the GPU.
        target: Name of the target.
        memory: ONNX Runtime's name of the memory that the model computes in.
        num_queries: How many count; ten more come before them.
        clock: Nanoseconds since an arbitrary start.

    Raises:
        RuntimeFailureError: If ONNX Runtime fails.
    """
    try:
        times_ns = phase_times(inference_session, images, slots, memory, NUM_WARM + num_queries, clock)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise RuntimeFailureError(
            f"ONNX Runtime could not run {target} in parts: {error}",
            found=str(error),
            where=str(target),
        ) from error
    counted_ms = np.array(times_ns[NUM_WARM:], dtype=np.float64) / 1e6
    there_ms, compute_ms, back_ms = (
        median_interval(np.array_split(column, max(1, num_queries // BLOCK))) for column in counted_ms.T
    )
    return Phases(
        target=target,
        batch_size=len(images),
        host_to_device_ms=there_ms,
        compute_ms=compute_ms,
        device_to_host_ms=back_ms,
    )


def phase_times(
    inference_session: Any,
    images: Images,
    slots: SlotBuffers | None,
    memory: str,
    num_queries: int,
    clock: Callable[[], int],
) -> list[tuple[int, int, int]]:
    """Return the nanoseconds of copying there, computing, and copying back, for each query."""
    import onnxruntime

    image_name, logits_name = inference_session.get_inputs()[0].name, inference_session.get_outputs()[0].name
    binding = inference_session.io_binding()
    for name, value in () if slots is None else ((SLOT_WEIGHT, slots.weight), (SLOT_BIAS, slots.bias)):
        binding.bind_ortvalue_input(name, value)
    times_ns = []
    for _ in range(num_queries):
        start = clock()
        there = onnxruntime.OrtValue.ortvalue_from_numpy(images, memory, 0)
        copied = clock()
        binding.bind_ortvalue_input(image_name, there)
        binding.bind_output(logits_name, memory)
        binding.synchronize_inputs()
        ready = clock()
        inference_session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        computed = clock()
        binding.get_outputs()[0].numpy()
        times_ns.append((copied - start, computed - ready, clock() - computed))
    return times_ns
