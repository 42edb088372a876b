"""A session in two parts: the backbone in ONNX Runtime, the head in numpy.

For chips whose compiler quantizes a whole graph: slots inside of it would share the ranges of its integers, or be
baked. Here the compiled part ends in features, which are floats, and baked rows and slots multiply them on the host.
What a device does with a session, such as class updates, rollback and self-test, does not change.

The product runs in numpy's own BLAS, whose threads `num_threads` does not set (OPENBLAS_NUM_THREADS does).
"""

# Why: docs/decisions/0112.

from __future__ import annotations

from pathlib import Path

import numpy as np

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.baked_rows import load_baked_rows
from icis_deploy.bundle.manifest import BACKBONE_NAME, BAKED_ROWS_NAME, Bundle
from icis_deploy.bundle.slot_files import exported_slots
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import IncompatibleError, RuntimeFailureError
from icis_deploy.head.arbiter import seen_statistics
from icis_deploy.runtime.sessions.host_choice import choice_of, softmax
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.runtime.sessions.protocol import (
    Session,
    SessionOutput,
    SlotBuffers,
    SlotContents,
    TopOutput,
    arbiter_to_load,
    no_slots_error,
)


class SplitSession:
    """A backbone in one runtime and the head in numpy; see `Session` for what its methods promise.

    Everything that a request reads is there before it starts and is never changed, so that threads need no lock.
    """

    def __init__(
        self,
        backbone: Session,
        bundle: Bundle,
        rows: Float32,
        *,
        slots: SlotBuffers | None,
        baked_arbiter: Float32 | None = None,
        lengths: Float32 | None = None,
    ) -> None:
        """Use a backbone that is loaded already.

        Args:
            backbone: A session whose first output are the features, `(batch, feature_dim)` float32.
            bundle: States the classes, and what the model makes of its logits.
            rows: `(num_baked, feature_dim + 1)` float32, seen classes first.
            slots: What the slots held when the bundle was exported; `None` for a fused head.
            baked_arbiter: `(num_baked - num_seen, 5)` float32; `None` for a bundle without an arbiter.
            lengths: `(num_seen,)` float32, of `deviation_lengths`; needed with an arbiter.
        """
        self._backbone = backbone
        self._bundle = bundle
        self._weight = np.ascontiguousarray(rows[:, :-1])
        self._bias = np.ascontiguousarray(rows[:, -1])
        self._slots = slots
        self._baked_arbiter = baked_arbiter
        self._lengths = lengths

    def load_slots(self, weight: Float32, bias: Float32, arbiter: Float32 | None = None) -> SlotBuffers:
        """Keep slots for runs, which read them in place; see `Session.load_slots`."""
        if self._slots is None:
            raise no_slots_error()
        expected = (self._bundle.capacity, self._bundle.feature_dim)
        if weight.shape != expected or bias.shape != expected[:1]:
            raise RuntimeFailureError(
                f"The slots have the shapes {weight.shape} and {bias.shape}; this bundle's have {expected} and "
                f"{expected[:1]}.",
                found=(weight.shape, bias.shape),
                expected=(expected, expected[:1]),
            )
        coefficients = arbiter_to_load(arbiter, capacity=len(bias), is_taken=self._lengths is not None)
        return SlotBuffers(weight=np.ascontiguousarray(weight), bias=np.ascontiguousarray(bias), arbiter=coefficients)

    def read_slots(self, slots: SlotBuffers) -> SlotContents:
        """Return what each run multiplies with; see `Session.read_slots`."""
        return SlotContents(slots.weight, slots.bias, slots.arbiter)

    def run(self, images: Images, slots: SlotBuffers | None = None, *, with_features: bool = False) -> SessionOutput:
        """Run one batch; see `Session.run`."""
        features = self._backbone.run(images).logits
        scores = self._scores(self._logits(features, slots))
        # A fused model has no such output either.
        return SessionOutput(scores, features if with_features and self._slots is not None else None)

    def top(self, images: Images, slots: SlotBuffers | None = None) -> TopOutput | None:
        """Run one batch and choose the classes with the greatest scores; see `Session.top`."""
        if not self._bundle.top:
            return None
        return choice_of(self.run(images, slots).logits, self._bundle)

    def _logits(self, features: Float32, slots: SlotBuffers | None) -> Float32:
        """Return logits, `(batch, num_outputs)` float32: of baked classes, then of every slot."""
        held = self._slots if slots is None else slots
        num_seen, num_baked = self._bundle.num_seen, len(self._bias)
        logits = np.empty((len(features), num_baked + (0 if held is None else len(held.bias))), dtype=np.float32)
        np.add(features @ self._weight.T, self._bias, out=logits[:, :num_baked])
        if held is not None:
            np.add(features @ held.weight.T, held.bias, out=logits[:, num_baked:])
        if self._lengths is not None:
            statistics = seen_statistics(features, logits[:, :num_seen], self._lengths)
            if self._baked_arbiter is not None and self._baked_arbiter.size:
                logits[:, num_seen:num_baked] += statistics @ self._baked_arbiter.T
            if held is not None and held.arbiter is not None:
                logits[:, num_baked:] += statistics @ held.arbiter.T
        return logits

    def _scores(self, logits: Float32) -> Float32:
        """Return what the model itself makes of logits."""
        kind = self._bundle.score_kind
        if kind == "logits":
            return logits
        if kind == "probabilities":
            return softmax(logits)
        if kind == "log-probabilities":
            shifted = logits - logits.max(axis=1, keepdims=True)
            return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)
        with np.errstate(over="ignore"):  # the logit of an empty slot: its exponential is infinite, and the score 0
            return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)


