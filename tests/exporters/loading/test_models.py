"""Loading a model, whatever it comes as, and running what the user had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head
from exporters.loading.models import load_model, parse_input_shape
from exporters.loading.original import _edited
from exporters.onnx_io.files import save_model
from icis_deploy.bundle.manifest import SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.errors import IncompatibleError, ModelLoadError, RuntimeFailureError, UsageError
from tests.exporters.head_graphs import GRAPHS, HEADER, parsed_model, rows

FACTORY = """
import torch

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.classifier = torch.nn.Linear(4, 5)

    def forward(self, image):
        return self.classifier(self.conv(image).relu().mean(dim=(2, 3)))

class Stating(Small):
    default_cfg = {"input_size": (3, 16, 16)}
"""


@pytest.fixture
def onnx_path(tmp_path: Path) -> Path:
    """An ONNX classifier that ends in a softmax."""
    save_model(GRAPHS["softmax"].model(*rows(0)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a factory and its weights, which is the current folder."""
    (tmp_path / "small_models.py").write_text(FACTORY, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "small_models", raising=False)
    torch.manual_seed(0)
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.randn(4),
        "classifier.weight": torch.randn(5, 4),
        "classifier.bias": torch.randn(5),
    }
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path


def test_an_onnx_file_states_its_input_and_runs_as_it_is(onnx_path: Path):
    loaded = load_model(str(onnx_path))
    images = GRAPHS["softmax"].images(0)

    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": images})
    assert (loaded.source, loaded.spec, loaded.input_name) == ("onnx", str(onnx_path), "x")
    assert (loaded.input_shape, loaded.input_dtype) == (("batch", 4), np.float32)
    assert loaded.output_names == ("scores",)
    np.testing.assert_array_equal(loaded.original_logits(images), expected)


def test_any_value_of_the_original_onnx_file_can_be_asked_for(onnx_path: Path):
    loaded = load_model(str(onnx_path))
    images = GRAPHS["softmax"].images(0)

    logits = loaded.original_logits(images, "logits")

    exponents = np.exp(logits)
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.original_logits(images, "scores"), probabilities, rtol=1e-5)
    with pytest.raises(IncompatibleError, match="has no value 'absent'"):
        loaded.original_logits(images, "absent")


