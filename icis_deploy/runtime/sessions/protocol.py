"""The interface between icis-deploy and a runtime: all that the device half knows of one.

A session is a model loaded in a runtime. It holds no head state: slots are loaded once and handed to every run. A
request therefore ends with the slots it started with, whatever is loaded in the meantime, and no lock is needed.
"""

# Why: docs/decisions/0002.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from icis_deploy.bundle.manifest import SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import Float32, Images, Int64
from icis_deploy.errors import RuntimeFailureError


def no_slots_error() -> RuntimeFailureError:
    """Return what `Session.load_slots` raises for a model without slots."""
    return RuntimeFailureError(
        f"The model has no inputs {SLOT_WEIGHT!r} and {SLOT_BIAS!r}: its head is fused.",
        found="fused",
        expected="updatable",
        hint="Export it with `head='updatable'`.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBuffers:
    """Slots as a runtime wants them; made by `Session.load_slots`, never changed afterwards."""

    weight: Any
    """`(capacity, feature_dim)` float32 in the runtime's own memory."""

    bias: Any
    """`(capacity,)` float32 in the runtime's own memory."""


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

    def load_slots(self, weight: Float32, bias: Float32) -> SlotBuffers:
        """Copy slots to where the runtime reads them.

        Args:
            weight: `(capacity, feature_dim)` float32.
            bias: `(capacity,)` float32.

        Raises:
            RuntimeFailureError: If the model has no slots, or the runtime refuses them.
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
