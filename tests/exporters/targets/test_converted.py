"""Models converted for other runtimes: exported through the gate in the runtime itself, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.parser import parse_model

import icis_deploy
from exporters.graph.edits import apply_passes
from exporters.graph.fixed_batch import FixBatchPass
from exporters.onnx_io.files import load_onnx_file
from exporters.targets import litert_target
from exporters.targets.converted import graph_for_conversion, run_converter, unsupported_operators
from exporters.targets.litert_target import litert_obstacle
from exporters.targets.mnn_target import write_mnn
from exporters.targets.registry import TARGETS, BuiltTarget, plan_targets
from icis_deploy.api.models import inspect
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, converted_sidecar_name
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import ExportError, IncompatibleError, MissingDependencyError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.sessions.choice import CONVERTED_RUNTIMES
from testing.bundles import write_bundle
from testing.tiny_project import FEATURE_DIM, TinyProject


def skip_without(runtime: str) -> None:
    try:
        plan_targets([runtime])
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("runtime", CONVERTED_RUNTIMES)
@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_an_export_passes_the_gate_in_the_runtime_itself(runtime, head, tiny_project: TinyProject, tmp_path: Path):
    skip_without(runtime)
    opened = inspect(tiny_project.model, classes=tiny_project.classes)
    rows = np.random.default_rng(5).normal(size=(2, FEATURE_DIM + 1))
    update = ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=("okapi", "quagga"))
    built: list[BuiltTarget] = []
    options = icis_deploy.ExportOptions(head=head, capacity=8 if head == "updatable" else None, targets=(runtime,))
    icis_deploy.export(opened, updates=[update], options=options, out=tmp_path / "bundle", on_target=built.append)

    (target,) = built
    assert set(target.files) == {*CONVERTED_FILES[runtime], converted_sidecar_name(runtime)}
    assert target.reason is None
    assert target.reports
    assert all(report.passed and f"; the bundle in {runtime}" in report.compared_with for report in target.reports)
    device = icis_deploy.Device.open(tmp_path / "bundle", runtime=runtime)
    images = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    expected = icis_deploy.Device.open(tmp_path / "bundle").logits(images).values
    np.testing.assert_allclose(device.logits(images).values, expected, rtol=1e-4, atol=1e-4)


def test_the_graph_that_converters_get_has_slots_without_defaults_and_a_batch_of_one(tmp_path):
    folder = write_bundle(tmp_path / "bundle", arbiter=True)
    graph = graph_for_conversion(folder, load_bundle(folder)).graph

    assert [value.name for value in graph.inputs] == ["image", "slot_weight", "slot_bias", "slot_arbiter"]
    assert not {"slot_weight", "slot_bias", "slot_arbiter"} & graph.initializers.keys()
    assert list(graph.inputs[0].shape) == [1, 6]
    assert [value.shape[0] for value in graph.outputs] == [1, 1]


def test_outputs_that_no_session_asks_for_are_left_out_with_what_computes_them(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch"]))
    onnx.save(model, folder / "model.onnx")

    graph = graph_for_conversion(folder, manifest_like_it(tmp_path)).graph
    assert [value.name for value in graph.outputs] == ["logits", "features"]
    assert "ArgMax" not in {node.op_type for node in graph}


def manifest_like_it(tmp_path: Path):
    """Return the manifest of a bundle like the changed one."""
    return load_bundle(write_bundle(tmp_path / "like it"))


def test_a_model_in_another_precision_is_refused(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    bundle = replace(load_bundle(folder), precision="int8")
    with pytest.raises(IncompatibleError, match=r"^The model computes in int8; it is converted .* in fp32 alone\."):
        graph_for_conversion(folder, bundle)


@pytest.mark.parametrize(("size", "expected"), [(4, [4, 6]), (1, [1, 6])])
def test_a_batch_is_fixed_wherever_its_name_stands(size, expected, tmp_path):
    model = load_onnx_file(write_bundle(tmp_path / "bundle") / "model.onnx")
    fixed = apply_passes(model, FixBatchPass(size))
    assert list(fixed.graph.inputs[0].shape) == expected
    assert fixed.graph.outputs[0].shape[0] == size
    assert isinstance(model.graph.inputs[0].shape[0], ir.SymbolicDim)
    assert apply_passes(fixed, FixBatchPass(9)) is fixed


def test_an_operator_that_a_runtime_lacks_is_named_with_its_node(tmp_path):
    skip_without("mnn")
    folder = write_bundle(tmp_path / "bundle", capacity=0)
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.name = "Mish", "odd one"
    onnx.save(model, folder / "model.onnx")
    bundle = manifest_like_it(tmp_path)

    with pytest.raises(
        ExportError, match=r"^MNN does not know the operator Mish \(node 'odd one'\)\. Leave this target"
    ):
        write_mnn(folder, bundle)
    assert not (folder / "mnn" / "model.mnn").exists()


def test_operators_are_named_whether_they_are_in_the_graph_or_made_by_the_converter():
    text = '<ir_version: 8, opset_import: ["" : 20]> g (float[1] a) => (float[1] b) { b = Relu (a) }'
    model = ir.from_proto(parse_model(text))
    error = unsupported_operators("it", model, ["Relu", "Fused"])
    assert error.what == "it does not know the operators Relu (node 'b'), Fused."


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('no such layer'); sys.exit(3)", r"could not convert model\.onnx: no such layer\."),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"ended with -9 and said nothing"),
        ("import time; time.sleep(60)", r"has not converted the model in 1 s"),
    ],
)
def test_a_converter_that_fails_crashes_or_hangs_is_an_error(code, message, tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.targets.converted.TIMEOUT_S", 1)
    with pytest.raises(ExportError, match=message):
        run_converter([sys.executable, "-I", "-S", "-c", code], converter="it", folder=tmp_path)


def test_a_converter_that_cannot_be_started_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="it could not be started"):
        run_converter([str(tmp_path / "none")], converter="it", folder=tmp_path)


def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(litert_target, "find_spec", lambda _name: object())
    folder = tmp_path / "icis-deploy" / "converters" / "onnx2tf"
    reason = litert_obstacle()
    assert reason is not None
    assert f"python3.11 -m venv {folder} && {folder}/bin/pip install 'onnx2tf==" in reason

    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "onnx2tf").write_text("")
    assert litert_obstacle() is None
    monkeypatch.setattr(litert_target, "find_spec", lambda _name: None)
    assert litert_obstacle() == "LiteRT is not installed: pip install 'icis-deploy[litert]'."


def test_mnn_that_is_not_installed_is_said_with_the_extra(monkeypatch):
    monkeypatch.setattr("exporters.targets.mnn_target.find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"'mnn' cannot be built on this machine: .*icis-deploy\[mnn\]"):
        plan_targets(["mnn"])


def test_every_converted_runtime_has_a_target_with_its_files():
    assert {name: TARGETS[name].file for name in (*CONVERTED_RUNTIMES, "qnn")} == {
        name: files[0] for name, files in CONVERTED_FILES.items()
    }
