"""The interface between icis-deploy and a runtime: all that the device half knows of one.

A session is a model loaded in a runtime. It holds no head state: slots are loaded once and handed to every run. A
request therefore ends with the slots it started with, whatever is loaded in the meantime, and no lock is needed.
"""

# Why: docs/decisions/0002.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from icis_deploy.bundle.manifest import SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import Float32, Images, Int64
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.head.arbiter import no_arbiter


def no_slots_error() -> RuntimeFailureError:
    """Return what `Session.load_slots` raises for a model without slots."""
    return RuntimeFailureError(
        f"The model has no inputs {SLOT_WEIGHT!r} and {SLOT_BIAS!r}: its head is fused.",
        found="fused",
        expected="updatable",
        hint="Export it with `head='updatable'`.",
    )


def arbiter_to_load(arbiter: Float32 | None, *, capacity: int, is_taken: bool) -> Float32 | None:
    """Return coefficients as a model takes them; `None` for a model that takes none.

    Args:
        arbiter: `(capacity, 5)` float32, or `None` for zeros.
        capacity: Number of slots.
        is_taken: Whether the model has something to put them into.

    Raises:
        RuntimeFailureError: If a slot has an arbiter and the model takes none.
    """
    if is_taken:
        return np.ascontiguousarray(no_arbiter(capacity) if arbiter is None else arbiter)
    if arbiter is not None and arbiter.any():
        raise RuntimeFailureError(
            f"The model has no input {SLOT_ARBITER!r}, so its slots cannot have an arbiter.",
            found="slots with an arbiter",
            expected="slots with constant offsets",
            hint="Export it again with `arbiter='auto'`, or inject with `arbiter='off'`.",
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBuffers:
    """Slots as a runtime wants them; made by `Session.load_slots`, never changed afterwards."""

    weight: Any
    """`(capacity, feature_dim)` float32 in the runtime's own memory."""

    bias: Any
    """`(capacity,)` float32 in the runtime's own memory."""

    arbiter: Any = None
    """`(capacity, 5)` float32 in the runtime's own memory; `None` where the model has no such input."""


class SlotContents(NamedTuple):
    """What a runtime's memory holds for its slots, as arrays of the host."""

    weight: Float32
    """`(capacity, feature_dim)` float32."""

    bias: Float32
    """`(capacity,)` float32."""

    arbiter: Float32 | None
    """`(capacity, 5)` float32; `None` where the model has no such input."""


class SessionOutput(NamedTuple):
    """What one run of a model gives; a tuple, which takes half as long to make while caches are cold."""

    logits: Float32
    """`(batch, num_outputs)` float32: seen classes first, then every slot, empty ones included."""

    features: Float32 | None
    """`(batch, feature_dim)` float32; `None` where the model has no such output, or it was not asked for."""


TopOutput: TypeAlias = tuple[Float32, Int64]
"""The classes that a model selects itself; see `Session.top`.

- probabilities `(batch, top)` float32, the greatest first, fractions of 1 over all outputs;
- columns `(batch, top)` int64: which output each is of, empty slots not left out.

A bare tuple: even a named one takes 6 us to make while caches are cold, and this one is only passed on.
"""


class Session(Protocol):
    """A model loaded in a runtime."""

    def load_slots(self, weight: Float32, bias: Float32, arbiter: Float32 | None = None) -> SlotBuffers:
        """Copy slots to where the runtime reads them.

        Args:
            weight: `(capacity, feature_dim)` float32.
            bias: `(capacity,)` float32.
            arbiter: `(capacity, 5)` float32, what each slot's logit follows from statistics of the image
                (`icis_deploy.head.arbiter`); `None` for zeros, which are constant offsets.

        Raises:
            RuntimeFailureError: If the model has no slots, an arbiter is given to one that takes none, or the runtime
                refuses them.
        """
        ...

    def read_slots(self, slots: SlotBuffers) -> SlotContents | None:
        """Return what `run` and `top` read for these slots, from the memory that they read it from.

        Args:
            slots: From `load_slots`.

        Returns:
            The arrays that are read in place, or copies of device memory; not to be changed. `None`, without reading
            anything, where the runtime gives nobody its slots.

        Raises:
            RuntimeFailureError: If the runtime fails.
        """
        ...

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run the model on one batch.

        Args:
            images: `(batch, *input_shape)` in the model's input dtype.
            slots: From `load_slots`; `None` uses the slots baked into the model file.
            with_features: Whether to fetch the features as well.

        Raises:
            RuntimeFailureError: If the runtime fails.
        """
        ...

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run the model on one batch and fetch the classes that it selects itself, and no scores.

        Args:
            images: As `run`.
            slots: As `run`.

        Returns:
            `None`, without running anything, where the model selects no classes.

        Raises:
            RuntimeFailureError: If the runtime fails.
        """
        ...