@pytest.mark.parametrize("output", ["scores", "logits"])
def test_a_size_of_0_in_an_onnx_file_is_any_size_where_the_original_runs(onnx_path: Path, tmp_path: Path, output: str):
    proto = onnx.load(onnx_path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0
    onnx.save(proto, tmp_path / "open.onnx")
    images = GRAPHS["softmax"].images(0)

    given = load_model(str(tmp_path / "open.onnx")).original_logits(images, output)

    np.testing.assert_array_equal(given, load_model(str(onnx_path)).original_logits(images, output))


def test_a_value_is_asked_for_without_putting_weights_beside_the_model_into_a_protobuf(
    onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So a model of more than 2 GB whose only output is a choice can be compared."""
    images = GRAPHS["softmax"].images(0)
    expected = load_model(str(onnx_path)).original_logits(images, "logits")
    folder = tmp_path / "other"
    folder.mkdir()
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(onnx.load(onnx_path), folder / "model.onnx", **options)

    extended = _edited(folder / "model.onnx", "logits")
    assert {tensor.data_location for tensor in onnx.load_from_string(extended).graph.initializer} == {1}
    assert onnx.load_from_string(extended).graph.output[-1].name == "logits"
    for folder_name, path in ((tmp_path, "other/model.onnx"), (folder, "model.onnx")):
        monkeypatch.chdir(folder_name)
        np.testing.assert_array_equal(load_model(path).original_logits(images, "logits"), expected)


def test_a_fixed_batch_is_run_in_pieces(tmp_path: Path):
    model = parsed_model(
        f"{HEADER} g (float[2, 4] x) => (float[2, 5] y) {{ y = Gemm <transB = 1> (x, w, b) }}",
        w=rows(0)[0],
        b=rows(0)[1],
    )
    save_model(model, tmp_path / "fixed.onnx")
    images = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)

    loaded = load_model(str(tmp_path / "fixed.onnx"))

    assert loaded.input_shape == (2, 4)
    np.testing.assert_allclose(loaded.original_logits(images), images @ rows(0)[0].T + rows(0)[1], atol=1e-5)


def test_a_float16_model_gets_float16_and_gives_float32(tmp_path: Path):
    model = parsed_model(
        f"{HEADER} g (float16[batch, 4] x) => (float16[batch, 5] y) {{ y = Gemm <transB = 1> (x, w) }}",
        w=rows(0)[0].astype(np.float16),
    )
    save_model(model, tmp_path / "half.onnx")

    loaded = load_model(str(tmp_path / "half.onnx"))

    logits = loaded.original_logits(np.ones((1, 4), dtype=np.float32))
    assert loaded.input_dtype == np.float16
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, rows(0)[0].sum(axis=1)[None], atol=1e-2)


def test_a_factory_with_a_given_shape_is_exported_and_runs_in_torch(project: Path):
    loaded = load_model("small_models:Small", project / "weights.pth", (3, 12, 12))
    images = np.random.default_rng(0).normal(size=(3, 3, 12, 12)).astype(np.float32)

    small = sys.modules["small_models"].Small()
    small.load_state_dict(torch.load(project / "weights.pth", weights_only=True))
    with torch.no_grad():
        expected = small(torch.from_numpy(images)).numpy()
    assert (loaded.source, loaded.input_name, loaded.input_shape) == ("factory", "image", ("batch", 3, 12, 12))
    np.testing.assert_array_equal(loaded.original_logits(images, "logits"), expected)
    assert find_head(loaded.model).num_classes == 5
    with pytest.raises(IncompatibleError, match="The torch model does not return 'mean', only logits"):
        loaded.original_logits(images, "mean")


def test_a_factory_whose_module_states_its_shape_needs_no_option(project: Path):
    assert load_model("small_models:Stating", project / "weights.pth").input_shape == ("batch", 3, 16, 16)


def test_a_factory_without_a_shape_names_the_option(project: Path):
    with pytest.raises(UsageError) as caught:
        load_model("small_models:Small", project / "weights.pth")

    assert str(caught.value) == (
        "small_models:Small does not state the shape of its input. Give it, such as `input_shape=(3, 224, 224)`."
    )


def test_a_factory_without_weights_names_the_option(project: Path):
    with pytest.raises(UsageError, match=r"small_models:Small needs trained weights\. Give a file .* as `weights`"):
        load_model("small_models:Small")


def test_weights_for_a_file_that_has_its_own_are_refused(onnx_path: Path):
    with pytest.raises(UsageError, match=r"holds its own weights; others go with package.*Leave `weights` out"):
        load_model(str(onnx_path), onnx_path)


@pytest.mark.parametrize(
    ("name", "found", "cure"),
    [
        ("model.h5", "a file of type .h5", "Convert it to ONNX, with tf2onnx, and give that."),
        ("weights.pth", "a file of type .pth", "Weights alone are no model: give them as `weights`, and "),
        ("new.icis", "a file of type .icis", "It is a class update: give the model that it was made for, and the "),
        ("other", "a file of type unknown", "Give the model itself; what is ONNX ends in .onnx."),
        ("folder", "a folder without a config.json of transformers", "Give the folder that save_pretrained() wrote"),
        ("models", "a folder without a config.json of transformers", "Give the file: {}/models/a.onnx."),
        ("bundle", "a bundle, which was made of a model", "Give the model that it was exported from;"),
        ("model.hh5", "nothing of that name", "Did you mean '{}/model.h5'? Check the path, or give a factory with "),
        ("nothing", "nothing of that name", "Check the path, or give a factory with `weights`."),
    ],
)
def test_anything_else_says_what_was_found_and_what_to_give_instead(tmp_path: Path, name: str, found: str, cure: str):
    for file in ("model.h5", "weights.pth", "new.icis", "other"):
        (tmp_path / file).touch()
    for file in ("models/a.onnx", "models/b.onnx", "bundle/manifest.json", "bundle/model.onnx", "folder/readme"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()

    with pytest.raises(ModelLoadError) as caught:
        load_model(str(tmp_path / name))

    assert str(caught.value).startswith(
        f"{tmp_path / name} is no model that can be loaded: found {found}. Expected a .onnx file, a .pt2 torch.export "
        f"program, a folder of transformers or the name of a model on its hub, or package.module:factory with weights. "
        + cure.format(tmp_path)
    )


def test_a_function_without_its_colon_is_shown_with_it():
    with pytest.raises(ModelLoadError, match=r"If it is a function of a module, write torchvision\.models:resnet18\. "):
        load_model("torchvision.models.resnet18")


def test_open_sizes_are_filled_by_the_option_and_fixed_ones_must_agree(tmp_path: Path):
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4, h, w] x) => (float[batch, 5] y) {{
            p = GlobalAveragePool (x)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, rows)
        }}""",
        rows=rows(0)[0],
    )
    save_model(model, tmp_path / "open.onnx")
    spec = str(tmp_path / "open.onnx")

    assert load_model(spec).input_shape == ("batch", 4, "h", "w")
    assert load_model(spec, input_shape=(4, 8, 6)).input_shape == ("batch", 4, 8, 6)
    for wrong in [(3, 8, 6), (4, 8)]:
        with pytest.raises(UsageError, match=r"The input shape .* does not fit .*open\.onnx, whose input is"):
            load_model(spec, input_shape=wrong)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("float[batch, 4] x, float[batch, 4] mask", r"has 2 inputs \(x, mask\); expected one, for the images"),
        ("float x", r"does not state the shape of its input 'x'"),
    ],
)
def test_a_model_that_does_not_take_just_images_is_refused(tmp_path: Path, inputs: str, message: str):
    extra = "a = Add (x, mask) y = Relu (a)" if "mask" in inputs else "y = Relu (x)"
    onnx.save(
        onnx.parser.parse_model(f"{HEADER} g ({inputs}) => (float[batch, 4] y) {{ {extra} }}"), tmp_path / "m.onnx"
    )

    with pytest.raises(ModelLoadError, match=message):
        load_model(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 3), (2, 4, 1)])
