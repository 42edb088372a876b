"""A verification that fails raises, and what it measured comes with the error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import icis_deploy
from exporters.bundles import writing
from icis_deploy.cli.main import run
from icis_deploy.errors import GateFailedError
from icis_deploy.metrics.parity import ParityReport
from testing.tiny_project import NUM_SEEN, TinyProject


@pytest.fixture(scope="module")
def bundle(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "bundle"
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=out)
    return out


@pytest.fixture(scope="module")
def retrained(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same head on another backbone, as of somebody who trained on and kept the last layer."""
    model = onnx.load(tiny_project.model)
    (filters,) = (tensor for tensor in model.graph.initializer if tensor.name == "filters")
    filters.CopyFrom(onnx.numpy_helper.from_array(np.flip(onnx.numpy_helper.to_array(filters), 0).copy(), "filters"))
    path = tmp_path_factory.mktemp("retrained") / "model.onnx"
    onnx.save(model, path)
    return path


def test_a_bundle_that_agrees_returns_its_reports(bundle: Path, tiny_project: TinyProject) -> None:
    reports = icis_deploy.verify(bundle, against=tiny_project.model)
    assert [(report.passed, report.num_classes) for report in reports] == [(True, NUM_SEEN)] * 2


def test_a_bundle_that_disagrees_raises_with_its_reports(bundle: Path, retrained: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    with pytest.raises(
        GateFailedError, match=r"^The bundle .* disagrees with .*model\.onnx: max_scaled_error"
    ) as caught:
        icis_deploy.verify(bundle, against=retrained)
    assert [report.passed for report in caught.value.reports] == [False, False]
    assert all("max_scaled_error" in report.failures[0] for report in caught.value.reports)
    assert {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()} == before


def test_an_error_with_reports_can_be_copied(bundle: Path, retrained: Path) -> None:
    with pytest.raises(GateFailedError) as caught:
        icis_deploy.verify(bundle, against=retrained)
    same = copy.copy(caught.value)
    assert (str(same), same.reports) == (str(caught.value), caught.value.reports)


def test_the_command_prints_the_reports_of_a_bundle_that_disagrees(
    bundle: Path, retrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(bundle), "--against", str(retrained), "--format", "json"]) == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["status"], result["passed"]) == ("failed", False)
    assert [report["passed"] for report in result["parity"]] == [False, False]
    assert printed.err.endswith(f"Error: {bundle} disagrees with {retrained}. Export it again.\n")


def test_a_rejected_export_raises_with_its_reports(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, other = writing.compare_bundle, onnx.load(tiny_project.model)
    (bias,) = (tensor for tensor in other.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1].copy(), "bias"))

    def compare_other_model(folder: Path, *arguments: Any, **named: Any) -> tuple[ParityReport, ...]:
        onnx.save(other, folder / "model.onnx")
        return compare(folder, *arguments, **named)

    monkeypatch.setattr(writing, "compare_bundle", compare_other_model)
    with pytest.raises(GateFailedError) as caught:
        icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=tmp_path / "bundle")
    assert not all(report.passed for report in caught.value.reports)
    assert not (tmp_path / "bundle").exists()
