"""What can be said in several ways is brought to one, and computes what it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

import icis_deploy
from exporters.graph.plain_forms import PlainFormsPass
from exporters.loading.models import load_model

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(4, 3, 2, 2)).astype(np.float32)


def write(path: Path, body: str, inputs: str = "float[batch, 3, 2, 2] x", output: str = "float[batch, 5] y") -> Path:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        net ({inputs}) => ({output}) {{ p = GlobalAveragePool (x) {body} }}"""
    )
    weight = RNG.normal(size=(5, 3)).astype(np.float32)
    arrays = {"maps": weight[:, :, None, None], "weight": weight.T, "bias": RNG.normal(size=5).astype(np.float32)}
    arrays |= {"nought": np.array(0), "two": np.array(2.0, dtype=np.float32)}
    arrays["deep"] = np.full((1, 1, 1), 2.0, dtype=np.float32)
    taken = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(array, order="C"), name)
        for name, array in arrays.items()
        if name in taken
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("head", ["fused", "updatable"])
@pytest.mark.parametrize(
    "body",
    [
        "z = Conv (p, maps, bias) y = Squeeze (z)",
        "z = Conv (p, maps, bias) s = Softmax <axis = 1> (z) y = Squeeze (s)",
        "f = Flatten (p) m = MatMul (f, weight) y = Sum (m, bias)",
        "z = Conv (p, maps, bias) a = Gather <axis = 3> (z, nought) y = Gather <axis = 2> (a, nought)",
        "f = Flatten (p) m = MatMul (f, weight) s = Shape (m) t = ConstantOfShape <value = float[1] {2}> (s) "
        "y = Div (m, t)",
        "f = Flatten (p) m = MatMul (f, weight) s = Shape <start = 0> (m) t = Expand (two, s) y = Mul (t, m)",
    ],
    ids=["squeeze", "squeeze of probabilities", "sum", "the only position", "one number", "one number, expanded"],
)
def test_one_image_gets_the_answer_that_it_gets_among_others(tmp_path: Path, body: str, head: str):
    """A Squeeze of whatever is 1 takes the batch of one image away too; the bundle's does not."""
    path = write(tmp_path / "model.onnx", body)
    opened = icis_deploy.inspect(path, classes=["a", "b", "c", "d", "e"])
    assert opened.head is not None
    row = np.append(opened.head.weight[1], opened.head.bias[1])[None]
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=row, added=("new",))
    options = icis_deploy.ExportOptions(head=head, capacity=2 if head == "updatable" else None)
    icis_deploy.export(opened, updates=[update], out=tmp_path / "bundle", options=options)

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], {"x": INPUTS})
    with icis_deploy.Device.open(tmp_path / "bundle") as device:
        one, all_of_them = device.logits(INPUTS[:1]).values, device.logits(INPUTS).values
    np.testing.assert_allclose(one, all_of_them[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one[:, 5], one[:, 1], rtol=1e-5, atol=1e-6)
    found = np.exp(one[:, :5]) if "Softmax" in body else one[:, :5]
    wanted = expected[:1]
    scale = found.sum() if "Softmax" in body else 1.0
    np.testing.assert_allclose(found / scale, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_a_model_of_one_image_whose_scores_have_no_axis_of_images_goes_the_whole_way(tmp_path: Path, head: str):
    body = "z = Conv (p, maps, bias) y = Squeeze (z)"
    path = write(tmp_path / "model.onnx", body, inputs="float[1, 3, 2, 2] x", output="float[5] y")
    opened = icis_deploy.inspect(path, classes=["a", "b", "c", "d", "e"])
    options = icis_deploy.ExportOptions(head=head, capacity=2 if head == "updatable" else None)
    icis_deploy.export(opened, out=tmp_path / "bundle", options=options)

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], {"x": INPUTS[:1]})
    with icis_deploy.Device.open(tmp_path / "bundle") as device:
        np.testing.assert_allclose(device.logits(INPUTS[:1]).values[0], expected, rtol=1e-5, atol=1e-6)
    assert icis_deploy.verify(tmp_path / "bundle", against=path)


@pytest.mark.parametrize(
    "spread",
    [
        "s = Shape (p) t = ConstantOfShape <value = float[1] {2}> (s)",  # of another shape
        "s = Shape <start = 1> (m) t = Expand (two, s)",
        "s = Shape (m) t = Expand (bias, s)",
        "s = Shape (m) t = Expand (deep, s)",
    ],
)
def test_what_is_no_number_of_the_same_shape_stays(tmp_path: Path, spread: str):
    body = f"f = Flatten (p) m = MatMul (f, weight) {spread} y = Div (m, t)"
    path = write(tmp_path / "model.onnx", body, output="float y")
    model = PlainFormsPass()(ir.load(path)).model

    assert model.graph[-1].inputs[1].producer() is model.graph[-2]


def test_a_temperature_of_a_torch_module_goes_into_its_head(tmp_path: Path):
    torch = pytest.importorskip("torch")

    class Tempered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 5)

        def forward(self, images):
            logits = self.head(images.mean((2, 3)))
            return logits / torch.full_like(logits, 2.0)

    module = Tempered().eval()
    source = icis_deploy.ModelSource(spec=module, input_shape=(3, 2, 2))
    opened = icis_deploy.inspect(source, classes=["a", "b", "c", "d", "e"])

    assert opened.head is not None
    np.testing.assert_allclose(opened.head.weight, module.head.weight.detach().numpy() / 2, rtol=1e-6)


def test_a_squeeze_of_what_may_be_more_than_the_batch_stays(tmp_path: Path):
    path = write(
        tmp_path / "model.onnx",
        "f = Flatten (p) y = MatMul (f, weight) s = Squeeze (x)",
        inputs="float[batch, 3, tall, 1] x",
        output="float[batch, 5] y, float[a, b, c] s",
    )
    (squeeze,) = [node for node in load_model(str(path)).model.graph if node.op_type == "Squeeze"]

    assert len(squeeze.inputs) == 1


def test_scores_that_are_given_in_float16_are_compared_as_such(tmp_path: Path):
    body = "f = Flatten (p) m = MatMul (f, weight) y = Cast <to = 10> (m)"
    path = write(tmp_path / "model.onnx", body, output="float16[batch, 5] y")

    assert icis_deploy.export(path, classes=["a", "b", "c", "d", "e"], out=tmp_path / "bundle")


def test_an_output_that_is_called_as_the_features_are_is_said_before_anything_is_made(tmp_path: Path):
    body = "features = Flatten (x) f = Flatten (p) y = MatMul (f, weight)"
    path = write(tmp_path / "model.onnx", body, output="float[batch, 5] y, float[batch, 12] features")

    assert "has an output 'features' already" in str(icis_deploy.inspect(path).obstacle)
