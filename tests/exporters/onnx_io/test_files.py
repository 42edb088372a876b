"""ONNX files: what is loaded, what is refused and how that reads, what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head, read_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from exporters.onnx_io import files as onnx_files
from exporters.onnx_io.files import load_onnx_file, save_model, serialize_model, weights_bytes
from icis_deploy.errors import ExportError, ModelLoadError, StorageError
from tests.exporters.head_graphs import GRAPHS, parsed_model, rows, run_model

NAMES = tuple(f"class {index}" for index in range(5))
GEMM = GRAPHS["gemm"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An ONNX file on disk."""
    file = tmp_path / "model.onnx"
    save_model(GEMM.model(*rows(0)), file)
    return file


def write(path: Path, text: str, *, keep_inputs: bool = False, **weights: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    if keep_inputs:
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
            for name, array in weights.items()
        )
    onnx.save(proto, path)
    return path


def test_a_saved_model_computes_the_same(path: Path):
    loaded = load_onnx_file(path)

    images = GEMM.images(0)
    np.testing.assert_array_equal(
        run_model(loaded, x=images)["logits"], run_model(GEMM.model(*rows(0)), x=images)["logits"]
    )
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_missing_file_is_named():
    with pytest.raises(ModelLoadError, match=r"There is no model file nowhere/model\.onnx\. Check the path\."):
        load_onnx_file(Path("nowhere/model.onnx"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_in_one_line(path: Path, share: float):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(ModelLoadError) as caught:
        load_onnx_file(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 a zip file, not a protobuf", bytes(range(256)) * 10])
def test_a_file_that_is_no_onnx_is_refused_in_one_line(path: Path, content: bytes):
    path.write_bytes(content)

    with pytest.raises(ModelLoadError) as caught:
        load_onnx_file(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_external_weights_are_read_edited_and_taken_into_one_file(tmp_path: Path):
    model = GEMM.model(*rows(0))
    ir.save(model, tmp_path / "big.onnx", external_data="big.data", size_threshold_bytes=0)
    loaded = load_onnx_file(tmp_path / "big.onnx")
    location = find_head(loaded)
    head = read_head(loaded, location, NAMES)
    folder = tmp_path / "out"
    folder.mkdir()

    save_model(apply_passes(loaded, AddSlotsPass(location, 3)), folder / "model.onnx")

    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    np.testing.assert_array_equal(head.weight, rows(0)[0])
    images = GEMM.images(1)
    updatable = run_model(load_onnx_file(folder / "model.onnx"), x=images)["logits"]
    np.testing.assert_array_equal(updatable[:, :5], run_model(model, x=images)["logits"])


def test_missing_external_weights_are_named(tmp_path: Path):
    ir.save(GEMM.model(*rows(0)), tmp_path / "big.onnx", external_data="big.data", size_threshold_bytes=0)
    (tmp_path / "big.data").unlink()

    with pytest.raises(ModelLoadError, match=r"big\.data"):
        load_onnx_file(tmp_path / "big.onnx")


def test_external_weights_outside_the_models_folder_are_refused(tmp_path: Path):
    inside = tmp_path / "inside"
    inside.mkdir()
    ir.save(GEMM.model(*rows(0)), inside / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    (inside / "model.data").rename(tmp_path / "secret.data")
    proto = onnx.load(inside / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../secret.data"
    onnx.save(proto, inside / "model.onnx")

    with pytest.raises(ModelLoadError, match=r"\.\./secret\.data"):
        load_onnx_file(inside / "model.onnx")


def test_a_model_over_the_limit_of_protobuf_gets_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = GEMM.model(*rows(0))
    location = find_head(model)
    fused = apply_passes(model, FuseHeadPass(location, read_head(model, location, NAMES)))
    monkeypatch.setattr(onnx_files, "MAX_PROTOBUF_BYTES", 300)
    monkeypatch.setattr(onnx_files, "_GRAPH_BYTES", 250)
    monkeypatch.setattr(onnx_files, "_MIN_EXTERNAL_BYTES", 0)

    written = save_model(fused, tmp_path / "model.onnx")
    monkeypatch.undo()

    assert [file.name for file in written] == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx.data").stat().st_size == weights_bytes(fused)
    images = GEMM.images(1)
    np.testing.assert_allclose(
        run_model(load_onnx_file(tmp_path / "model.onnx"), x=images)["logits"],
        run_model(model, x=images)["logits"],
        rtol=1e-6,
    )


def test_bytes_that_no_protobuf_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_files, "MAX_PROTOBUF_BYTES", 99)

    with pytest.raises(ExportError, match="The model holds 100 bytes of weights; one protobuf holds 99"):
        serialize_model(GEMM.model(*rows(0)))


def test_a_folder_that_is_not_there_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(StorageError, match="Could not write"):
        save_model(GEMM.model(*rows(0)), tmp_path / "nowhere" / "model.onnx")

    assert list(tmp_path.iterdir()) == []


def test_an_old_opset_is_converted_and_computes_the_same(tmp_path: Path):
    path = write(
        tmp_path / "old.onnx",
        """<ir_version: 4, opset_import: ["": 9]> g (float[batch, 4, 3, 3] x) => (float[batch, 5] y) {
            pooled = GlobalAveragePool (x)
            map = Conv (pooled, w, b)
            flat = Squeeze <axes = [2, 3]> (map)
            y = Softmax <axis = 1> (flat)
        }""",
        w=rows(0)[0][:, :, None, None],
        b=rows(0)[1],
    )
    images = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)

    model = load_onnx_file(path)

    location = find_head(model)
    head = read_head(model, location, NAMES).expand(np.ones((1, 5)), ["new"])
    assert model.opset_imports[""] == 13
    assert (location.kind, location.num_classes) == ("conv", 5)
    logits = head.logits(images.mean(axis=(2, 3)))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        run_model(apply_passes(model, FuseHeadPass(location, head)), x=images)["y"], expected, rtol=1e-5
    )


def test_an_opset_that_is_too_old_is_refused_in_one_line(tmp_path: Path):
    path = write(
        tmp_path / "ancient.onnx",
        '<ir_version: 3, opset_import: ["": 6]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }',
    )

    with pytest.raises(ModelLoadError) as caught:
        load_onnx_file(path)

    assert str(caught.value) == (
        f"{path} uses ONNX opset 6, which is too old: expected 7 or newer. Export it again with opset 13 or newer."
    )


def test_an_old_opset_that_cannot_be_converted_is_refused_in_one_line(tmp_path: Path):
    path = write(
        tmp_path / "old.onnx",
        """<ir_version: 4, opset_import: ["": 7]> g (float[batch, 2] x) => (float[batch, 2] y)
            <float[2] one = {1, 1}> {
            y = BatchNormalization <spatial = 0> (x, one, one, one, one)
        }""",
    )

    with pytest.raises(ModelLoadError, match=r"uses ONNX opset 7 and cannot be converted to 13: .*spatial") as caught:
        load_onnx_file(path)

    assert "\n" not in str(caught.value)


def test_weights_that_ir_3_lists_as_inputs_are_weights(tmp_path: Path):
    path = write(
        tmp_path / "ir3.onnx",
        """<ir_version: 3, opset_import: ["": 8]> g (float[batch, 4] x) => (float[batch, 5] y) {
            y = Gemm <transB = 1> (x, w, b)
        }""",
        keep_inputs=True,
        w=rows(0)[0],
        b=rows(0)[1],
    )

    model = load_onnx_file(path)

    assert [value.name for value in model.graph.inputs] == ["x"]
    updatable = apply_passes(model, AddSlotsPass(find_head(model), 2))
    onnx.checker.check_model(ir.to_proto(updatable))
    assert run_model(updatable, x=GEMM.images(0))["y"].shape == (3, 7)


def test_a_head_inside_a_function_is_found(tmp_path: Path):
    path = write(
        tmp_path / "functions.onnx",
        """<ir_version: 10, opset_import: ["": 20, "local": 1]> g (float[batch, 4] x) => (float[batch, 5] y) {
            y = local.Classifier (x, w, b)
        }
        <domain: "local", opset_import: ["": 20]> Classifier (features, weight, bias) => (logits) {
            positive = Relu (features)
            logits = Gemm <transB = 1> (positive, weight, bias)
        }""",
        w=rows(0)[0],
        b=rows(0)[1],
    )

    model = load_onnx_file(path)

    assert find_head(model).weight_name == "w"


def test_nodes_without_names_are_called_as_a_viewer_shows_them():
    model = parsed_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[batch, 4] x) => (float[batch, 5] y) {
            h = Relu (x)
            y = MatMul (h, w)
        }""",
        w=np.ones((4, 5), dtype=np.float32),
    )

    assert [node.name for node in model.graph] == ["h", "y"]


def test_a_graph_in_any_order_is_put_in_order(tmp_path: Path):
    proto = ir.to_proto(GEMM.model(*rows(0)))
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "unsorted.onnx")

    model = load_onnx_file(tmp_path / "unsorted.onnx")

    assert [node.op_type for node in model.graph] == ["Relu", "Gemm"]
    assert find_head(model).certainty == "certain"


def test_a_graph_that_the_checker_refuses_says_what_the_checker_says(tmp_path: Path):
    proto = ir.to_proto(GEMM.model(*rows(0)))
    proto.graph.node[1].attribute[0].name = "transC"
    onnx.save(proto, tmp_path / "invalid.onnx")

    with pytest.raises(ModelLoadError, match=r"invalid\.onnx is not a valid ONNX model: .*transC") as caught:
        load_onnx_file(tmp_path / "invalid.onnx")

    assert "\n" not in str(caught.value)


def test_an_output_without_a_shape_is_named(tmp_path: Path):
    proto = ir.to_proto(GEMM.model(*rows(0)))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "shapeless.onnx")

    with pytest.raises(ModelLoadError, match="the output 'logits' states no shape"):
        load_onnx_file(tmp_path / "shapeless.onnx")


def test_external_weights_that_are_cut_off_are_refused(tmp_path: Path):
    model = parsed_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[b, 64] x) => (float[b, 9] y) { y = MatMul (x, w) }',
        w=np.ones((64, 9), dtype=np.float32),
    )
    ir.save(model, tmp_path / "big.onnx", external_data="big.data", size_threshold_bytes=0)
    (tmp_path / "big.data").write_bytes(b"\0" * 100)

    with pytest.raises(ModelLoadError, match=r"keeps the weight 'w' in big\.data, which cannot be read") as caught:
        load_onnx_file(tmp_path / "big.onnx")

    assert "the file has 100 bytes, and the weight ends at byte 2304" in str(caught.value)
    assert "It was cut short, or belongs to another export" in str(caught.value)
    assert "next to the model" not in str(caught.value)
    assert (caught.value.found, caught.value.where) == (100, "big.data")


@pytest.mark.parametrize("dims", [(-1, -1), (0, 0), ("-1", "0"), (-1, 0)])
def test_a_dimension_that_is_no_positive_number_is_open(tmp_path: Path, dims: tuple[int | str, int | str]):
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 5] y) { y = MatMul (x, w) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 5), dtype=np.float32), "w"))
    for value, dim in zip((*proto.graph.input, *proto.graph.output), dims, strict=True):
        entry = value.type.tensor_type.shape.dim[0]
        entry.Clear()
        if isinstance(dim, int):
            entry.dim_value = dim
        else:
            entry.dim_param = dim
    file = tmp_path / "model.onnx"
    file.write_bytes(proto.SerializeToString())

    model = load_onnx_file(file)

    shapes = [value.shape for value in (*model.graph.inputs, *model.graph.outputs)]
    assert all(shape is not None and isinstance(shape[0], ir.SymbolicDim) for shape in shapes)
    assert all(shape is not None and not str(shape[0]).lstrip("-").isdigit() for shape in shapes)
    assert run_model(model, x=np.ones((3, 4), dtype=np.float32))["y"].shape == (3, 5)


@pytest.mark.parametrize("stated", [[None, 1000], [1, 1000], [None, 5, 1], [], [None, None]])
def test_shapes_that_a_file_states_and_its_graph_does_not_have_do_not_count(tmp_path: Path, stated: list[int | None]):
    file = write(
        tmp_path / "model.onnx",
        """<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 5] y) {
            h = Relu (x)
            logits = MatMul (h, w)
            y = Softmax (logits)
        }""",
        w=rows(0)[0].T,
    )
    proto = onnx.load(file)
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, stated))
    for name in ("h", "logits"):
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 7]))
    onnx.save(proto, file)
    images, new = GEMM.images(0), np.ones((1, 5), dtype=np.float32)

    model = load_onnx_file(file)

    location = find_head(model)
    head = read_head(model, location, NAMES).expand(new, ["new"])
    fused = apply_passes(model, FuseHeadPass(location, head))
    (scores,) = run_model(fused, x=images).values()
    ends = [list(shape)[1:] for node in model.graph if (shape := node.outputs[0].shape) is not None]
    assert ends == [[4], [5], [5]]
    assert scores.shape == (3, 6)
    (seen,) = run_model(model, x=images).values()
    assert np.allclose(scores[:, :5] / scores[:, :5].sum(axis=1, keepdims=True), seen, atol=1e-6)


def test_a_shape_that_does_not_follow_from_the_inputs_is_taken_as_it_is_stated(tmp_path: Path):
    file = write(
        tmp_path / "model.onnx",
        """<ir_version: 8, opset_import: ["": 17, "com.example": 1]> g (float[n, 4] x) => (float[n, 5] y) {
            h = com.example.Embed (x)
            r = Relu (h)
            y = MatMul (r, w)
        }""",
        w=rows(0)[0].T,
    )
    proto = onnx.load(file)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["n", 4]))
    onnx.save(proto, file)

    model = load_onnx_file(file)

    shapes = {node.op_type: node.outputs[0].shape for node in model.graph}
    assert [str(shape) for shape in shapes.values()] == ["[n,4]", "[n,4]", "[n,5]"]


def test_a_valid_file_that_cannot_be_edited_is_not_called_truncated(tmp_path: Path):
    entry = onnx.helper.make_map_type_proto(
        onnx.TensorProto.STRING, onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    )
    vectorizer = onnx.helper.make_node(
        "DictVectorizer", ["x"], ["v"], domain="ai.onnx.ml", string_vocabulary=["a", "b", "c", "d"]
    )
    graph = onnx.helper.make_graph(
        [vectorizer, onnx.helper.make_node("Softmax", ["v"], ["y"])],
        "g",
        [onnx.helper.make_value_info("x", entry)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())

    with pytest.raises(ModelLoadError, match="It is valid ONNX, of a kind that cannot be edited here") as caught:
        load_onnx_file(file)

    assert "truncated" not in str(caught.value)
