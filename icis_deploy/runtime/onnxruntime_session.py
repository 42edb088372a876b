"""A session in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.errors import (
    MissingDependencyError,
    ModelLoadError,
    RuntimeFailureError,
)
from icis_deploy.runtime.session import (
    FEATURES,
    SLOT_BIAS,
    SLOT_WEIGHT,
    TOP_CLASS_IDS,
    TOP_PROBABILITIES,
    SessionOutput,
    SlotBuffers,
    TopOutput,
    no_slots_error,
)


class ONNXRuntimeSession:
    """A model loaded in ONNX Runtime; see `Session` for what its methods promise.

    Slots are overridable initializers (graph inputs with a default, ONNX IR >= 4), so they are fed with each run or
    left out. ONNX Runtime reads fed arrays in place, and `InferenceSession.run` may be called from several threads.
    """

    def __init__(self, inference_session: Any) -> None:
        self._session = inference_session
        inputs = inference_session.get_inputs()
        outputs = [output.name for output in inference_session.get_outputs()]
        overridable = {value.name for value in inference_session.get_overridable_initializers()}
        self._input_name: str = inputs[0].name
        self._input_type: str = inputs[0].type
        self._input_shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)
        self._logits_name: str = outputs[0]
        self._has_features = FEATURES in outputs
        self._chooses = {TOP_PROBABILITIES, TOP_CLASS_IDS} <= set(outputs)
        self._has_slots = {SLOT_WEIGHT, SLOT_BIAS} <= overridable

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that this session really has, which is asked of it and not of the installation."""
        return tuple(self._session.get_providers())

    def load_slots(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> SlotBuffers:
        """Keep slots for runs; see `Session.load_slots`."""
        if not self._has_slots:
            raise no_slots_error()
        return SlotBuffers(weight=np.ascontiguousarray(weight), bias=np.ascontiguousarray(bias))

    def run(
        self, images: NDArray[np.generic], slots: SlotBuffers | None = None, *, with_features: bool = False
    ) -> SessionOutput:
        """Run one batch; see `Session.run`."""
        wanted = [self._logits_name, FEATURES] if with_features and self._has_features else [self._logits_name]
        outputs = self._fetch(wanted, images, slots)
        return SessionOutput(logits=outputs[0], features=outputs[1] if len(outputs) > 1 else None)

    def top(self, images: NDArray[np.generic], slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch and fetch the model's own choice; see `Session.top`."""
        if not self._chooses:
            return None
        probabilities, columns = self._fetch([TOP_PROBABILITIES, TOP_CLASS_IDS], images, slots)
        return TopOutput(probabilities=probabilities, columns=columns)

    def _fetch(self, names: list[str], images: NDArray[np.generic], slots: SlotBuffers | None) -> list[Any]:
        feed: dict[str, Any] = {self._input_name: images}
        if slots is not None:
            feed[SLOT_WEIGHT], feed[SLOT_BIAS] = slots.weight, slots.bias
        try:
            return list(self._session.run(names, feed))
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types; this is the one seam to it
            raise RuntimeFailureError(
                f"ONNX Runtime could not run the model on an input of shape {images.shape} and type {images.dtype}; it "
                f"expects {self._input_shape} and {self._input_type}: {error}"
            ) from error


def load_session(
    model: Path | bytes, *, num_threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> ONNXRuntimeSession:
    """Load a model in ONNX Runtime.

    Args:
        model: Path of a `.onnx` file, or its bytes.
        num_threads: Threads inside one operator; `None` lets ONNX Runtime use every core.
        providers: Execution providers, the preferred one first.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed, or lacks the first provider on this machine.
        ModelLoadError: If it cannot load the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Running a model needs ONNX Runtime: pip install 'icis-deploy[cpu]' (or 'icis-deploy[gpu]', never both)."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters comes as an exception; warnings of the graph optimizer help no user
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # see ONNXRuntimeSession.run
        where = "" if isinstance(model, bytes) else f" {model}"
        raise ModelLoadError(f"ONNX Runtime cannot load the model{where}: {error}") from error
    # ONNX Runtime falls back to the CPU with a log line only; a benchmark of the wrong device is worse than none.
    if session.get_providers()[0] != providers[0]:
        raise MissingDependencyError(
            f"ONNX Runtime gave {session.get_providers()[0]} where {providers[0]} was asked for. Check that "
            f"'icis-deploy[gpu]' and its CUDA libraries are installed, or ask for CPUExecutionProvider."
        )
    return ONNXRuntimeSession(session)
