"""Large weights stay in their file, and what is written is what was read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from exporters.bundles.writing import BundleSettings, plan_head, write_bundle
from exporters.onnx_io import files as onnx_files
from exporters.onnx_io import lazy_tensors as streamed_tensors
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.onnx_io.lazy_tensors import LazyTensor
from icis_deploy.api.models import inspect
from icis_deploy.api.verify import verify
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import CorruptFileError, ModelLoadError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from scripts.experiments import large_head

ROWS, WIDTH = 700, 512  # 1.4 MB: large enough to be streamed
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
large (float[batch, 512] image) => (float[batch, 700] logits)
{
    features = Relu (image)
    logits = Gemm <transB = 1> (features, weight, bias)
}
"""


def write_model(path: Path, *, external: bool = False, stored_as: str = "raw") -> np.ndarray:
    weight = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    model = onnx.parser.parse_model(GRAPH)
    tensor = numpy_helper.from_array(weight, "weight")
    if stored_as == "floats":
        tensor = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, weight.shape, weight.reshape(-1))
    model.graph.initializer.extend([tensor, numpy_helper.from_array(np.zeros(ROWS, np.float32), "bias")])
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    return weight


def head_weight(model: onnx_files.ir.Model) -> object:
    return model.graph.initializers["weight"].const_value


@pytest.mark.parametrize("external", [False, True])
def test_a_large_weight_is_left_in_its_file_and_written_as_it_was(external: bool, tmp_path: Path) -> None:
    weight = write_model(tmp_path / "model.onnx", external=external)
    model = load_onnx_file(tmp_path / "model.onnx")
    assert isinstance(head_weight(model), LazyTensor)
    np.testing.assert_array_equal(head_weight(model).numpy(), weight)
    assert save_model(model, tmp_path / "copy.onnx") == (tmp_path / "copy.onnx",)
    copy = onnx.load(tmp_path / "copy.onnx")
    onnx.checker.check_model(copy, full_check=True)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    np.testing.assert_array_equal(arrays["weight"], weight)
    assert arrays["bias"].shape == (ROWS,)


def test_a_weight_that_is_not_stored_as_bytes_is_read_like_any_other(tmp_path: Path) -> None:
    weight = write_model(tmp_path / "model.onnx", stored_as="floats")
    model = load_onnx_file(tmp_path / "model.onnx")
    np.testing.assert_array_equal(head_weight(model).numpy(), weight)
    save_model(model, tmp_path / "copy.onnx")
    np.testing.assert_array_equal(head_weight(load_onnx_file(tmp_path / "copy.onnx")).numpy(), weight)


def test_a_loaded_model_keeps_its_weights_when_its_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weight = write_model(path)
    model = load_onnx_file(path)
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "other").replace(path)
    np.testing.assert_array_equal(head_weight(model).numpy(), weight)
    save_model(model, path)
    np.testing.assert_array_equal(head_weight(load_onnx_file(path)).numpy(), weight)


@pytest.mark.parametrize("damage", ["truncated", "longer shape", "empty"])
def test_a_broken_large_file_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(path)
    if damage == "longer shape":
        proto = onnx.load(path)
        proto.graph.initializer[0].dims[0] += 1
        onnx.save(proto, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -1000])
    with pytest.raises(ModelLoadError, match=r"cannot be read as ONNX: .*copy it again"):
        load_onnx_file(path)


def test_pieces_are_as_long_as_they_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weight = write_model(tmp_path / "model.onnx")
    model = load_onnx_file(tmp_path / "model.onnx")
    monkeypatch.setattr(streamed_tensors, "PIECE_BYTES", 1 << 18)
    pieces = list(head_weight(model).chunks())
    assert max(len(piece) for piece in pieces) == 1 << 18
    assert b"".join(pieces) == weight.tobytes()


def test_a_bundle_too_large_for_protobuf_names_its_data_file_and_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_model(tmp_path / "model.onnx")
    (tmp_path / "classes.txt").write_text("\n".join(f"class {index}" for index in range(ROWS)))
    opened = inspect(tmp_path / "model.onnx", classes=tmp_path / "classes.txt")
    rows = np.random.default_rng(1).normal(size=(2, WIDTH + 1)).astype(np.float32)
    update = ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=("okapi", "quagga"))
    plan = plan_head(opened.head, [update], head_kind="fused", capacity=None)
    # As if protobuf held no more than the graph itself.
    monkeypatch.setattr(onnx_files, "MAX_PROTOBUF_BYTES", onnx_files._GRAPH_BYTES)
    loaded, bundle = opened.loaded, tmp_path / "bundle"
    write_bundle(bundle, plan, loaded=loaded, location=opened.location, settings=BundleSettings(), overwrite=False)
    entry = load_bundle(bundle).files["model.onnx.data"]
    assert entry.size_bytes == (bundle / "model.onnx.data").stat().st_size > (ROWS + 2) * WIDTH * 4
    assert (bundle / "model.onnx.data").stat().st_mode & 0o777 == 0o644
    images = np.random.default_rng(2).normal(size=(3, WIDTH)).astype(np.float32)
    expected = np.maximum(images, 0) @ rows[:, :-1].T + rows[:, -1]
    np.testing.assert_allclose(Device.open(bundle).logits(images).values[:, -2:], expected, rtol=1e-4, atol=1e-4)
    assert all(report.passed for report in verify(bundle, against=tmp_path / "model.onnx"))
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"model.onnx.data has .* the manifest states"):
        Device.open(bundle)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc: Linux only")
def test_an_export_holds_the_head_little_more_than_the_twice_that_the_runtime_takes(tmp_path: Path) -> None:
    # scripts/experiments/large_head.py finds 2.0 to 2.2; an export that copies the rows once more would find 3.
    found = large_head.measure(tmp_path, 15_000, 1000, kind="fused", added=8)
    assert found["head_mb"] == 60
    assert found["ratio"] < 2.6
