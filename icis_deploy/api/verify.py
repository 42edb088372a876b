"""Verify a bundle: compare it with the model that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icis_deploy.api.inputs import (
    PathLike,
    check_max_seen_loss,
    inputs_from,
)
from icis_deploy.api.models import (
    Model,
    OpenedModel,
    locate_head,
)
from icis_deploy.bundle.manifest import Bundle, known_names, load_bundle
from icis_deploy.bundle.slot_files import load_injected
from icis_deploy.common.files import path_from
from icis_deploy.errors import GateFailedError, WrongBaseError
from icis_deploy.images.python_values import PythonInputs
from icis_deploy.metrics.parity import ParityReport
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import Runtime, runtime_from
from icis_deploy.runtime.state.journal import check_disabled
from icis_deploy.runtime.state.store import Store
from icis_deploy.workbench import enable_workbench


def verify(
    bundle: PathLike,
    *,
    against: Model,
    images: PythonInputs | None = None,
    runtime: Runtime | str = "onnxruntime",
    max_seen_loss: float | None = None,
) -> tuple[ParityReport, ...]:
    """Run a bundle and the model that it was made from on the same inputs, and compare.

    The state is the one that a device with this bundle answers from now, with every update since the export and
    without the classes that are disabled on it, and `ParityReport.compared_with` says so.

    Args:
        bundle: The bundle's folder.
        against: The original model, as in `inspect`.
        images: Images or arrays to compare on, in any form of `evaluate`; seeded inputs by default. On images of seen
            classes it is measured what the new ones cost them.
        runtime: Where the bundle is run, as in `Device.open`.
        max_seen_loss: How much of the accuracy on seen classes the new ones may cost, fraction of 1; `None` for what
            the bundle's updates were made for.

    Returns:
        A report for each comparison, all of them passed.

    Example:
        reports = icis_deploy.verify("bundle", against="model.onnx", images="images.csv")
        print(max(report.max_scaled_error for report in reports))

    Raises:
        GateFailedError: If the bundle disagrees with the model, or its new classes cost the seen ones more accuracy
            than is allowed, with 95 % confidence; its `reports` say in what.
        WrongBaseError: If the bundle was made from a model with another head.
        BundleError: If the bundle is incomplete.
        CorruptFileError: If a file in it was changed.
    """
    enable_workbench()
    from exporters.gate.gate import ServedState, compare_bundle
    from exporters.head.expanded_head import expanded_head

    check_max_seen_loss(max_seen_loss)
    folder, chosen = path_from(bundle, name="bundle"), runtime_from(runtime)
    described = load_bundle(folder)
    store = Store(folder)
    journal = store.load_journal(described)
    table = store.load_table(described, journal.current)
    check_disabled(journal, known_names(described, table))
    was_changed = (table is not None and journal.current.slots is not None) or bool(journal.disabled)
    compared = inputs_from(images, described.preprocessing)
    if not chosen.is_reference:  # before the original is loaded, which may take minutes
        Device.from_parts(folder, described, runtime=chosen).close()
    opened = _original_of(folder, described, against)
    loaded, location = opened.loaded, opened.location
    reports = compare_bundle(
        folder,
        described,
        loaded=loaded,
        location=location,
        expanded=expanded_head(loaded.model, location, [load_injected(folder, described), table]),
        served=ServedState(table=table, version=journal.current.version, disabled=journal.disabled)
        if was_changed
        else None,
        images=compared,
        runtime=chosen,
        max_seen_loss=max_seen_loss,
    )
    if not all(report.passed for report in reports):
        failures = "; ".join(failure for report in reports for failure in report.failures)
        is_exact = not any(report.parity_failures for report in reports)
        what = "costs more than is allowed" if is_exact else f"disagrees with {loaded.spec}"
        raise GateFailedError(
            f"The bundle {folder} {what}: {failures}.",
            found=failures,
            where=folder,
            hint="Inject again with a smaller budget, or allow more with `max_seen_loss`."
            if is_exact
            else "Export it again.",
            reports=reports,
        )
    return reports


def _original_of(folder: Path, described: Bundle, against: Model) -> OpenedModel:
    """Open the model that a bundle was made from, or raise `WrongBaseError`."""
    from exporters.head.finding import read_head

    opened = locate_head(against, preprocessing=described.preprocessing)
    loaded, location = opened.loaded, opened.location
    if loaded.input_dtype != np.float32:
        raise WrongBaseError(
            f"The bundle {folder} was made from a model that takes float32; {loaded.spec} takes {loaded.input_dtype}.",
            found=loaded.input_dtype,
            expected="float32",
            where=loaded.spec,
            hint="Verify against the model that it was exported from.",
        )
    if location.num_classes != described.num_seen:
        raise WrongBaseError(
            f"The bundle {folder} was made from a head of {described.num_seen} classes; {loaded.spec} has "
            f"{location.num_classes}.",
            found=location.num_classes,
            expected=described.num_seen,
            where=loaded.spec,
            hint="Verify against the model that it was exported from.",
        )
    found = read_head(loaded.model, location, described.seen_names).fingerprint
    if found != described.base_fingerprint:
        raise WrongBaseError(
            f"The bundle {folder} was made from the head {described.base_fingerprint[:16]}…; {loaded.spec} has "
            f"{found[:16]}….",
            found=found,
            expected=described.base_fingerprint,
            where=loaded.spec,
            hint="Verify against the model that it was exported from.",
        )
    return opened
