"""A session in a runtime whose interpreters serve one thread at a time and keep their inputs in memory of their own.

Every request gets an interpreter that nobody else has. Slots stay in an interpreter's memory from one run to the next;
they are copied into it only when it is lent to a request with other slots. A request therefore ends with the slots
that it started with, and an update waits for nobody.
"""

# Why: docs/decisions/0114.

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.converted_sidecar import (
    CONVERTED_FILES,
    MAX_SIDECAR_BYTES,
    ConvertedSidecar,
    ConvertedTensor,
    converted_sidecar_name,
    parse_converted_sidecar,
    verify_converted,
)
from icis_deploy.bundle.manifest import (
    FEATURES,
    SLOT_ARBITER,
    SLOT_BIAS,
    SLOT_WEIGHT,
    TOP_CLASS_IDS,
    TOP_PROBABILITIES,
    Bundle,
)
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.files import read_plain
from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import BundleError, IncompatibleError, RuntimeFailureError
from icis_deploy.runtime.sessions.fixed_batch import fetch_in_batches
from icis_deploy.runtime.sessions.host_choice import choice_of
from icis_deploy.runtime.sessions.pools import ResourcePool
from icis_deploy.runtime.sessions.protocol import (
    SessionOutput,
    SlotBuffers,
    SlotContents,
    TopOutput,
    arbiter_to_load,
    no_slots_error,
)


class Interpreter(Protocol):
    """What runs a converted model for one thread at a time. Whatever it raises is the runtime's own."""

    def write_slots(self, slots: Mapping[str, Float32]) -> None:
        """Copy slots into the memory that the following runs read, by input name."""
        ...

    def read_slots(self) -> Mapping[str, Float32]:
        """Return copies of what that memory holds, by input name."""
        ...

    def run(self, images: Images, names: list[str]) -> list[NDArray[Any]]:
        """Run one batch and return outputs of these names, in memory that no later run writes to.

        Args:
            images: Of the shape and type that the sidecar states.
            names: What `model.onnx` calls the outputs.
        """
        ...


