"""A session in OpenVINO, on the CPU.

OpenVINO's ONNX frontend makes constants of inputs that have a default, so of slots as well. They keep their names, and
are made inputs again before the model is compiled (2026.4, `openvino.Model.add_parameters`); what they held is the
default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import (
    FEATURES,
    SLOT_ARBITER,
    SLOT_BIAS,
    SLOT_WEIGHT,
    TOP_CLASS_IDS,
    TOP_PROBABILITIES,
)
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import MissingDependencyError, ModelLoadError, RuntimeFailureError
from icis_deploy.runtime.sessions.fixed_batch import fetch_in_batches, fixed_batch_of
from icis_deploy.runtime.sessions.pools import ResourcePool
from icis_deploy.runtime.sessions.protocol import (
    SessionOutput,
    SlotBuffers,
    SlotContents,
    TopOutput,
    arbiter_to_load,
    no_slots_error,
)

OPENVINO_NAME = "openvino/model.xml"
"""A bundle's OpenVINO model; its weights are in `model.bin` next to it."""


# Why: docs/decisions/0150.
_CORES: dict[int, Any] = {}
"""The one `openvino.Core` of each process, by its id: a forked one lacks the threads of its parent. None is freed."""


class OpenVINOSession:
    """A model compiled by OpenVINO; see `Session` for what its methods promise.

    An infer request serves one thread at a time, so every thread that runs gets its own.
    """

    def __init__(self, compiled: Any, defaults: dict[str, Float32]) -> None:
        """Use a compiled model.

        Args:
            compiled: An `openvino.CompiledModel`.
            defaults: What the slots hold where none are given, by input name; empty for a fused head.
        """
        self._compiled = compiled
        image = next(port for port in compiled.inputs if port.any_name not in defaults)
        self._input_name: str = image.any_name
        self._input_dtype: np.dtype[Any] = np.dtype(image.get_element_type().to_dtype())
        self._input_shape = str(image.get_partial_shape())
        batch = image.get_partial_shape()[0]
        self._batch = fixed_batch_of(batch.get_length()) if batch.is_static else None
        self._logits_name: str = compiled.outputs[0].any_name
        self._outputs = {name: port for port in compiled.outputs for name in port.get_names()}
        self._defaults = defaults
        self._requests: ResourcePool[Any] = ResourcePool(compiled.create_infer_request)

    @property
    def num_streams(self) -> int:
        """How many requests run at the same time, as the compiled model says."""
        return int(self._compiled.get_property("NUM_STREAMS"))

    def load_slots(self, weight: Float32, bias: Float32, arbiter: Float32 | None = None) -> SlotBuffers:
        """Keep slots for runs, which read them in place; see `Session.load_slots`."""
        if not self._defaults:
            raise no_slots_error()
        coefficients = arbiter_to_load(arbiter, capacity=len(bias), is_taken=SLOT_ARBITER in self._defaults)
        for name, array in ((SLOT_WEIGHT, weight), (SLOT_BIAS, bias), (SLOT_ARBITER, coefficients)):
            if array is not None and array.shape != self._defaults[name].shape:
                raise RuntimeFailureError(
                    f"The slots' {name} has shape {array.shape}; this model takes {self._defaults[name].shape}.",
                    found=array.shape,
                    expected=self._defaults[name].shape,
                    where=name,
                )
        return SlotBuffers(weight=np.ascontiguousarray(weight), bias=np.ascontiguousarray(bias), arbiter=coefficients)

    def read_slots(self, slots: SlotBuffers) -> SlotContents:
        """Return what each run reads in place; see `Session.read_slots`."""
        return SlotContents(slots.weight, slots.bias, slots.arbiter)

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run one batch; see `Session.run`."""
        has_features = with_features and FEATURES in self._outputs
        found = self._fetch([self._logits_name, *([FEATURES] if has_features else [])], images, slots)
        return SessionOutput(logits=found[0], features=found[1] if has_features else None)

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch and fetch the classes that the model selects itself; see `Session.top`."""
        if not {TOP_PROBABILITIES, TOP_CLASS_IDS} <= self._outputs.keys():
            return None
        probabilities, columns = self._fetch([TOP_PROBABILITIES, TOP_CLASS_IDS], images, slots)
        return probabilities, columns

    def _fetch(self, names: list[str], images: Images, slots: SlotBuffers | None) -> list[NDArray[Any]]:
        return fetch_in_batches(lambda batch: self._fetch_batch(names, batch, slots), images, self._batch)

    def _fetch_batch(self, names: list[str], images: Images, slots: SlotBuffers | None) -> list[NDArray[Any]]:
        # OpenVINO would convert another type without a word.
        if images.dtype != self._input_dtype:
            raise self._refusal(images, "the types differ")
        given = self._defaults
        if slots is not None:
            given = {SLOT_WEIGHT: slots.weight, SLOT_BIAS: slots.bias}
            if slots.arbiter is not None:
                given[SLOT_ARBITER] = slots.arbiter
        with self._requests.lend() as request:
            try:
                outputs = request.infer({self._input_name: images, **given}, share_inputs=True, share_outputs=True)
            except Exception as error:  # OpenVINO raises RuntimeError for everything
                raise self._refusal(images, one_line(error)) from error
            # The request's own memory, which its next run writes to: so these are copies.
            return [np.array(outputs[self._outputs[name]]) for name in names]

    def _refusal(self, images: Images, reason: str) -> RuntimeFailureError:
        return RuntimeFailureError(
            f"OpenVINO could not run the model on an input of shape {images.shape} and type {images.dtype}; it "
            f"expects {self._input_shape} and {self._input_dtype}: {reason}.",
            found=(images.shape, str(images.dtype)),
            expected=(self._input_shape, str(self._input_dtype)),
        )


