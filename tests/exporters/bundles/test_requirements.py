"""What no bundle can hold is told by inspect, refused by inject and by export, all in the same words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import icis_deploy
from icis_deploy.errors import ICISDeployError

SEEN = tuple(f"class {index}" for index in range(5))
REFUSED = {
    "two softmaxes": ("float", "l = Gemm <transB = 1> (x, w) s = Softmax (l) y = Softmax (s)", "Softmax, Softmax"),
    "integers": ("int32", "f = Cast <to = 1> (x) y = Gemm <transB = 1> (f, w)", "takes int32"),
    "a rectifier": ("float", "l = Gemm <transB = 1> (x, w) y = Relu (l)", "followed by Relu"),
}


def model_file(folder: Path, dtype: str, steps: str) -> Path:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g ({dtype}[n, 4] x) => (float[n, 5] y) {{ {steps} }}"""
    )
    weight = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    gemm.name = "head"
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("kind", REFUSED)
def test_inspect_tells_what_inject_and_export_refuse(tmp_path: Path, kind: str):
    dtype, steps, reason = REFUSED[kind]
    source = icis_deploy.ModelSource(spec=model_file(tmp_path, dtype, steps), head_node="head")
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"{name}\n" for name in SEEN))
    values = np.random.default_rng(1).normal(size=(6, 3))
    descriptors = icis_deploy.Descriptors(values=values, class_names=(*SEEN, "new"))

    opened = icis_deploy.inspect(source, classes=classes)

    assert opened.obstacle is not None
    assert reason in opened.obstacle
    with pytest.raises(ICISDeployError) as injecting:
        icis_deploy.inject(opened, descriptors=descriptors)
    with pytest.raises(ICISDeployError) as exporting:
        icis_deploy.export(opened, out=tmp_path / "bundle")
    assert str(injecting.value) == str(exporting.value) == opened.obstacle
    assert not (tmp_path / "bundle").exists()


def test_nothing_is_told_of_a_model_that_can_be_exported(tmp_path: Path):
    path = model_file(tmp_path, "float", "l = Gemm <transB = 1> (x, w) y = Softmax (l)")

    assert icis_deploy.inspect(path).obstacle is None
