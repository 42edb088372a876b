"""The same model in the ways a user might choose between, in one run: speed, accuracy, and the time to add classes.

    bundles         as given: fused, updatable, in any precision; and the first one in OpenVINO, where it is installed
    PyTorch eager   the torch model with rows concatenated to its last layer
    torch.compile   the same, compiled; where a C++ compiler is there
    re-export       the same, exported by torch again, in ONNX Runtime
    ConSE           the original model in ONNX Runtime, and descriptors compared in numpy; no rows at all

Rules:

1. All know the same classes, with their arbiter where the first bundle has one, and but for ConSE give the same
   answers. All are measured in turn, compared with the first bundle.
2. Adding classes ends with the first answer that chooses among them. What has to be done is stated with the time.
3. A peer that cannot run here is left out with its reason.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.bench.bench import (
    LabeledInputs,
    Preset,
    Progress,
    describe,
    measure_batch,
    measure_correctness,
    onnx_file,
    original_rows,
    start_target,
    with_correctness,
)
from benchmarks.bench.correctness import check_same_base
from benchmarks.bench.opened import OpenTarget, names_of_bundles, open_bundle
from benchmarks.machine.environment import read_environment
from benchmarks.peers.ways import Adding, Peer, PeerBase, make_peers
from benchmarks.results.result import Result
from benchmarks.results.values import CLASS_UPDATE, AddClasses, Target, Timing, timing_from_latencies
from benchmarks.updates.update_latency import REEXPORT, measure_update
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.common.json_fields import json_from_time
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import IncompatibleError, RuntimeFailureError, UsageError
from icis_deploy.runtime.sessions.choice import Runtime

NUM_ADDED = 50
NUM_UPDATES = 31
"""Class updates that are timed; every tenth time the model is also exported again."""


def measure_peers(
    bundles: Sequence[Path],
    *,
    model: Path,
    descriptors: Descriptors | None,
    inputs: LabeledInputs | None,
    preset: Preset,
    batch_sizes: Sequence[int],
    num_threads: int | None,
    progress: Progress = lambda _: None,
) -> Result:
    """Measure bundles, and the other ways to have the same classes.

    Args:
        bundles: Made from `model`; the others are compared with the first, whose classes the other ways get.
        model: The original, `.pt2` or `.onnx`; without a torch model there is no PyTorch to compare with.
        descriptors: Of every class of the first bundle; None leaves ConSE out.
        inputs: Labelled images; None leaves accuracy out.
        preset: How much is measured.
        batch_sizes: Images in a query.
        num_threads: Threads of every runtime; None leaves them.
        progress: Called with what is measured next, in words.

    Raises:
        UsageError: If the model is of another kind.
        ICISDeployError: If a bundle or the model cannot be opened or run.
    """
    environment = read_environment()
    with tempfile.TemporaryDirectory() as name:
        opened = open_bundles(bundles, num_threads)
        base = open_base(opened[0], bundles[0], model, descriptors, work_folder=Path(name))
        progress("PyTorch and the others")
        peers, left_out = make_peers(base)
        targets = [*opened, *(peer.target for peer in peers)]
        check_same_base(targets)
        accuracy, parity = measure_correctness(targets, inputs)
        runs = tuple(measure_batch(targets, batch_size, preset, progress) for batch_size in batch_sizes)
        measured = [start_target(target, preset.num_starts, progress) for target in opened]
        measured = with_update_times(measured, opened, base.onnx_path, progress)
        measured += [with_time_to_add(peer, base, progress) for peer in peers]
    return Result(
        command="bench-peers",
        created=json_from_time(datetime.now(timezone.utc)),
        settings={"preset": preset.name, "num_threads": num_threads, "left_out": left_out},
        environment=environment,
        targets=with_correctness(measured, accuracy, parity),
        runs=runs,
    )


def open_bundles(bundles: Sequence[Path], num_threads: int | None) -> list[OpenTarget]:
    """Open bundles in ONNX Runtime."""
    runtime, names = Runtime(num_threads=num_threads), names_of_bundles(bundles)
    return [open_bundle(folder, name=name, runtime=runtime) for folder, name in zip(bundles, names, strict=True)]


def open_base(
    first: OpenTarget, folder: Path, model: Path, descriptors: Descriptors | None, *, work_folder: Path
) -> PeerBase:
    """Return what peers are made of: the first bundle, open and in its folder, and its original model.

    Raises:
        UsageError: If the model is neither a `.pt2` nor a `.onnx` file.
        IncompatibleError: If the bundle was made from a model with another head.
    """
    if model.suffix not in (".pt2", ".onnx"):
        raise UsageError(
            f"{model} is neither a .pt2 nor a .onnx file.",
            expected=(".pt2", ".onnx"),
            where=model,
            hint="Give the model that the bundles were made from.",
        )
    seen_rows, added_rows = original_rows(model, str(model)), first.added_rows()
    if seen_rows.shape != (first.num_seen, added_rows.shape[1]):
        raise IncompatibleError(
            f"{model} has {seen_rows.shape[0]} classes and {seen_rows.shape[1] - 1} features; {first.name} was made "
            f"from {first.num_seen} and {added_rows.shape[1] - 1}.",
            found=(seen_rows.shape[0], seen_rows.shape[1] - 1),
            expected=(first.num_seen, added_rows.shape[1] - 1),
            where=model,
            hint="Give the model that it was exported from.",
        )
    return PeerBase(
        first=first,
        folder=folder,
        bundle=load_manifest(folder),
        model=model,
        onnx_path=onnx_file(str(model), work_folder),
        seen_rows=seen_rows,
        added_rows=added_rows,
        added_arbiter=first.added_arbiter(),
        descriptors=descriptors,
        num_threads=first.num_threads,
        work_folder=work_folder,
    )


def with_update_times(
    measured: Sequence[Target],
    opened: Sequence[OpenTarget],
    onnx_path: Path,
    progress: Progress,
) -> list[Target]:
    """Return bundles with the time to add classes: by a class update where the head has slots, else by fusing again."""
    fusing: Timing | None = None
    found = list(measured)
    for index, target in enumerate(opened):
        if target.capacity and target.bundle is not None:
            progress(f"{target.name}: class updates")
            number = min(NUM_ADDED, target.capacity)
            report = measure_update(
                target.bundle,
                original=onnx_path if fusing is None else None,
                num_new_classes=number,
                num_updates=NUM_UPDATES,
                num_threads=target.num_threads or 1,
            )
            fusing = report.ways[REEXPORT] if fusing is None else fusing
            how = "a signed class update: verified, tested, committed to the disk, in the running process"
            found[index] = replace(
                found[index], add_classes=AddClasses(num_classes=number, timing=report.ways[CLASS_UPDATE], how=how)
            )
    for index, target in enumerate(opened):
        if not target.capacity and target.precision == "fp32" and fusing is not None:
            how = "the rows fused into the original .onnx again, and a new session"
            added = AddClasses(num_classes=NUM_ADDED, timing=fusing, how=how)
            found[index] = replace(found[index], add_classes=added)
    return found


def with_time_to_add(peer: Peer, base: PeerBase, progress: Progress) -> Target:
    """Return a peer as a target of the result, with the time to add classes where it has a way of its own."""
    described = replace(describe(peer.target), missing={"startup": "measured for bundles alone"})
    if peer.adding is None:
        return described
    progress(f"{peer.target.name}: add {NUM_ADDED} classes")
    adding, target = peer.adding, peer.target
    timing = timing_from_latencies([time_to_add(adding, target, base, seed=seed) for seed in range(adding.num_times)])
    return replace(described, add_classes=AddClasses(num_classes=NUM_ADDED, timing=timing, how=adding.how))


def time_to_add(adding: Adding, target: OpenTarget, base: PeerBase, *, seed: int) -> float:
    """Return the milliseconds until a peer has answered among more classes.

    Raises:
        RuntimeFailureError: If its answer has another number of classes.
    """
    call = adding.add(base.new_classes(NUM_ADDED, seed=seed))
    start = time.perf_counter()
    scores = call()
    elapsed_ms = 1e3 * (time.perf_counter() - start)
    expected = len(target.class_names) + NUM_ADDED
    if scores.shape[1] != expected:
        raise RuntimeFailureError(
            f"{target.name} answered among {scores.shape[1]} classes after {NUM_ADDED} were added; expected "
            f"{expected}. Its latency cannot be compared.",
            found=scores.shape[1],
            expected=expected,
            where=target.name,
        )
    return elapsed_ms
