"""Targets: what an export can hold besides `model.onnx`, for runtimes and servers that need files of their own.

Rules:

1. A target states why this machine cannot build it before anything is built.
2. It writes into one folder of its own in the bundle, and the manifest states every file that it wrote.
3. An option that no target takes is refused before anything is built; of several, each takes those that it knows.
4. `all` is every target. One that cannot be built here, or not of this model, is no failure then: its outcome says why.
5. Its files pass the same gate as `model.onnx`, in its own runtime. Where that needs a device that this machine
   lacks, the outcome says so, and `icis-deploy verify --runtime` runs the gate where the device is.
6. Where it rewrites `model.onnx` into a graph that computes other numbers, the gate runs that too, in ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from exporters.targets.backbone_target import write_backbone
from exporters.targets.coreml_target import (
    COREML_FILE,
    NOT_RUN,
    compare_torch_program,
    coreml_obstacle,
    write_coreml,
)
from exporters.targets.executorch_target import executorch_obstacle, write_executorch
from exporters.targets.litert_target import litert_obstacle, write_litert
from exporters.targets.mnn_target import mnn_obstacle, write_mnn
from exporters.targets.ncnn_target import ncnn_obstacle, write_ncnn
from exporters.targets.openvino_target import openvino_from_onnx, openvino_obstacle
from exporters.targets.ort_target import PLATFORMS, compare_ort, ort_name, ort_obstacle, write_ort
from exporters.targets.qnn_target import write_qnn
from exporters.targets.quantized import Quantizable
from exporters.targets.tensorrt.engine_settings import require_used, settings_for
from exporters.targets.tensorrt.target import ENGINE_REWRITES, engine_obstacle, write_engine
from exporters.targets.triton_repository import ENSEMBLE_NAME, compare_parts, write_triton_repository
from exporters.targets.web_target import WEB_MODEL_NAME, compare_web_model, web_obstacle, write_web_target
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES
from icis_deploy.bundle.engine_sidecar import engine_name
from icis_deploy.bundle.manifest import BACKBONE_NAME, MODEL_NAME, Bundle, file_entry
from icis_deploy.bundle.target_options import BackboneSettings, TargetOptions
from icis_deploy.common.given import check_choice
from icis_deploy.errors import ICISDeployError, MissingDependencyError, StorageError, UsageError
from icis_deploy.metrics.parity import ParityReport
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.sessions.openvino_session import OPENVINO_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetJob:
    """The bundle that a target is built from, and how."""

    folder: Path
    """Folder of the bundle's files so far: `model.onnx`, which passed its gate, and the slots."""

    bundle: Bundle
    """The manifest as it will be written, with the targets built so far."""

    options: TargetOptions
    """The user's options, of all targets."""

    quantizable: Quantizable = field(default_factory=Quantizable)
    """What a target quantizes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of file that an export can hold."""

    name: str
    """What `export` calls it, in `targets`."""

    runtime: str | None
    """The runtime that the gate runs it in (`icis_deploy.runtime.sessions.choice`); `None` where there is none."""

    file: str
    """Path of one of its files, relative to the bundle: a bundle with that file holds this target."""

    obstacle: Callable[[TargetOptions], str | None]
    """Returns why this machine cannot build it, and what to install; `None` where it can."""

    build: Callable[[TargetJob], Sequence[str]]
    """Writes its files, and returns their paths relative to the bundle."""

    emulation: str | None = None
    """The runtime that runs its files where the hardware of `runtime` is not, which the gate does as well."""

    rewrites: Mapping[str, ir.passes.PassBase] = field(default_factory=dict)
    """By precision of the model, the pass that it rewrites the graph by where that computes other numbers."""

    compare: Callable[[TargetJob], ParityReport] | None = None
    """Compares its files with `model.onnx`, which passed its gate, where none of our runtimes runs it as a whole."""

    not_run: str | None = None
    """Why `compare` cannot run the files themselves, and what it compares instead; `None` where it runs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltTarget:
    """The outcome of one target.

    Example:
        built = []
        options = icis_deploy.ExportOptions(targets=("all",))
        icis_deploy.export("model.onnx", classes="classes.txt", out="bundle", options=options, on_target=built.append)
        print([(target.name, target.reason) for target in built])
    """

    name: str
    """What `export` calls it, in `targets`."""

    files: tuple[str, ...] = ()
    """Paths relative to the bundle; empty where it could not be built."""

    size_bytes: int = 0
    """Size of all its files together."""

    build_seconds: float = 0.0
    """Duration of the build, without the gate."""

    reports: tuple[ParityReport, ...] = ()
    """The gate's reports; empty where it did not run."""

    reason: str | None = None
    """Why it was not built, or why the gate did not run; `None` where both happened."""


