"""Finish a bundle whose model is written: reject it or add its targets, then the manifest, the keys, the journal."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from exporters.gate.gate import EMPTY_SLOT_FAILURE
from exporters.targets.quantized import Quantizable
from exporters.targets.registry import (
    BuiltTarget,
    Gate,
    TargetJob,
    TargetPlan,
    add_target,
    add_target_if_possible,
    model_outcome,
)
from icis_deploy._version import __version__
from icis_deploy.bundle.manifest import MANIFEST_NAME, MODEL_NAME, Bundle, serialize_manifest
from icis_deploy.common.files import new_folder, write_file
from icis_deploy.errors import GateFailedError, UsageError
from icis_deploy.metrics.parity import ParityReport
from icis_deploy.runtime.state.bundle_trust import signed_files
from icis_deploy.runtime.state.journal import Journal, serialize_journal
from icis_deploy.runtime.state.store import JOURNAL_NAME, STATE_FOLDER, TRUST_FOLDER
from icis_deploy.updates.bundle_signature import SIGNATURE_NAME
from icis_deploy.updates.signing import load_public_key, sign_bundle_files
from icis_deploy.updates.trusted_keys import MAX_TRUSTED_KEYS

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

REPORT_NAME = "parity.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A bundle's model, written and compared, that has no targets, manifest and keys yet."""

    folder: Path
    """The temporary folder that holds its files."""

    bundle: Bundle
    """The manifest as it will be written, without targets and reports."""

    build_seconds: float
    """Duration of conversion, head surgery and writing, without the gate."""

    reports: tuple[ParityReport, ...]
    """The gate's reports; one may be negative."""


def finish_bundle(
    built: BuiltModel,
    gate: Gate,
    *,
    out: Path,
    targets: TargetPlan,
    quantizable: Quantizable,
    on_target: Callable[[BuiltTarget], None] | None = None,
) -> Bundle:
    """Build a model's targets, write the manifest, and return what it states.

    Args:
        built: The model.
        gate: Compares a target with the original.
        out: The bundle's final folder; what does not pass is kept in `<out>.rejected`.
        targets: What it holds besides `model.onnx`.
        quantizable: What targets quantize by themselves.
        on_target: Told what became of each target, as soon as it is known.

    Raises:
        GateFailedError: If the gate is not passed.
        StorageError: If a file cannot be written.
        ExportError: If a target cannot be built.
    """
    first = model_outcome(built.bundle, built.build_seconds, built.reports)
    bundle = _passed(built.bundle, MODEL_NAME, built.reports, built.folder, out)
    job = TargetJob(folder=built.folder, bundle=bundle, options=targets.options, quantizable=quantizable)
    bundle = _add_targets(job, targets, gate, out=out, model=first, on_target=on_target)
    bundle = replace(bundle, written_at=datetime.now(timezone.utc).replace(microsecond=0))
    write_file(built.folder / MANIFEST_NAME, serialize_manifest(bundle))
    return bundle


def read_trust(trust: Sequence[Path]) -> dict[str, bytes]:
    """Return files of public keys by the ids of the keys.

    Raises:
        SignatureError: If a file is no public key.
        UsageError: If there are more keys than a device reads.
    """
    keys = {load_public_key(path).keyid: path.read_bytes() for path in trust}
    if len(keys) > MAX_TRUSTED_KEYS:
        raise UsageError(
            f"{len(keys)} keys are to be trusted; a device reads at most {MAX_TRUSTED_KEYS}.",
            found=len(keys),
            expected=MAX_TRUSTED_KEYS,
            hint="Give fewer keys as `trust`.",
        )
    return keys


def write_trust(folder: Path, trust: Sequence[Path]) -> None:
    """Write the public keys whose updates a device takes; not in the manifest, since devices may rotate them.

    Raises:
        ICISDeployError: As `read_trust`.
        StorageError: If the disk refuses.
    """
    keys = read_trust(trust)
    if keys:
        (folder / TRUST_FOLDER).mkdir()
    for key_id, data in keys.items():
        write_file(folder / TRUST_FOLDER / f"{key_id[:16]}.pub", data)


def write_signature(folder: Path, signer: Signer) -> None:
    """Sign a bundle whose manifest and keys are written.

    Raises:
        SignatureError: If the signer fails.
        StorageError: If the disk refuses.
    """
    data, _ = sign_bundle_files(signed_files(folder), None, lambda: signer)
    write_file(folder / SIGNATURE_NAME, data)


def write_journal(folder: Path, journal: Journal) -> None:
    """Write the journal that a bundle keeps from the one that it replaces.

    Raises:
        StorageError: If the disk refuses.
    """
    (folder / STATE_FOLDER).mkdir()
    write_file(folder / STATE_FOLDER / JOURNAL_NAME, serialize_journal(journal))


def versions() -> dict[str, str]:
    """Return the versions of the libraries that make bundles on this machine."""
    import onnx
    import onnxruntime

    return {
        "icis-deploy": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _add_targets(
    job: TargetJob,
    plan: TargetPlan,
    gate: Gate,
    *,
    out: Path,
    model: BuiltTarget,
    on_target: Callable[[BuiltTarget], None] | None,
) -> Bundle:
    """Build the targets one after the other, report each outcome, and return the bundle with them."""
    add = add_target_if_possible if plan.is_all else add_target
    if on_target is not None and plan.is_all:
        on_target(model)
    for target in plan.targets:
        bundle, built = add(target, job, gate)
        job = replace(job, bundle=_passed(bundle, built.name, built.reports, job.folder, out))
        if on_target is not None:
            on_target(built)
    return job.bundle


def _passed(bundle: Bundle, what: str, reports: Sequence[ParityReport], building: Path, out: Path) -> Bundle:
    """Return the bundle with further reports in it, or reject it if one of them is negative."""
    bundle = replace(bundle, parity=(*bundle.parity, *(report.to_json() for report in reports)))
    failures = [failure for report in reports for failure in report.failures]
    if not all(report.passed for report in reports):
        _reject(building, out, bundle, f"{what}: {'; '.join(failures)}", reports)
    return bundle


def _reject(building: Path, out: Path, bundle: Bundle, failures: str, reports: Sequence[ParityReport]) -> NoReturn:
    rejected = out.with_name(out.name + ".rejected")
    text = json.dumps(list(bundle.parity), indent=1, allow_nan=False, default=str)
    with new_folder(rejected, overwrite=True, marker=REPORT_NAME) as folder:
        shutil.copytree(building, folder, dirs_exist_ok=True)
        write_file(folder / REPORT_NAME, text.encode())
    is_exact = not any(report.parity_failures for report in reports)
    gate = "The gate for what new classes may cost" if is_exact else "The parity gate"
    raise GateFailedError(
        f"{gate} was not passed by {failures}. No bundle was written to {out}; what was built is in "
        f"{rejected}, with the report in {REPORT_NAME}.",
        found=failures,
        where=out,
        hint=_hint(failures, is_exact=is_exact),
        reports=tuple(reports),
    )


def _hint(failures: str, *, is_exact: bool) -> str | None:
    """Return what to do about a bundle that was rejected, where that is known."""
    if is_exact:
        return "Inject again with a smaller budget, or allow more with `max_seen_loss`."
    if EMPTY_SLOT_FAILURE in failures:
        return "Logits as low as these leave no room below them for empty slots: export it with `head='fused'`."
    return None
