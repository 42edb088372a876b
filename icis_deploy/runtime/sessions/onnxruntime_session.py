"""A session in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

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
from icis_deploy.errors import (
    MissingDependencyError,
    ModelLoadError,
    RuntimeFailureError,
)
from icis_deploy.runtime.sessions.fixed_batch import fetch_in_batches, fixed_batch_of
from icis_deploy.runtime.sessions.onnxruntime_providers import (
    CPU_PROVIDER,
    ProviderChoice,
    check_available,
    check_one_installation,
    check_session,
    forbid_silent_fallback,
)
from icis_deploy.runtime.sessions.protocol import (
    SessionOutput,
    SlotBuffers,
    SlotContents,
    TopOutput,
    arbiter_to_load,
    no_slots_error,
)

_SLOT_INPUTS = {SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER}


class ONNXRuntimeSession:
    """A model loaded in ONNX Runtime; see `Session` for what its methods promise.

    Slots are overridable initializers (graph inputs with a default, ONNX IR >= 4), so they are fed with each run or
    left out; in a graph for other runtimes they are required inputs, and each run needs them. ONNX Runtime reads fed
    arrays in place, and `InferenceSession.run` may be called from several threads.
    """

    def __init__(self, inference_session: Any, *, slots_memory: str | None = None) -> None:
        """Use a session of ONNX Runtime.

        Args:
            inference_session: An `onnxruntime.InferenceSession`.
            slots_memory: The device that slots are copied to when they are loaded, such as `cuda`, so that no request
                has to; `None` for arrays that are read in place.
        """
        self._session = inference_session
        self._slots_memory = slots_memory
        inputs = [value for value in inference_session.get_inputs() if value.name not in _SLOT_INPUTS]
        required = {value.name for value in inference_session.get_inputs()} & _SLOT_INPUTS
        outputs = [output.name for output in inference_session.get_outputs()]
        fed = required | {value.name for value in inference_session.get_overridable_initializers()}
        self._input_name: str = inputs[0].name
        self._input_type: str = inputs[0].type
        self._input_shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)
        self._batch = fixed_batch_of(inputs[0].shape[0]) if inputs[0].shape else None
        self._scores: list[str] = outputs[:1]
        self._scores_and_features = [*self._scores, *([FEATURES] if FEATURES in outputs else [])]
        topk_outputs = [TOP_PROBABILITIES, TOP_CLASS_IDS]
        self._topk_outputs = topk_outputs if set(topk_outputs) <= set(outputs) else []
        self._has_slots = {SLOT_WEIGHT, SLOT_BIAS} <= fed
        self._has_arbiter = SLOT_ARBITER in fed

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that this session really has, which is asked of it and not of the installation."""
        return tuple(self._session.get_providers())

    @property
    def inference_session(self) -> Any:
        """The `onnxruntime.InferenceSession`, for what only ONNX Runtime has."""
        return self._session

    def load_slots(self, weight: Float32, bias: Float32, arbiter: Float32 | None = None) -> SlotBuffers:
        """Keep slots for runs; see `Session.load_slots`."""
        if not self._has_slots:
            raise no_slots_error()
        weight, bias = np.ascontiguousarray(weight), np.ascontiguousarray(bias)
        coefficients = arbiter_to_load(arbiter, capacity=len(bias), is_taken=self._has_arbiter)
        if self._slots_memory is None:
            return SlotBuffers(weight=weight, bias=bias, arbiter=coefficients)
        return SlotBuffers(
            weight=self._copied(weight),
            bias=self._copied(bias),
            arbiter=None if coefficients is None else self._copied(coefficients),
        )

    def read_slots(self, slots: SlotBuffers) -> SlotContents:
        """Return what is fed with each run; see `Session.read_slots`."""
        if self._slots_memory is None:
            return SlotContents(slots.weight, slots.bias, slots.arbiter)
        try:
            arbiter = None if slots.arbiter is None else slots.arbiter.numpy()
            return SlotContents(slots.weight.numpy(), slots.bias.numpy(), arbiter)
        except Exception as error:  # see _fetch
            raise RuntimeFailureError(
                f"ONNX Runtime could not copy slots back from {self._slots_memory}: {one_line(error)}.",
                found=one_line(error),
                where=self._slots_memory,
            ) from error

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run one batch; see `Session.run`."""
        outputs = self._fetch(self._scores_and_features if with_features else self._scores, images, slots)
        return SessionOutput(outputs[0], outputs[1] if len(outputs) > 1 else None)

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch and fetch the classes that the model selects itself; see `Session.top`."""
        if not self._topk_outputs:
            return None
        probabilities, columns = self._fetch(self._topk_outputs, images, slots)
        return probabilities, columns

    def _fetch(self, names: list[str], images: Images, slots: SlotBuffers | None) -> list[Any]:
        # With each request, while caches are cold, a call of a function in Python costs 2 to 5 us: so there are few.
        if self._batch is not None and len(images) not in {0, self._batch}:
            return fetch_in_batches(lambda batch: self._fetch(names, batch, slots), images, self._batch)
        feed: dict[str, Any] = {self._input_name: images}
        if slots is not None:
            feed[SLOT_WEIGHT], feed[SLOT_BIAS] = slots.weight, slots.bias
            if slots.arbiter is not None:
                feed[SLOT_ARBITER] = slots.arbiter
        try:
            if self._slots_memory is None or slots is None:
                outputs: list[Any] = self._session.run(names, feed)
                return outputs
            return self._run_with_slots_elsewhere(names, feed)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types; this is the one call into it
            raise RuntimeFailureError(
                f"ONNX Runtime could not run the model on an input of shape {images.shape} and type {images.dtype}; "
                f"it expects {self._input_shape} and {self._input_type}: {one_line(error)}.",
                found=(images.shape, str(images.dtype)),
                expected=(self._input_shape, self._input_type),
            ) from error

    def _copied(self, array: Float32) -> Any:
        import onnxruntime

        try:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._slots_memory, 0)
        except Exception as error:  # see _fetch
            raise RuntimeFailureError(
                f"ONNX Runtime could not copy slots to {self._slots_memory}: {one_line(error)}.",
                found=one_line(error),
                where=self._slots_memory,
            ) from error

    def _run_with_slots_elsewhere(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        import onnxruntime

        images = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed[self._input_name]))
        outputs = self._session.run_with_ort_values(names, {**feed, self._input_name: images})
        return [output.numpy() for output in outputs]


