"""Backbones that another quantizer makes int8: rows stay floats on the host, and a device does all that it does."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import icis_deploy
from exporters.conversion.int8 import CalibratedBackbone
from exporters.targets import quantized
from exporters.targets.litert_target import litert_obstacle
from exporters.targets.qnn_target import OPTIONS_NAME
from exporters.targets.quantized import Quantizable, backbone_to_quantize, write_calibration
from icis_deploy.api.models import inspect
from icis_deploy.bundle.converted_sidecar import CONVERTED_FILES, converted_sidecar_name, parse_converted_sidecar
from icis_deploy.bundle.engine_sidecar import model_sha256
from icis_deploy.bundle.manifest import BAKED_ROWS_NAME, load_bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import IncompatibleError, MissingDependencyError, SignatureError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.sessions.choice import Runtime, loaded_files
from testing.bundles import files_in, write_bundle, write_signed
from testing.tiny_project import FEATURE_DIM, TinyProject

CAPACITY = 8
RUNTIME_OF = {"qnn": "qnn-emulated", "litert": "litert"}


def exported(project: TinyProject, out: Path, target: str, trust: Path | None = None, **form: object) -> Path:
    icis_deploy.export(
        project.model,
        classes=project.classes,
        out=out,
        options=icis_deploy.ExportOptions(
            head="updatable",
            capacity=CAPACITY,
            preprocess=project.preprocess,
            form=ModelForm(**{"precision": "int8", "calibration_images": project.images, **form}),
            targets=(target,),
            trust=() if trust is None else (trust,),
        ),
    )
    return out


@pytest.fixture(scope="module", params=RUNTIME_OF)
def target(request: pytest.FixtureRequest) -> str:
    if request.param == "litert" and (missing := litert_obstacle()) is not None:
        pytest.skip(missing)
    return str(request.param)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> icis_deploy.KeyPair:
    return icis_deploy.keygen(tmp_path_factory.mktemp("keys") / "KEY")


@pytest.fixture(scope="module")
def bundle(target, tiny_project, key, tmp_path_factory) -> Path:
    return exported(tiny_project, tmp_path_factory.mktemp(target) / "bundle", target, key.public_path)


def update_of(project: TinyProject, version: int = 1) -> ClassUpdate:
    rng = np.random.default_rng(version)
    return ClassUpdate(
        base_fingerprint=inspect(project.model, classes=project.classes).head.fingerprint,
        rows=rng.normal(size=(2, FEATURE_DIM + 1)),
        arbiter=rng.normal(size=(2, 5)) / 10,
        added=("okapi", "quagga"),
        version=version,
    )


def inputs(number: int = 6) -> np.ndarray:
    return np.random.default_rng(0).uniform(-2, 2, size=(number, 3, 16, 16)).astype(np.float32)


def scaled(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


def test_a_device_answers_as_the_original_takes_an_update_and_rolls_back_to_the_bit(
    target, bundle, tiny_project, key, tmp_path
):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, data in files_in(bundle).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (bundle / name).is_file():
            (folder / name).write_bytes(data)
    device = icis_deploy.Device.open(folder, runtime=RUNTIME_OF[target], num_threads=1)
    reference = icis_deploy.Device.open(folder, num_threads=1)
    before = device.logits(inputs()).values
    assert scaled(before, reference.logits(inputs()).values) < 0.5  # both are int8, by quantizers of their own
    signed = write_signed(tmp_path / "new.icis", update_of(tiny_project), key.private_path)
    device.apply(signed, allow_changed_answers=True)
    reference.refresh()
    after = device.logits(inputs())
    assert after.class_names[-2:] == ("okapi", "quagga")
    assert scaled(after.values, reference.logits(inputs()).values) < 0.5
    state = files_in(folder)
    damaged = json.loads(signed.read_bytes())
    damaged["payload"] = damaged["payload"][:-4] + "AAA="
    (tmp_path / "damaged.icis").write_text(json.dumps(damaged))
    with pytest.raises(SignatureError):
        device.apply(tmp_path / "damaged.icis", allow_changed_answers=True)
    assert files_in(folder) == state
    device.rollback()
    np.testing.assert_array_equal(device.logits(inputs()).values, before)


def test_the_sidecar_says_that_it_ends_in_features_and_the_rows_are_of_what_is_loaded(target, bundle):
    described = load_bundle(bundle)
    sidecar = parse_converted_sidecar((bundle / converted_sidecar_name(target)).read_bytes())
    assert sidecar.ends_in_features
    assert not sidecar.slots
    assert sidecar.outputs[0].shape == (1, FEATURE_DIM)
    assert {CONVERTED_FILES[target][0], BAKED_ROWS_NAME} <= set(
        loaded_files(described, Runtime(name=RUNTIME_OF[target]))
    )
    compared = [report["compared_with"] for report in described.parity]
    assert any(f"the bundle in {RUNTIME_OF[target]}" in each for each in compared)


def test_compaction_keeps_the_quantized_backbone_to_the_bit(target, bundle, tiny_project, key, tmp_path):
    signed = write_signed(tmp_path / "new.icis", update_of(tiny_project), key.private_path)
    work = tmp_path / "bundle"
    for name in files_in(bundle):
        if (bundle / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes((bundle / name).read_bytes())
    device = icis_deploy.Device.open(work, runtime=RUNTIME_OF[target], num_threads=1)
    device.apply(signed, allow_changed_answers=True)
    expected = device.logits(inputs())
    device.close()
    icis_deploy.compact(work, out=tmp_path / "compacted")
    described = load_bundle(tmp_path / "compacted")
    (name, *_) = CONVERTED_FILES[target]
    assert (tmp_path / "compacted" / name).read_bytes() == (bundle / name).read_bytes()
    sidecar = parse_converted_sidecar((tmp_path / "compacted" / converted_sidecar_name(target)).read_bytes())
    assert sidecar.model_sha256 == model_sha256(described)
    found = icis_deploy.Device.open(tmp_path / "compacted", runtime=RUNTIME_OF[target], num_threads=1).logits(inputs())
    assert found.class_names == expected.class_names
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)


def test_a_session_on_the_npu_is_told_what_it_needs(tmp_path, tiny_project):
    folder = exported(tiny_project, tmp_path / "bundle", "qnn")
    options = json.loads((folder / OPTIONS_NAME).read_text())
    assert options["execution_provider"] == "QNNExecutionProvider"
    assert options["session_config_entries"] == {"session.disable_cpu_ep_fallback": "1"}
    with pytest.raises(MissingDependencyError, match=r"needs a Qualcomm NPU|no Qualcomm NPU") as caught:
        icis_deploy.Device.open(folder, runtime="qnn")
    assert "qnn-emulated" in str(caught.value)


def test_activations_have_sixteen_bits_and_weights_eight(tmp_path, tiny_project):
    import onnx

    folder = exported(tiny_project, tmp_path / "bundle", "qnn")
    graph = onnx.load(folder / CONVERTED_FILES["qnn"][0]).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    zeros = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT16}
    (convolution,) = (node for node in graph.node if node.op_type == "Conv")
    (weight,) = (node for node in graph.node if node.output[0] == convolution.input[1])
    assert types[weight.input[0]] == onnx.TensorProto.INT8
    (image,) = graph.input
    assert [size.dim_value for size in image.type.tensor_type.shape.dim] == [1, 3, 16, 16]


def test_an_npu_is_found_by_its_provider_or_refused_by_name(monkeypatch, tmp_path, tiny_project):
    from icis_deploy.runtime.sessions import qnn_session

    folder = exported(tiny_project, tmp_path / "bundle", "qnn")
    plugin = ModuleType("onnxruntime_qnn")
    plugin.get_library_path = lambda: str(tmp_path / "libonnxruntime_providers_qnn.so")  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_qnn", plugin)
    qnn_session._npu_devices.cache_clear()
    with pytest.raises(MissingDependencyError, match="cannot load its QNN provider"):
        icis_deploy.Device.open(folder, runtime="qnn")


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"precision": "fp32", "calibration_images": None}, "computes in fp32; a Qualcomm NPU takes integers"),
        ({"model_input": "uint8"}, "takes uint8; another runtime's quantizer is given prepared images"),
    ],
)
def test_what_cannot_be_quantized_is_refused_with_what_to_give(form, reason, tmp_path, tiny_project):
    with pytest.raises(IncompatibleError, match=reason):
        exported(tiny_project, tmp_path / "bundle", "qnn", **form)
    assert not (tmp_path / "bundle").exists()


def test_without_an_int8_export_there_is_nothing_to_quantize(tmp_path):
    described = load_bundle(write_bundle(tmp_path / "bundle"))
    with pytest.raises(IncompatibleError, match=r"no float backbone that could be quantized"):
        backbone_to_quantize(Quantizable(), described)


@pytest.mark.parametrize(("size", "expected"), [(1, [0, 3, 6, 9]), (2, [0, 1, 18, 19])])
def test_calibration_takes_images_spread_over_all(size, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "MAX_CALIBRATION_IMAGES", 4)
    batches = [np.full((size, 2), index, dtype=np.float32) for index in range(10)]
    for index, batch in enumerate(batches):
        batch[:] += np.arange(size)[:, None] + index * (size - 1)
    backbone = CalibratedBackbone(model=None, calibration=lambda: iter(batches))  # type: ignore[arg-type]
    assert write_calibration(tmp_path / "images.npy", backbone) == len(expected)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy")[:, 0], expected)
