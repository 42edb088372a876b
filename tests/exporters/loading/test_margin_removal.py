"""Training margins that read labels are taken out, and what is left is the cosine head that was trained."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head, read_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from exporters.loading.margin_removal import RemoveMarginPass
from exporters.loading.models import load_model
from icis_deploy.errors import IncompatibleError, ModelLoadError
from tests.exporters.head_graphs import parsed_model, rows, run_model, unit

SCALE = 16.0
NAMES = tuple(f"class {index}" for index in range(5))
UNIT_ROWS = unit(rows(0)[0])
IMAGES = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)

MASKS = {
    "one-hot": "mask = OneHot <axis = 1> (label, depth, values)",
    "comparison": """column = Unsqueeze (label, last)
        chosen = Equal (classes, column)
        mask = Cast <to = 1> (chosen)""",
    "scattered ones": """sizes = Shape (cosine)
        empty = Expand (zero, sizes)
        column = Reshape (label, as_column)
        label_sizes = Shape (column)
        ones = ConstantOfShape <value = float[1] {1.0}> (label_sizes)
        mask = ScatterElements <axis = 1> (empty, column, ones)""",
}
MARGINS = {
    "CosFace": """held_back = Mul (mask, margin)
        marginal = Sub (cosine, held_back)""",
    "ArcFace": """square = Mul (cosine, cosine)
        rest = Sub (one, square)
        kept = Clip (rest, zero, one)
        sine = Sqrt (kept)
        left = Mul (cosine, margin_cosine)
        right = Mul (sine, margin_sine)
        turned = Sub (left, right)
        own = Mul (mask, turned)
        other_mask = Sub (one, mask)
        other = Mul (other_mask, cosine)
        marginal = Add (own, other)""",
    "ArcFace, by choice": """turned = Sub (cosine, margin)
        is_own = Cast <to = 9> (mask)
        marginal = Where (is_own, turned, cosine)""",
    "angle": """safe = Clip (cosine, minus_one, one)
        angle = Acos (safe)
        more = Mul (mask, margin)
        wider = Add (angle, more)
        marginal = Cos (wider)""",
}
CONSTANTS = """<float scale = {16}, float margin = {0.5}, float margin_cosine = {0.8776}, float margin_sine = {0.4794},
    float zero = {0}, float one = {1}, float minus_one = {-1}, int64 depth = {5}, float[2] values = {0, 1},
    int64[1] last = {-1}, int64[5] classes = {0, 1, 2, 3, 4}, int64[2] as_column = {-1, 1}>"""


def training_graph(mask: str, margin: str, after: str = "logits = Mul (marginal, scale)") -> str:
    return f"""<ir_version: 10, opset_import: ["": 20]>
    g (float[batch, 4] x, int64[batch] label) => (float[batch, 5] logits) {CONSTANTS} {{
        features = LpNormalization <axis = 1> (x)
        [head] cosine = MatMul (features, w)
        {mask}
        {margin}
        {after}
    }}"""


def weights() -> dict[str, np.ndarray]:
    return {"w": np.ascontiguousarray(UNIT_ROWS.T)}


def expected_logits(images: np.ndarray) -> np.ndarray:
    return SCALE * (images / np.linalg.norm(images, axis=1, keepdims=True)) @ UNIT_ROWS.T


@pytest.mark.parametrize("margin", MARGINS.values(), ids=MARGINS.keys())
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_without_its_margin_a_head_is_the_cosine_head_that_was_trained(mask: str, margin: str):
    training = parsed_model(training_graph(mask, margin), **weights())

    model = apply_passes(training, RemoveMarginPass(labels="label", images="x"))

    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [node.op_type for node in model.graph] == ["LpNormalization", "MatMul", "Mul"]
    location = find_head(model)
    head = read_head(model, location, NAMES)
    assert (location.kind, location.certainty) == ("cosine", "certain")
    np.testing.assert_allclose(head.weight, SCALE * UNIT_ROWS, rtol=1e-6)
    np.testing.assert_allclose(run_model(model, x=IMAGES)["logits"], expected_logits(IMAGES), atol=1e-5)
    expanded = head.expand(np.ones((1, 5)), ["new"])
    updatable = run_model(
        apply_passes(model, AddSlotsPass(location, 1)),
        x=IMAGES,
        slot_weight=np.ones((1, 4), np.float32),
        slot_bias=np.ones(1, np.float32),
    )
    fused = run_model(apply_passes(model, FuseHeadPass(location, expanded)), x=IMAGES)
    np.testing.assert_allclose(updatable["logits"], expanded.logits(updatable["features"]), atol=1e-5)
    np.testing.assert_allclose(fused["logits"], expanded.logits(updatable["features"]), atol=1e-5)


@pytest.mark.parametrize("margin", MARGINS.values(), ids=MARGINS.keys())
def test_the_training_graph_does_hold_back_the_label(margin: str):
    """Otherwise the tests above would show nothing."""
    training = parsed_model(training_graph(MASKS["one-hot"], margin), **weights())

    with_labels = run_model(training, x=IMAGES, label=np.array([0, 1, 2, 3]))["logits"]

    difference = expected_logits(IMAGES) - with_labels
    assert (np.abs(np.diag(difference[:, :4])) > 0.1).all()


def test_a_file_with_a_margin_is_loaded_without_labels_and_compared_without_its_margin(tmp_path: Path):
    proto = onnx.parser.parse_model(training_graph(MASKS["scattered ones"], MARGINS["ArcFace"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights()["w"], "w"))
    onnx.save(proto, tmp_path / "arcface.onnx")

    loaded = load_model(str(tmp_path / "arcface.onnx"))

    assert (loaded.input_name, loaded.input_shape) == ("x", ("batch", 4))
    np.testing.assert_allclose(loaded.original_logits(IMAGES), expected_logits(IMAGES), atol=1e-5)
    np.testing.assert_array_equal(loaded.original_logits(IMAGES), run_model(loaded.model, x=IMAGES)["logits"])


class ArcFace(nn.Module):
    """ArcFace as it is usually written, with the label as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 4)
        self.rows = nn.Parameter(torch.randn(5, 4))

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        margin = 0.5
        cosine = F.linear(F.normalize(self.backbone(image)), F.normalize(self.rows))
        sine = torch.sqrt((1.0 - cosine.pow(2)).clamp(0, 1))
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        turned = torch.where(cosine > math.cos(math.pi - margin), turned, cosine - math.sin(math.pi - margin) * margin)
        own = F.one_hot(label, 5).float()
        return (own * turned + (1 - own) * cosine) * 30