def load_session(
    model: Path | bytes, *, num_threads: int | None = None, provider: ProviderChoice | None = None
) -> ONNXRuntimeSession:
    """Load a model in ONNX Runtime.

    Args:
        model: Path of a `.onnx` file, or its bytes.
        num_threads: Threads inside one operator; `None` lets ONNX Runtime use every core.
        provider: What computes; `None` for the CPU.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed, or twice, or does not compute where it was asked to.
        ModelLoadError: If it cannot load the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Running a model needs ONNX Runtime.",
            hint="Install it: pip install 'icis-deploy[cpu]' (or 'icis-deploy[gpu]', never both).",
        ) from error
    check_one_installation()
    choice = ProviderChoice() if provider is None else provider
    check_available(onnxruntime, choice)
    options = session_options(num_threads)
    if choice.name != CPU_PROVIDER:
        forbid_silent_fallback(options, onnxruntime.InferenceSession)
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=choice.requested)
    except Exception as error:  # see ONNXRuntimeSession.run
        where = "" if isinstance(model, bytes) else f" {model}"
        raise ModelLoadError(
            f"ONNX Runtime cannot load the model{where}: {one_line(error)}.",
            found=one_line(error),
            hint=(
                "Copy the bundle again; where the message speaks of an opset or IR version, install a "
                "newer onnxruntime."
            ),
        ) from error
    check_session(session, choice)
    return ONNXRuntimeSession(session, slots_memory=choice.slots_memory)


def session_options(num_threads: int | None = None) -> Any:
    """Return the `onnxruntime.SessionOptions` that every session of icis-deploy gets.

    Args:
        num_threads: Threads inside one operator; `None` lets ONNX Runtime use every core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters comes as an exception; warnings of the graph optimizer help no user
    # Threads of a pool wait for the next operator by spinning, and by default go on after a run: they keep a core from
    # whatever comes next, such as another session. Within a run they may; after it they sleep.
    # Why: docs/decisions/0047.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    return options
