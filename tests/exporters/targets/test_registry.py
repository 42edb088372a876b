"""What an export holds besides model.onnx: built, gated in its own runtime, stated in the manifest, and used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import icis_deploy
from exporters.targets.openvino_target import openvino_from_onnx
from exporters.targets.registry import TARGETS, BuiltTarget, TargetJob, plan_targets
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.bundle.target_options import EngineSettings, TargetOptions
from icis_deploy.cli.export import TARGET_NAMES
from icis_deploy.cli.main import run
from icis_deploy.errors import (
    CorruptFileError,
    ExportError,
    GateFailedError,
    MissingDependencyError,
    UsageError,
)
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import session_of
from icis_deploy.runtime.sessions.openvino_session import OPENVINO_NAME, OpenVINOSession
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, TinyProject


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


@pytest.fixture(scope="module")
def update(opened: OpenedModel) -> ClassUpdate:
    rows = np.random.default_rng(5).normal(size=(2, FEATURE_DIM + 1))
    return ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=("okapi", "quagga"))


def export(opened: OpenedModel, update: ClassUpdate, out: Path, *, head: str, **settings: Any) -> list[BuiltTarget]:
    built: list[BuiltTarget] = []
    capacity = 8 if head == "updatable" else None
    icis_deploy.export(
        opened,
        updates=[update],
        options=icis_deploy.ExportOptions(head=head, capacity=capacity, **settings),
        out=out,
        on_target=built.append,
    )
    return built


def test_the_command_line_offers_every_target():
    assert ("onnx", *TARGETS, "all") == TARGET_NAMES


def test_an_unknown_target_is_an_error_before_anything_is_built():
    with pytest.raises(UsageError, match=r"^There is no target 'abacus'; choose among onnx, openvino"):
        plan_targets(["onnx", "abacus"])


UNUSED = {
    "timing_cache": (
        Path("timings"),
        "tensorrt",
        r"A timing cache is for the target tensorrt alone: TensorRT-RTX times .*`timing_cache`",
    ),
    "hardware_compatibility": (
        "ampere_plus",
        "tensorrt",
        r"A hardware compatibility is for the target tensorrt alone: an engine of TensorRT-RTX runs on the compute cap",
    ),
    "compute_capabilities": (
        ("8.6",),
        "tensorrt-rtx",
        r"A compute capability is for the target tensorrt-rtx alone: TensorRT builds for the GPU of this machine",
    ),
    "refit": (
        True,
        "updatable",
        r"A fused head has no slots that could be refitted\. Give `refit` with `head='updatable'`",
    ),
    "max_batch": (64, "tensorrt-rtx", r"Options of engines were given, but no engine is built\. Give `targets="),
    "workspace_bytes": (1 << 20, "tensorrt-rtx", r"Options of engines were given, but no engine is built\. Give"),
}


@pytest.mark.parametrize("target", ["onnx", "openvino", "triton", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("setting", UNUSED)
def test_an_option_that_no_target_takes_is_refused_with_the_reason(setting, target, monkeypatch):
    monkeypatch.setitem(TARGETS, target, replace(TARGETS.get(target, TARGETS["triton"]), obstacle=lambda _: None))
    value, taker, reason = UNUSED[setting]
    options = TargetOptions(engine=EngineSettings(**{setting: value}))
    is_engine = target in ("tensorrt", "tensorrt-rtx")
    taken = (
        target == taker if setting in ("timing_cache", "hardware_compatibility", "compute_capabilities") else is_engine
    )
    if taken:
        assert plan_targets([target], options).options == options
    if setting == "refit" or not taken:
        expected = reason if is_engine else "Options of engines were given, but no engine is built"
        with pytest.raises(UsageError, match=f"^{expected}"):
            plan_targets([target], options, head_kind="fused")


@pytest.mark.parametrize("names", [["all"], ["tensorrt", "tensorrt-rtx"]])
def test_of_several_engines_each_takes_what_concerns_it(names, monkeypatch):
    given: dict[str, EngineSettings] = {}
    monkeypatch.setattr(
        "exporters.targets.registry.engine_obstacle", lambda runtime, settings: given.update({runtime: settings})
    )
    settings = EngineSettings(timing_cache=Path("t"), compute_capabilities=("8.6",), max_batch=8)
    plan = plan_targets(names, TargetOptions(engine=settings))
    for target in plan.targets:
        target.obstacle(plan.options)
    assert given["tensorrt"] == EngineSettings(timing_cache=Path("t"), max_batch=8)
    assert given["tensorrt-rtx"] == EngineSettings(compute_capabilities=("8.6",), max_batch=8)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--target", "tensorrt-rtx", "--timing-cache", "t"], "Leave --timing-cache out, or add --target tensorrt."),
        (
            ["--target", "tensorrt", "--compute-capability", "8.6"],
            "Leave --compute-capability out, or add --target tensorrt-rtx.",
        ),
        (["--target", "openvino", "--max-batch", "8"], "Options of engines were given, but no engine is built"),
        (["--target", "tensorrt-rtx", "--refit"], "A fused head has no slots that could be refitted"),
        (["--trust", "key.pub"], "A device with a fused head takes no class updates"),
        (["--generator", "classes.txt"], "A device can only be taught classes in slots"),
        (["--capacity", "4"], "A fused head has no slots"),
        (["--calibration-images", "images.csv"], "Give --precision int8 with --calibration-images, or leave them out."),
        (["--images", "images.csv"], "Images can only be used where it is known how they are prepared"),
        (["--input", "uint8"], "A model that takes pixels needs to know how they are prepared"),
        (
            ["--weights", "model.onnx"],
            "holds its own weights; others go with package.module:factory only. Leave --weights out.",
        ),
    ],
)
def test_an_option_that_would_be_left_out_is_a_usage_error(options, reason, tiny_project, tmp_path, capsys):
    (tmp_path / "key.pub").touch()
    known = {path.name: str(path) for path in (tiny_project.images, tiny_project.classes, tiny_project.model)}
    known["key.pub"] = str(tmp_path / "key.pub")
    arguments = ["export", str(tiny_project.model), "--classes", str(tiny_project.classes)]
    out = tmp_path / "bundle"
    assert run([*arguments, *(known.get(option, option) for option in options), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_a_target_asked_for_twice_is_built_once():
    plan = plan_targets(["openvino", "onnx", "openvino"])
    assert [target.name for target in plan.targets] == ["openvino"]


def test_a_target_that_cannot_be_built_here_says_what_to_install(opened, update, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("exporters.targets.openvino_target.find_spec", lambda _name: None)

    with pytest.raises(
        MissingDependencyError, match=r"'openvino' cannot be built on this machine: .*deploy\[openvino\]"
    ):
        export(opened, update, tmp_path / "bundle", head="fused", targets=["openvino"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_openvino_files_pass_the_gate_and_are_what_the_openvino_runtime_loads(head, opened, update, tmp_path):
    (built,) = export(opened, update, tmp_path / "bundle", head=head, targets=["openvino"])
    assert built.files == (OPENVINO_NAME, "openvino/model.bin")
    assert [report.passed for report in built.reports] == [True, True]
    assert all("; the bundle in openvino" in report.compared_with for report in built.reports)

    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.files[OPENVINO_NAME].size_bytes + bundle.files["openvino/model.bin"].size_bytes == built.size_bytes
    assert len(bundle.parity) == 4
    device = icis_deploy.Device.open(tmp_path / "bundle", runtime="openvino")
    assert isinstance(session_of(device), OpenVINOSession)
    images = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    expected = icis_deploy.Device.open(tmp_path / "bundle").logits(images).values
    np.testing.assert_allclose(device.logits(images).values, expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "bundle" / "openvino" / "model.bin").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"model\.bin has 0 bytes"):
        icis_deploy.Device.open(tmp_path / "bundle", runtime="openvino")


def test_a_target_that_fails_its_gate_leaves_no_bundle_and_is_named(opened, update, tmp_path, monkeypatch):
    def convert_with_two_rows_swapped(model: Path, folder: Path, name: str) -> Sequence[str]:
        changed = onnx.load(model)
        weight = next(tensor for tensor in changed.graph.initializer if tensor.dims[:] == [NUM_SEEN + 2, FEATURE_DIM])
        rows = numpy_helper.to_array(weight)[[1, 0, *range(2, NUM_SEEN + 2)]]
        weight.CopyFrom(numpy_helper.from_array(rows, weight.name))
        onnx.save(changed, tmp_path / "swapped.onnx")
        return openvino_from_onnx(tmp_path / "swapped.onnx", folder, name)

    monkeypatch.setattr("exporters.targets.registry.openvino_from_onnx", convert_with_two_rows_swapped)
    with pytest.raises(GateFailedError, match=r"^The parity gate was not passed by openvino: .*; what was built is in"):
        export(opened, update, tmp_path / "bundle", head="fused", targets=["openvino"])
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle.rejected" / OPENVINO_NAME).is_file()


def test_a_conversion_that_fails_leaves_no_bundle(opened, update, tmp_path, monkeypatch):
    def convert_something_else(_model: Path, folder: Path, name: str) -> Sequence[str]:
        (tmp_path / "no.onnx").write_bytes(b"not a model")
        return openvino_from_onnx(tmp_path / "no.onnx", folder, name)

    monkeypatch.setattr("exporters.targets.registry.openvino_from_onnx", convert_something_else)
    with pytest.raises(ExportError, match=r"^OpenVINO could not convert no\.onnx: "):
        export(opened, update, tmp_path / "bundle", head="fused", targets=["openvino"])
    assert [path.name for path in tmp_path.iterdir()] == ["no.onnx"]


def test_all_targets_are_tried_and_each_that_is_missing_says_why(
    opened: OpenedModel, update: ClassUpdate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(job: TargetJob) -> list[str]:
        (job.folder / "openvino").mkdir()
        (job.folder / "openvino" / "half.xml").write_text("half written")
        raise ExportError("The converter does not know this model.")

    absent = replace(
        TARGETS["tensorrt-rtx"], obstacle=lambda _options: "There is no library. Install it: pip install x"
    )
    monkeypatch.setitem(TARGETS, "openvino", replace(TARGETS["openvino"], build=breaks, obstacle=lambda _options: None))
    monkeypatch.setitem(TARGETS, "tensorrt-rtx", absent)
    monkeypatch.setitem(TARGETS, "tensorrt", replace(absent, name="tensorrt"))
    built = {target.name: target for target in export(opened, update, tmp_path / "all", head="fused", targets=["all"])}
    assert list(built) == ["onnx", *TARGETS]
    assert built["openvino"].reason == "The converter does not know this model."
    assert built["tensorrt-rtx"].reason == "There is no library. Install it: pip install x"
    assert all(report.passed for name in ("onnx", "triton") for report in built[name].reports)
    assert built["onnx"].size_bytes == (tmp_path / "all" / "model.onnx").stat().st_size
    named = set(load_bundle(tmp_path / "all").files)
    assert named == {path.relative_to(tmp_path / "all").as_posix() for path in files_below(tmp_path / "all")}


def files_below(bundle: Path) -> list[Path]:
    return [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]


def test_the_table_of_all_targets_has_a_line_for_each(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--classes", str(tiny_project.classes), "--target", "all", "--out", str(tmp_path / "bundle")]
    assert run(["export", str(tiny_project.model), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("target "))
    assert lines[start].split() == ["target", "precision", "size", "build", "gate"]
    table = {line.split()[0]: line.split() for line in lines[start + 1 : start + 2 + len(TARGETS)]}
    assert list(table) == ["onnx", *TARGETS]
    for name in ("onnx", "triton"):
        assert table[name][1] == "fp32"
        assert table[name][-1] == "passed"
    missing = {name for name, cells in table.items() if cells[-1] == "built"}
    assert {line.partition(":")[0] for line in lines if line.partition(":")[0] in TARGETS} >= missing