def _engine_target(runtime: str) -> Target:
    return Target(
        name=runtime,
        runtime=runtime,
        file=engine_name(runtime),
        obstacle=lambda options: engine_obstacle(runtime, settings_for(runtime, options.engine)),
        build=lambda job: write_engine(runtime, job.folder, job.bundle, settings_for(runtime, job.options.engine)),
        rewrites=ENGINE_REWRITES,
    )


def _converted_target(
    runtime: str, obstacle: Callable[[], str | None], write: Callable[[Path, Bundle], Sequence[str]]
) -> Target:
    return Target(
        name=runtime,
        runtime=runtime,
        file=CONVERTED_FILES[runtime][0],
        obstacle=lambda _options: obstacle(),
        build=lambda job: write(job.folder, job.bundle),
    )


def _ort_target(platform: str) -> Target:
    return Target(
        name=f"ort-{platform}",
        runtime=None,
        file=ort_name(platform),
        obstacle=lambda _options: ort_obstacle(),
        build=lambda job: write_ort(job.folder, platform),
        compare=lambda job: compare_ort(job.folder, job.bundle, platform),
    )


def _build_openvino(job: TargetJob) -> Sequence[str]:
    return openvino_from_onnx(job.folder / MODEL_NAME, job.folder, OPENVINO_NAME)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="openvino",
            runtime="openvino",
            file=OPENVINO_NAME,
            obstacle=lambda _options: openvino_obstacle(),
            build=_build_openvino,
        ),
        Target(
            name="litert",
            runtime="litert",
            file=CONVERTED_FILES["litert"][0],
            obstacle=lambda _options: litert_obstacle(),
            build=lambda job: write_litert(job.folder, job.bundle, job.quantizable),
        ),
        _converted_target("mnn", mnn_obstacle, write_mnn),
        _converted_target("executorch", executorch_obstacle, write_executorch),
        _converted_target("ncnn", ncnn_obstacle, write_ncnn),
        Target(
            name="qnn",
            runtime="qnn",
            emulation="qnn-emulated",
            file=CONVERTED_FILES["qnn"][0],
            obstacle=lambda _options: None,
            build=lambda job: write_qnn(job.folder, job.bundle, job.quantizable),
        ),
        Target(
            name="coreml",
            runtime=None,
            file=COREML_FILE,
            obstacle=lambda _options: coreml_obstacle(),
            build=lambda job: write_coreml(job.folder, job.bundle),
            compare=lambda job: compare_torch_program(job.folder, job.bundle),
            not_run=NOT_RUN,
        ),
        *(_ort_target(platform) for platform in PLATFORMS),
        _engine_target("tensorrt"),
        _engine_target("tensorrt-rtx"),
        Target(
            name="backbone",
            runtime="split",
            file=BACKBONE_NAME,
            obstacle=lambda _options: None,
            build=lambda job: write_backbone(job.folder, job.bundle, job.options.backbone),
        ),
        Target(
            name="triton",
            runtime=None,
            file=ENSEMBLE_NAME,
            obstacle=lambda _options: None,
            build=lambda job: write_triton_repository(job.folder, job.bundle),
            compare=lambda job: compare_parts(job.folder, job.bundle),
        ),
        Target(
            name="web",
            runtime=None,
            file=WEB_MODEL_NAME,
            obstacle=lambda options: web_obstacle(options.onnxruntime_web),
            build=lambda job: write_web_target(job.folder, job.bundle, job.options.onnxruntime_web),
            compare=lambda job: compare_web_model(job.folder, job.bundle),
        ),
    )
}
"""Every target besides `onnx`, which each bundle holds, by name."""


ALL_TARGETS = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """The targets that an export builds; `plan_targets` makes it."""

    targets: tuple[Target, ...] = ()
    """In the order in which they are built."""

    options: TargetOptions = field(default_factory=TargetOptions)
    """How they are built."""

    is_all: bool = False
    """Whether every target was asked for: then the outcome of `model.onnx` is reported too, and why one is missing."""


