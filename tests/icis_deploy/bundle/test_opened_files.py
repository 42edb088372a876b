"""No runtime opens a file of a bundle that the manifest does not name, whatever runtime it is."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from icis_deploy.bundle.manifest import MANIFEST_NAME, MODEL_NAME, file_entry
from icis_deploy.bundle.opened_files import check_external_weights, external_locations
from icis_deploy.errors import BundleError
from icis_deploy.runtime.device import Device
from testing.bundles import write_bundle

OUTSIDE = ["/etc/passwd", "../secret.bin", "weights.bin", "sub/../../secret.bin", ""]


def external(name, location):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def places(location):
    """Yield models that name a file in each place where a tensor may be."""
    tensor = external("w", location)
    graph = helper.make_graph([], "inner", [], [], [tensor])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
    sparse = onnx.SparseTensorProto(values=tensor, dims=[1])
    yield helper.make_model(graph)
    yield helper.make_model(helper.make_graph([constant], "g", [], []))
    yield helper.make_model(helper.make_graph([branch], "g", [], []))
    yield helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))
    function = helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 20)])
    yield helper.make_model(helper.make_graph([], "g", [], []), functions=[function])
    training = helper.make_model(helper.make_graph([], "g", [], []))
    training.training_info.add().algorithm.CopyFrom(graph)
    yield training


@pytest.mark.parametrize("index", range(6))
def test_a_file_is_found_wherever_a_tensor_names_it(index):
    assert set(external_locations(list(places("a.bin"))[index].SerializeToString())) == {"a.bin"}


@pytest.mark.parametrize("location", OUTSIDE)
def test_a_model_that_names_a_file_outside_the_manifest_is_never_loaded(location, tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / MODEL_NAME)
    model.graph.initializer.append(external("stolen", location))
    (folder / MODEL_NAME).write_bytes(model.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    entry = file_entry(folder / MODEL_NAME)
    manifest["files"][MODEL_NAME] = {"sha256": entry.sha256, "size_bytes": entry.size_bytes}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="which is no file of the bundle's manifest") as raised:
        Device.open(folder)
    assert raised.value.found == location


def test_the_word_alone_is_nothing(tmp_path):
    model = helper.make_model(
        helper.make_graph([], "location", [], [], [numpy_helper.from_array(np.ones(3, np.float32), "location")])
    )

    assert list(external_locations(model.SerializeToString())) == []


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_a_model_that_is_cut_off_is_refused(cut):
    with pytest.raises(ValueError, match="it ends inside of"):
        list(external_locations(next(places("a.bin")).SerializeToString()[:-cut]))


@pytest.mark.parametrize("model", ["model.onnx", "triton/okapi/1/model.onnx"])
def test_weights_that_the_manifest_lists_next_to_their_model_pass(model, tmp_path):
    (tmp_path / model).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / model).write_bytes(next(places("weights.data")).SerializeToString())

    check_external_weights(tmp_path, model, {model: None, f"{model.removesuffix('model.onnx')}weights.data": None})
    with pytest.raises(BundleError, match=r"keeps weights in 'weights\.data'"):
        check_external_weights(tmp_path, model, {model: None, "other/weights.data": None})


@pytest.mark.parametrize("location", ["/etc/passwd", "../../../../secret.bin", "weights.bin", "./listed.data"])
def test_the_models_of_targets_name_no_other_files_either(location, tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    add_target(folder, {"triton/okapi/1/model.onnx": next(places(location)).SerializeToString(), "listed.data": b"x"})
    (tmp_path / "secret.bin").write_bytes(bytes(4))

    with pytest.raises(BundleError, match="which is no file of the bundle's manifest") as raised:
        Device.open(folder)
    assert raised.value.found == location


def test_a_compiled_model_that_lies_in_another_file_is_never_loaded(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    node = helper.make_node(
        "EPContext", ["image"], ["logits"], domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/passwd"
    )
    add_target(folder, {"compiled.onnx": helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()})

    with pytest.raises(BundleError, match="which is no file of the bundle's manifest") as raised:
        Device.open(folder)
    assert raised.value.found == "/etc/passwd"


@pytest.mark.parametrize("added", ["openvino/model.bin", "triton/okapi/2/model.onnx"])
def test_a_file_that_was_put_into_the_folder_of_a_target_is_noticed(added, tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    add_target(folder, {"openvino/model.xml": b"<net/>", "triton/okapi/1/model.onnx": b"", "triton/.marker": b""})
    Device.open(folder)

    (folder / "triton" / ".nfs0001").write_bytes(b"a hidden file that no runtime looks for")
    Device.open(folder)
    (folder / added).parent.mkdir(exist_ok=True)
    (folder / added).write_bytes(b"weights")
    with pytest.raises(
        BundleError, match="is in the folder of a target, and no file of the bundle's manifest"
    ) as raised:
        Device.open(folder)
    assert raised.value.found == added


def test_a_link_in_the_folder_of_a_target_is_noticed(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    add_target(folder, {"triton/okapi/1/model.onnx": b""})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx").write_bytes(b"")
    (folder / "triton" / "okapi" / "2").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleError, match="is in the folder of a target"):
        Device.open(folder)


def add_target(folder, files):
    """Write files into a bundle and its manifest."""
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        entry = file_entry(folder / name)
        manifest["files"][name] = {"sha256": entry.sha256, "size_bytes": entry.size_bytes}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
