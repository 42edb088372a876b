import numpy as np
import pytest
from scipy.io import loadmat, savemat

from benchmarks.zero_shot.xlsa17 import hold_out, load_zero_shot_data
from icis_deploy.errors import LoadError
from tests.benchmarks.xlsa17_files import FEATURE_DIM, NUM_IMAGES, NUM_SEEN, NUM_UNSEEN, write_data_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("xlsa17") / "CUB")


def change(folder, out, name, **arrays):
    """Copy a data set with some arrays of one of its files replaced, or left out where they are None."""
    out.mkdir()
    for file in ("res101.mat", "att_splits.mat"):
        content = {key: value for key, value in loadmat(folder / file).items() if not key.startswith("__")}
        if file == name:
            content = {key: arrays.get(key, value) for key, value in content.items() if arrays.get(key, 0) is not None}
        savemat(out / file, content)
    return out


def test_images_and_attributes_are_those_of_the_files(folder):
    data = load_zero_shot_data(folder)
    features, splits = loadmat(folder / "res101.mat"), loadmat(folder / "att_splits.mat")
    names = [str(cell[0][0]) for cell in splits["allclasses_names"]]
    both = [*data.seen.class_names, *data.unseen.class_names]
    for part, location in (
        (data.trainval, "trainval_loc"),
        (data.test_seen, "test_seen_loc"),
        (data.test_unseen, "test_unseen_loc"),
    ):
        indices = splits[location].reshape(-1) - 1
        np.testing.assert_array_equal(part.features, features["features"].T[indices])
        wanted = [names[int(label) - 1] for label in features["labels"].reshape(-1)[indices]]
        assert [both[label] for label in part.labels] == wanted
    assert (data.name, data.seen.num_classes, data.unseen.num_classes) == ("CUB", NUM_SEEN, NUM_UNSEEN)
    assert data.trainval.features.shape[1] == FEATURE_DIM
    assert data.trainval.labels.max() == NUM_SEEN - 1
    assert set(data.test_unseen.labels) == set(range(NUM_SEEN, NUM_SEEN + NUM_UNSEEN))
    column = splits["att"][:, names.index(data.unseen.class_names[0])]
    np.testing.assert_allclose(data.unseen.values[0], column, rtol=1e-6)


def test_the_same_share_of_each_class_is_held_out_and_never_all_of_it():
    labels = np.repeat([0, 1, 2, 3], [20, 10, 2, 1])

    held = hold_out(labels, share=0.2, seed=3)

    assert [int(held[labels == label].sum()) for label in range(4)] == [4, 2, 1, 0]
    assert (held == hold_out(labels, share=0.2, seed=3)).all()
    assert (held != hold_out(labels, share=0.2, seed=4)).any()


@pytest.mark.parametrize(
    ("file", "arrays", "message"),
    [
        ("res101.mat", {"labels": None}, r"has no labels; expected features, labels"),
        ("att_splits.mat", {"trainval_loc": None}, "has no trainval_loc"),
        ("res101.mat", {"labels": np.ones((3, 1))}, "labels of 3"),
        ("res101.mat", {"labels": np.full((360, 1), 31.0)}, "up to number 31.*has 30 classes"),
        ("res101.mat", {"labels": np.zeros((360, 1))}, "does not hold whole numbers from 1 on"),
        ("att_splits.mat", {"test_unseen_loc": np.array([[361]])}, "test_unseen_loc is empty or names images beyond"),
        ("att_splits.mat", {"test_unseen_loc": np.zeros((0, 1))}, "test_unseen_loc is empty"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, tmp_path, file, arrays, message):
    with pytest.raises(LoadError, match=message):
        load_zero_shot_data(change(folder, tmp_path / "changed", file, **arrays))


def test_a_class_that_is_both_seen_and_unseen_is_refused(folder, tmp_path):
    splits = loadmat(folder / "att_splits.mat")
    mixed = np.concatenate([splits["test_unseen_loc"], splits["trainval_loc"][:1]])

    with pytest.raises(LoadError, match=r"'0\d\d.Class_\d+' is both seen and unseen"):
        load_zero_shot_data(change(folder, tmp_path / "changed", "att_splits.mat", test_unseen_loc=mixed))


def test_a_damaged_file_is_an_error_of_ours(folder, tmp_path):
    changed = change(folder, tmp_path / "changed", "res101.mat")
    (changed / "res101.mat").write_bytes((folder / "res101.mat").read_bytes()[:1000])

    with pytest.raises(LoadError, match=r"Cannot read the MATLAB file .*res101\.mat"):
        load_zero_shot_data(changed)


def test_the_files_of_the_test_are_as_large_as_it_says(folder):
    assert loadmat(folder / "res101.mat")["features"].shape == (FEATURE_DIM, (NUM_SEEN + NUM_UNSEEN) * NUM_IMAGES)
