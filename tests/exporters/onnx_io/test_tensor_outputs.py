"""Models that give dictionaries, as scikit-learn's do, are read by the scores before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import icis_deploy
from exporters.onnx_io.files import load_onnx_file
from icis_deploy.errors import ModelLoadError

NAMES = [f"class {index}" for index in range(5)]
ML = "ai.onnx.ml"
MAPS = {
    "strings": (TensorProto.STRING, {"classlabels_strings": NAMES}),
    "numbers": (TensorProto.INT64, {"classlabels_int64s": [3, 1, 4, 2, 5]}),
}


def write(path: Path, keys: str, *, outputs: tuple[str, ...], states: bool = True) -> Path:
    """A classifier that ends in a ZipMap; `states`: its file has the type of what the ZipMap takes."""
    key_type, labels = MAPS[keys]
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(key_type, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    infos = {
        "scores": helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5]),
        "maps": helper.make_value_info("maps", maps),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ZipMap", ["scores"], ["maps"], domain=ML, **labels),
    ]
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [infos[name] for name in outputs],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in (("w", (5, 4)), ("b", (5,)))],
        value_info=[infos["scores"]] if states and "scores" not in outputs else [],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)])
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("states", [True, False], ids=["type stated", "type not stated"])
@pytest.mark.parametrize("outputs", [("maps",), ("scores", "maps"), ("maps", "scores")], ids=",".join)
@pytest.mark.parametrize("keys", MAPS)
def test_a_model_that_gives_maps_is_exported_by_the_scores_before_them(
    tmp_path: Path, keys: str, outputs: tuple[str, ...], states: bool
):
    path = write(tmp_path / "model.onnx", keys, outputs=outputs, states=states)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    opened = icis_deploy.inspect(path, classes=tmp_path / "classes.txt")
    assert opened.head is not None
    rows = np.append(opened.head.weight[1], opened.head.bias[1])[None]
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=("new",))

    icis_deploy.export(opened, updates=[update], out=tmp_path / "bundle")

    images = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(str(file)).run(None, {"x": images})
        for file in (path, tmp_path / "bundle" / "model.onnx")
    )
    maps = before[outputs.index("maps")]
    seen = np.array([list(each.values()) for each in maps])
    if keys == "numbers":  # a map sorts its keys
        seen = np.array([[each[key] for key in MAPS[keys][1]["classlabels_int64s"]] for each in maps])
    assert after[0].shape == (3, 6)
    np.testing.assert_allclose(after[0][:, :5] / after[0][:, :5].sum(axis=1, keepdims=True), seen, rtol=1e-5)
    np.testing.assert_array_equal(after[0][:, 5], after[0][:, 1])


def test_a_model_whose_outputs_no_tensor_stands_for_is_refused(tmp_path: Path):
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2]))
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_value_info("parts", sequence)],
    )
    path = tmp_path / "model.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelLoadError, match="The model gives no tensor: 'parts' are sequences or maps") as caught:
        load_onnx_file(path)
    assert caught.value.where == path
    assert "truncated" not in str(caught.value)
