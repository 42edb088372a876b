from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.backbone import features as backbone_features
from exporters.backbone.features import NUM_NEUTRAL_IMAGES, neutral_features
from exporters.backbone.inputs import seeded_images
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from testing.tiny_project import FEATURE_DIM, SIDE, TinyProject


@pytest.fixture(scope="module")
def preprocessing(tiny_project: TinyProject) -> Preprocessing:
    return load_preprocessing(tiny_project.preprocess)


def opened(project: TinyProject, folder: Path, batch: int | str) -> OpenedModel:
    """The tiny model with another batch dimension."""
    model = onnx.load(project.model)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    if isinstance(batch, int):
        dimension.dim_value = batch
    else:
        dimension.dim_param = batch
    onnx.save(model, folder / "model.onnx")
    return inspect(folder / "model.onnx", classes=project.classes)


def features_of(model: OpenedModel, preprocessing: Preprocessing, seed: int = 0) -> np.ndarray:
    found = neutral_features(model.loaded, model.location, preprocessing=preprocessing, seed=seed)
    assert found is not None
    return found


@pytest.mark.parametrize("batch", ["batch", 1, 3, 48, 200])
def test_features_are_those_of_the_first_pictures_in_order_whatever_batch_the_model_takes(
    batch, tiny_project, preprocessing, tmp_path
):
    model = opened(tiny_project, tmp_path, batch)
    neutral = seeded_images((3, SIDE, SIDE), preprocessing, num_inputs=NUM_NEUTRAL_IMAGES, seed=4)

    found = features_of(model, preprocessing, seed=4)

    assert found.shape == (NUM_NEUTRAL_IMAGES, FEATURE_DIM)
    expected = backbone_features.backbone_features(model.loaded, model.location, [neutral])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_cores", [1, 2, 7])
def test_features_do_not_depend_on_how_many_cores_there_are(
    num_cores, tiny_project, preprocessing, tmp_path, monkeypatch
):
    model = opened(tiny_project, tmp_path, "batch")
    expected = features_of(model, preprocessing)

    monkeypatch.setattr(backbone_features, "_num_usable_cores", lambda: num_cores)

    np.testing.assert_array_equal(features_of(model, preprocessing), expected)


@pytest.mark.parametrize("changes", [{"layout": "NHWC"}, {"color": "L", "mean": (0.5,), "std": (0.25,)}])
def test_a_model_that_takes_no_such_pictures_has_no_neutral_features(changes, tiny_project, preprocessing, tmp_path):
    model = opened(tiny_project, tmp_path, "batch")
    other = replace(preprocessing, **changes)

    assert neutral_features(model.loaded, model.location, preprocessing=other, seed=0) is None


def test_a_model_that_cannot_be_run_has_no_neutral_features(tiny_project, preprocessing, tmp_path):
    model = onnx.load(tiny_project.model)
    model.opset_import.append(onnx.helper.make_opsetid("nobody.has", 1))
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Relu", ["maps"], ["positive"], domain="nobody.has"))
    onnx.save(model, tmp_path / "model.onnx")
    unknown = inspect(tmp_path / "model.onnx", classes=tiny_project.classes)

    assert neutral_features(unknown.loaded, unknown.location, preprocessing=preprocessing, seed=0) is None
