"""Models that take and give integers with a scale, as TFLite's: a bundle takes and gives the numbers they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import icis_deploy
from exporters.loading.models import load_model
from exporters.loading.quantized_ends import QuantizedInput

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(5, 4)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
SCALES = {
    "uint8, 0 to 1": (np.uint8, 1 / 255, 0),
    "int8, 0 to 1": (np.int8, 1 / 255, -128),
    "int8, around 0": (np.int8, 0.03, 5),
}


def write(
    path: Path,
    dtype: type,
    scale: float | None,
    zero: int,
    *,
    end: str = "float",
    moved: bool = False,
) -> Path:
    """A classifier of integers: dequantized, or cast where there is no scale; `end`: what its scores are given as."""
    constants: dict[str, np.ndarray] = {"w": WEIGHT, "b": BIAS}
    start = "moved" if moved else "x"
    nodes = [helper.make_node("Transpose", ["x"], ["moved"], perm=[0, 1])] if moved else []
    if scale is None:
        nodes.append(helper.make_node("Cast", [start], ["f"], to=TensorProto.FLOAT))
    else:
        constants |= {"s": np.float32(scale), "z": dtype(zero)}
        nodes.append(helper.make_node("DequantizeLinear", [start, "s", "z"], ["f"]))
    nodes += [
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], name="head", transB=1),
        helper.make_node("Softmax", ["logits"], ["scores" if end == "float" else "exact"], axis=1),
    ]
    output = TensorProto.FLOAT
    if end != "float":
        constants |= {"os": np.float32(1 / 256), "oz": np.uint8(0), "oz8": np.int8(-128)}
        nodes.append(helper.make_node("QuantizeLinear", ["exact", "os", "oz"], ["q" if end != "uint8" else "scores"]))
        output = TensorProto.UINT8
    if end == "uint8, moved":
        constants["whole"] = np.array([-1, 5])
        nodes.append(helper.make_node("Reshape", ["q", "whole"], ["scores"]))
    if end in {"rounded float", "int8 after uint8"}:
        nodes.append(
            helper.make_node("DequantizeLinear", ["q", "os", "oz"], ["scores" if end == "rounded float" else "r"])
        )
        output = TensorProto.FLOAT
    if end == "int8 after uint8":
        nodes.append(helper.make_node("QuantizeLinear", ["r", "os", "oz8"], ["scores"]))
        output = TensorProto.INT8
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n", 4])],
        [helper.make_tensor_value_info("scores", output, ["n", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def export_with_copy(folder: Path, path: Path, head: str = "fused") -> Path:
    (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(5)))
    opened = icis_deploy.inspect(path, classes=folder / "classes.txt")
    assert opened.head is not None
    assert opened.obstacle is None
    row = np.append(opened.head.weight[1], opened.head.bias[1])[None]
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=row, added=("new",))
    options = icis_deploy.ExportOptions(head=head, capacity=2 if head == "updatable" else None)
    icis_deploy.export(opened, updates=[update], out=folder / "bundle", options=options)
    return folder / "bundle" / "model.onnx"


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("moved", [False, True], ids=["at once", "moved first"])
@pytest.mark.parametrize("end", ["float", "uint8", "uint8, moved", "rounded float", "int8 after uint8"])
@pytest.mark.parametrize("scale", [*SCALES, "uint8 pixels, cast"])
def test_a_model_of_integers_becomes_one_of_numbers(tmp_path: Path, scale: str, end: str, moved: bool):
    dtype, factor, zero = SCALES.get(scale, (np.uint8, None, 0))
    path = write(tmp_path / "model.onnx", dtype, factor, zero, end=end, moved=moved)
    integers = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, size=(16, 4)).astype(dtype)
    numbers = ((integers.astype(np.float64) - zero) * (factor or 1.0)).astype(np.float32)

    session = onnxruntime.InferenceSession(str(export_with_copy(tmp_path, path)), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    scores = session.run(["scores"], {"x": numbers})[0]

    assert (taken.name, taken.type) == ("x", "tensor(float)")
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores[:, 5], scores[:, 1])
    wanted = softmax(numbers.astype(np.float64) @ WEIGHT.T + BIAS)
    np.testing.assert_allclose(scores[:, :5] / scores[:, :5].sum(axis=1, keepdims=True), wanted, atol=2e-5)


def test_numbers_between_the_integers_are_rounded_as_the_original_was_given_them(tmp_path: Path):
    path = write(tmp_path / "model.onnx", np.int8, 0.03, 5)
    numbers = RNG.uniform(-5, 5, size=(64, 4)).astype(np.float32)  # beyond the range at both ends
    given = QuantizedInput(name="x", dtype=np.dtype(np.int8), scale=0.03, zero_point=5)

    after = onnxruntime.InferenceSession(str(export_with_copy(tmp_path, path))).run(["scores"], {"x": numbers})[0]
    before = onnxruntime.InferenceSession(str(path)).run(["scores"], {"x": given.integers(numbers)})[0]

    np.testing.assert_allclose(after[:, :5] / after[:, :5].sum(axis=1, keepdims=True), before, rtol=1e-5)
    assert given.value_range == pytest.approx((-3.99, 3.66))


def test_slots_take_classes_of_a_model_of_integers(tmp_path: Path):
    path = write(tmp_path / "model.onnx", np.uint8, 1 / 255, 0, end="uint8")

    bundle = export_with_copy(tmp_path, path, "updatable").parent

    assert icis_deploy.verify(bundle, against=path)
    assert icis_deploy.Device.open(bundle).classes()[-1] == "new"


@pytest.mark.parametrize(
    ("dtype", "why"), [(np.int32, "takes int32"), (np.int64, "takes int64")], ids=["int32", "int64"]
)
def test_integers_without_a_scale_are_refused(tmp_path: Path, dtype: type, why: str):
    path = write(tmp_path / "model.onnx", dtype, None, 0)

    obstacle = icis_deploy.inspect(path).obstacle

    assert obstacle is not None
    assert why in obstacle


def test_two_scales_of_one_input_are_refused(tmp_path: Path):
    path = write(tmp_path / "model.onnx", np.uint8, 1 / 255, 0)
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["x", "other", "z"], ["f2"]))
    proto.graph.node.insert(2, helper.make_node("Add", ["f", "f2"], ["sum"]))
    proto.graph.node[3].input[0] = "sum"
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())

    assert "takes uint8" in str(icis_deploy.inspect(path).obstacle)
    assert load_model(str(path)).value_range is None
