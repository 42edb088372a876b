from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icis_deploy.demo.image_files import save_images
from icis_deploy.demo.network import PREPROCESSING
from icis_deploy.demo.rendering import render_classes
from icis_deploy.demo.world import make_world
from icis_deploy.errors import StorageError
from icis_deploy.images.loading import load_image_list, load_images


def test_the_list_and_the_images_are_read_back_as_they_were_drawn(tmp_path: Path) -> None:
    world = make_world(seed=0)
    names = world.unseen_names[:4]
    images, labels = render_classes(world.unseen[:4], 2, seed=1)
    listed = load_image_list(save_images(tmp_path, images, labels, names, list_name="images.csv"))
    assert listed.labels == tuple(names[label] for label in labels)
    for path, image in zip(listed.paths, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image)


def test_a_picture_on_disk_becomes_the_input_that_the_network_was_trained_on(tmp_path: Path) -> None:
    images, labels = render_classes(make_world(seed=0).seen[:2], 1, seed=1)
    listed = load_image_list(save_images(tmp_path, images, labels, ("a", "b"), list_name="images.csv"))
    expected = PREPROCESSING.normalize(images.astype(np.float32) / np.float32(255))
    assert np.array_equal(load_images(listed.paths, PREPROCESSING), expected)


def test_a_file_is_named_after_its_class(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    save_images(tmp_path, images, np.array([0, 0]), ["small red star"], list_name="images.csv")
    written = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert written == ["small-red-star-001.png", "small-red-star-002.png"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where a folder is expected")
    with pytest.raises(StorageError, match=r"Could not write the images to .*taken: Not a directory"):
        save_images(tmp_path / "taken", np.zeros((1, 4, 4, 3), np.uint8), np.array([0]), ["a"], list_name="images.csv")
