import numpy as np

from benchmarks.zero_shot.base_head import train_base_head
from benchmarks.zero_shot.xlsa17 import Images
from icis_deploy.injection.rows.logits import head_logits


def separable_images(*, num_classes=5, num_images=20, feature_dim=16, noise=0.3, seed=0):
    random = np.random.default_rng(seed)
    means = random.normal(size=(num_classes, feature_dim))
    labels = np.repeat(np.arange(num_classes), num_images)
    features = means[labels] + random.normal(scale=noise, size=(len(labels), feature_dim))
    return Images(features=features.astype(np.float32) * 40, labels=labels)


def test_a_head_learns_what_can_be_learned():
    images = separable_images(num_images=60)

    head = train_base_head(images, num_classes=5, seed=0, max_epochs=20)

    right = head_logits(head.rows, images.features).argmax(axis=1) == images.labels
    assert right.mean() > 0.9
    assert head.rows.shape == (5, 17)
    assert head.held_out_accuracy > 0.9


def test_the_number_of_epochs_is_the_first_that_is_best_on_held_out_images():
    images = separable_images()
    # With labels that say nothing no epoch is better than another for long: the last one must not win by default.
    shuffled = Images(features=images.features, labels=np.random.default_rng(1).permutation(images.labels))

    heads = [train_base_head(shuffled, num_classes=5, seed=0, max_epochs=epochs) for epochs in (10, 20)]

    assert 1 <= heads[0].num_epochs <= 10
    assert heads[1].held_out_accuracy >= heads[0].held_out_accuracy
    if heads[0].num_epochs == heads[1].num_epochs:
        np.testing.assert_array_equal(heads[0].rows, heads[1].rows)


def test_a_seed_decides_the_head():
    first, again, other = (train_base_head(separable_images(), num_classes=5, seed=s, max_epochs=3) for s in (1, 1, 2))

    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)