class InterpreterSession:
    """A converted model loaded in a runtime; see `Session` for what its methods promise.

    A converted model holds no slots of its own: those of an updatable head must be given with each run.
    """

    def __init__(
        self, make: Callable[[], Interpreter], sidecar: ConvertedSidecar, bundle: Bundle, *, library: str
    ) -> None:
        """Make a first interpreter, which finds out whether the model loads.

        Args:
            make: Makes an interpreter.
            sidecar: What is stated of the model.
            bundle: What its manifest says, or will say.
            library: The runtime's name in messages, such as `MNN`.
        """
        self._library = library
        self._bundle = bundle
        self._image = sidecar.inputs[0]
        self._dtype = np.dtype(self._image.dtype)
        self._batch = sidecar.batch
        self._outputs = {tensor.name: tensor for tensor in sidecar.outputs}
        self._logits_name = sidecar.outputs[0].name
        self._slot_shapes = {tensor.name: tensor.shape for tensor in sidecar.slots}
        self._interpreters: ResourcePool[_Holding] = ResourcePool(lambda: _Holding(make()))
        with self._interpreters.lend():
            pass

    def load_slots(self, weight: Float32, bias: Float32, arbiter: Float32 | None = None) -> SlotBuffers:
        """Keep slots for interpreters to copy; see `Session.load_slots`."""
        if not self._slot_shapes:
            raise no_slots_error()
        coefficients = arbiter_to_load(arbiter, capacity=len(bias), is_taken=SLOT_ARBITER in self._slot_shapes)
        for name, array in ((SLOT_WEIGHT, weight), (SLOT_BIAS, bias), (SLOT_ARBITER, coefficients)):
            if array is not None and array.shape != self._slot_shapes[name]:
                raise RuntimeFailureError(
                    f"The slots' {name} has shape {array.shape}; this model takes {self._slot_shapes[name]}.",
                    found=array.shape,
                    expected=self._slot_shapes[name],
                    where=name,
                )
        weight, bias = (np.ascontiguousarray(array, dtype=np.float32) for array in (weight, bias))
        return SlotBuffers(weight=weight, bias=bias, arbiter=coefficients)

    def read_slots(self, slots: SlotBuffers) -> SlotContents:
        """Copy slots into an interpreter as a run does, and read them back from it; see `Session.read_slots`."""
        with self._interpreters.lend() as lent:
            try:
                lent.hold(slots)
                held = lent.interpreter.read_slots()
            except Exception as error:
                raise RuntimeFailureError(
                    f"{self._library} could not read its slots back: {one_line(error)}.", found=one_line(error)
                ) from error
        return SlotContents(held[SLOT_WEIGHT], held[SLOT_BIAS], held.get(SLOT_ARBITER))

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run one batch; see `Session.run`. A converted model holds no slots of its own, so slots must be given."""
        has_features = with_features and FEATURES in self._outputs
        found = self._fetch([self._logits_name, *([FEATURES] if has_features else [])], images, slots)
        return SessionOutput(logits=found[0], features=found[1] if has_features else None)

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch and fetch the classes that the model selects itself; see `Session.top`.

        A converted model may end in scores where `model.onnx` selects classes; they are selected here then.
        """
        if not {TOP_PROBABILITIES, TOP_CLASS_IDS} <= self._outputs.keys():
            return choice_of(self.run(images, slots).logits, self._bundle) if self._bundle.top else None
        probabilities, columns = self._fetch([TOP_PROBABILITIES, TOP_CLASS_IDS], images, slots)
        return probabilities, columns.astype(np.int64, copy=False)

    def _fetch(self, names: list[str], images: Images, slots: SlotBuffers | None) -> list[NDArray[Any]]:
        # Not every runtime says that it was given something else: one reads beyond the end, another returns nothing.
        if images.dtype != self._dtype or images.shape[1:] != self._image.shape[1:]:
            raise self._refusal(images, "the model was converted for these alone")
        if slots is None and self._slot_shapes:
            raise RuntimeFailureError(
                f"A model converted for {self._library} holds no slots of its own.",
                hint="Load them, and give them with each run.",
            )
        if not len(images):
            return [self._nothing(self._outputs[name]) for name in names]
        return fetch_in_batches(lambda batch: self._fetch_batch(names, batch, slots), images, self._batch)

    def _fetch_batch(self, names: list[str], images: Images, slots: SlotBuffers | None) -> list[NDArray[Any]]:
        with self._interpreters.lend() as lent:
            try:
                if slots is not None:
                    lent.hold(slots)
                return lent.interpreter.run(np.ascontiguousarray(images), names)
            except Exception as error:  # each runtime has types of its own; this is the one call into it
                raise self._refusal(images, one_line(error)) from error

    def _nothing(self, tensor: ConvertedTensor) -> NDArray[Any]:
        return np.empty((0, *tensor.shape[1:]), dtype=tensor.dtype)

    def _refusal(self, images: Images, reason: str) -> RuntimeFailureError:
        expected = self._image.shape
        return RuntimeFailureError(
            f"{self._library} could not run the model on an input of shape {images.shape} and type {images.dtype}; it "
            f"expects {expected} and {self._dtype}: {reason}.",
            found=(images.shape, str(images.dtype)),
            expected=(expected, str(self._dtype)),
        )


class _Holding:
    """An interpreter, and the slots that are in its memory."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        self._slots: SlotBuffers | None = None

    def hold(self, slots: SlotBuffers) -> None:
        """Copy slots into the interpreter's memory, unless they are what it holds."""
        if self._slots is slots:
            return
        self._slots = None  # what is there while copying, or after it failed, are nobody's slots
        given = ((SLOT_WEIGHT, slots.weight), (SLOT_BIAS, slots.bias), (SLOT_ARBITER, slots.arbiter))
        self.interpreter.write_slots({name: array for name, array in given if array is not None})
        self._slots = slots


def load_converted_sidecar(folder: Path, bundle: Bundle, runtime: str) -> ConvertedSidecar:
    """Read the sidecar of a bundle's converted model, and compare it with the bundle.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        runtime: A key of `CONVERTED_FILES`.

    Raises:
        IncompatibleError: If the bundle holds no model for this runtime.
        EngineMismatchError: If it was converted from another model.
        BundleError: If the sidecar cannot be read.
    """
    if not {*CONVERTED_FILES[runtime], converted_sidecar_name(runtime)} <= bundle.files.keys():
        raise IncompatibleError(
            f"The bundle {folder} holds no model for {runtime!r}.",
            expected=runtime,
            where=folder,
            hint=f"Export it with `targets=['{runtime}']`, or open it in another runtime.",
        )
    path = folder / converted_sidecar_name(runtime)
    try:
        sidecar = parse_converted_sidecar(
            read_plain(path, max_bytes=MAX_SIDECAR_BYTES, what="sidecar", error_type=BundleError)
        )
    except BundleError as error:
        raise BundleError.at(path, error) from error
    verify_converted(sidecar, bundle, runtime)
    return sidecar
