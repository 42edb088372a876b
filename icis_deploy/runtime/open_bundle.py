"""A bundle that is open: what of it a device holds, and what its model gives for a batch.

A device exchanges all of it by one assignment, so whoever answers or teaches takes it once and uses nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from icis_deploy.bundle.manifest import MANIFEST_NAME, Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import IncompatibleError, WrongBaseError
from icis_deploy.runtime.changes.updater import Updater
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.sessions.protocol import Session
from icis_deploy.runtime.state.head_state import HeadState
from icis_deploy.runtime.teaching.cached_generator import CachedGenerator

if TYPE_CHECKING:
    from icis_deploy.images.inputs import InputForm
    from icis_deploy.images.sources import InputValue


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBundle:
    """A bundle and what runs it; `Device.replace` exchanges all of it by one assignment."""

    folder: Path
    bundle: Bundle
    session: Session
    updater: Updater
    generator: CachedGenerator
    runtime: Runtime
    named: Path
    """What the caller called the folder: perhaps a link, which leads to another bundle later."""
    stamp: tuple[int, ...] | None
    """Of the manifest there, before it was read."""
    trust: tuple[Path, ...] | None
    """Files of the keys one of which must have signed it; `None` where none was asked for."""


def input_form(bundle: Bundle) -> InputForm:
    """Return what one input of a bundle's model is, and how an image becomes one."""
    from icis_deploy.images.inputs import InputForm

    taken = bundle.model_input
    return InputForm(shape=taken.shape, dtype=taken.dtype, preprocessing=bundle.preprocessing)


def prepare_inputs(opened: OpenBundle, named: Sequence[tuple[str, InputValue]]) -> Images:
    """Return inputs as one batch of a bundle's model, `(batch, *input_shape)`.

    Args:
        opened: The bundle, which says how images are prepared.
        named: Each with what it is called in messages.

    Raises:
        ImageError: If one cannot be read, or is none that the model takes.
        IncompatibleError: If one is an image, and the bundle does not state its preprocessing.
    """
    from icis_deploy.images.inputs import needs_preparing, prepare

    form = input_form(opened.bundle)
    if form.preprocessing is None and any(needs_preparing(value) for _, value in named):
        raise IncompatibleError(
            f"The bundle {opened.folder} does not state how images are prepared.",
            where=opened.folder,
            hint="Export it with `preprocess`, or give prepared arrays.",
        )
    if not named:
        return np.empty((0, *opened.bundle.model_input.shape), dtype=form.dtype)
    return prepare([value for _, value in named], form, keys=[key for key, _ in named])


def manifest_stamp(folder: Path) -> tuple[int, ...] | None:
    """Return numbers that change when a folder, or what a link to it leads to, is replaced by another bundle.

    Of the folder too: in a copy of hard links, as `cp -al` and deployments of whole trees make it, the manifest is the
    same file, and `state/` another folder.
    """
    try:
        within, status = os.stat(folder), os.stat(f"{folder}/{MANIFEST_NAME}")  # noqa: PTH116 - with every request
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return None
    return within.st_dev, within.st_ino, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def check_same_head(opened: OpenBundle, bundle: Bundle, where: str | Path) -> None:
    """Raise `WrongBaseError` if another bundle, at `where`, is of another original head."""
    expected = opened.bundle.base_fingerprint
    if bundle.base_fingerprint != expected:
        raise WrongBaseError(
            f"The bundle {where} was made from the head {bundle.base_fingerprint[:16]}…; this device's is "
            f"{expected[:16]}….",
            found=bundle.base_fingerprint,
            expected=expected,
            where=where,
            hint="Open it as a device of its own.",
        )


def run_with_features(opened: OpenBundle, images: Images, state: HeadState) -> tuple[Float32, Float32]:
    """Return logits and features of a batch, `(batch, num_classes)` and `(batch, feature_dim)` float32.

    Raises:
        IncompatibleError: If the model gives no features.
        RuntimeFailureError: If the runtime fails.
    """
    output = opened.session.run(images, state.buffers, with_features=True)
    if output.features is None:
        raise IncompatibleError(
            f"The model of the bundle {opened.folder} gives no features: its head is {opened.bundle.head_kind}.",
            found=opened.bundle.head_kind,
            expected="a model with an output of features",
            where=opened.folder,
            hint="Export it with `head='updatable'` and `capacity`.",
        )
    return _logits(opened, output.logits, state), np.asarray(output.features, dtype=np.float32)


def run_logits(opened: OpenBundle, images: Images, state: HeadState) -> Float32:
    """Return the logits of a batch, `(batch, num_classes)` float32; see `Device.logits`.

    Raises:
        RuntimeFailureError: If the runtime fails.
    """
    return _logits(opened, opened.session.run(images, state.buffers).logits, state)


def _logits(opened: OpenBundle, scores: Float32, state: HeadState) -> Float32:
    correction = state.correction
    values = scores[:, state.columns] if correction is None else scores
    if opened.bundle.score_kind in {"probabilities", "sigmoid"}:
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    return values if correction is None else correction.corrected(values)[:, state.columns]
