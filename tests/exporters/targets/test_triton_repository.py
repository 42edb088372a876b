"""The Triton model repository: its configurations parse by Triton's own schema, and its parts answer like the whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf import text_format

import icis_deploy
from exporters.targets import triton_repository
from exporters.targets.triton_repository import BACKBONE, ENSEMBLE, HEAD, MAX_BATCH_SIZE, write_triton_repository
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.bundle.manifest import TOP_CLASS_IDS, TOP_PROBABILITIES, load_bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.cli.main import run
from icis_deploy.errors import ExportError, GateFailedError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, SIDE, TinyProject

CAPACITY = 4


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own model_config.proto, as its client carries it; the package itself would import grpc."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None, "part of the extra `dev`"
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


def update_of(opened: OpenedModel, *names: str, version: int = 1) -> ClassUpdate:
    rows = np.random.default_rng(version).normal(size=(len(names), FEATURE_DIM + 1))
    return ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=names, version=version)


def export(
    opened: OpenedModel, out: Path, *updates: ClassUpdate, head: str = "updatable", precision: str = "fp32"
) -> Path:
    capacity, form = CAPACITY if head == "updatable" else None, ModelForm(precision=precision)
    icis_deploy.export(
        opened,
        updates=updates,
        options=icis_deploy.ExportOptions(head=head, capacity=capacity, form=form, targets=["triton"]),
        out=out,
    )
    return out


def parsed(schema: ModuleType, bundle: Path, name: str) -> object:
    return text_format.Parse((bundle / "triton" / name / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_every_configuration_parses_and_fits_its_model(
    head: str, opened: OpenedModel, schema: ModuleType, tmp_path: Path
) -> None:
    bundle = export(opened, tmp_path / "bundle", update_of(opened, "okapi", 'qua"gga'), head=head)
    for name, version in ((BACKBONE, "1"), (HEAD, "1")):
        config = parsed(schema, bundle, name)
        assert (config.name, config.platform, config.max_batch_size) == (name, "onnxruntime_onnx", MAX_BATCH_SIZE)
        assert config.HasField("dynamic_batching")
        graph = onnx.load(bundle / "triton" / name / version / "model.onnx").graph
        for stated, found in ((config.input, graph.input), (config.output, graph.output)):
            assert [tensor.name for tensor in stated] == [value.name for value in found]
            shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in found]
            assert [list(tensor.dims) for tensor in stated] == shapes
            types = [schema.TYPE_INT64 if tensor.name == TOP_CLASS_IDS else schema.TYPE_FP32 for tensor in stated]
            assert [tensor.data_type for tensor in stated] == types


def test_the_ensemble_runs_backbone_then_head(opened: OpenedModel, schema: ModuleType, tmp_path: Path) -> None:
    bundle = export(opened, tmp_path / "bundle")
    ensemble = parsed(schema, bundle, ENSEMBLE)
    backbone, head = ensemble.ensemble_scheduling.step
    assert (ensemble.platform, backbone.model_name, head.model_name) == ("ensemble", BACKBONE, HEAD)
    assert [list(tensor.dims) for tensor in ensemble.input] == [[3, SIDE, SIDE]]
    stated = [(tensor.name, list(tensor.dims)) for tensor in ensemble.output]
    assert stated == [("logits", [-1]), (TOP_PROBABILITIES, [5]), (TOP_CLASS_IDS, [5])]
    assert set(backbone.output_map.values()) == set(head.input_map.values())
    assert set(backbone.input_map.values()) == {tensor.name for tensor in ensemble.input}
    assert set(head.output_map.values()) == {tensor.name for tensor in ensemble.output}
    assert list((bundle / "triton" / ENSEMBLE / "1").iterdir()), "Triton wants a version folder"


def test_every_score_has_a_label_and_the_manifest_states_every_file(
    opened: OpenedModel, schema: ModuleType, tmp_path: Path
) -> None:
    bundle = export(opened, tmp_path / "bundle", update_of(opened, "okapi"))
    head = parsed(schema, bundle, HEAD)
    labels = (bundle / "triton" / HEAD / head.output[0].label_filename).read_text().splitlines()
    assert len(labels) == head.output[0].dims[0] == NUM_SEEN + CAPACITY
    assert labels[NUM_SEEN - 1 :] == ["class39", "okapi", *(f"(empty slot {index})" for index in (1, 2, 3))]
    written = {path.relative_to(bundle).as_posix() for path in (bundle / "triton").rglob("*") if path.is_file()}
    assert written == {name for name in load_bundle(bundle).files if name.startswith("triton/")}


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_the_parts_answer_like_the_whole(head: str, opened: OpenedModel, tmp_path: Path) -> None:
    bundle = export(opened, tmp_path / "bundle", update_of(opened, "okapi"), head=head)
    images = np.random.default_rng(3).normal(size=(5, 3, SIDE, SIDE)).astype(np.float32)
    features = load_session(bundle / "triton" / BACKBONE / "1" / "model.onnx").run(images).logits
    assert features.shape == (5, FEATURE_DIM)
    scores = load_session(bundle / "triton" / HEAD / "1" / "model.onnx").run(features).logits
    np.testing.assert_allclose(scores, load_session(bundle / "model.onnx").run(images).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_the_parts_of_a_float16_model_hand_over_float16_features(
    head: str, opened: OpenedModel, schema: ModuleType, tmp_path: Path
) -> None:
    bundle = export(opened, tmp_path / "bundle", update_of(opened, "okapi"), head=head, precision="fp16")

    assert parsed(schema, bundle, BACKBONE).output[0].data_type == schema.TYPE_FP16
    report = load_bundle(bundle).parity[-1]
    assert (report["compared_with"], report["profile"]["name"]) == (triton_repository.COMPARED_WITH, "fp16")


def test_a_class_change_is_a_new_version_of_the_small_head_alone(opened: OpenedModel, tmp_path: Path) -> None:
    first = update_of(opened, "okapi")
    before = export(opened, tmp_path / "before", first) / "triton"
    after = export(opened, tmp_path / "after", first, update_of(opened, "quagga", version=2)) / "triton"
    for unchanged in (f"{BACKBONE}/1/model.onnx", f"{BACKBONE}/config.pbtxt", f"{ENSEMBLE}/config.pbtxt"):
        assert (before / unchanged).read_bytes() == (after / unchanged).read_bytes()
    assert [path.name for path in (after / HEAD).iterdir() if path.is_dir()] == ["2"]
    assert (before / HEAD / "1" / "model.onnx").read_bytes() != (after / HEAD / "2" / "model.onnx").read_bytes()


def test_parts_that_answer_otherwise_are_no_bundle(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = triton_repository.split_model

    def with_another_bias(model: object, **sizes: int) -> object:
        parts = split(model, **sizes)
        bias = next(value for name, value in parts.head.graph.initializers.items() if "bias" in name)
        bias.const_value = ir.Tensor(bias.const_value.numpy() + np.float32(0.1), name=bias.name)
        return parts

    monkeypatch.setattr(triton_repository, "split_model", with_another_bias)
    with pytest.raises(GateFailedError, match="max_scaled_error"):
        export(opened, tmp_path / "bundle", head="fused")
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle.rejected" / "triton" / HEAD).is_dir()


def test_a_class_name_that_no_label_file_holds_is_refused(opened: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"one class a line; 'two\\nlines' has more"):
        export(opened, tmp_path / "bundle", update_of(opened, "two\nlines"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_it(tiny_project: TinyProject, tmp_path: Path) -> None:
    arguments = ["--classes", str(tiny_project.classes), "--target", "triton", "--out", str(tmp_path / "bundle")]
    assert run(["export", str(tiny_project.model), *arguments]) == 0
    assert (tmp_path / "bundle" / "triton" / ENSEMBLE / "config.pbtxt").is_file()


def test_a_model_with_a_fixed_batch_is_not_batched(
    schema: ModuleType, tiny_project: TinyProject, tmp_path: Path
) -> None:
    model = onnx.load(tiny_project.model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    bundle = export(inspect(tmp_path / "fixed.onnx", classes=tiny_project.classes), tmp_path / "bundle")
    config = parsed(schema, bundle, BACKBONE)
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 3, SIDE, SIDE])
    assert not config.HasField("dynamic_batching")


def test_a_manifest_that_states_another_head_is_an_error(opened: OpenedModel, tmp_path: Path) -> None:
    bundle = export(opened, tmp_path / "bundle", head="fused")
    described = load_bundle(bundle)
    other = type(described)(
        **{name: getattr(described, name) for name in described.__slots__ if name != "manifest_sha256"}
        | {"feature_dim": FEATURE_DIM + 1}
    )
    with pytest.raises(ExportError, match=r"no linear operator of 40 x 25"):
        write_triton_repository(bundle, other)