def plan_targets(
    names: Sequence[str], options: TargetOptions | None = None, *, head_kind: str = "updatable"
) -> TargetPlan:
    """Return the targets of these names, each once, if this machine can build them all; `onnx` is always built.

    `all` is every target, whether it can be built here or not.

    Args:
        names: Names of targets.
        options: How they are built.
        head_kind: `fused` or `updatable`, of the bundle that they are built for.

    Raises:
        UsageError: If there is no such target, or an option that none of them takes.
        MissingDependencyError: If one cannot be built here.
    """
    options = TargetOptions() if options is None else options
    for name in names:
        check_choice(name, ("onnx", *TARGETS, ALL_TARGETS), what="target", name="targets")
    asked = tuple(TARGETS) if ALL_TARGETS in names else tuple(dict.fromkeys(name for name in names if name != "onnx"))
    require_used(options.engine, asked, head_kind=head_kind)
    if options.onnxruntime_web is not None and "web" not in asked:
        raise UsageError(
            "onnxruntime-web was given, but no page is written.",
            found=asked,
            expected="web",
            where="onnxruntime_web",
            hint="Give `targets=['web']`, or leave `onnxruntime_web` out.",
        )
    if options.backbone != BackboneSettings() and "backbone" not in asked:
        raise UsageError(
            "Options of the backbone were given, but none is written.",
            found=tuple(asked),
            expected="backbone",
            hint="Give `targets=['backbone']`, or leave them out.",
        )
    if ALL_TARGETS in names:
        return TargetPlan(targets=tuple(TARGETS.values()), options=options, is_all=True)
    targets = tuple(TARGETS[name] for name in asked)
    for target in targets:
        reason = target.obstacle(options)
        if reason is not None:
            raise MissingDependencyError(f"The target {target.name!r} cannot be built on this machine: {reason}")
    return TargetPlan(targets=targets, options=options)


def targets_of(bundle: Bundle) -> tuple[str, ...]:
    """Return the names of the targets that a bundle holds."""
    return tuple(target.name for target in TARGETS.values() if target.file in bundle.files)


def model_outcome(bundle: Bundle, build_seconds: float, reports: Sequence[ParityReport]) -> BuiltTarget:
    """Return the outcome of `model.onnx` itself, which is in every bundle."""
    files = tuple(name for name in bundle.files if name.partition(".data")[0] == MODEL_NAME)
    return BuiltTarget(
        name="onnx",
        files=files,
        size_bytes=sum(bundle.files[name].size_bytes for name in files),
        build_seconds=build_seconds,
        reports=tuple(reports),
    )


def add_target_if_possible(target: Target, job: TargetJob, gate: Gate) -> tuple[Bundle, BuiltTarget]:
    """Add a target as `add_target` does; where that fails, return the bundle as it was and the reason."""
    reason = target.obstacle(job.options)
    if reason is not None:
        return job.bundle, BuiltTarget(name=target.name, reason=reason)
    before = _files_below(job.folder)
    try:
        return add_target(target, job, gate)
    except StorageError:
        raise
    except ICISDeployError as error:
        for path in _files_below(job.folder) - before:
            path.unlink()
        return job.bundle, BuiltTarget(name=target.name, reason=str(error))


def _files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


class Gate(Protocol):
    """The parity gate with everything but the bundle and its runtime filled in."""

    def __call__(
        self, bundle: Bundle, *, runtime: Runtime | None = None, rewrite: ir.passes.PassBase | None = None
    ) -> tuple[ParityReport, ...]:
        """Run the bundle's files in a runtime and compare; see `exporters.gate.gate.compare_bundle`."""
        ...


def add_target(target: Target, job: TargetJob, gate: Gate) -> tuple[Bundle, BuiltTarget]:
    """Build one target into a bundle's folder, and run the gate on it where this machine can.

    Returns:
        The bundle with the new files, and the outcome; a report in that may be negative.

    Raises:
        ExportError: If the build fails.
        StorageError: If the disk refuses.
    """
    start = time.perf_counter()
    files = tuple(target.build(job))
    seconds = time.perf_counter() - start
    entries = {name: file_entry(job.folder / name) for name in files}
    bundle = replace(job.bundle, files={**job.bundle.files, **entries})
    reports, reason = _gate_reports(target, replace(job, bundle=bundle), gate)
    built = BuiltTarget(
        name=target.name,
        files=files,
        size_bytes=sum(entry.size_bytes for entry in entries.values()),
        build_seconds=seconds,
        reports=reports,
        reason=reason,
    )
    return bundle, built


def _gate_reports(target: Target, job: TargetJob, gate: Gate) -> tuple[tuple[ParityReport, ...], str | None]:
    if target.compare is not None:
        return (target.compare(job),), target.not_run
    if target.runtime is None:
        return (), "icis-deploy does not run it itself"
    reports: tuple[ParityReport, ...] = ()
    if (rewrite := target.rewrites.get(job.bundle.precision)) is not None:
        where = f"; the graph of {target.name}"
        reports = tuple(
            replace(each, compared_with=each.compared_with + where) for each in gate(job.bundle, rewrite=rewrite)
        )
    if target.emulation is not None:
        reports = (*reports, *gate(job.bundle, runtime=Runtime(name=target.emulation)))
    try:
        return (*reports, *gate(job.bundle, runtime=Runtime(name=target.runtime))), None
    except MissingDependencyError as error:
        ran = "ran on its graph in ONNX Runtime alone" if reports else "did not run"
        return reports, f"the gate {ran}: {error}"
