"""Compact a bundle: write one whose model has baked what is in the slots of another."""

from __future__ import annotations

import os
from pathlib import Path

from icis_deploy.api.inputs import PathLike, inputs_from
from icis_deploy.api.notices import tell
from icis_deploy.bundle.manifest import Bundle, load_bundle
from icis_deploy.common.files import check_free, path_from
from icis_deploy.common.given import whole_number
from icis_deploy.errors import UsageError
from icis_deploy.images.python_values import PythonInputs
from icis_deploy.runtime.state.store import Store
from icis_deploy.updates.bundle_signature import SIGNATURE_NAME
from icis_deploy.updates.signers import SigningKey, open_signer
from icis_deploy.workbench import enable_workbench


def compact(
    bundle: PathLike,
    *,
    out: PathLike,
    capacity: int | None = None,
    images: PythonInputs | None = None,
    key: SigningKey | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle whose model has baked what is in another one's slots, with free slots after it.

    A running device takes the new bundle over with `Device.replace`, without a pause.

    Args:
        bundle: The bundle's folder; it is not changed.
        out: The new bundle's folder.
        capacity: Number of slots; `None` for as many as it has.
        images: Images or arrays to compare both on, in any form of `evaluate`; seeded inputs by default.
        key: What signs the new bundle, as in `sign`. The signature of the former one does not fit it: without a key
            the new one is unsigned, until `sign_bundle`.
        overwrite: Whether a bundle at `out` may be replaced.

    Example:
        icis_deploy.compact("bundle", out="compacted", capacity=256)

    Warns `ICISDeployWarning` where the bundle is signed and the new one is not.

    Raises:
        GateFailedError: If the new bundle gives other logits than the old one.
        IncompatibleError: If the head is fused.
        MissingDependencyError: If the bundle holds a target that cannot be built on this machine.
        ICISDeployError: If something cannot be read or written.
    """
    enable_workbench()
    from exporters.bundles.compaction import FormerBundle, write_compacted

    folder = path_from(bundle, name="bundle")
    num_slots = None if capacity is None else whole_number(capacity, name="capacity")
    check_free(path_from(out, name="out"), overwrite=overwrite, makes_folders=True)
    _check_outside(path_from(out, name="out"), folder)
    signer = None if key is None else open_signer(key)
    described, store = load_bundle(folder), Store(folder)
    journal = store.load_journal(described)
    table = store.load_table(described, journal.current)
    if key is None and os.path.lexists(folder / SIGNATURE_NAME):
        tell([f"{folder} is signed; {out}, made of it, is not: sign it with `sign_bundle()`, or give `key`."])
    return write_compacted(
        path_from(out, name="out"),
        FormerBundle(folder=folder, bundle=described, journal=journal, table=table),
        capacity=described.capacity if num_slots is None else num_slots,
        images=inputs_from(images, described.preprocessing),
        overwrite=overwrite,
        signer=signer,
    )


def _check_outside(out: Path, folder: Path) -> None:
    """Raise `UsageError` if a bundle would be written into the one that it is made of, wherever links lead."""
    if Path(os.path.realpath(folder)) in Path(os.path.realpath(out)).parents:
        raise UsageError(
            f"{out} is within {folder}, the bundle that is compacted.",
            found="a folder of the bundle",
            expected="a folder of its own",
            where=out,
            hint="Choose another path: what is within a bundle would go with every copy of it.",
        )
