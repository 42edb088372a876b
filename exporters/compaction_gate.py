"""The gate of a compacted bundle: run it beside the bundle that it takes the place of, and compare.

Both have the same backbone, in the same precision, so that one comparison sees everything that compacting does: the
logits of all classes, in whatever slot or row they are, must be those that they were. What slots hold, and what the
model chooses itself, is looked at as in an export. In a runtime other than the reference, both are run in it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.backbone.inputs import GateInputs, gate_inputs
from exporters.gate.gate import BundleRun, opened_bundle, run_bundle
from exporters.graph.edits import Rewrite
from exporters.head.score_kinds import compared_values
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.loading import LabeledImages
from icis_deploy.metrics.parity import GATE_PROFILES, GateProfile, ParityReport, compare_logits
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.state.head_state import make_head_state

COMPARED_WITH = "logits of the bundle before it was compacted"


def check_compacted(
    folder: Path,
    bundle: Bundle,
    *,
    former_folder: Path,
    former: Bundle,
    table: SlotTable,
    fixed_batch: int | None = None,
    images: LabeledImages | None = None,
    runtime: Runtime | None = None,
    rewrite: Rewrite | None = None,
) -> tuple[ParityReport, ...]:
    """Run a compacted bundle and the one before it on the same inputs, and compare.

    Args:
        folder: The compacted bundle's files.
        bundle: What its manifest will say.
        former_folder: The bundle that was compacted.
        former: What its manifest says.
        table: What its slots hold now.
        fixed_batch: The only batch that the model takes, if it takes no other.
        images: Image files to compare on; `None` for seeded inputs.
        runtime: Where both are run; `None` for the default.
        rewrite: What both models are rewritten by first, in the default runtime.

    Raises:
        ModelLoadError: If a runtime cannot load one of them.
        RuntimeFailureError: If a runtime cannot run one of them.
    """
    paths = None if images is None else images.paths
    inputs = gate_inputs(former.model_input, former.preprocessing, paths, fixed_batch=fixed_batch)
    with closing(inputs):
        opened = opened_bundle(former_folder, former, runtime, rewrite)
        names, expected = _former_logits(former_folder, opened, table, inputs)
        ran = run_bundle(folder, bundle, inputs, runtime, rewrite)
    where = "" if runtime is None or runtime.is_reference else f"; both in {runtime.name}"
    report = compare_logits(
        compared_values(expected, former.score_kind),
        compared_values(_in_order(ran, names), former.score_kind),
        profile=_profile(former.precision, runtime),
        compared_with=COMPARED_WITH + where,
    )
    return (replace(report, failures=(*report.failures, *sorted(ran.failures))),)


def _former_logits(
    folder: Path, opened: Device, table: SlotTable, inputs: GateInputs
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Return the classes and their logits, disabled ones included."""
    bundle, session = opened.bundle, opened.session
    state = make_head_state(bundle, session, table=table, version=bundle.head_version)
    device = Device(folder=folder, bundle=bundle, session=session, state=state)
    logits = [device.logits(batch.given).values[: batch.count].copy() for batch in inputs]
    return state.class_names, np.concatenate(logits)


def _in_order(ran: BundleRun, names: tuple[str, ...]) -> NDArray[np.float64]:
    place = {name: index for index, name in enumerate(ran.class_names)}
    return ran.logits[:, [place[name] for name in names]]


def _profile(precision: str, runtime: Runtime | None) -> GateProfile:
    # Integers and their scales are the same on both sides. Only a runtime that builds kernels anew may round otherwise.
    if runtime is None or runtime.is_reference:
        return GATE_PROFILES["fp16 head" if precision == "fp16" else "fp32"]
    return GATE_PROFILES["fp32" if precision == "fp32" else "fp16"]