def test_a_torch_program_with_a_margin_is_loaded_without_labels(tmp_path: Path):
    torch.manual_seed(0)
    module = ArcFace().eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (torch.randn(3, 8), torch.tensor([0, 1, 2])), dynamic_shapes=(batch, batch))
    torch.export.save(program, tmp_path / "arcface.pt2")
    images = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)

    loaded = load_model(str(tmp_path / "arcface.pt2"))

    with torch.no_grad():
        features = F.normalize(module.backbone(torch.from_numpy(images)))
        expected = (30 * features @ F.normalize(module.rows).T).numpy()
    location = find_head(loaded.model)
    head = read_head(loaded.model, location, NAMES)
    np.testing.assert_allclose(loaded.original_logits(images), expected, atol=2e-5)
    np.testing.assert_allclose(run_model(loaded.model, image=images)["logits"], expected, atol=2e-5)
    np.testing.assert_allclose(head.logits(features.numpy()), expected, atol=2e-5)


def test_labels_that_are_more_than_a_mask_are_refused():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[batch, 4] x, int64[batch] label) => (float[batch, 5] logits) {
        [prior] conditions = Gather (table, label)
        conditioned = Add (x, conditions)
        logits = MatMul (conditioned, w)
    }"""
    model = parsed_model(text, table=np.ones((5, 4), dtype=np.float32), **weights())

    with pytest.raises(ModelLoadError) as caught:
        apply_passes(model, RemoveMarginPass(labels="label", images="x"))

    assert str(caught.value) == (
        "The input 'label' feeds prior (Gather), which is no mask over the classes, so the margin cannot be taken out. "
        "Export the model in evaluation mode, without labels."
    )


def test_an_original_whose_every_output_depends_on_the_label_cannot_be_compared(tmp_path: Path):
    text = training_graph(
        MASKS["one-hot"], MARGINS["CosFace"], "scaled = Mul (marginal, scale) logits = Softmax <axis = 1> (scaled)"
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights()["w"], "w"))
    onnx.save(proto, tmp_path / "softmax.onnx")
    loaded = load_model(str(tmp_path / "softmax.onnx"))

    with pytest.raises(IncompatibleError, match="The model's output 'logits' changes in every class with the labels"):
        loaded.original_logits(IMAGES)

    np.testing.assert_allclose(loaded.original_logits(IMAGES, "scaled"), expected_logits(IMAGES), atol=1e-5)
