"""Whether a bundle is sound: its files, its signature, its state, its slots, and whether it answers here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
from icis_deploy.bundle.engine_sidecar import engine_name
from icis_deploy.bundle.manifest import BACKBONE_NAME, Bundle, load_bundle, load_manifest
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import ICISDeployError, MissingDependencyError, RuntimeFailureError
from icis_deploy.runtime.changes.self_test import self_test_input, verify_computed
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.operations import classes
from icis_deploy.runtime.sessions.choice import ENGINE_RUNTIMES, open_session, runtime_from
from icis_deploy.runtime.sessions.openvino_session import OPENVINO_NAME
from icis_deploy.runtime.state.bundle_trust import verify_bundle_signature
from icis_deploy.runtime.state.head_state import make_head_state
from icis_deploy.runtime.state.store import Store
from icis_deploy.updates.bundle_signature import SIGNATURE_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at in a bundle."""

    name: str

    state: Literal["ok", "note", "failed", "not looked at"]
    """`note`: nothing is wrong, and its owner should know. `not looked at`: what comes before it failed, or what it
    needs is not installed, and nothing depends on it."""

    detail: str
    hint: str | None = None

    exit_code: int = 0
    """Of the error, where it failed."""


def check_bundle(folder: Path, *, trust: Sequence[Path] = ()) -> tuple[Check, ...]:
    """Look at a bundle, and change nothing in it.

    Args:
        folder: The bundle.
        trust: Files of public keys from outside of it, one of which must have signed it; none: that is not verified.
    """
    try:
        bundle = load_bundle(folder)
    except ICISDeployError as error:
        rest = [
            Check(name=name, state="not looked at", detail="its files are not sound") for name in ("state", "slots")
        ]
        return (_failed("files", error), _signature(folder, trust), *rest)
    size = sum(entry.size_bytes for entry in bundle.files.values())
    files = f"{len(bundle.files)} files, {size / 1e6:.1f} MB, each with the hash that the manifest states"
    return (
        Check(name="files", state="ok", detail=files),
        _signature(folder, trust),
        _checked("state", lambda: _state(folder, bundle)),
        _checked("slots", lambda: _slots(folder, bundle)),
        *_answering([_checked(f"answers in {name}", partial(_answers, folder, name)) for name in _runtimes(bundle)]),
    )


def _answering(found: Sequence[Check]) -> tuple[Check, ...]:
    """Return whether a bundle answers: a device needs one of the runtimes that a bundle is for, not all of them."""
    if not any(each.state == "ok" for each in found):
        return tuple(found)
    missing = MissingDependencyError.exit_code
    return tuple(
        replace(each, state="not looked at", exit_code=0) if each.exit_code == missing else each for each in found
    )


def _checked(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except ICISDeployError as error:
        return _failed(name, error)


def _failed(name: str, error: ICISDeployError) -> Check:
    return Check(name=name, state="failed", detail=reason_of(error), hint=error.hint, exit_code=error.exit_code)


def _signature(folder: Path, trust: Sequence[Path]) -> Check:
    is_signed = os.path.lexists(folder / SIGNATURE_NAME)
    if trust:
        return _checked(
            "signature",
            lambda: Check(
                name="signature", state="ok", detail=f"signed by {verify_bundle_signature(folder, list(trust))[:16]}…"
            ),
        )
    if is_signed:
        return Check(
            name="signature",
            state="note",
            detail="signed; nothing says by whom it should be",
            hint="Give the public key in `trust`.",
        )
    return Check(
        name="signature",
        state="note",
        detail="not signed: whoever can write the folder can exchange the model",
        hint="`sign_bundle()` signs it.",
    )


def _state(folder: Path, bundle: Bundle) -> Check:
    store = Store(folder)
    journal = store.load_journal(bundle)
    keys = len(store.trusted_keys(journal)) if bundle.capacity else 0
    changes = len(journal.history)
    detail = f"version {journal.current.version}, {changes} change{'s' * (changes != 1)} since the export"
    if not bundle.capacity:
        return Check(name="state", state="ok", detail=f"{detail}; a fused head takes no class updates")
    if not keys:
        return Check(
            name="state",
            state="note",
            detail=f"{detail}; it trusts no key, so it takes no signed update",
            hint="Export it with `trust`.",
        )
    return Check(name="state", state="ok", detail=f"{detail}; takes updates signed by one of {keys} keys")


def _slots(folder: Path, bundle: Bundle) -> Check:
    if not bundle.capacity:
        return Check(name="slots", state="ok", detail="none: the head is fused")
    listing = classes(folder)
    free = listing.num_free_slots
    detail = f"{free} of {listing.capacity} free, {len(listing.classes)} classes"
    if free:
        return Check(name="slots", state="ok", detail=detail)
    return Check(
        name="slots", state="note", detail=detail, hint="`compact()` bakes them into the model, for free ones."
    )


def _runtimes(bundle: Bundle) -> tuple[str, ...]:
    """Return the runtimes that a bundle was made for: the default one, and those that it has files of their own for."""
    own = {"openvino": (OPENVINO_NAME,), "split": (BACKBONE_NAME,), **CONVERTED_FILES}
    engines = [name for name in ENGINE_RUNTIMES if engine_name(name) in bundle.files]
    return ("onnxruntime", *(name for name, files in own.items() if bundle.files.keys() >= set(files)), *engines)


def _answers(folder: Path, runtime: str) -> Check:
    """Test the slots of the state that the bundle is in, and run it once on seeded noise, as a device does."""
    bundle, store, chosen = load_manifest(folder), Store(folder), runtime_from(runtime)
    journal = store.load_journal(bundle)
    session = open_session(folder, bundle, chosen)
    table = store.load_table(bundle, journal.current)
    state = make_head_state(bundle, session, table=table, version=journal.current.version)
    if state.slots is not None:
        verify_computed(session, bundle, *state.slots, seed=0, constants=ArbiterConstants(folder, bundle))
    with Device.open(folder, runtime=runtime) as device:
        logits = device.logits(self_test_input(device.bundle, 0)).values
    if not np.isfinite(logits[0]).any() or np.isnan(logits).any():
        raise RuntimeFailureError(
            "It gives no number that could be an answer.",
            found="NaN or infinity",
            expected="finite scores",
            where=folder,
            hint="Export it again, in another precision.",
        )
    tested = "" if state.slots is None else "every slot computes its row; "
    return Check(name=f"answers in {runtime}", state="ok", detail=f"{tested}run on seeded noise")
