"""The ncnn target: heads written as layers, against the head in numpy, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.targets import ncnn_target
from exporters.targets.head_parts import HeadParts
from exporters.targets.ncnn_network import SCORES, Layer, parse_layers, serialize_layers, with_head
from exporters.targets.ncnn_target import ncnn_obstacle, write_ncnn
from icis_deploy.bundle.manifest import FEATURES, SCORE_KINDS, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT, load_bundle
from icis_deploy.errors import ExportError, IncompatibleError
from icis_deploy.runtime.sessions.protocol import SessionOutput, SlotBuffers
from icis_deploy.runtime.sessions.split_session import SplitSession
from testing.bundles import write_bundle

FEATURE_DIM, NUM_SEEN, NUM_NEW, CAPACITY = 7, 5, 3, 4


def head_of(kind: str, *, arbiter: bool, capacity: int, num_new: int = NUM_NEW, ties: bool = False) -> HeadParts:
    random = np.random.default_rng(3)
    rows = random.normal(size=(NUM_SEEN + num_new, FEATURE_DIM + 1)).astype(np.float32)
    if ties:
        rows[:NUM_SEEN] = 0
    return HeadParts(
        rows=rows,
        num_seen=NUM_SEEN,
        capacity=capacity,
        score_kind=kind,
        lengths=random.uniform(0.5, 2, size=NUM_SEEN).astype(np.float32) if arbiter else None,
        baked_arbiter=random.normal(size=(num_new, 5)).astype(np.float32) if arbiter else None,
    )


def in_ncnn(head: HeadParts, folder: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a head alone in ncnn, written to files and loaded from them."""
    ncnn = pytest.importorskip("ncnn")
    layers = with_head([Layer("Input", "in0", (), ("in0",))], "in0", head)
    (folder / "head.param").write_text(serialize_layers(layers))
    (folder / "head.bin").write_bytes(b"".join(layer.weights for layer in layers))
    network = ncnn.Net()
    network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = network.opt.use_fp16_packed = False
    assert network.load_param(str(folder / "head.param")) == 0
    assert network.load_model(str(folder / "head.bin")) == 0
    extractor = network.create_extractor()
    for name, array in feeds.items():
        assert extractor.input(name, ncnn.Mat(array).clone()) == 0
    return {name: np.array(extractor.extract(name)[1]) for name in (SCORES, FEATURES)}


def in_numpy(head: HeadParts, features: np.ndarray, slots: SlotBuffers | None) -> np.ndarray:
    backbone: Any = SimpleNamespace(run=lambda _images: SessionOutput(features, None))
    bundle: Any = SimpleNamespace(num_seen=head.num_seen, score_kind=head.score_kind, top=0)
    split = SplitSession(
        backbone, bundle, head.rows, slots=slots, baked_arbiter=head.baked_arbiter, lengths=head.lengths
    )
    return split.run(features).logits


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("arbiter", [False, True])
@pytest.mark.parametrize("capacity", [0, CAPACITY])
@pytest.mark.parametrize("num_new", [0, NUM_NEW])
def test_a_head_of_layers_computes_what_the_head_in_numpy_does(kind, arbiter, capacity, num_new, tmp_path):
    head = head_of(kind, arbiter=arbiter, capacity=capacity, num_new=num_new)
    random = np.random.default_rng(8)
    features = random.normal(size=(1, FEATURE_DIM)).astype(np.float32)
    weight, bias, coefficients = (
        random.normal(size=size).astype(np.float32) for size in ((CAPACITY, FEATURE_DIM), CAPACITY, (CAPACITY, 5))
    )
    bias[-1] = -6e4  # an empty slot
    feeds = {"in0": features[0]}
    slots = SlotBuffers(weight=weight, bias=bias, arbiter=coefficients if arbiter else None) if capacity else None
    if slots is not None:
        feeds |= {SLOT_WEIGHT: weight, SLOT_BIAS: bias} | ({SLOT_ARBITER: coefficients} if arbiter else {})

    found = in_ncnn(head, tmp_path, feeds)
    expected = in_numpy(head, features, slots)[0]
    np.testing.assert_allclose(found[SCORES], expected, rtol=2e-5, atol=1e-6 * max(1, np.abs(expected).max()))
    np.testing.assert_array_equal(found[FEATURES], features[0])


def test_statistics_are_finite_where_nothing_varies(tmp_path):
    head = head_of("logits", arbiter=True, capacity=0, ties=True)
    found = in_ncnn(head, tmp_path, {"in0": np.zeros(FEATURE_DIM, np.float32)})
    assert np.isfinite(found[SCORES]).all()


def test_every_blob_has_one_reader_and_the_text_reads_back():
    layers = with_head([Layer("Input", "in0", (), ("in0",))], "in0", head_of("logits", arbiter=True, capacity=CAPACITY))
    read = [blob for layer in layers for blob in layer.inputs]
    assert len(read) == len(set(read))
    known: set[str] = set()
    for layer in layers:
        assert set(layer.inputs) <= known
        known |= set(layer.outputs)
    text = serialize_layers(layers)
    assert text.split("\n")[1] == f"{len(layers)} {len(known)}"
    assert [replace(layer, weights=b"") for layer in layers] == parse_layers(text)


@pytest.mark.parametrize("text", ["", "1\n0 0\n", "7767517\n1 2\nSplit a 1 2 b c\n"])
def test_a_text_that_is_no_network_is_an_error(text):
    with pytest.raises(ValueError, match=r"begins with|states 3 blobs"):
        parse_layers(text)


def test_an_operator_that_ncnn_lacks_is_named_with_its_node(tmp_path):
    if (reason := ncnn_obstacle()) is not None:
        pytest.skip(reason)
    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    index, node = next((index, node) for index, node in enumerate(model.graph.node) if node.op_type == "Relu")
    (features,) = node.output
    node.output[0] = "before"
    model.graph.node.insert(index + 1, helper.make_node("Det", ["square"], ["one"], name="odd one"))
    model.graph.node.insert(
        index + 1, helper.make_node("MatMul", ["before_column", "before"], ["square"], name="outer")
    )
    model.graph.node.insert(index + 1, helper.make_node("Transpose", ["before"], ["before_column"], perm=[1, 0]))
    model.graph.node.insert(index + 4, helper.make_node("Mul", ["before", "one"], [features]))
    onnx.save(model, folder / "model.onnx")
    bundle = load_bundle(write_bundle(tmp_path / "like it"))

    with pytest.raises(ExportError, match=r"^ncnn does not know the operator Det \(node 'odd one'\)\. Leave this"):
        write_ncnn(folder, bundle)
    assert not (folder / "ncnn").exists()


def test_a_model_that_fixes_a_batch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ncnn_target, "find_pnnx", lambda: Path("pnnx"))
    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, folder / "model.onnx")
    bundle = load_bundle(write_bundle(tmp_path / "like it"))
    with pytest.raises(
        IncompatibleError, match=r"^ncnn takes one float32 image at a time; this model takes 2 of float32"
    ):
        write_ncnn(folder, bundle)
    assert not (folder / "ncnn").exists()


def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch):
    installed = {"ncnn"}
    monkeypatch.setattr(
        ncnn_target, "find_spec", lambda name: SimpleNamespace(origin=None) if name in installed else None
    )
    monkeypatch.setattr(ncnn_target.shutil, "which", lambda _name: None)
    assert ncnn_obstacle() == "the converter pnnx is not there: pip install pnnx"
    installed.clear()
    assert ncnn_obstacle() == "ncnn is not installed: pip install 'icis-deploy[ncnn]'."
