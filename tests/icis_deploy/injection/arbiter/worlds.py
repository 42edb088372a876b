"""A made-up world of classes whose rows follow from their descriptors, and images that are not all equally clear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.injection.arbiter.pretend_new import InjectedHead
from icis_deploy.injection.arbiter.seen_images import SeenImages, seen_images


def predict_ridge_rows(descriptors: np.ndarray, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Predict rows by ridge regression of deviations from the mean row."""
    mean = rows.mean(axis=0)
    gram = descriptors @ descriptors.T + 0.1 * np.eye(len(descriptors))
    return (mean + asked @ descriptors.T @ np.linalg.solve(gram, rows - mean)).astype(np.float32)


def predict_noise(descriptors: np.ndarray, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Predict rows that say nothing of any class."""
    random = np.random.default_rng(len(asked))
    return random.normal(size=(len(asked), rows.shape[1])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class World:
    """A head with injected classes, images to set a budget with, and others to measure with."""

    head: InjectedHead
    images: SeenImages
    test_features: np.ndarray
    test_labels: np.ndarray

    def shares(self, logits: np.ndarray) -> tuple[float, float]:
        """Return U, and the loss of seen accuracy, on the test images."""
        num_seen = len(self.head.rows)
        is_seen, answers = self.test_labels < num_seen, logits.argmax(axis=1)
        before = logits[:, :num_seen].argmax(axis=1)[is_seen] == self.test_labels[is_seen]
        is_right = answers == self.test_labels
        return float(is_right[~is_seen].mean()), float(before.mean() - is_right[is_seen].mean())


def made_up_world(*, num_seen: int = 100, num_new: int = 20, per_class: int = 6, seed: int = 0, predict=None) -> World:
    """Draw a world: class means are linear in descriptors and something of their own; images vary in contrast."""
    random = np.random.default_rng(seed)
    num_classes, feature_dim, descriptor_dim = num_seen + num_new, 64, 24
    descriptors = random.normal(size=(num_classes, descriptor_dim)).astype(np.float32)
    means = descriptors @ random.normal(size=(descriptor_dim, feature_dim)) / np.sqrt(descriptor_dim)
    means += 0.5 * random.normal(size=means.shape)
    rows = np.concatenate([means, -0.5 * (means**2).sum(axis=1, keepdims=True)], axis=1).astype(np.float32)

    def draw(classes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(classes, count)
        contrast = random.uniform(0.4, 1.6, size=(len(labels), 1))
        noise = 1.3 * random.normal(size=(len(labels), feature_dim))
        return (contrast * (means[labels] + noise)).astype(np.float32), labels

    predict = predict or predict_ridge_rows
    seen = np.arange(num_seen)
    features, labels = draw(seen, per_class)
    test_features, test_labels = draw(np.arange(num_classes), 20)
    new_rows = predict(descriptors[seen], rows[seen], descriptors[num_seen:])
    return World(
        head=InjectedHead(
            rows=rows[seen],
            descriptors=descriptors[seen],
            new_descriptors=descriptors[num_seen:],
            new_rows=new_rows,
            predict_rows=predict,
        ),
        images=seen_images(features, rows[seen], labels),
        test_features=test_features,
        test_labels=test_labels,
    )
