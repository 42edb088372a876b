import tempfile

import numpy as np
import PIL.Image
import pytest

from exporters.backbone.inputs import NUM_SEEDED_INPUTS, SEED, input_batches, seeded_images
from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.errors import ImageError
from icis_deploy.images.neutral import neutral_images
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.sources import ListedValues

PREPROCESSING = Preprocessing(resize=None, crop=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def given(model_input: ModelInput, preprocessing: Preprocessing | None) -> np.ndarray:
    inputs = input_batches(model_input, preprocessing, None, fixed_batch=None)
    return np.concatenate([batch.given[: batch.count] for batch in inputs])


def model_input(shape: tuple[int, ...], dtype: str = "float32") -> ModelInput:
    return ModelInput(name="image", shape=shape, dtype=dtype)


@pytest.fixture(scope="module", params=[16, 260], ids=["kept", "too large to keep"])
def neutral(request: pytest.FixtureRequest) -> np.ndarray:
    return neutral_images(NUM_SEEDED_INPUTS, request.param, 8, seed=SEED)


def test_an_image_model_gets_the_same_ones_each_time_as_it_takes_them(neutral):
    _, channels, height, width = neutral.shape
    scaled = 2 * neutral - 1
    normalised = (neutral - np.array(PREPROCESSING.mean)[:, None, None]) / np.array(PREPROCESSING.std)[:, None, None]
    for _ in range(2):
        np.testing.assert_array_equal(given(model_input((channels, height, width)), None), scaled)
        np.testing.assert_allclose(given(model_input((channels, height, width)), PREPROCESSING), normalised, atol=1e-5)
        pixels = given(model_input((height, width, channels), "uint8"), PREPROCESSING)
        np.testing.assert_allclose(pixels.transpose(0, 3, 1, 2), 255 * neutral, atol=0.5001)


def test_a_model_of_other_things_gets_noise():
    inputs = given(model_input((7,)), None)

    assert inputs.shape == (NUM_SEEDED_INPUTS, 7)
    assert 0.5 < inputs.std() < 0.65


def test_seeded_pictures_begin_where_they_are_asked_to():
    whole = seeded_images((3, 16, 16), PREPROCESSING, num_inputs=6, seed=2)

    np.testing.assert_array_equal(seeded_images((3, 16, 16), PREPROCESSING, num_inputs=2, seed=2, first=4), whole[4:])


def test_what_is_too_large_to_keep_is_made_again_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr("exporters.backbone.inputs._KEPT_BYTES", 20 * 4 * 7)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    inputs = input_batches(model_input((7,)), None, ListedValues(values=values), fixed_batch=None)
    passes = [np.concatenate([batch.given for batch in inputs]) for _ in range(3)]

    for found in passes:
        np.testing.assert_array_equal(found, values)
    assert list(tmp_path.iterdir()) == []
    assert [len(batch.given) for batch in inputs] == [16, 16, 16, 2]


def test_an_image_that_vanishes_meanwhile_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("exporters.backbone.inputs._KEPT_BYTES", 0)
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for path in paths:
        PIL.Image.new("RGB", (16, 16)).save(path)
    inputs = input_batches(model_input((3, 16, 16)), PREPROCESSING, ListedValues(values=paths), fixed_batch=None)
    paths[17].unlink()

    with pytest.raises(ImageError, match=r"17\.png"):
        list(inputs)
