"""What an export holds beside model.onnx: built, gated in its own runtime, stated in the manifest, and used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import icis_deploy
from exporters.openvino_conversion import openvino_from_onnx
from exporters.targets import TARGETS, BuiltTarget, plan_targets
from icis_deploy.bundle import load_bundle
from icis_deploy.class_update import ClassUpdate
from icis_deploy.cli.export import TARGET_NAMES
from icis_deploy.errors import (
    CorruptFileError,
    ExportError,
    GateFailedError,
    IncompatibleError,
    MissingDependencyError,
    UsageError,
)
from icis_deploy.model_form import ModelForm
from icis_deploy.pipeline import OpenedModel, inspect
from icis_deploy.runtime.openvino_session import OPENVINO_NAME, OpenVINOSession
from tests.tiny_models import FEATURE_DIM, NUM_SEEN, TinyProject


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
        opened, updates=[update], head=head, capacity=capacity, out=out, on_target=built.append, **settings
    )
    return built


def test_the_command_line_offers_every_target():
    assert ("onnx", *TARGETS) == TARGET_NAMES


def test_an_unknown_target_is_an_error_before_anything_is_built():
    with pytest.raises(UsageError, match=r"^There is no target 'coreml'; choose among onnx, openvino"):
        plan_targets(["onnx", "coreml"])


def test_engines_are_not_built_of_int8_models_and_nothing_is_computed_before_that_is_said(opened, update, tmp_path):
    with pytest.raises(
        IncompatibleError, match=r"^The target 'tensorrt-rtx' takes models in fp32 or fp16, not in int8"
    ):
        export(
            opened,
            update,
            tmp_path / "bundle",
            head="fused",
            form=ModelForm(precision="int8", calibration_images=tmp_path / "images.csv"),
            targets=["tensorrt-rtx"],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_target_asked_for_twice_is_built_once():
    plan = plan_targets(["openvino", "onnx", "openvino"])
    assert [target.name for target in plan.targets] == ["openvino"]


def test_a_target_that_cannot_be_built_here_says_what_to_install(opened, update, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("exporters.openvino_conversion.find_spec", lambda _name: None)

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
    assert isinstance(device.session, OpenVINOSession)
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

    monkeypatch.setattr("exporters.targets.openvino_from_onnx", convert_with_two_rows_swapped)
    with pytest.raises(
        GateFailedError, match=r"^The parity gate was not passed by openvino: .*; what was built lies in"
    ):
        export(opened, update, tmp_path / "bundle", head="fused", targets=["openvino"])
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle.rejected" / OPENVINO_NAME).is_file()


def test_a_conversion_that_fails_leaves_no_bundle(opened, update, tmp_path, monkeypatch):
    def convert_something_else(_model: Path, folder: Path, name: str) -> Sequence[str]:
        (tmp_path / "no.onnx").write_bytes(b"not a model")
        return openvino_from_onnx(tmp_path / "no.onnx", folder, name)

    monkeypatch.setattr("exporters.targets.openvino_from_onnx", convert_something_else)
    with pytest.raises(ExportError, match=r"^OpenVINO could not convert no\.onnx: "):
        export(opened, update, tmp_path / "bundle", head="fused", targets=["openvino"])
    assert [path.name for path in tmp_path.iterdir()] == ["no.onnx"]
