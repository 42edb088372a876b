"""A model that takes batches of one size answers for any number of images, in every runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import icis_deploy
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.images.loading import load_image_list
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.fixed_batch import fetch_in_batches, fixed_batch_of
from icis_deploy.updates.envelope import save_update
from testing.tiny_project import TinyProject
from tests.exporters.conversion.test_device_work import update_for

BATCH, CAPACITY, TOP = 3, 4, 2


@pytest.fixture(scope="module")
def fixed(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a model that takes three images and no other number."""
    pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    folder = tmp_path_factory.mktemp("fixed")
    model = onnx.load(tiny_project.model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = BATCH
    onnx.save(model, folder / "model.onnx")
    icis_deploy.export(
        folder / "model.onnx",
        classes=tiny_project.classes,
        options=icis_deploy.ExportOptions(
            preprocess=tiny_project.preprocess,
            head="updatable",
            capacity=CAPACITY,
            form=ModelForm(top=TOP, model_input="uint8"),
            targets=["openvino"],
        ),
        out=folder / "bundle",
    )
    return folder / "bundle"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_of_images_is_answered_one_by_one_and_all_at_once(
    runtime: str, fixed: Path, tiny_project: TinyProject
) -> None:
    device = Device.open(fixed, runtime=runtime, num_threads=1)
    files = load_image_list(tiny_project.images).paths[:7]
    images = device.prepare(files)
    together = device.logits(images).values
    assert together.shape == (7, 40)
    for count in (1, 2, BATCH, 4):
        np.testing.assert_allclose(device.logits(images[:count]).values, together[:count], atol=1e-5)
    for top in (1, TOP, TOP + 3):
        alone = [device.predict([file], top=top)[0].class_names for file in files]
        assert [answer.class_names for answer in device.predict(files, top=top)] == alone


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_class_update_is_self_tested_and_taken(
    runtime: str, fixed: Path, tiny_project: TinyProject, tmp_path: Path
) -> None:
    bundle = shutil.copytree(fixed, tmp_path / "bundle")
    device = Device.open(bundle, runtime=runtime, num_threads=1)
    save_update(update_for(tiny_project.model, tiny_project), tmp_path / "new.icis")
    assert device.apply(tmp_path / "new.icis", allow_unsigned=True).changed
    assert device.classes()[-2:] == ("okapi", "quagga")


def test_only_whole_batches_reach_the_model_and_what_fills_them_up_is_dropped() -> None:
    seen = []

    def fetch(batch: np.ndarray) -> list[np.ndarray]:
        seen.append(batch.ravel().tolist())
        return [batch + 1, batch * 2]

    images = np.arange(5.0).reshape(5, 1)
    first, second = fetch_in_batches(fetch, images, 2)
    assert seen == [[0, 1], [2, 3], [4, 4]]
    np.testing.assert_array_equal(first, images + 1)
    np.testing.assert_array_equal(second, images * 2)


@pytest.mark.parametrize("batch", [None, 5])
def test_what_fits_is_run_as_it_is(batch: int | None) -> None:
    images = np.zeros((5, 1))
    (found,) = fetch_in_batches(lambda given: [given], images, batch)
    assert found is images


@pytest.mark.parametrize(("size", "expected"), [(3, 3), ("batch", None), (None, None), (-1, None)])
def test_only_a_number_is_a_fixed_batch(size: object, expected: int | None) -> None:
    assert fixed_batch_of(size) == expected
