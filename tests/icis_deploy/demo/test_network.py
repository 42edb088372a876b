from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from icis_deploy.demo.network import (
    PREPROCESSING,
    DemoNetwork,
    export_program,
    one_thread,
    predict_logits,
    train_network,
)
from icis_deploy.demo.rendering import IMAGE_SIZE, render_classes
from icis_deploy.demo.world import DemoClass
from icis_deploy.errors import StorageError

CLASSES = tuple(
    DemoClass(size="large", outline="bare", texture="plain", colour=colour, shape=shape)
    for colour in ("red", "green", "blue")
    for shape in ("circle", "star")
)


@pytest.fixture(scope="module")
def trained() -> DemoNetwork:
    images, labels = render_classes(CLASSES, 40, seed=1)
    return train_network(images, labels, num_classes=len(CLASSES), seed=0, num_epochs=16)


@pytest.fixture
def random_state_kept() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


def test_a_short_training_learns_classes_from_images_it_did_not_see(trained: DemoNetwork) -> None:
    images, labels = render_classes(CLASSES, 10, seed=2)
    accuracy = (predict_logits(trained, images).argmax(axis=1) == labels).mean()
    assert accuracy > 0.6  # chance is 0.17


def test_training_ends_in_evaluation_mode_with_a_linear_head(trained: DemoNetwork) -> None:
    assert not trained.training
    assert isinstance(trained.head, torch.nn.Linear)
    assert trained.head.weight.shape == (len(CLASSES), 128)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    images, labels = render_classes(CLASSES, 8, seed=1)
    first, again, other = (
        train_network(images, labels, num_classes=len(CLASSES), seed=seed, num_epochs=1).head.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_leaves_the_random_state_and_the_number_of_threads(random_state_kept: None) -> None:
    images, labels = render_classes(CLASSES[:2], 4, seed=1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    num_threads = torch.get_num_threads()
    train_network(images, labels, num_classes=2, seed=0, num_epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == num_threads


def test_one_thread_is_used_inside_and_what_was_there_is_restored_after_a_failure() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_epoch_is_reported_once_with_its_loss() -> None:
    images, labels = render_classes(CLASSES[:2], 8, seed=1)
    reported: list[tuple[int, float]] = []
    train_network(
        images, labels, num_classes=2, seed=0, num_epochs=3, on_epoch=lambda epoch, loss: reported.append((epoch, loss))
    )
    assert [epoch for epoch, _ in reported] == [1, 2, 3]
    assert all(np.isfinite(loss) for _, loss in reported)


def test_the_saved_program_gives_the_same_logits_for_any_batch(trained: DemoNetwork, tmp_path: Path) -> None:
    export_program(trained, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    images, _ = render_classes(CLASSES, 1, seed=3)
    for batch in (1, 5):
        inputs = torch.from_numpy(PREPROCESSING.normalize(images[:batch].astype(np.float32) / np.float32(255)))
        with torch.no_grad():
            logits = program.module()(inputs).numpy()
        np.testing.assert_allclose(logits, predict_logits(trained, images[:batch]), atol=1e-5)
    assert program.graph_signature.user_inputs == ("image",)


def test_the_network_takes_what_the_preprocessing_makes() -> None:
    assert PREPROCESSING.input_shape == (3, IMAGE_SIZE, IMAGE_SIZE)


def test_a_program_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Could not write .*model\.pt2: No such file or directory"):
        export_program(DemoNetwork(num_classes=3), tmp_path / "nowhere" / "model.pt2")
