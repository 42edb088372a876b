"""torch models become ONNX graphs whose heads are found, read and expanded."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head, read_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from exporters.loading.torch_export import export_module, load_program, onnx_from_program
from exporters.onnx_io.files import serialize_model
from icis_deploy.errors import ExportError, ModelLoadError
from tests.exporters.head_graphs import run_model

NUM_CLASSES = 6
NAMES = tuple(f"class {index}" for index in range(NUM_CLASSES))
IMAGE_SHAPE = (3, 32, 32)


class Backbone(nn.Module):
    """A small convolutional network: images `(batch, 3, 32, 32)` to a map `(batch, 8, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class PooledLinear(nn.Module):
    """The usual classifier, with dropout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(8, NUM_CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.backbone(image).mean(dim=(2, 3))))


class ConvBeforePooling(nn.Module):
    """A 1x1 convolution gives a map of logits, which is then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self.head(self.backbone(image)), 1).flatten(1)


class ConvAfterPooling(ConvBeforePooling):
    """A 1x1 convolution as timm's and MobileNetV3's heads have it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(self.backbone(image), 1)
        return self.head(pooled).view(image.shape[0], -1)


class Cosine(nn.Module):
    """Normalised features times normalised rows, times a learned scale that is stored as its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.rows = nn.Parameter(torch.randn(NUM_CLASSES, 8))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = F.normalize(self.backbone(image).mean(dim=(2, 3)), dim=1)
        return self.log_scale.exp() * F.linear(features, F.normalize(self.rows, dim=1))


class WithProbabilities(PooledLinear):
    """A classifier that returns its probabilities besides its logits."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = super().forward(image) / 0.7
        return {"logits": logits, "probabilities": logits.softmax(dim=-1)}


def resnet18() -> nn.Module:
    """Return a ResNet of basic blocks, as ResNet-18 is, of small width and depth."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=NUM_CLASSES
    )
    return ResNetForImageClassification(config)


def vision_transformer() -> nn.Module:
    """Return a vision transformer of small width and depth."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=NUM_CLASSES,
    )
    return ViTForImageClassification(config)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear after pooling": (PooledLinear, "gemm"),
    "1x1 conv before pooling": (ConvBeforePooling, "conv"),
    "1x1 conv after pooling": (ConvAfterPooling, "conv"),
    "cosine": (Cosine, "cosine"),
    "ResNet-18": (resnet18, "gemm"),
    "vision transformer": (vision_transformer, "gemm"),
}


def seeded(factory: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return factory().eval()


def images(batch: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *IMAGE_SHAPE)).astype(np.float32)


def torch_logits(module: nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = module(torch.from_numpy(batch))
    return (output if isinstance(output, torch.Tensor) else output["logits"]).numpy()


@pytest.mark.parametrize(("factory", "kind"), ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_a_torch_model_keeps_its_logits_through_export_and_surgery(factory, kind, capfd):
    module = seeded(factory)
    batch = images()

    model = onnx_from_program(export_module(module, IMAGE_SHAPE))

    location = find_head(model)
    head = read_head(model, location, NAMES)
    new = np.random.default_rng(1).normal(size=(4, location.feature_dim + 1)).astype(np.float32)
    expanded = head.expand(new, ["a", "b", "c", "d"])
    (input_name,) = [value.name for value in model.graph.inputs]
    own = run_model(model, **{input_name: batch})["logits"]
    updatable = run_model(
        apply_passes(model, AddSlotsPass(location, 4)),
        **{input_name: batch},
        slot_weight=new[:, :-1],
        slot_bias=new[:, -1],
    )
    fused = run_model(apply_passes(model, FuseHeadPass(location, expanded)), **{input_name: batch})

    assert (location.kind, location.certainty, location.num_classes) == (kind, "certain", NUM_CLASSES)
    expected = expanded.logits(updatable["features"])
    np.testing.assert_allclose(own, torch_logits(module, batch), atol=2e-5)
    np.testing.assert_array_equal(updatable["logits"][:, :NUM_CLASSES], own)
    np.testing.assert_allclose(updatable["logits"], expected, atol=2e-5)
    np.testing.assert_allclose(fused["logits"], expected, atol=2e-5)
    assert capfd.readouterr() == ("", "")


def test_a_linear_layers_rows_are_its_parameters_own_bits():
    module = seeded(PooledLinear)

    model = onnx_from_program(export_module(module, IMAGE_SHAPE))

    head = read_head(model, find_head(model), NAMES)
    np.testing.assert_array_equal(head.weight, module.classifier.weight.detach().numpy())
    np.testing.assert_array_equal(head.bias, module.classifier.bias.detach().numpy())


def test_the_graph_has_a_batch_of_any_size_the_programs_input_name_and_opset_20():
    model = onnx_from_program(export_module(seeded(PooledLinear), IMAGE_SHAPE))

    (image,), (logits,) = model.graph.inputs, model.graph.outputs
    assert (image.name, [str(size) for size in image.shape]) == ("image", ["batch", "3", "32", "32"])
    assert (logits.name, [str(size) for size in logits.shape]) == ("logits", ["batch", "6"])
    assert model.opset_imports[""] == 20
    for batch in (1, 5):
        assert run_model(model, image=images(batch))["logits"].shape == (batch, NUM_CLASSES)


def test_of_several_outputs_each_keeps_its_name_and_the_logits_are_found():
    module = seeded(WithProbabilities)
    model = onnx_from_program(export_module(module, IMAGE_SHAPE))

    location = find_head(model)
    head = read_head(model, location, NAMES)

    assert location.followed_by == ()
    scores = run_model(apply_passes(model, AddSlotsPass(location, 2)), image=images())
    np.testing.assert_allclose(scores[location.output_name][:, :NUM_CLASSES], torch_logits(module, images()), atol=2e-5)
    np.testing.assert_allclose(head.logits(scores["features"]), torch_logits(module, images()), atol=2e-5)


def test_nothing_of_this_machine_is_left_in_the_graph():
    data = serialize_model(onnx_from_program(export_module(seeded(PooledLinear), IMAGE_SHAPE)))

    assert b".py" not in data
    assert b"stack_trace" not in data
    assert str(Path(__file__).parent).encode() not in data


def test_a_saved_program_is_loaded(tmp_path: Path):
    module = seeded(PooledLinear)
    torch.export.save(export_module(module, IMAGE_SHAPE), tmp_path / "model.pt2")

    model = onnx_from_program(load_program(tmp_path / "model.pt2"))

    np.testing.assert_allclose(run_model(model, image=images())["logits"], torch_logits(module, images()), atol=2e-5)


def test_a_missing_program_is_named():
    with pytest.raises(ModelLoadError, match=r"There is no model file nowhere\.pt2"):
        load_program(Path("nowhere.pt2"))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_program_is_refused_in_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)

    with pytest.raises(ModelLoadError, match=r"is not a \.pt2 archive") as caught:
        load_program(path)

    assert "\n" not in str(caught.value)


def test_a_truncated_program_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "model.pt2"
    torch.export.save(export_module(seeded(PooledLinear), IMAGE_SHAPE), path)
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(ModelLoadError, match="truncated") as caught:
        load_program(path)

    assert "\n" not in str(caught.value)


def test_a_zip_file_of_something_else_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("readme.txt", "nothing")

    with pytest.raises(ModelLoadError, match=r"is no torch.export archive of torch 2.8 or newer"):
        load_program(tmp_path / "model.pt2")


class Payload:
    """What a pickle of it would do when read: write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy an archive, each of its files as `change(name, content)` gives it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.fixture(scope="module")
def program_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved program."""
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(export_module(seeded(PooledLinear), IMAGE_SHAPE), path)
    return path


def test_a_weight_that_is_a_pickle_is_refused_before_it_runs(program_path: Path, tmp_path: Path):
    ran = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Payload(ran), buffer)
    stored_as = ""

    def mark(name: str, content: bytes) -> bytes:
        nonlocal stored_as
        if not name.endswith("weights_config.json"):
            return content
        config = json.loads(content)
        stored_as = config["config"]["classifier.weight"]["path_name"]
        config["config"]["classifier.weight"]["use_pickle"] = True
        return json.dumps(config).encode()

    def fill(name: str, content: bytes) -> bytes:
        return buffer.getvalue() if name.endswith(f"/weights/{stored_as}") else content

    path = rewritten(rewritten(program_path, tmp_path / "marked.pt2", mark), tmp_path / "evil.pt2", fill)

    with pytest.raises(ModelLoadError, match=r"stores 'classifier.weight' as a pickle, which can run any code"):
        load_program(path)

    assert not ran.exists()
    with pytest.raises(torch._export.verifier.SpecViolationError):
        torch.export.load(path)
    assert ran.exists(), "torch itself would have run it, or this test shows nothing"


def test_sample_inputs_that_are_a_pickle_are_refused_before_they_run(program_path: Path, tmp_path: Path):
    ran = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Payload(ran), buffer)
    path = rewritten(
        program_path,
        tmp_path / "evil.pt2",
        lambda name, content: buffer.getvalue() if "/sample_inputs/" in name else content,
    )

    with pytest.raises(ModelLoadError, match="holds sample inputs that are not plain tensors"):
        load_program(path)
    assert not ran.exists()


class DependsOnValues(nn.Module):
    """Its path depends on what is in the images, which no graph can hold."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)[:, : int(image.abs().sum().item())]


class TakesNothing(nn.Module):
    """Its forward has no argument."""

    def forward(self) -> torch.Tensor:
        return torch.zeros(1)


def test_a_module_that_cannot_be_traced_says_so_in_one_line():
    with pytest.raises(ExportError, match=r"torch.export cannot trace DependsOnValues on inputs of shape") as caught:
        export_module(DependsOnValues().eval(), IMAGE_SHAPE)

    assert "\n" not in str(caught.value)


def test_a_shape_that_does_not_fit_the_module_names_the_option():
    with pytest.raises(ExportError, match="Check `input_shape`"):
        export_module(seeded(PooledLinear), (1, 32, 32))


def test_a_module_without_an_argument_is_refused():
    with pytest.raises(ExportError, match=r"TakesNothing.forward takes no argument; expected a batch of images"):
        export_module(TakesNothing().eval(), IMAGE_SHAPE)


def test_the_real_program_has_the_same_rows_as_the_real_onnx_file(imagenet_mobilenet: Path):
    names = (imagenet_mobilenet / "classes.txt").read_text("utf-8").split()
    program = onnx_from_program(load_program(imagenet_mobilenet / "model.pt2"))
    exported = ir.load(imagenet_mobilenet / "model.onnx")

    from_program = read_head(program, find_head(program), names)
    from_file = read_head(exported, find_head(exported), names)

    np.testing.assert_array_equal(from_program.rows, from_file.rows)
    assert from_program.fingerprint == from_file.fingerprint
    assert [str(size) for size in program.graph.inputs[0].shape] == ["batch", "3", "224", "224"]
