"""Linear classifiers of ai.onnx.ml become ONNX's own operators, and compute what ONNX Runtime computes for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import icis_deploy
from icis_deploy.errors import ModelLoadError

ML = "ai.onnx.ml"
NAMES = [f"class {index}" for index in range(4)]
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
BIAS = np.random.default_rng(1).normal(size=4).astype(np.float32)
IMAGES = (3 * np.random.default_rng(2).normal(size=(24, 3))).astype(np.float32)
LABELS = {
    "strings": (TensorProto.STRING, {"classlabels_strings": NAMES}),
    "numbers": (TensorProto.INT64, {"classlabels_ints": [5, 6, 7, 8]}),
}


def write(
    path: Path,
    *,
    labels: str = "strings",
    transform: str = "SOFTMAX",
    scaled: bool = False,
    normalised: bool = False,
    rows: int = 4,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    label_type, listed = LABELS[labels]
    scaler = helper.make_node("Scaler", ["x"], ["z"], domain=ML, offset=[0.5, -1.0, 2.0], scale=[2.0, 0.5, 0.25])
    classifier = helper.make_node(
        "LinearClassifier",
        ["z" if scaled else "x"],
        ["label", "raw" if normalised else "scores"],
        domain=ML,
        coefficients=WEIGHT[:rows].reshape(-1).tolist(),
        intercepts=BIAS[:rows].tolist(),
        multi_class=0,
        post_transform=transform,
        **listed,
    )
    normalizer = helper.make_node("Normalizer", ["raw"], ["scores"], domain=ML, norm="L1")
    graph = helper.make_graph(
        [*([scaler] if scaled else []), classifier, *([normalizer] if normalised else [])],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 3])],
        [
            helper.make_tensor_value_info("label", label_type, ["n"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)])
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def export_with_copy(folder: Path, path: Path) -> Path:
    """Export with one new class, whose row is that of class 1 with a greater bias: it wins where class 1 would."""
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    opened = icis_deploy.inspect(path, classes=folder / "classes.txt")
    assert opened.head is not None
    row = np.append(opened.head.weight[1], opened.head.bias[1] + 1)[None]
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=row, added=("new",))
    icis_deploy.export(opened, updates=[update], out=folder / "bundle")
    return folder / "bundle" / "model.onnx"


def run(path: Path, images: np.ndarray = IMAGES) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": images}), strict=True))


@pytest.mark.parametrize("scaled", [False, True], ids=["as given", "scaled"])
@pytest.mark.parametrize(
    ("transform", "normalised"), [("NONE", False), ("SOFTMAX", False), ("SOFTMAX", True), ("LOGISTIC", False)]
)
@pytest.mark.parametrize("labels", LABELS)
def test_a_linear_classifier_takes_classes_and_keeps_its_own(
    tmp_path: Path, labels: str, transform: str, normalised: bool, scaled: bool
):
    path = write(tmp_path / "model.onnx", labels=labels, transform=transform, scaled=scaled, normalised=normalised)

    before, after = run(path), run(export_with_copy(tmp_path, path))

    assert after["scores"].shape == (24, 5)
    seen = after["scores"][:, :4]
    if transform == "SOFTMAX":
        seen = seen / seen.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(seen, before["scores"], rtol=1e-4, atol=1e-6)
    wins = after["scores"].argmax(axis=1) == 4
    assert wins.any()
    assert not wins.all()
    np.testing.assert_array_equal(after["label"][~wins], before["label"][~wins])
    assert set(after["label"][wins].tolist()) == {"new" if labels == "strings" else 9}


def test_the_head_is_the_operators_rows(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))

    opened = icis_deploy.inspect(write(tmp_path / "model.onnx"), classes=tmp_path / "classes.txt")

    assert opened.head is not None
    np.testing.assert_array_equal(opened.head.weight, WEIGHT)
    np.testing.assert_array_equal(opened.head.bias, BIAS)
    assert opened.location.certainty == "certain"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": "SOFTMAX_ZERO"}, "followed by SOFTMAX_ZERO; expected one row for each class"),
        ({"transform": "PROBIT"}, "followed by PROBIT"),
        ({"rows": 3}, "has 3 rows for 4 classes"),
    ],
    ids=["softmax of what is not zero", "probit", "fewer rows than classes"],
)
def test_a_linear_classifier_that_is_no_plain_head_is_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ModelLoadError, match=message):
        icis_deploy.inspect(write(tmp_path / "model.onnx", **change))


def test_one_against_the_rest_is_refused_by_what_follows_the_head(tmp_path: Path):
    opened = icis_deploy.inspect(
        icis_deploy.ModelSource(spec=write(tmp_path / "model.onnx", transform="SOFTMAX"), head_node=None)
    )
    assert opened.obstacle is None

    with pytest.raises(ModelLoadError, match=r"Normalizer"):
        icis_deploy.inspect(write(tmp_path / "model.onnx", transform="LOGISTIC", normalised=True))


@pytest.mark.parametrize("kind", ["TreeEnsembleClassifier", "SVMClassifier"])
def test_classifiers_without_rows_are_named_for_what_they_are(tmp_path: Path, kind: str):
    attributes: dict[str, object] = {"classlabels_int64s": [0, 1], "post_transform": "NONE"}
    if kind == "TreeEnsembleClassifier":
        attributes |= {
            "nodes_treeids": [0, 0, 0],
            "nodes_nodeids": [0, 1, 2],
            "nodes_featureids": [0, 0, 0],
            "nodes_values": [0.0, 0.0, 0.0],
            "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
            "nodes_truenodeids": [1, 0, 0],
            "nodes_falsenodeids": [2, 0, 0],
            "class_treeids": [0, 0],
            "class_nodeids": [1, 2],
            "class_ids": [0, 1],
            "class_weights": [1.0, 1.0],
        }
    else:
        attributes = {
            "classlabels_ints": [0, 1],
            "kernel_type": "LINEAR",
            "coefficients": [1.0, -1.0],
            "support_vectors": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            "vectors_per_class": [1, 1],
            "rho": [0.0],
        }
    node = helper.make_node(kind, ["x"], ["label", "scores"], name="classifier", domain=ML, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)])
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())

    with pytest.raises(ModelLoadError, match=r"No head was found") as caught:
        icis_deploy.inspect(tmp_path / "model.onnx")

    what = "an ensemble of trees" if kind == "TreeEnsembleClassifier" else "a support vector machine"
    assert f"classifier ({kind}) is {what}" in str(caught.value)
    assert "if a runtime has optimized it" not in str(caught.value)
