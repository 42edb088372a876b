"""A model of a bundle names no file but those of the manifest, whatever runtime would open it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from icis_deploy.bundle.external_weights import check_external_weights, external_locations
from icis_deploy.bundle.manifest import MANIFEST_NAME, MODEL_NAME, file_entry
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


def test_weights_that_the_manifest_lists_pass(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(next(places("model.onnx.data")).SerializeToString())

    check_external_weights(path, {"model.onnx": None, "model.onnx.data": None})
    with pytest.raises(BundleError, match=r"keeps weights in 'model\.onnx\.data'"):
        check_external_weights(path, {"model.onnx": None})