def load_split_session(folder: Path, bundle: Bundle, *, num_threads: int | None = None) -> SplitSession:
    """Load a bundle's backbone in ONNX Runtime, and its rows and slots in numpy.

    Args:
        folder: The bundle's files, which the caller has compared with the manifest.
        bundle: What its manifest says, or will say.
        num_threads: Threads of the backbone; `None` lets ONNX Runtime use every core.

    Raises:
        IncompatibleError: If the bundle holds no backbone.
        BundleError, CorruptFileError: If rows or slots cannot be read.
        MissingDependencyError, ModelLoadError: If ONNX Runtime is not there, or cannot load the backbone.
    """
    if not {BACKBONE_NAME, BAKED_ROWS_NAME} <= set(bundle.files):
        raise IncompatibleError(
            f"The bundle {folder} holds no {BACKBONE_NAME} with {BAKED_ROWS_NAME}, so there is nothing that the "
            f"runtime 'split' could run.",
            found=tuple(sorted(bundle.files)),
            expected=(BACKBONE_NAME, BAKED_ROWS_NAME),
            where=folder,
            hint="Export it with `targets=['backbone']`.",
        )
    return session_with_host_head(load_session(folder / BACKBONE_NAME, num_threads=num_threads), folder, bundle)


def session_with_host_head(backbone: Session, folder: Path, bundle: Bundle) -> SplitSession:
    """Return a session of a backbone that is loaded, and of a bundle's rows and slots in numpy.

    Args:
        backbone: A session whose first output are the features, `(batch, feature_dim)` float32.
        folder: The bundle's files, which the caller has compared with the manifest.
        bundle: What its manifest says, or will say.

    Raises:
        BundleError, CorruptFileError: If rows or slots cannot be read.
    """
    rows = load_baked_rows(folder, bundle)
    table = exported_slots(folder, bundle)
    constants = ArbiterConstants(folder, bundle) if bundle.arbiter else None
    return SplitSession(
        backbone,
        bundle,
        rows,
        slots=None
        if table is None
        else SlotBuffers(
            weight=table.weight, bias=table.bias, arbiter=None if constants is None else table.coefficients
        ),
        baked_arbiter=None if constants is None else constants.baked_coefficients(),
        lengths=None if constants is None else constants.row_lengths(),
    )