def test_images_of_another_shape_are_refused(onnx_path: Path, shape: tuple[int, ...]):
    with pytest.raises(IncompatibleError, match=r"The images have shape .*; the model takes \['batch', 4\]"):
        load_model(str(onnx_path)).original_logits(np.ones(shape, dtype=np.float32))


def test_an_onnx_file_that_no_runtime_can_run_says_so_when_it_is_run(tmp_path: Path):
    text = """<ir_version: 10, opset_import: ["": 20, "nobody": 1]> g (float[batch, 4] x) => (float[batch, 4] y) {
        y = nobody.Knows (x)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "custom.onnx")
    loaded = load_model(str(tmp_path / "custom.onnx"))

    with pytest.raises(ModelLoadError, match=r"ONNX Runtime cannot run .*custom\.onnx: .*Knows"):
        loaded.original_logits(np.ones((1, 4), dtype=np.float32))


def test_a_failure_of_the_original_is_one_line(tmp_path: Path):
    model = parsed_model(
        f"""{HEADER} g (float[batch, 4] x) => (float[3, 4] y) <int64[2] three = {{3, 4}}> {{
            y = Reshape (x, three)
        }}"""
    )
    save_model(model, tmp_path / "three.onnx")
    loaded = load_model(str(tmp_path / "three.onnx"))

    with pytest.raises(RuntimeFailureError, match=r"three\.onnx failed on images of shape \(2, 4\)") as caught:
        loaded.original_logits(np.ones((2, 4), dtype=np.float32))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3,224,224", "3x224x224", "(3, 224, 224)", "[3,224,224]"])
def test_shapes_are_read_as_people_write_them(text: str):
    assert parse_input_shape(text) == (3, 224, 224)


@pytest.mark.parametrize("text", ["", "3,", "big", "3,0,2", "-1,2", "3.5"])
def test_what_is_no_shape_is_a_usage_error(text: str):
    with pytest.raises(UsageError, match="is no shape; expected one image's sizes, such as 3,224,224"):
        parse_input_shape(text)


def test_an_onnx_model_is_loaded_edited_and_saved_without_torch(onnx_path: Path):
    program = f"""
import sys
from pathlib import Path
from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head
from exporters.head.surgery import AddSlotsPass
from exporters.loading.models import load_model
from exporters.onnx_io.files import save_model
from exporters.loading.original import _edited
loaded = load_model({str(onnx_path)!r})
updatable = apply_passes(loaded.model, AddSlotsPass(find_head(loaded.model), 3))
save_model(updatable, Path({str(onnx_path.with_name("out.onnx"))!r}))
print([name for name in ("torch", "onnxscript") if name in sys.modules])
"""

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_the_real_onnx_file_keeps_its_seen_logits_to_the_last_bit(imagenet_mobilenet: Path, tmp_path: Path):
    from exporters.head.surgery import AddSlotsPass

    loaded = load_model(str(imagenet_mobilenet / "model.onnx"))
    location = find_head(loaded.model)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)

    save_model(apply_passes(loaded.model, AddSlotsPass(location, 256)), tmp_path / "updatable.onnx")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "updatable.onnx", options, providers=["CPUExecutionProvider"])
    logits, features = session.run(None, {"image": images})
    assert (location.kind, location.weight_name) == ("gemm", "classifier.weight")
    assert (logits.shape, features.shape) == ((2, 800 + 256), (2, 1280))
    np.testing.assert_array_equal(logits[:, :800], loaded.original_logits(images))


def test_a_bundles_model_with_slots_is_refused_with_what_to_give_instead(tmp_path: Path):
    model = GRAPHS["gemm"].model(*rows(0))
    for name, array in zip((SLOT_WEIGHT, SLOT_BIAS), rows(1), strict=True):
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array)))
    save_model(model, tmp_path / "model.onnx")

    with pytest.raises(ModelLoadError, match="is the model of a bundle, with slots") as refused:
        load_model(str(tmp_path / "model.onnx"))

    assert "Give the model that it was exported from" in str(refused.value)
