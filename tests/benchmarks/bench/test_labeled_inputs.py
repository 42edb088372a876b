"""Labelled images and features, in every form that a user may have them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.bench.labeled_inputs import LabeledFeatures, load_labeled
from icis_deploy.errors import ImageError
from icis_deploy.images.loading import ListedImages

FEATURES = np.arange(6, dtype=np.float32).reshape(3, 2)
LABELS = ("okapi", "zebra", "okapi")


def test_a_csv_and_a_folder_of_folders_give_the_same_images(tiny_project, tmp_path):
    listed = load_labeled(tiny_project.images)
    for path, label in zip(listed.paths, listed.labels, strict=True):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / path.name).write_bytes(path.read_bytes())
    (tmp_path / "class00" / "notes.txt").write_text("no image")
    found = load_labeled(tmp_path)

    assert isinstance(found, ListedImages)
    assert sorted(found.labels) == sorted(listed.labels)
    assert {path.parent.name for path in found.paths} == set(listed.labels)


def test_features_are_read_from_npz_and_safetensors(tmp_path):
    np.savez(tmp_path / "features.npz", features=FEATURES, labels=np.array(LABELS))
    save_file({"features": FEATURES}, tmp_path / "features.safetensors", metadata={"labels": json.dumps(LABELS)})

    for name in ("features.npz", "features.safetensors"):
        found = load_labeled(tmp_path / name)
        assert isinstance(found, LabeledFeatures)
        assert found.labels == LABELS
        np.testing.assert_array_equal(found.features, FEATURES)


def test_arrays_that_the_models_take_are_inputs_and_no_features(tmp_path):
    np.savez(tmp_path / "inputs.npz", inputs=FEATURES, features=FEATURES, labels=np.array(LABELS))
    save_file({"inputs": FEATURES}, tmp_path / "inputs.safetensors", metadata={"labels": json.dumps(LABELS)})

    for given in (tmp_path / "inputs.npz", tmp_path / "inputs.safetensors", (FEATURES, LABELS)):
        found = load_labeled(given)
        assert not isinstance(found, LabeledFeatures)
        assert found.labels == LABELS
        np.testing.assert_array_equal(np.stack([item.value for item in found]), FEATURES)
    with pytest.raises(ImageError, match="Nothing says which classes the 3 inputs"):
        load_labeled(FEATURES)


def test_a_list_at_a_uri_names_the_files_beside_it(tiny_project):
    pytest.importorskip("fsspec", reason="needs the extra data")
    on_disk = load_labeled(tiny_project.images)

    found = load_labeled(f"file://{tiny_project.images}")

    assert found.labels == on_disk.labels
    assert [str(path) for path in found.paths] == [f"file://{path}" for path in on_disk.paths]


def test_arrays_at_a_uri_are_refused_with_what_is_read_there(tmp_path):
    np.savez(tmp_path / "inputs.npz", inputs=FEATURES, labels=np.array(LABELS))

    with pytest.raises(ImageError, match=r"only lists, \.parquet and \.tar files are read from a URI"):
        load_labeled(f"file://{tmp_path}/inputs.npz")


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(
        ImageError,
        match=r"no image in the folder .*, nor in the folders that it holds; expected one folder for each class",
    ):
        load_labeled(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"features": FEATURES},
        {"features": FEATURES, "labels": np.array(LABELS[:2])},
        {"features": FEATURES[0], "labels": np.array(LABELS)},
        {"features": np.full((3, 2), np.nan), "labels": np.array(LABELS)},
        {"features": FEATURES, "labels": np.array([1, 2, 3])},
        {"features": np.array([[object()] * 2] * 3), "labels": np.array(LABELS)},
    ],
    ids=["no labels", "too few labels", "a vector", "NaN", "numbers for names", "a pickle"],
)
def test_features_that_do_not_fit_are_refused_with_their_path(arrays, tmp_path):
    np.savez(tmp_path / "features.npz", **arrays)

    with pytest.raises(ImageError, match=r"features\.npz"):
        load_labeled(tmp_path / "features.npz")


@pytest.mark.parametrize("name", ["features.npz", "features.safetensors"])
def test_a_file_that_is_something_else_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"something else, longer than a header")

    with pytest.raises(ImageError, match="Cannot read the inputs"):
        load_labeled(tmp_path / name)