def load_openvino_session(model: Path, *, num_threads: int | None = None, num_streams: int = 1) -> OpenVINOSession:
    """Load a model in OpenVINO.

    It computes in float32: OpenVINO's own default is bfloat16 on CPUs that have it, 5e-4 off.

    Args:
        model: A `.onnx` file, or a `.xml` with its `.bin` next to it.
        num_threads: Threads of one request; `None` lets OpenVINO share every core among the streams.
        num_streams: Requests that run at the same time; OpenVINO lets others wait.

    Raises:
        MissingDependencyError: If OpenVINO is not installed.
        ModelLoadError: If it cannot load the model.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "The runtime 'openvino' needs OpenVINO.",
            hint="Install it: pip install 'icis-deploy[openvino]'.",
        ) from error
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if num_streams > 1:  # else the hint chooses it: one, or one for each socket
        settings["NUM_STREAMS"] = num_streams
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads * num_streams
    core = _CORES.get(os.getpid())
    if core is None:
        core = _CORES.setdefault(os.getpid(), openvino.Core())  # of two threads that come first, both use the same
    try:
        network = core.read_model(model)
        defaults = _make_slots_inputs(network)
        compiled = core.compile_model(network, "CPU", settings)
    except Exception as error:  # see OpenVINOSession.run
        raise ModelLoadError(
            f"OpenVINO cannot load the model {model}: {one_line(error)}.",
            found=one_line(error),
            where=model,
            hint="Copy the bundle again, or use `runtime='onnxruntime'`.",
        ) from error
    return OpenVINOSession(compiled, defaults)


def _make_slots_inputs(network: Any) -> dict[str, Float32]:
    """Make inputs of the slots, in place; return what they held, by name."""
    from openvino import opset13

    defaults: dict[str, Float32] = {}
    for node in network.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "Constant" and name in {SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER}:
            defaults[name] = np.array(node.data, dtype=np.float32)
            slots = opset13.parameter(list(node.shape), node.get_element_type(), name)
            slots.output(0).set_names({name})
            node.output(0).replace(slots.output(0))
            network.add_parameters([slots])
    network.validate_nodes_and_infer_types()
    return defaults
