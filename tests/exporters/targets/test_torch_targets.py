"""Targets that are made of a torch program, ExecuTorch and Core ML: what is compared, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.targets import coreml_target, executorch_target, torch_program
from exporters.targets.coreml_target import NOT_RUN, compare_torch_program, coreml_obstacle, write_coreml
from exporters.targets.executorch_target import executorch_obstacle, write_executorch
from exporters.targets.registry import TARGETS, TargetJob, add_target
from icis_deploy.bundle.manifest import Bundle, load_bundle
from icis_deploy.bundle.target_options import TargetOptions
from icis_deploy.errors import ExportError
from testing.bundles import write_bundle

Write = Callable[[Path, Bundle], Sequence[str]]
WRITERS = (write_executorch, write_coreml)


@pytest.fixture
def odd_model(tmp_path: Path) -> tuple[Path, Bundle]:
    """Return a bundle whose model has an operator that is not translated, and its manifest."""
    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.name = "Round", "odd one"
    onnx.save(model, folder / "model.onnx")
    return folder, load_bundle(write_bundle(tmp_path / "like it"))


@pytest.mark.parametrize("write", WRITERS)
def test_an_operator_without_a_translation_is_named_with_its_node_and_nothing_is_written(write: Write, odd_model):
    folder, bundle = odd_model
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        ExportError, match=r"^The translation to torch does not know the operator Round \(node 'odd one'"
    ):
        write(folder, bundle)
    assert sorted(folder.rglob("*")) == before


def test_an_operator_that_executorch_has_no_kernel_for_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "bundle")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(executorch_target, "_LOWER", "print('[noise]\\nLACKING [\"aten::odd.out\"]\\nmore')")
    with pytest.raises(ExportError, match=r"^ExecuTorch does not know the operator aten::odd\.out\. Leave this target"):
        write_executorch(folder, load_bundle(folder))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "script", "write", "name"),
    [
        (executorch_target, "_LOWER", write_executorch, "ExecuTorch"),
        (coreml_target, "_CONVERT", write_coreml, "coremltools"),
    ],
)
@pytest.mark.parametrize("code", ["raise SystemError('no such layer')", "print('no such layer')"])
def test_a_compiler_that_fails_or_writes_nothing_is_an_error(module, script, write, name, code, tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "bundle")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(module, script, code)
    with pytest.raises(ExportError, match=rf"^{name} could not convert model\.onnx: .*no such layer\."):
        write(folder, load_bundle(folder))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("kinds", [{}, {"arbiter": True}, {"capacity": 0}, {"score_kind": "log-probabilities"}])
def test_the_torch_program_gives_what_the_model_does_with_the_same_slots(kinds, tmp_path):
    folder = write_bundle(tmp_path / "bundle", **kinds)
    report = compare_torch_program(folder, load_bundle(folder))
    assert report.passed
    assert "torch program" in report.compared_with


def test_a_torch_program_with_other_rows_does_not_pass(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "bundle")
    parts = torch_program.head_parts
    changed = lambda *given: replace(parts(*given), rows=np.flip(parts(*given).rows, axis=0).copy())  # noqa: E731
    monkeypatch.setattr(torch_program, "head_parts", changed)
    assert not compare_torch_program(folder, load_bundle(folder)).passed


def test_that_the_package_itself_was_not_run_is_said(tmp_path):
    folder = write_bundle(tmp_path / "bundle")

    def build(job: TargetJob) -> Sequence[str]:
        (job.folder / "coreml").mkdir()
        (job.folder / "coreml" / "file").write_bytes(b"a package")
        return ("coreml/file",)

    job = TargetJob(folder=folder, bundle=load_bundle(folder), options=TargetOptions())
    _, built = add_target(replace(TARGETS["coreml"], build=build), job, gate=lambda *_given, **_named: ())
    assert built.reason == NOT_RUN == "the gate ran on its torch program alone: Core ML runs on Apple's systems"
    assert [report.passed for report in built.reports] == [True]


def test_what_is_missing_is_said_with_the_extra(monkeypatch):
    monkeypatch.setattr(executorch_target, "find_spec", lambda _name: None)
    monkeypatch.setattr(coreml_target, "find_spec", lambda _name: None)
    assert executorch_obstacle() == "ExecuTorch is not installed: pip install 'icis-deploy[executorch]'."
    assert coreml_obstacle() == "coremltools is not installed: pip install 'icis-deploy[coreml]'."
